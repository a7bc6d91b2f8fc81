from .bitfusion import Execution as Execution
from .bitfusion import execute as execute
from .hardware import Hardware as Hardware
from .hardware import read_hardware as read_hardware
from .pricing import AcceleratorCost as AcceleratorCost
from .pricing import price_on as price_on
from .tiling import Loops as Loops
