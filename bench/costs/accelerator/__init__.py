"""The simulated accelerator: time and energy that a layer or a network takes there.

`hardware` describes the accelerator, `tiling` the ways to cut a layer into tiles, `bitfusion` executes one layer, and
`pricing` a network under a policy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
