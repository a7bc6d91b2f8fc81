"""What rows must have in common to be ranked together: task, data, schedule, and the harness's part.

The values are those that a run was made with. Where one is not known, as in studies that are older than it, it is
absent, and such rows are ranked among themselves.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bench.results.published_study import PublishedStudy
from bench.results.tables import StudyResults, section
from bench.spec.schema import PUBLISHED_WEIGHTS, canonical_hash
from bench.store.files import read_stored_specification

_PARTS = ("search", "finetune", "allowance", "recipe", "precision")
_FINGERPRINT = ("data_checksum", "model_source", "protocol", "cost_counter")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The conditions of a row.

    Attributes:
        values: All conditions, as JSON.
        specification: Specification of the row's runs, with the change of an ablation, from which they can be repeated.
    """

    values: Mapping[str, Any]
    specification: Mapping[str, Any] = field(compare=False)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(section(self.values, "task").get("dataset", ""))

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(section(self.values, "task").get("model", ""))

    @cached_property
    def identity(self) -> str:
        """Hash of the conditions."""
        return canonical_hash(self.values)

    @property
    def in_words(self) -> str:
        """The schedule in a few words; `rows` has all of it."""
        task, search, finetune = (section(self.values, part) for part in ("task", "search", "finetune"))
        images = task.get("train_images")
        parts = (
            f"search {_epochs(search)}",
            f"fine-tuning {_epochs(finetune)}",
            f"{images:,} training images" if isinstance(images, int) else "all training images",
            f"allowance {self.values.get('allowance', 'not recorded')}",
            f"protocol {self.values.get('protocol', 'not recorded')}",
        )
        return ", ".join(parts)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield every condition as a key and a value."""
        yield from _flat(self.values)


def terms_of(results: StudyResults, run: str, method: str) -> Terms:
    """Return the conditions of a row.

    Args:
        results: Study that has the row.
        run: Id of one of its runs.
        method: Name of the row's method, with the change of an ablation in brackets.
    """
    stored = None if isinstance(results, PublishedStudy) else read_stored_specification(results.store.unit("runs", run))
    record = results.record("runs", run) or {}
    if stored is not None:
        specification = section(stored, "specification")
        checkpoint = section(section(stored, "depends_on"), "task").get("checkpoint")
    else:
        model = str(results.runs.loc[results.runs["id"] == run, "model"].iloc[0])
        specification = _changed(results.spec, method, model)
        checkpoint = results.versions.get("checkpoint") if isinstance(results, PublishedStudy) else None
    made_with = results.versions if isinstance(results, PublishedStudy) else record
    return Terms(
        values=_known(_values(specification, checkpoint, section(made_with, "fingerprint"))),
        specification=specification,
    )


def _values(spec: Mapping[str, Any], checkpoint: object, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Put conditions together.

    Args:
        spec: Specification of the run.
        checkpoint: Checksum of the file with pretrained weights; `None` when it is not known.
        fingerprint: Data, sources, protocol and cost counter of the run.
    """
    task = {**section(spec, "task")}
    if task.get("checkpoint") not in (None, PUBLISHED_WEIGHTS):
        task["checkpoint"] = checkpoint or str(task["checkpoint"])
    pretrained_here = task.get("checkpoint") is None and task.get("init") != "scratch"
    return {
        "task": task,
        "pretrain": spec.get("pretrain") if pretrained_here else None,
        **{name: spec.get(name) for name in _PARTS},
        "repair": section(spec, "tuning").get("repair"),
        **{name: fingerprint.get(name) for name in _FINGERPRINT},
    }


def _changed(spec: Mapping[str, Any], method: str, model: str) -> dict[str, Any]:
    """Return the specification of one model with the change that stands in a method's brackets."""
    from bench.planning.variants import in_words, is_of_specification
    from bench.spec.sources import merge, nested

    name, _, change = method.removesuffix("]").partition("[")
    ablated = {key: values for key, values in section(spec, "ablate").items() if isinstance(values, list)}
    known = {f"{key}={in_words(value)}": (key, value) for key, values in ablated.items() for value in values}
    own = {**spec, "ablate": {}, "further_models": [], "task": {**section(spec, "task"), "model": model}}
    if change not in known:
        return own
    key, value = known[change]
    path = key if is_of_specification(key) else f"options.{name}.{key.removeprefix(f'{name}.')}"
    return merge(own, nested(path, value))


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not set, on all levels, so that a value that older versions did not write changes nothing."""
    inner = {key: _known(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in inner.items() if value is not None and value != {}}


def _epochs(schedule: Mapping[str, Any]) -> str:
    epochs = schedule.get("epochs", "?")
    return f"{epochs} epoch{'' if epochs == 1 else 's'} × {schedule.get('batch_size', '?')}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
