"""Variants of a study: each of its models, without changes and with one option changed.

On each model the first variant is the study without changes. Every value of every ablated option makes one more, so
that each row of the report differs from the default in one thing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError, unknown_name
from bench.planning.methods import method_class
from bench.spec.schema import StudySpec
from bench.spec.sources import build, merge, nested

_CHANGEABLE = ("pretrain", "search", "finetune", "tuning", "allowance", "recipe", "precision", "compile", "options")
_CHANGEABLE_IN_TASK = ("task.init", "task.checkpoint")
"""Entries of the task that may be ablated; a study has one set of data."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A study on one of its models, with at most one option changed.

    Attributes:
        key: Option as the user named it; empty for none.
        value: Value of the option.
        methods: Methods that the change affects, in the study's order.
        spec: Specification with that model and that change, without ablations.
    """

    key: str = ""
    value: Any = None
    methods: tuple[str, ...]
    spec: StudySpec

    @property
    def label(self) -> str:
        """The change in words, e.g. "group_size=4"; empty for none."""
        return f"{self.key}={in_words(self.value)}" if self.key else ""


def in_words(value: Any) -> str:
    """Write a value for labels, without blanks."""
    if isinstance(value, list | tuple):
        return "+".join(map(in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def variants(spec: StudySpec) -> Iterator[Variant]:
    """Yield, for each model, the study without changes and with each value of each ablated option.

    Raises:
        BenchError: No method has an ablated option, or a value is not allowed.
    """
    targets = {key: _targets(key, spec) for key in spec.ablate}
    models = (spec.task.model, *spec.further_models)
    for model in models:
        task = spec.task.model_copy(update={"model": model})
        others = tuple(other for other in models if other != model)
        plain = spec.model_copy(update={"task": task, "further_models": others, "ablate": {}})
        yield Variant(methods=plain.methods, spec=plain)
        for key, (methods, paths) in targets.items():
            for value in spec.ablate[key]:
                yield Variant(key=key, value=value, methods=methods, spec=_changed(plain, paths, value))


def _targets(key: str, spec: StudySpec) -> tuple[tuple[str, ...], Sequence[str]]:
    """Return the methods that an ablated option affects, and the entries of the specification that it changes."""
    owners = tuple(name for name in spec.methods if key in _options(spec, name))
    if owners:
        return owners, [f"options.{name}.{key}" for name in owners]
    method, dot, option = key.partition(".")
    if dot and method in spec.methods and option in _options(spec, method):
        return (method,), [f"options.{method}.{option}"]
    if is_of_specification(key):
        return spec.methods, [key]
    raise _not_ablatable(key, spec)


def is_of_specification(key: str) -> bool:
    """Return whether an ablated option is an entry of the specification that changes runs of all methods."""
    return key in _CHANGEABLE_IN_TASK or key.partition(".")[0] in _CHANGEABLE


def _not_ablatable(key: str, spec: StudySpec) -> BenchError:
    if key == "task.model":
        return BenchError(
            "--ablate task.model: a model is not an option; give several with --model, e.g. resnet20,resnet56"
        )
    if key.startswith("task."):
        return BenchError(
            f"--ablate {key}: a study has one set of data; run a study for each and use `bench compare`, "
            f"or ablate one of {', '.join(_CHANGEABLE_IN_TASK)}"
        )
    options = {option for name in spec.methods for option in _options(spec, name)}
    known = options | set(_CHANGEABLE_IN_TASK) | set(_CHANGEABLE)
    return unknown_name("option to ablate", key, sorted(known), "bench list methods")


def _options(spec: StudySpec, method: str) -> Mapping[str, Any]:
    return method_class(method, spec.method_files.get(method)).Options.model_fields


def _changed(spec: StudySpec, paths: Sequence[str], value: Any) -> StudySpec:
    """Set the same value at several entries of a specification."""
    changed: dict[str, Any] = spec.model_dump(mode="json")
    for path in paths:
        changed = merge(changed, nested(path, value))
    return build([changed])
