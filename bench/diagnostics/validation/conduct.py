"""Checks of how a search behaves: same bits, what it reads and changes, interruptions, memory."""

import gc
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bench.diagnostics.validation.subject import MethodUnderTest, NotApplicable, Violation, some
from bench.diagnostics.validation.watching import Interruption, WatchedData
from bench.method import Method, SearchResult
from bench.training.checkpoints import Checkpoints, Stage, Stateful

_OTHER_SEED = 4711
_MOST_OBJECTS = 2000
"""Python objects by which the interpreter itself may grow over the measured searches; a network has more."""
_MEASURED = 2


# --- same bits -----------------------------------------------------------------------------------------------------


def repeatable(subject: MethodUnderTest) -> str:
    """The same job twice gives the same bits."""
    expected = subject.plain
    if difference(_varied(subject), expected) is None:
        return "same bits from the same job"
    found = difference(subject.search("repeated", subject.job()), expected)
    if found is not None:
        raise Violation(
            f"the same job gave another result the second time: {found}; draw from job.noise and job.order only"
        )
    return "same bits from the same job"


def other_generators(subject: MethodUnderTest) -> str:
    """The state of the global random generators does not matter."""
    expected = subject.plain
    if difference(_varied(subject), expected) is None:
        return "same bits from other states of PyTorch's, NumPy's and Python's global generators"
    if difference(subject.search("repeated", subject.job()), expected) is not None:
        raise NotApplicable("not even the same state gives the same bits: see 'repeats'")
    found = difference(subject.search("otherwise seeded", subject.job(), global_seed=_OTHER_SEED), expected)
    if found is not None:
        raise Violation(f"it draws from a global random generator: with another state of it, {found}; use job.noise")
    return "same bits from other states of PyTorch's, NumPy's and Python's global generators"


def other_name(subject: MethodUnderTest) -> str:
    """The method's name does not matter, so that methods with one seed are pairs."""
    expected = subject.plain
    if difference(_varied(subject), expected) is None:
        return "same bits under another class name"
    if difference(subject.search("repeated", subject.job()), expected) is not None:
        raise NotApplicable("not even the same name gives the same bits: see 'repeats'")
    found = difference(subject.search("renamed", subject.job(), method=_renamed(subject)), expected)
    if found is not None:
        raise Violation(f"it depends on the method's name: renamed, {found}; seeds must not derive from names")
    return "same bits under another class name"


def _varied(subject: MethodUnderTest) -> SearchResult:
    """A search with everything changed at once that must not matter; told apart only where it does matter."""
    if subject.varied is None:
        method = _renamed(subject)
        subject.varied = subject.search("varied", subject.job(), method=method, global_seed=_OTHER_SEED)
    return subject.varied


def _renamed(subject: MethodUnderTest) -> Method:
    kind = type(subject.method)
    renamed = type("Renamed", (kind,), {"__module__": kind.__module__, "__qualname__": "Renamed"})
    found: Method = renamed(subject.method.options)
    return found


def difference(one: SearchResult, other: SearchResult) -> str | None:
    """In what two results differ, in words; `None` for the same bits. Records may tell of time and are left out."""
    if one.policy != other.policy:
        return "the policy is another one"
    for what in ("state", "quantizers"):
        found = _changed(getattr(one, what), getattr(other, what))
        if found:
            return f"{what} differs in {some(found)}"
    if dict(one.clips) != dict(other.clips):
        return "clips differ"
    return None if list(one.decisions) == list(other.decisions) else "decisions or their margins differ"


