"""The class of a method, registered or in a file, and whether it is one."""

import inspect
from typing import Any

from bench.errors import BenchError
from bench.method import Capabilities, Method
from bench.plugins.registry import load

_GUIDE = "docs/adding-a-method.md"


def method_class(name: str, place: str | None = None) -> type[Method]:
    """The class of a method.

    Args:
        name: The method's name.
        place: `/path/file.py:Class` for a method in a file.

    Raises:
        BenchError: There is none, it cannot be loaded, or it is not what a method must be.
    """
    kind: Any = load("methods", place or name)
    fault = _fault(kind)
    if fault is not None:
        raise BenchError(f"method '{name}'{f' ({place})' if place else ''} {fault}; see {_GUIDE}")
    found: type[Method] = kind
    return found


def _fault(kind: Any) -> str | None:
    """Why something is no method; `None` when it is one."""
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        return "is not a subclass of bench.method.Method"
    if inspect.isabstract(kind):
        return f"does not define {', '.join(sorted(kind.__abstractmethods__))}"
    if not isinstance(getattr(kind, "capabilities", None), Capabilities):
        return "has no class attribute 'capabilities' of type bench.method.Capabilities"
    return None
