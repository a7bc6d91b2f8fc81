"""Everything that a method, data set, model or report in a file of your own needs: `from bench.api import …`.

Names are loaded when they are first used. `api.pyi` beside this file lists them and tells type checkers where each is
defined.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub("bench", __file__)
