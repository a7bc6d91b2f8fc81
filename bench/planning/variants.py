"""Variants of a study: each of its models, and ablations, which change one option at a time.

On each model the first variant is the study as it stands. Every value of every ablated option makes one more, in which
nothing else is changed, so that each row of the report differs from the default in one thing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError, unknown_name
from bench.planning.methods import method_class
from bench.spec.schema import StudySpec
from bench.spec.sources import build, merge, nested

_CHANGEABLE = ("pretrain", "search", "finetune", "tuning", "recipe", "precision", "compile", "options")
_OF_TASK = ("task.init", "task.checkpoint")
"""A study has one set of data; everything else in the task may change."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A study on one of its models, with one option changed or none.

    Attributes:
        key: The option as the user named it; empty for the study as it stands.
        value: Its value.
        methods: Those that the change reaches, in the study's order.
        spec: The study on that model, so changed, without its ablations.
    """

    key: str = ""
    value: Any = None
    methods: tuple[str, ...]
    spec: StudySpec

    @property
    def label(self) -> str:
        """Such as "group_size=4"; empty for the study as it stands."""
        return f"{self.key}={in_words(self.value)}" if self.key else ""


def in_words(value: Any) -> str:
    """A value as it stands in labels, without blanks."""
    if isinstance(value, list | tuple):
        return "+".join(map(in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def variants(spec: StudySpec) -> Iterator[Variant]:
    """On each model the study as it stands, and with one option changed.

    Raises:
        BenchError: No method has an ablated option, or a value is not allowed.
    """
    places = {key: _place(key, spec) for key in spec.ablate}
    models = (spec.task.model, *spec.further_models)
    for model in models:
        task = spec.task.model_copy(update={"model": model})
        others = tuple(other for other in models if other != model)
        plain = spec.model_copy(update={"task": task, "further_models": others, "ablate": {}})
        yield Variant(methods=plain.methods, spec=plain)
        for key, (methods, paths) in places.items():
            for value in spec.ablate[key]:
                yield Variant(key=key, value=value, methods=methods, spec=_changed(plain, paths, value))


def _place(key: str, spec: StudySpec) -> tuple[tuple[str, ...], Sequence[str]]:
    """Which methods an ablated key reaches, and the paths in the specification that stand for it."""
    owners = tuple(name for name in spec.methods if key in _options(spec, name))
    if owners:
        return owners, [f"options.{name}.{key}" for name in owners]
    method, dot, option = key.partition(".")
    if dot and method in spec.methods and option in _options(spec, method):
        return (method,), [f"options.{method}.{option}"]
    if key in _OF_TASK or key.partition(".")[0] in _CHANGEABLE:
        return spec.methods, [key]
    if key == "task.model":
        raise BenchError(
            "--ablate task.model: models are no options; give several with --model, e.g. resnet20,resnet56"
        )
    if key.startswith("task."):
        raise BenchError(
            f"--ablate {key}: a study has one set of data; run a study for each and use `bench compare`, "
            f"or ablate one of {', '.join(_OF_TASK)}"
        )
    known = {option for name in spec.methods for option in _options(spec, name)} | set(_OF_TASK) | set(_CHANGEABLE)
    raise unknown_name("option to ablate", key, sorted(known), "bench list methods")


def _options(spec: StudySpec, method: str) -> Mapping[str, Any]:
    return method_class(method, spec.method_files.get(method)).Options.model_fields


def _changed(spec: StudySpec, paths: Sequence[str], value: Any) -> StudySpec:
    changed: dict[str, Any] = spec.model_dump(mode="json")
    for path in paths:
        changed = merge(changed, nested(path, value))
    return build([changed])
