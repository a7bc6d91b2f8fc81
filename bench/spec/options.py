"""The base class of every part of a specification and of every method's options, and its error messages."""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import BenchError, unknown_name
from bench.outputs.commands import command

_REQUIREMENTS = {
    "greater_than": "above {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "below {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "literal_error": "{expected}",
    "tuple_type": "a list in square brackets",
    "too_short": "a list of {min_length} or more",
    "model_type": "a table of keys and values",
    "model_attributes_type": "a table of keys and values",
    "dict_type": "a table of keys and values",
}
"""What a value must be, by pydantic's type of error and in terms of its context."""


class Options(BaseModel):
    """Immutable, typed values: the base class of a method's options.

    A subclass lists its options as annotated attributes with defaults:

        class HalveOptions(Options):
            bits: int = 4

    Unknown keys are errors. Values must have the annotated type and be finite; the only conversion is from a whole
    number to a float. Defaults are checked like other values.

    Attributes:
        elsewhere: Options of other methods that a user may look for here: the method by the name of the option.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


def explain(error: ValidationError, where: str, known: type[BaseModel]) -> BenchError:
    """Turn a failed validation into one line: the first problem, what is allowed, and what to type.

    Args:
        error: Error that pydantic raised.
        where: Part of the specification that was validated, e.g. "options.sbs"; empty for the whole.
        known: Class that was validated.
    """
    problem = error.errors()[0]
    keys = [where] if where else []
    path = ".".join([*keys, *map(str, problem["loc"])])
    settable = ".".join([*keys, *map(str, takewhile(lambda part: not isinstance(part, int), problem["loc"]))])
    if problem["type"] == "extra_forbidden":
        return _unknown_key(problem["loc"], where, known)
    if problem["type"] == "missing":
        return BenchError(f"the specification lacks '{path}'; add it with --set {path}=…")
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return _broken_rule(_own_message(problem), path)
    requirement = _requirement(problem)
    return BenchError(f"'{path}' is {problem['input']!r}{requirement}; change it with --set {settable}=…")


def _unknown_key(location: tuple[int | str, ...], where: str, known: type[BaseModel]) -> BenchError:
    kind = f"key '{where}' option" if where else "specification key"
    holder, key = _class_at(location[:-1], known), str(location[-1])
    if issubclass(holder, Options) and key in holder.elsewhere:
        other = holder.elsewhere[key]
        return BenchError(
            f"'{where}' has no option '{key}': it belongs to the method {other}; add {other} to the methods, and set "
            f"the option with --set options.{other}.{key}=…"
        )
    see = command("list", "methods", "--long", where.rpartition(".")[2]) if where else command("list", "keys")
    return unknown_name(kind, key, holder.model_fields, see)


def _class_at(location: tuple[int | str, ...], known: type[BaseModel]) -> type[BaseModel]:
    """Follow keys through nested classes, as far as they lead."""
    for part in location:
        field = known.model_fields.get(str(part))
        inner = None if field is None else table_class(field.annotation)
        if inner is None:
            break
        known = inner
    return known


def table_class(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a nested table, which may be unset; `None` for the annotation of a plain value."""
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel) else None


def _broken_rule(message: str, path: str) -> BenchError:
    """Report a rule over several keys; the rule names the keys itself."""
    if not path:
        return BenchError(message)
    return BenchError(f"'{path}': {message}; change it with --set {path}.KEY=VALUE")


def _requirement(problem: Mapping[str, Any]) -> str:
    wording = _REQUIREMENTS.get(problem["type"])
    if wording is None:
        return f": {_own_message(problem)}"
    return f", but must be {wording.format(**problem.get('ctx', {}))}"


def _own_message(problem: Mapping[str, Any]) -> str:
    """Return pydantic's message, or that of a validator of ours, with a small first letter."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"
