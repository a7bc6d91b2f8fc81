"""From a preset or a file, and the values that a user states, to the specification of a study."""

import inspect
import sys
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.plugins.entry_points import available
from bench.plugins.method_files import with_files
from bench.spec.schema import StudySpec
from bench.spec.sources import build, merge, nested, read_preset, read_toml, schedule_names, with_schedule
from bench.store.files import read_checked
from bench.store.machine import resolve_device

DEFAULT_PRESET = "quick"
MOST_SEEDS = 10_000
"""Largest number of seeds that is given as a count."""


def make_specification(
    values: Mapping[str, Any],
    *,
    preset: str | None = None,
    file: Path | None = None,
    schedule: str | None = None,
    elsewhere: bool = False,
) -> StudySpec:
    """Build a specification; stated values take precedence over those of the preset or file.

    Args:
        values: Values that the user states, by key.
        preset: Name of the preset to start from; `DEFAULT_PRESET` when there is no file either.
        file: File with the specification to start from.
        schedule: Name of a schedule in place of the preset's or file's own.
        elsewhere: Whether runs are on other machines, so that the device need not exist here.

    Raises:
        BenchError: A value is wrong, or two of them contradict each other.
    """
    if preset is not None and file is not None:
        raise BenchError(f"preset '{preset}' and file '{file}' exclude each other; give one of them")
    start = read_specification(file) if file is not None else read_preset(DEFAULT_PRESET if preset is None else preset)
    stated = with_files(values)
    spec = build([_without_other_methods(with_schedule(start, schedule), stated.get("methods")), stated])
    if file is not None and schedule is None:
        _check_schedule(file, {**start, **stated})
    return spec.model_copy(update={"device": str(resolve_device(spec.device, spec.devices, elsewhere=elsewhere))})


def _check_schedule(file: Path, values: Mapping[str, Any]) -> None:
    """Refuse a specification that says nothing about lengths: a single epoch of everything is nobody's wish."""
    if not values.keys() & {"schedule", "search", "finetune"}:
        raise BenchError(
            f"'{file}' states no schedule; add schedule = \"quick\" (or {', '.join(schedule_names()[1:])}), or the "
            "tables [search] and [finetune]; or type --schedule quick"
        )


def read_specification(path: Path) -> dict[str, Any]:
    """Read a specification from a TOML file, or from the `.json` file of a study or run that was made with it.

    Raises:
        BenchError: The file cannot be read or holds something else.
    """
    if path.suffix != ".json":
        return read_toml(path)
    document = read_checked(path) or {}
    values = document.get("spec") or document.get("specification")  # of a study, of a run
    if not isinstance(values, dict):
        raise BenchError(
            f"'{path}' holds no specification; give a TOML file, a study's study.json or a run's spec.json"
        )
    return values


def task_values(model: str | None, dataset: str | None) -> dict[str, Any]:
    """Return the values of a specification that name a model and a data set, as far as they are given."""
    task = {"model": model, "dataset": dataset}
    given = {key: value for key, value in task.items() if value is not None}
    return {"task": given} if given else {}


def nested_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn values by key with dots, `{"search.epochs": 3}`, into nested ones."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        values = merge(values, nested(key, value))
    return values


def _without_other_methods(start: dict[str, Any], methods: Any) -> dict[str, Any]:
    """Leave out the options and files of methods that were not asked for."""
    if methods is None:
        return start
    tables = {key: start[key] for key in ("options", "method_files") if isinstance(start.get(key), Mapping)}
    kept = {
        key: {method: value for method, value in table.items() if method in methods} for key, table in tables.items()
    }
    return {**start, **kept}


def method_entry(method: str | type) -> str:
    """Return an entry of `methods`: a name or location as it is, and the location of a class.

    Raises:
        BenchError: It is neither, or the class is not defined in a file, from which other processes could load it.
    """
    if isinstance(method, str):
        return method
    if not isinstance(method, type):
        raise BenchError(f"'methods' has {method!r}; allowed: names, locations 'file.py:Class', and classes")
    location = f"{method.__module__}:{method.__qualname__}"
    registered = next((name for name, entry in available("methods").items() if entry.value == location), None)
    if registered is not None:
        return registered
    try:
        file = inspect.getsourcefile(method)
    except (OSError, TypeError):
        file = None
    defined = getattr(sys.modules.get(method.__module__), method.__name__, None) is method
    if file is None or not defined or method.__module__ == "__main__":
        raise BenchError(
            f"the class {method.__qualname__} is not at the top level of a module in a file, so that the processes of "
            "runs could not load it; write it into a file (in a notebook with %%writefile), and give 'file.py:Class'"
        )
    return f"{file}:{method.__name__}"


def seed_list(seeds: int | Iterable[int] | None) -> list[int] | None:
    """Return a list of seeds for a number of seeds or for the seeds themselves.

    Raises:
        BenchError: It is neither.
    """
    if seeds is None:
        return None
    if isinstance(seeds, Integral | int) and 1 <= seeds <= MOST_SEEDS:
        return list(range(int(seeds)))
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise BenchError(f"'seeds' is {seeds!r}; give a count from 1 to {MOST_SEEDS}, e.g. 5, or a list, e.g. [0, 1]")
    return list(seeds)
