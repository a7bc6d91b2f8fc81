"""Checks of how a search behaves: repeatability, use of its inputs, interruptions, memory."""

import gc
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bench.diagnostics.validation.observation import Interruption, ObservedData
from bench.diagnostics.validation.under_test import MethodUnderTest
from bench.diagnostics.validation.verdicts import NotApplicable, Violation
from bench.diagnostics.wording import some
from bench.method import Method, SearchResult
from bench.training.checkpoints import Checkpoints, Stage, Stateful

_OTHER_SEED = 4711
_MOST_OBJECTS = 2000
"""Largest growth in Python objects over the measured searches; the interpreter may need some, a network has more."""
_MEASURED = 2
"""Number of searches over which the growth of memory is measured."""


# --- repeatability -------------------------------------------------------------------------------------------------


def repeatable(under_test: MethodUnderTest) -> str:
    """Check that the same job gives the same bits twice."""
    expected, observation = under_test.plain, "same bits from the same job"
    if difference(_varied(under_test), expected) is None:
        return observation
    changed = difference(under_test.search("repeated", under_test.job()), expected)
    if changed is not None:
        raise Violation(
            f"the same job gave another result the second time: {changed}; draw from job.noise and job.order only"
        )
    return observation


def other_generators(under_test: MethodUnderTest) -> str:
    """Check that the result does not depend on the state of the global random generators."""
    expected = under_test.plain
    observation = "same bits from other states of PyTorch's, NumPy's and Python's global generators"
    if difference(_varied(under_test), expected) is None:
        return observation
    _require_repeatability(under_test, "with the same state of the generators")
    changed = difference(under_test.search("reseeded", under_test.job(), global_seed=_OTHER_SEED), expected)
    if changed is not None:
        raise Violation(f"it draws from a global random generator: with another state of it, {changed}; use job.noise")
    return observation


def other_name(under_test: MethodUnderTest) -> str:
    """Check that the result does not depend on the method's name, so that methods with the same seed are pairs."""
    expected, observation = under_test.plain, "same bits under another class name"
    if difference(_varied(under_test), expected) is None:
        return observation
    _require_repeatability(under_test, "with the same name")
    changed = difference(under_test.search("renamed", under_test.job(), method=_renamed(under_test)), expected)
    if changed is not None:
        raise Violation(f"it depends on the method's name: renamed, {changed}; seeds must not derive from names")
    return observation


def _require_repeatability(under_test: MethodUnderTest, circumstances: str) -> None:
    """Check that a repeated search gives the same bits.

    Raises:
        NotApplicable: It does not, which another check reports.
    """
    if difference(under_test.search("repeated", under_test.job()), under_test.plain) is not None:
        raise NotApplicable(f"even {circumstances} the results differ: see 'repeats'")


def _varied(under_test: MethodUnderTest) -> SearchResult:
    """Search with everything changed at once that must not matter. Only if it matters, each change is tried alone."""
    if under_test.varied is None:
        method = _renamed(under_test)
        under_test.varied = under_test.search("varied", under_test.job(), method=method, global_seed=_OTHER_SEED)
    return under_test.varied


def _renamed(under_test: MethodUnderTest) -> Method:
    kind = type(under_test.method)
    subclass = type("Renamed", (kind,), {"__module__": kind.__module__, "__qualname__": "Renamed"})
    method: Method = subclass(under_test.method.options)
    return method


def difference(one: SearchResult, other: SearchResult) -> str | None:
    """Describe the difference of two results, without records; return `None` for the same bits."""
    if one.policy != other.policy:
        return "the policy is another one"
    for what in ("state", "quantizers"):
        changed = _changed(getattr(one, what), getattr(other, what))
        if changed:
            return f"{what} differs in {some(changed)}"
    if dict(one.clips) != dict(other.clips):
        return "clips differ"
    return None if list(one.decisions) == list(other.decisions) else "decisions or their margins differ"


