"""Check the data of a submission: their checksum, and that accuracies are those of a whole number of images."""

import math
from collections.abc import Iterator, Mapping

import torch

from bench.data.task_data import TaskData
from bench.diagnostics.submission.submission import NotChecked, Submission, SubmittedUnit, check_task, outcome
from bench.diagnostics.verify import CheckLine
from bench.errors import BenchError, first_line
from bench.plugins.entry_points import is_own
from bench.plugins.registry import load
from bench.results.tables import section
from bench.spec.schema import StudySpec

WHAT = "data, split, and images that were evaluated"
_WHOLE = 1e-3
"""Largest distance of a number of images from a whole one that rounding explains."""


def check(submission: Submission) -> CheckLine:
    """Check the data of all runs.

    Raises:
        NotChecked: The data are not on this machine.
    """
    checksum = submission.results.study.get("data_checksum")
    units = (*submission.runs, *submission.tunings)
    stated = {str(section(unit.record, "fingerprint").get("data_checksum")) for unit in units}
    if stated - {str(checksum)}:
        return outcome(WHAT, ["units were made with other data than the study's document says"], "")
    data = read_data(submission.runs[0].spec, submission)
    if data.checksum != checksum:
        return outcome(WHAT, [f"the data here have the checksum {data.checksum[:16]}…, not {str(checksum)[:16]}…"], "")
    faults = [f"{run.title}: {fault}" for run in submission.runs for fault in _faults(run, data)]
    faults += [fault for tuning in submission.tunings for fault in _of_trials(submission, tuning, data)]
    return outcome(WHAT, faults, f"checksum {data.checksum[:16]}…, {len(data.test)} test images read once a run")


def read_data(spec: StudySpec, submission: Submission) -> TaskData:
    """Read the data of a task from the files of this machine; nothing is downloaded.

    Raises:
        NotChecked: They are not here.
    """
    from bench.execution.task_loader import TaskLoader

    check_task(spec.task)
    kind = load("datasets", spec.task.dataset)
    files = kind.files(submission.data_dir) if hasattr(kind, "files") else ()
    if not all(path.is_file() for path in files) or not (files or is_own("datasets", spec.task.dataset)):
        raise NotChecked(f"the data set {spec.task.dataset} is not here; name its folder with --data-dir DIR")
    try:
        return TaskLoader(spec, submission.data_dir, torch.device("cpu")).task.data
    except BenchError as error:
        raise NotChecked(first_line(error)) from error


def _faults(run: SubmittedUnit, data: TaskData) -> Iterator[str]:
    metrics = section(run.record, "metrics")
    for name, images in (("top1", len(data.test)), ("top5", len(data.test)), ("validation_top1", len(data.validation))):
        value = metrics.get(name)
        if isinstance(value, int | float) and not _is_share(value, images):
            yield f"{name} of {value} % is not that of a whole number of {images} images"
    evaluated = _evaluated(run.record, "evaluate")
    if evaluated is not None and evaluated != len(data.validation) + len(data.test):
        yield f"{evaluated} images were evaluated after fine-tuning, not each validation and test image once"


def _of_trials(submission: Submission, tuning: SubmittedUnit, data: TaskData) -> Iterator[str]:
    """Yield trials whose accuracy is not that of the validation images alone."""
    for trial in submission.results.trials(tuning.identity):
        number, images = trial.get("number"), trial.get("validation_images")
        record = submission.store.record("trials", f"{tuning.identity}-{number}") or {}
        for counted in (images, _evaluated(record, "validate")):
            if counted is not None and counted != len(data.validation):
                yield f"{tuning.title}, trial {number}: {counted} images, not all {len(data.validation)} of validation"


def _is_share(percent: float, images: int) -> bool:
    """Return whether a figure is the share of a whole number of images."""
    correct = percent * images / 100
    return 0 <= percent <= 100 and math.isclose(correct, round(correct), abs_tol=_WHOLE)


def _evaluated(record: Mapping[str, object], phase: str) -> object:
    return section(section(record, "data_use"), phase).get("evaluated_images")
