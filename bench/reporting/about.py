"""What a study is about, in the words that stand at the top of its page, and what its runs were made with."""

from collections.abc import Mapping
from typing import Any

from bench.reporting import wording
from bench.results.tables import StudyResults, section

_HARDWARE = ("gpu", "processor")
_CONDITIONS = ("device", "threads")


def about_study(results: StudyResults) -> tuple[str, ...]:
    """Return task, budgets, progress and time of a study, each in a few words; what is not known is left out."""
    runs, spec = results.runs, results.spec
    task = section(spec, "task")
    models = [str(task.get("model") or ""), *map(str, spec.get("further_models") or ())]
    budgets = dict.fromkeys(filter(None, runs["budget"]))
    done = int((runs["status"] == "done").sum())
    started = min(filter(None, runs["started"]), default="")
    finished = max(filter(None, runs["finished"]), default="")
    return tuple(
        filter(
            None,
            (
                f"{', '.join(filter(None, models))} on {task.get('dataset')}" if task.get("dataset") else "",
                f"budget {', '.join(budgets)}" if budgets else "",
                f"complete: {wording.count(done, 'run')}"
                if done == len(runs)
                else f"{done} of {len(runs)} runs so far",
                wording.period(started, finished),
            ),
        )
    )


def versions_in_words(record: Mapping[str, Any]) -> str:
    """Return the versions that a run's record states: "python 3.11.7, torch 2.12.1"."""
    return ", ".join(f"{package} {version}" for package, version in section(record, "versions").items())


def hardware_in_words(record: Mapping[str, Any]) -> str:
    """Return the hardware that a run's record states: the GPU or processor, device and threads."""
    hardware = section(record, "hardware")
    name = next((str(hardware[key]) for key in _HARDWARE if hardware.get(key)), "")
    return ", ".join(filter(None, [name, *(f"{key} {hardware[key]}" for key in _CONDITIONS if key in hardware)]))
