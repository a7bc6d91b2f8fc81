"""Data: what a data set must provide, its split into parts, and batches on the training device.

A `Dataset` loads `Contents`, images and labels in memory (`dataset`) or in files (`image_loading`). A `Subset`
(`subset`) is some of the images; `TaskData` (`task_data`) holds the training, validation and test subsets of a task.
Names are loaded when they are first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
