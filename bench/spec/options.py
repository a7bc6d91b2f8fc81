"""The strict, immutable base of every specification object and of every method's options."""

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import BenchError, unknown_name


class Options(BaseModel):
    """Immutable; unknown keys are errors; values are finite and not bent into another type but int to float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


def explain(error: ValidationError, where: str, known: type[BaseModel]) -> BenchError:
    """The first problem of a failed validation as one clear line.

    Args:
        error: What pydantic found.
        where: The part of the specification, e.g. "options.sbs"; empty for the whole.
        known: The class that was validated.
    """
    problem = error.errors()[0]
    path = ".".join(str(part) for part in problem["loc"])
    full = f"{where}.{path}" if where and path else where or path
    if problem["type"] == "extra_forbidden":
        owner: type[BaseModel] = known
        for part in problem["loc"][:-1]:
            field = owner.model_fields.get(str(part))
            if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
                break
            owner = field.annotation
        kind = f"key '{where}' option" if where else "specification key"
        return unknown_name(kind, str(problem["loc"][-1]), owner.model_fields, "bench run --dry-run")
    if problem["type"] == "missing":
        return BenchError(f"the specification lacks '{full}'; add it with --set {full}=…")
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    if not full:  # a rule over several keys names them itself; its input is the whole specification
        return BenchError(message)
    return BenchError(f"'{full}' is {problem['input']!r}: {message}; change it with --set {full}=…")
