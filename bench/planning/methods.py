"""Methods by name: their classes, and instances with validated options."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bench.errors import BenchError
from bench.method import Capabilities, Method
from bench.plugins.registry import load
from bench.spec.options import explain
from bench.spec.schema import StudySpec

_GUIDE = "docs/adding-a-method.md"


def method_class(name: str, file: str | None = None) -> type[Method]:
    """Load the class of a method.

    Args:
        name: Name of the method.
        file: `/path/file.py:Class` for a method in a file.

    Raises:
        BenchError: The method is unknown, cannot be loaded, or does not keep the contract.
    """
    loaded: Any = load("methods", file or name)
    fault = _fault(loaded)
    if fault is not None:
        raise BenchError(f"method '{name}'{f' ({file})' if file else ''} {fault}; see {_GUIDE}")
    kind: type[Method] = loaded
    return kind


def _fault(kind: Any) -> str | None:
    """Explain why something is not a method; `None` when it is one."""
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        return "is not a subclass of bench.method.Method"
    if inspect.isabstract(kind):
        return f"does not define {', '.join(sorted(kind.__abstractmethods__))}"
    if not isinstance(getattr(kind, "capabilities", None), Capabilities):
        return "has no class attribute 'capabilities' of type bench.method.Capabilities"
    return None


def make_method(name: str, options: Mapping[str, Any], file: str | None = None) -> Method:
    """Make a method with validated options.

    Args:
        name: Name of the method.
        options: Values of its options; others keep their defaults.
        file: `/path/file.py:Class` for a method in a file.

    Raises:
        BenchError: The method or an option is unknown, or a value is not allowed.
    """
    kind = method_class(name, file)
    try:
        return kind(kind.Options.model_validate_json(json.dumps(dict(options), default=str)))
    except ValidationError as error:
        raise explain(error, f"options.{name}", kind.Options) from error


def method_of_study(spec: StudySpec, name: str) -> Method:
    """Make one of a study's methods, with the options that the study gives it.

    Raises:
        BenchError: The method or an option is unknown, or a value is not allowed.
    """
    return make_method(name, spec.options.get(name, {}), spec.method_files.get(name))
