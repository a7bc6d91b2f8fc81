"""Training and evaluation, and the checkpoints from which interrupted training continues.

`loop` has the training loop, evaluation and the optimizer. A `Stage` (`checkpoints`) is a loop over epochs that keeps
checkpoints. A `Forward` (`forward`) prepares networks for training: compiled or not, in single precision or bfloat16.
Names are loaded when they are first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