def _changed(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """List the names of tensors that do not have the same bits in both."""
    return [
        name for name in {**one, **other} if name not in one or name not in other or not _same(one[name], other[name])
    ]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


# --- use of the inputs ---------------------------------------------------------------------------------------------


def test_split(under_test: MethodUnderTest) -> str:
    """Check that the test part of the data is not read."""
    readers = under_test.observed.readers
    if readers:
        raise Violation(f"job.task.data.test is read at {some(sorted(set(readers)))}; choose on validation")
    return "not read"


def inputs(under_test: MethodUnderTest) -> str:
    """Check that the search does not change the pretrained weights and the images."""
    _, observed = under_test.plain, under_test.observed
    changed = _changed(dict(observed.pretrained), under_test.small_task.pretrained)
    if changed:
        raise Violation(f"job.pretrained is changed: {some(changed)}; clone it, or train job.float_model()")
    if observed.images_changed():
        raise Violation("images or labels of job.task.data are changed; all methods of a study share them")
    return "pretrained weights, images and labels are unchanged"


def allowance(under_test: MethodUnderTest) -> str:
    """Check that the weights have seen no more training batches than the schedule of the search has."""
    result, observed = under_test.plain, under_test.observed
    weights = dict(under_test.task.make_model().named_parameters()).keys()
    if weights.isdisjoint(_changed(dict(result.state), under_test.small_task.pretrained)):
        return "hands on the pretrained weights; fine-tuning is longer by the updates of a search"
    allowed = under_test.job().steps
    if observed.batches > allowed:
        raise Violation(
            f"its weights saw {observed.batches} training batches, but the schedule of the search has {allowed}; "
            "draw no more than job.epochs() yields"
        )
    made_up = "" if observed.batches == allowed else "; fine-tuning makes up for the others"
    return f"{observed.batches} of {allowed} updates of the schedule{made_up}"


# --- interruptions -------------------------------------------------------------------------------------------------


class EveryEpoch:
    """A stage that keeps a checkpoint after each epoch, even a short one."""

    def __init__(self, checkpoints: Checkpoints, name: str, kept: list[int]) -> None:
        self._checkpoints, self._name, self._kept = checkpoints, name, kept

    def epochs(self, total: int, state: Mapping[str, Stateful]) -> Iterator[int]:
        """Restore the latest checkpoint, and yield the epochs after it."""
        done = self._checkpoints.restore(self._name, state) or 0
        for epoch in range(done, total):
            yield epoch
            self._checkpoints.write(self._name, epoch + 1, state)
            self._kept.append(epoch)


def resume(under_test: MethodUnderTest) -> str:
    """Check that an interrupted search, when continued, gives the same bits as an uninterrupted one."""
    expected, batches = under_test.plain, under_test.observed.batches
    if batches < 2:
        raise NotApplicable(f"{batches} training batches: there is nothing to interrupt")
    at = batches // 2 + 1
    kept: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        stages = _Stages(Checkpoints(Path(folder), {}), kept)
        _interrupt(under_test, stages, at)
        continued = bool(kept)
        result = under_test.search("continued", under_test.job(stage=stages))
    changed = difference(result, expected) or _history_difference(result, expected)
    if changed is not None:
        _require_repeatability(under_test, "without an interruption")
        how = "it continues from its checkpoint" if continued else "it starts again"
        raise Violation(
            f"interrupted at training batch {at} of {batches}, {how} and {changed}; pass to job.epochs all that one "
            "epoch hands to the next: model, every optimizer, generators, records"
        )
    if continued:
        return f"same bits after an interruption at batch {at} of {batches}, from the checkpoint"
    return "same bits after an interruption, from the beginning; to continue, pass to job.epochs what epochs hand on"


def _interrupt(under_test: MethodUnderTest, stages: "_Stages", at: int) -> None:
    data = ObservedData(under_test.task.data, interrupted_at=at)
    job = under_test.job(task=data.task(under_test.task), stage=stages)
    try:
        under_test.search("interrupted", job)
    except Interruption:
        return
    raise Violation("an interruption was caught by the method; it must not catch BaseException")


class _Stages:
    """Factory of stages by name."""

    def __init__(self, checkpoints: Checkpoints, kept: list[int]) -> None:
        self._checkpoints, self._kept = checkpoints, kept

    def __call__(self, name: str) -> Stage:
        return EveryEpoch(self._checkpoints, name, self._kept)


def _history_difference(one: SearchResult, other: SearchResult) -> str | None:
    lengths = [len(result.record.get("history") or ()) for result in (one, other)]
    return None if lengths[0] == lengths[1] else f"record['history'] has {lengths[0]} epochs and not {lengths[1]}"


# --- memory --------------------------------------------------------------------------------------------------------


def memory(under_test: MethodUnderTest) -> str:
    """Check that searches leave nothing behind: the tensors and objects in memory do not grow with their number."""
    _ = under_test.plain
    with _new_objects_only():
        _repeat(under_test, 1)  # fills what is filled once, and what every search replaces
        before = _alive()
        _repeat(under_test, _MEASURED)
        tensors, size, objects = (now - then for now, then in zip(_alive(), before, strict=True))
    if tensors >= _MEASURED:
        raise Violation(
            f"{tensors} more tensors ({size / 1000:,.0f} KB) are in memory after {_MEASURED} more searches; something "
            "keeps them: a list or cache of the module or class, a hook, a closure"
        )
    if objects > _MOST_OBJECTS:
        raise Violation(
            f"{objects:,} more Python objects are in memory after {_MEASURED} more searches; a cache keeps them"
        )
    return f"{_MEASURED} more searches leave no tensor behind"


def _repeat(under_test: MethodUnderTest, times: int) -> None:
    """Run the plain search again without keeping its policies."""
    kept = len(under_test.policies)
    for _ in range(times):
        under_test.search("repeated", under_test.job())
        del under_test.policies[kept:]


@contextmanager
def _new_objects_only() -> Iterator[None]:
    """Hide existing objects from the garbage collector, which would take seconds to go through them."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _alive() -> tuple[int, int, int]:
    """Count tensors, their bytes, and all Python objects that the garbage collector knows."""
    gc.collect()
    objects = gc.get_objects()
    tensors = [thing for thing in objects if issubclass(type(thing), Tensor)]
    return len(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors), len(objects)
