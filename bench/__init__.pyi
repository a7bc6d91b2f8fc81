from bench.errors import BenchError as BenchError
from bench.export.rebuild import load_network as load_network
from bench.interface.comparing import compare as compare
from bench.interface.pricing import price as price
from bench.interface.study import Study as Study

__version__: str
