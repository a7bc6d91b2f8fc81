"""Costs of a policy: exact, differentiable and estimated on a simulated accelerator; and the budgets that limit them.

`counter` prices a policy exactly. `relaxed` has the differentiable costs of searches. `accelerator` estimates latency
and energy. A `Measure` (`measures`) is one kind of cost with all its forms, and a `Budget` (`budget`) limits a measure.
Names are loaded when they are first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
