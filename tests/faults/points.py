"""Faults at exact points: a command is killed, or its disk is full, at its n-th change of a file.

Python reports every change of a file before it happens (an audit event), so that each point can be met, in every stage
and in every command. The commands run in forks of one process, so that an event takes a second or two.
"""

import errno
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.faults import EQUAL, WRONG, Arena, FaultOutcome
from tests.faults.study import NAME, SETTINGS, Ended, Reference, Warm, tracked

SMALL = ("--methods", "sbs,fixed", "--seeds", "1")
"""Further arguments of the study: its units take about a second each."""
SMALL_UNITS = 7
ACTIONS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT, "full": 0}
"""What happens at a point: a signal to the process, or a disk that is full from there on."""
_CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STAGES = ("lease", "tracking", "pretraining", "training", "trial", "search", "tuning", "trial", "search", "tuning")
_STAGES += ("search", "result", "training", "result", "tables", "tracking")
"""Stages in the order of a study, in each of which one command after the other meets its fault."""
_MOST_CHANGES = 6
"""Largest number of a point within its stage."""
_MOST_IDLE = 40
"""Commands in a row that may end without an event."""


# --- in the process of the command --------------------------------------------------------------------------------


def install(folder: str, point: int, action: str, note: str, stage: str = "") -> None:
    """Let something happen to this process at a change of a file.

    Args:
        folder: Folder whose changes count.
        point: Number of the change, from 1.
        action: Fault at the point, one of `ACTIONS`.
        note: File that will hold the path of the change.
        stage: Stage whose changes count; those of all stages if empty.
    """
    count, root = 0, os.path.join(folder, "")  # noqa: PTH118
    target = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        path = _changed(event, arguments)
        if not path.startswith(root):
            return
        if not stage or count >= point or stage_of(path.removeprefix(root)) == stage:
            count += 1
        if count == point:
            os.write(target, path.removeprefix(root).encode("utf-8", "backslashreplace"))
            if action != "full":
                os.kill(os.getpid(), ACTIONS[action])
        if action == "full" and count >= point and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(hook)