def _changed(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same bits in both."""
    return [
        name for name in {**one, **other} if name not in one or name not in other or not _same(one[name], other[name])
    ]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


# --- what it reads and changes --------------------------------------------------------------------------------------


def test_split(subject: MethodUnderTest) -> str:
    """The test part of the data is not read."""
    readers = subject.watched.readers
    if readers:
        raise Violation(f"job.task.data.test is read at {some(sorted(set(readers)))}; choose on validation")
    return "not read"


def inputs(subject: MethodUnderTest) -> str:
    """The pretrained weights and the images that it is handed are as they were."""
    _, watched = subject.plain, subject.watched
    changed = _changed(dict(watched.pretrained), subject.ground.pretrained)
    if changed:
        raise Violation(f"job.pretrained is changed: {some(changed)}; clone it, or train job.float_model()")
    if watched.images_changed():
        raise Violation("images or labels of job.task.data are changed; all methods of a study share them")
    return "pretrained weights, images and labels are as they were"


# --- interruptions --------------------------------------------------------------------------------------------------


class EveryEpoch:
    """A stage that keeps a checkpoint after each epoch, however short."""

    def __init__(self, checkpoints: Checkpoints, name: str, kept: list[int]) -> None:
        self._checkpoints, self._name, self._kept = checkpoints, name, kept

    def epochs(self, total: int, parts: Mapping[str, Stateful]) -> Iterator[int]:
        """The epochs that are still to do."""
        done = self._checkpoints.restore(self._name, parts) or 0
        for epoch in range(done, total):
            yield epoch
            self._checkpoints.write(self._name, epoch + 1, parts)
            self._kept.append(epoch)


def resume(subject: MethodUnderTest) -> str:
    """A search that is interrupted and goes on ends with the same bits as one that is not."""
    expected, batches = subject.plain, subject.watched.batches
    if batches < 2:
        raise NotApplicable(f"{batches} training batches: there is nothing to interrupt")
    kept: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        _interrupted(subject, Path(folder), batches // 2 + 1, kept)
        again = len(kept)
        result = subject.search("continued", subject.job(stage=_stages(Path(folder), kept)))
    found = difference(result, expected) or _history_difference(result, expected)
    if found is not None:
        if difference(subject.search("repeated", subject.job()), expected) is not None:
            raise NotApplicable("not even without an interruption the same bits come out: see 'repeats'")
        how = "it goes on from its checkpoint" if again else "it begins anew"
        raise Violation(
            f"interrupted at training batch {batches // 2 + 1} of {batches}, {how} and {found}; hand job.epochs "
            "all that is carried over: model, every optimizer, generators, records"
        )
    if again:
        return f"same bits after an interruption at batch {batches // 2 + 1} of {batches}, from the checkpoint"
    return "same bits after an interruption, from the beginning: hand job.epochs(parts) what is carried over to go on"


def _interrupted(subject: MethodUnderTest, folder: Path, at: int, kept: list[int]) -> None:
    data = WatchedData(subject.ground.task.data, interrupted_at=at)
    job = subject.job(task=data.task(subject.ground.task), stage=_stages(folder, kept))
    try:
        subject.search("interrupted", job)
    except Interruption:
        return
    raise Violation("an interruption was caught by the method; it must not catch BaseException")


def _stages(folder: Path, kept: list[int]) -> "_Stages":
    return _Stages(Checkpoints(folder, {}), kept)


class _Stages:
    """Makes stages by name."""

    def __init__(self, checkpoints: Checkpoints, kept: list[int]) -> None:
        self._checkpoints, self._kept = checkpoints, kept

    def __call__(self, name: str) -> Stage:
        return EveryEpoch(self._checkpoints, name, self._kept)


def _history_difference(one: SearchResult, other: SearchResult) -> str | None:
    lengths = [len(result.record.get("history") or ()) for result in (one, other)]
    return None if lengths[0] == lengths[1] else f"record['history'] has {lengths[0]} epochs and not {lengths[1]}"


# --- memory ---------------------------------------------------------------------------------------------------------


def memory(subject: MethodUnderTest) -> str:
    """Searches leave nothing behind: tensors and objects that are alive do not grow with their number."""
    _ = subject.plain
    with _only_what_is_new():
        _repeat(subject, 1)  # what is filled once, and what is replaced by every search, is there from now on
        before = _alive()
        _repeat(subject, _MEASURED)
        tensors, size, objects = (now - then for now, then in zip(_alive(), before, strict=True))
    if tensors >= _MEASURED:
        raise Violation(
            f"{tensors} more tensors ({size / 1000:,.0f} KB) are alive after {_MEASURED} more searches; something "
            "keeps them: a list or cache of the module or class, a hook, a closure"
        )
    if objects > _MOST_OBJECTS:
        raise Violation(
            f"{objects:,} more Python objects are alive after {_MEASURED} more searches; a cache keeps them"
        )
    return f"{_MEASURED} more searches leave no tensor behind"


def _repeat(subject: MethodUnderTest, times: int) -> None:
    """The plain search again, without keeping what it finds."""
    kept = len(subject.found)
    for _ in range(times):
        subject.search("repeated", subject.job())
        del subject.found[kept:]


@contextmanager
def _only_what_is_new() -> Iterator[None]:
    """Lets the garbage collector see nothing that is there already: going through all of it takes seconds."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _alive() -> tuple[int, int, int]:
    """Tensors that are alive, their bytes, and all Python objects; of those that the collector sees."""
    gc.collect()
    objects = gc.get_objects()
    tensors = [thing for thing in objects if issubclass(type(thing), Tensor)]
    return len(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors), len(objects)
