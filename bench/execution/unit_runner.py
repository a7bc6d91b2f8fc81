"""Running of one unit: keep its valid result, or prepare its folder and let a supervised process work on it."""

import json
import logging
from dataclasses import replace

from bench.execution.context import UnitRequest
from bench.execution.records import archive_stale, recorded_outcome, valid_result
from bench.execution.study_run import SessionWatch, StudyRun
from bench.execution.supervisor import supervise, work_in_this_process
from bench.execution.worker import HeldError
from bench.planning.builder import stored_specification
from bench.planning.units import Unit, kind_of, title
from bench.store.files import read_stored_specification, write_checked
from bench.store.gpu_leases import GpuRequest, gpu_lease
from bench.store.outcomes import Outcome

_log = logging.getLogger(__name__)


def run_in_process(study_run: StudyRun, unit: Unit) -> Outcome:
    """Bring a pretraining, trial or run to an outcome.

    Raises:
        HeldError: Another process works on the unit.
    """
    valid = prepare_folder(study_run, unit)
    if valid is not None:
        return valid
    settings, stop = study_run.settings, SessionWatch(study_run)
    request = request_for(study_run, unit)
    if not settings.isolated:
        return work_in_this_process(request)
    gpus = GpuRequest(device=study_run.spec.device, gpus=study_run.spec.devices, runs_per_gpu=settings.runs_per_gpu)
    with gpu_lease(study_run.leases, gpus, request.title, stop) as gpu:
        return supervise(replace(request, gpu=gpu), settings.limits, stop, study_run.modules)


def request_for(study_run: StudyRun, unit: Unit) -> UnitRequest:
    """Make the request to work on a unit."""
    settings = study_run.settings
    return UnitRequest(
        kind=kind_of(unit),
        identity=unit.identity,
        title=title(unit),
        store=settings.store.root.resolve(),
        data_dir=None if settings.data_dir is None else settings.data_dir.resolve(),
        data_checksum=study_run.data_checksum,
        retry=settings.retry,
    )


def prepare_folder(study_run: StudyRun, unit: Unit) -> Outcome | None:
    """Write a unit's specification into its folder; a stale or damaged result there is archived.

    Returns:
        The outcome of a valid result; nothing is written then.

    Raises:
        HeldError: Another process works on the unit.
    """
    store, kind = study_run.settings.store, kind_of(unit)
    path = store.unit(kind, unit.identity) / "spec.json"
    leases = study_run.leases
    with leases.lock():
        holder = leases.read(f"{kind}-{unit.identity}")
        if holder is not None and not leases.is_dead(holder):
            raise HeldError(title(unit))
        if holder is not None:
            leases.remove_dead(holder)
        valid, reason = valid_result(store, unit, study_run.data_checksum, study_run.settings.retry)
        stored = read_stored_specification(path.parent)
        if stored is not None and stored["depends_on"] != json.loads(json.dumps(unit.document)):
            valid, reason = False, "its stored specification is that of another unit"
        if valid:
            return recorded_outcome(store.record(kind, unit.identity))
        if reason is not None:
            _log.warning("%s is made again: %s", title(unit), reason)
            archive_stale(store, unit)
        if stored is None or reason is not None:
            write_checked(path, stored_specification(unit))
    return None