def _changed(event: str, arguments: tuple[Any, ...]) -> str:
    """Return the absolute path that an event changes; an empty text if it changes none."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    if not writes and event not in _CHANGES:
        return ""
    path = arguments[0]
    return os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""  # noqa: PTH100


# --- events -------------------------------------------------------------------------------------------------------


def stage_of(path: str) -> str:
    """Return the stage of a study in which a file of the store is changed."""
    parts = Path(path).parts
    kinds = {"pretrained": "pretraining", "studies": "tables", "leases": "lease", "runs": "result"}
    if "checkpoints" in parts:
        return "search" if Path(path).name.startswith((".search", "search")) else "training"
    if parts[:1] == ("tuning",):
        return "trial" if "trials" in parts else "tuning"
    return kinds.get(parts[0] if parts else "", "tracking")


class SmallStudy:
    """A small study, and commands that meet a fault.

    Args:
        arena: Arena of the stores; the undisturbed small study is kept in its folder.
        warm: Server that runs the commands; that of the arena when absent.
    """

    def __init__(self, arena: Arena, warm: Warm | None = None) -> None:
        self.arena, self.warm = arena, warm or arena.warm
        root = arena.folder / "small-reference"
        if not (root.parent / "small-reference.done").exists():
            shutil.rmtree(root, ignore_errors=True)
            ended = self.warm.run(root, *SMALL)
            if ended.status:
                raise AssertionError(f"the undisturbed small study failed: {ended.output}")
            (root.parent / "small-reference.done").touch()
        self.reference = Reference.from_store(root, SMALL_UNITS)

    def run(self, store: Path, point: int, action: str, stage: str) -> tuple[Ended, str]:
        """Run the study with a fault; return its end and the path at which the fault came, empty if it did not."""
        words = ("run", *SETTINGS, "--store", str(store), "--in-process", *SMALL)
        return self.meet(store, point, action, *words, stage=stage)

    def meet(self, folder: Path, point: int, action: str, *words: str, stage: str = "") -> tuple[Ended, str]:
        """Run a command with a fault at a change in a folder, of a stage if one is given."""
        note = self.arena.folder / "point.note"
        note.unlink(missing_ok=True)
        fault = {"folder": str(folder), "point": point, "action": action, "note": str(note), "stage": stage}
        ended = self.warm.bench(*words, fault=fault)
        return ended, note.read_text()

    def differences(self, store: Path) -> list[str]:
        """Run the study without faults to its end, and describe what is not equal."""
        ended = self.warm.run(store, *SMALL)
        if ended.status or "Traceback" in ended.output:
            return [f"exit {ended.status}: {ended.output.strip()[-300:]}"]
        return self.reference.differences(store)


def points_of_a_study(
    arena: Arena, seed: int, action: str, count: int, warm: Warm | None = None, between: Callable[[], object] = list
) -> Iterator[FaultOutcome]:
    """Meet a fault at one change after the other, in one study after the other, until there were enough.

    Args:
        arena: Arena of the stores.
        seed: Seed of the points.
        action: Fault at the point, one of `ACTIONS`.
        count: Number of events.
        warm: Server that runs the commands; that of the arena when absent.
        between: Function that is called before each command.
    """
    small, draw, idle = SmallStudy(arena, warm), random.Random(f"{seed}/{action}"), 0  # noqa: S311
    while count > 0 and idle < _MOST_IDLE:
        store, met, wrong, began = arena.fresh(), [], "", time.monotonic()
        for stage in _STAGES[: count + 2]:
            between()
            point = 1 + int(_MOST_CHANGES ** draw.random())
            ended, path = small.run(store, point, action, stage)
            if not path:  # this stage has fewer changes, and the study came to its end
                break
            met.append(f"{stage}: {action} at its change {point}")
            wrong = _wrong_end(ended, action)
            if wrong or len(met) == count:
                break
        idle = idle + 1 if not met else 0
        wrong = wrong or "; ".join(small.differences(store)[:3])
        seconds = (time.monotonic() - began) / max(1, len(met))
        for fault in met:
            yield _event(f"{action} at a write", fault, wrong, seconds)
        count -= len(met)
        if wrong:
            yield _event(f"{action} at a write", "the study", f"{wrong} [kept: {store}]", seconds)
        else:
            arena.remove(store)


def _wrong_end(ended: Ended, action: str) -> str:
    """Describe what is wrong with the end of a command that met a fault; empty if nothing is."""
    allowed = {"full": (0, 1, 2), "kill": (-signal.SIGKILL,), "interrupt": (0, 130, -signal.SIGINT)}
    if ended.status not in allowed.get(action, (0, 130, -signal.SIGTERM)):
        return f"exit {ended.status}: {ended.output.strip()[-300:]}"
    if "Traceback" in ended.output:
        return f"a traceback: {ended.output.strip()[-300:]}"
    if action == "full" and ended.status == 2 and not ended.is_clear:
        return f"no clear line: {ended.output.strip()[-300:]}"
    return ""


def _event(kind: str, fault: str, wrong: str, seconds: float) -> FaultOutcome:
    return FaultOutcome(kind=kind, fault=fault, outcome=WRONG if wrong else EQUAL, detail=wrong, seconds=seconds)


# --- commands on a finished store ---------------------------------------------------------------------------------


def _archived(small: SmallStudy, store: Path, out: Path) -> tuple[list[str], Callable[[], str]]:
    file = out / "study.tar.gz"

    def check() -> str:
        ended = small.warm.bench("restore", str(file), "--store", str(out / "store"))
        return _failed(ended) or "; ".join(small.reference.differences(out / "store", tracking=False)[:3])

    return ["archive", NAME, str(file), "--store", str(store)], check


def _restored(small: SmallStudy, store: Path, out: Path) -> tuple[list[str], Callable[[], str]]:
    file = small.arena.folder / "small.tar.gz"
    if not file.exists():
        small.warm.bench("archive", NAME, str(file), "--store", str(small.reference.root))
    shutil.rmtree(store)

    def check() -> str:
        return "; ".join(small.reference.differences(store, tracking=False)[:3])

    return ["restore", str(file), "--store", str(store)], check


def _synchronised(small: SmallStudy, store: Path, out: Path) -> tuple[list[str], Callable[[], str]]:
    shutil.rmtree(store / "mlartifacts")
    (store / "mlflow.db").unlink()
    return [
        "sync",
        NAME,
        "--store",
        str(store),
    ], lambda: "" if tracked(store) == small.reference.tracked else f"MLflow has {len(tracked(store))} runs"


def _cleaned(small: SmallStudy, store: Path, out: Path) -> tuple[list[str], Callable[[], str]]:
    (store / "leases" / "dead.json").write_text("{}")
    for name in ("runs", "tuning", "pretrained"):
        unit = next((store / name).iterdir())
        shutil.copytree(unit, unit.with_name(f"{unit.name}.stale-1"))
    for path in (
        sorted(store.rglob("*.stale-1/*")) + sorted(store.rglob("*.stale-1")) + [store / "leases" / "dead.json"]
    ):
        os.utime(path, (0, 0))

    def check() -> str:
        left = [str(path.relative_to(store)) for path in store.rglob("*.stale-1")]
        return "; ".join([*left, *small.reference.differences(store)[:3]])

    return ["clean", "--yes", "--store", str(store)], check


def _reported(small: SmallStudy, store: Path, out: Path) -> tuple[list[str], Callable[[], str]]:
    pages = out / "pages"

    def check() -> str:
        half = [path.name for path in pages.iterdir() if not path.stat().st_size]
        return f"empty files: {half}" if half or not (pages / "index.html").is_file() else ""

    return ["report", NAME, "--out", str(pages), "--store", str(store)], check


COMMANDS = {
    "archive": _archived,
    "restore": _restored,
    "sync": _synchronised,
    "clean": _cleaned,
    "report": _reported,
}
"""Commands that change files besides `bench run`, each with a check of what it leaves after it was repeated."""


def points_of_a_command(arena: Arena, name: str, count: int, actions: tuple[str, ...]) -> Iterator[FaultOutcome]:
    """Meet a fault at each change of a command, or at some of them in equal steps, and repeat the command.

    Args:
        arena: Arena of the stores.
        name: Name of the command.
        count: Largest number of events for each action.
        actions: Faults at the points, some of `ACTIONS`.
    """
    small = SmallStudy(arena)
    for action in actions:
        step, point = 1, 1
        for _ in range(count):
            began = time.monotonic()
            outcome = _one_point(small, name, point, action)
            if outcome is None:
                break
            fault, wrong = outcome
            yield _event(f"bench {name}", fault, wrong, time.monotonic() - began)
            step += point % 8 == 0
            point += step


def _one_point(small: SmallStudy, name: str, point: int, action: str) -> tuple[str, str] | None:
    """Return the fault and what was wrong; `None` if the command has fewer changes."""
    store, out = small.arena.fresh(), small.arena.fresh()
    shutil.copytree(small.reference.root, store, symlinks=True)
    out.mkdir()
    try:
        words, check = COMMANDS[name](small, store, out)
        ended, path = small.meet(out if name in ("archive", "report") else store, point, action, *words)
        if not path:
            return None
        fault, wrong = f"{action} at change {point}: {path[:60]}", _wrong_end(ended, action)
        if name == "archive" and (out / "study.tar.gz").exists():
            words = ["status", NAME, "--store", str(store)]  # it is complete, and would not be overwritten
        return fault, wrong or _failed(small.warm.bench(*words)) or check()
    finally:
        small.arena.remove(store)
        shutil.rmtree(out, ignore_errors=True)


def _failed(ended: Ended) -> str:
    return f"again: exit {ended.status}: {ended.output.strip()[-300:]}" if ended.status else ""
