"""Performing a unit: its stages, and the outcome when one of them fails."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bench.errors import StudyHaltedError, full_traceback
from bench.execution.context import UnitContext, UnitRequest
from bench.execution.stages.pretraining import perform_pretraining
from bench.execution.stages.runs import perform_run
from bench.execution.stages.trials import perform_trial
from bench.store.files import UnitKind
from bench.store.leases import LostLeaseError
from bench.store.outcomes import Outcome, outcome_of_error

if TYPE_CHECKING:
    from bench.data.subset import Fault

_STAGES: Mapping[UnitKind, Callable[[UnitContext], None]] = {
    "pretrained": perform_pretraining,
    "trials": perform_trial,
    "runs": perform_run,
}
_NAMED_FAULTS = 100
"""Largest number of unreadable images that a record names; the output of the run names all."""


@dataclass(frozen=True, kw_only=True)
class WorkResult:
    """Result of the work on a unit.

    Attributes:
        outcome: Outcome of the work.
        record: Record with everything that the stages found.
        traceback: Traceback of the error that ended the work; empty for none.
    """

    outcome: Outcome
    record: dict[str, Any]
    traceback: str = ""


def perform(context: UnitContext) -> WorkResult:
    """Perform a unit in this process.

    Raises:
        LostLeaseError: Another process took the unit over.
    """
    try:
        if context.task.data.checksum != context.request.data_checksum:
            name = context.spec.task.dataset
            raise StudyHaltedError(f"the data of {name} changed while the study ran; run its command again")
        _STAGES[context.request.kind](context)
        context.record["data_use"] = context.data_use.state_dict()
    except LostLeaseError:
        raise
    except BaseException as error:
        context.record["seconds"] = context.clock.total()
        return failure(error, context.record, context.request)
    context.record.update(unreadable_images(context.task.data.faults))
    return WorkResult(outcome=Outcome(status="done"), record=context.record)


def failure(error: BaseException, record: dict[str, Any], request: UnitRequest) -> WorkResult:
    """Make the result of work that an error ended."""
    outcome = outcome_of_error(error, request.store)
    return WorkResult(outcome=outcome, record=record, traceback=full_traceback(error))


def unreadable_images(faults: "Sequence[Fault]") -> dict[str, Any]:
    """Return a record's entry on images that could not be read: their number and the first of them; empty for none."""
    if not faults:
        return {}
    return {"unreadable_images": {"count": len(faults), "first": [asdict(fault) for fault in faults[:_NAMED_FAULTS]]}}
