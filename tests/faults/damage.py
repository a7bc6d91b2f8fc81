"""Damage to files of every kind in a store, and deleted folders, between commands and while one runs."""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.store.files import read_json
from tests.faults.faults import EQUAL, REPORTED, SKIPPED, WRONG, Arena, FaultOutcome
from tests.faults.study import NAME, Command


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        name: Description of the file.
        pattern: Pattern of such files in the store.
        base: Store in which it is damaged: "finished"; "needed", in which a run and a tuning are left to do, so that
            pretrainings and trials are read; "interrupted", in which the process of a run was killed.
        unread: Whether no command reads it while the results that depend on it are valid; it may stay damaged then.
        untracked: Whether the tracking view may lack something afterwards.
    """

    name: str
    pattern: str
    base: str = "finished"
    unread: bool = False
    untracked: bool = False


_RUN_FILES = ("record", "spec", "policy", "raw_policy", "curves", "search")
_TABLES = ("results.csv", "runs.csv", "table.md", "table.csv", "table.tex")
KINDS = (
    *(Kind(name=f"{name}.json of a run", pattern=f"runs/*/{name}.json") for name in _RUN_FILES),
    Kind(name="network.pt", pattern="runs/*/network.pt"),
    Kind(name="output.log of a run", pattern="runs/*/output.log"),
    Kind(name="record.json of a tuning", pattern="tuning/*/record.json"),
    Kind(name="spec.json of a tuning", pattern="tuning/*/spec.json"),
    *(
        Kind(name=f"{name}.json of an unread trial", pattern=f"tuning/*/trials/*/{name}.json", unread=True)
        for name in ("record", "spec", "trial")
    ),
    *(
        Kind(name=f"{name} of an unread pretraining", pattern=f"pretrained/*/{name}", unread=True)
        for name in ("record.json", "model.pt")
    ),
    Kind(name="study.json", pattern=f"studies/{NAME}/study.json"),
    *(Kind(name=name, pattern=f"studies/{NAME}/{name}") for name in _TABLES),
    Kind(name="mlflow.db", pattern="mlflow.db", untracked=True),
    Kind(name="tracking artifact", pattern="mlartifacts/*/*/artifacts/*", untracked=True),
    Kind(name="lock of the views", pattern=".views.lock"),
    Kind(name="lock of the leases", pattern="leases/.lock"),
    *(
        Kind(name=f"{name}.json of a trial", pattern=f"tuning/*/trials/*/{name}.json", base="needed")
        for name in ("record", "spec", "trial")
    ),
    *(
        Kind(name=f"{name} of a pretraining", pattern=f"pretrained/*/{name}", base="needed")
        for name in ("record.json", "spec.json", "curves.json", "model.pt")
    ),
    *(
        Kind(name=f"{name} of a lost run", pattern=f"runs/{{lost}}/{name}", base="interrupted")
        for name in ("record.json", "spec.json", "output.log", "error.txt")
    ),
    Kind(name="latest checkpoint", pattern="runs/{lost}/checkpoints/finetune.*.pt", base="interrupted"),
    Kind(name="lease of a lost run", pattern="leases/runs-{lost}.json", base="interrupted"),
    Kind(name="lease of a lost command", pattern="leases/session-*.json", base="interrupted"),
)

Damage = Callable[[Path, Path, random.Random], bool]
"""Function that damages a file, given a folder outside the store; returns whether the damage applies."""


def _flip(path: Path, _: Path, __: random.Random) -> bool:
    content = bytearray(path.read_bytes())
    if not content:
        return False
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    return True


def _halve(path: Path, _: Path, __: random.Random) -> bool:
    os.truncate(path, path.stat().st_size // 2)
    return path.stat().st_size > 0


def _empty(path: Path, _: Path, __: random.Random) -> bool:
    os.truncate(path, 0)
    return True


def _garbage(path: Path, _: Path, draw: random.Random) -> bool:
    path.write_bytes(draw.randbytes(max(64, path.stat().st_size)))
    return True


def _other(path: Path, _: Path, draw: random.Random) -> bool:
    texts = ("{}", "[]", "null", '{"status": "done"}', '{"files": [], "status": 3}', '{"holder": {"pid": "x"}}')
    path.write_text(draw.choice(texts))
    return path.suffix == ".json"


def _neighbour(path: Path, _: Path, draw: random.Random) -> bool:
    """Replace a file by the intact one of another unit of its kind."""
    folders = [
        folder for folder in path.parent.parent.iterdir() if folder != path.parent and ".stale" not in folder.name
    ]
    others = [folder / path.name for folder in folders if (folder / path.name).is_file()]
    if not others:
        return False
    path.write_bytes(draw.choice(sorted(others)).read_bytes())
    return True


def _delete(path: Path, _: Path, __: random.Random) -> bool:
    path.unlink()
    return True


def _folder(path: Path, _: Path, __: random.Random) -> bool:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("a user's file")
    return True


def _link(path: Path, outside: Path, _: random.Random) -> bool:
    """Replace a file by a link to another file, which must not change."""
    target = outside / f"{len(list(outside.iterdir()))}.txt"
    target.write_text(_OUTSIDE)
    path.unlink()
    path.symlink_to(target)
    return True


def _dangling(path: Path, outside: Path, _: random.Random) -> bool:
    path.unlink()
    path.symlink_to(outside / "nothing" / "here")
    return True


_OUTSIDE = "a user's file outside the store"

DAMAGES: dict[str, Damage] = {
    "a bit flipped": _flip,
    "half of it": _halve,
    "empty": _empty,
    "random bytes": _garbage,
    "other JSON": _other,
    "a neighbour's": _neighbour,
    "deleted": _delete,
    "a folder": _folder,
    "a link elsewhere": _link,
    "a dangling link": _dangling,
}
_LINKS_WRITTEN_THROUGH = ("output.log of a lost run", "lock of the views", "lock of the leases", "mlflow.db")
"""Files that are opened for writing rather than replaced: the file that they link to may change."""


def damage_faults(
    arena: Arena, seed: int, kinds: Sequence[Kind] = KINDS, damages: Sequence[str] = tuple(DAMAGES)
) -> Iterator[FaultOutcome]:
    """Damage each kind of file in each way, and continue the study.

    Several files of different units are damaged at once. If the results are not equal then, each is damaged alone.
    """
    for damage in damages:
        for batch in _batches(arena, kinds):
            draw = random.Random(f"{seed}/{damage}")  # noqa: S311
            outcomes = list(_tried(arena, batch, damage, draw))
            if len(batch) > 1 and any(outcome.outcome in (REPORTED, WRONG) for outcome in outcomes):
                for kind in batch:
                    yield from _tried(arena, [kind], damage, draw)
            else:
                yield from outcomes


def _batches(arena: Arena, kinds: Sequence[Kind]) -> Iterator[list[Kind]]:
    """Yield kinds of files that can be damaged at once: in the same store, of different units."""
    for base in ("finished", "needed", "interrupted"):
        if not any(kind.base == base for kind in kinds):
            continue
        batches: list[dict[Path, Kind]] = []
        store = arena.interrupted if base == "interrupted" else arena.finished
        for kind in (kind for kind in kinds if kind.base == base):
            units = {_unit(path, store) for path in _paths(kind, store)} or {store / kind.name}
            for batch in [*batches, {}]:
                free = sorted(units - batch.keys())
                if free:
                    if not batch:
                        batches.append(batch)
                    batch[free[0]] = kind
                    break
        yield from (list(batch.values()) for batch in batches)


def _unit(path: Path, store: Path) -> Path:
    """Return the folder of the unit that a file belongs to; for other files, the file itself."""
    parts = path.relative_to(store).parts
    return store.joinpath(*parts[:2]) if parts[0] in ("runs", "tuning", "pretrained") else path


def _paths(kind: Kind, store: Path) -> list[Path]:
    lost = next((path.parent.parent.name for path in sorted(store.glob("runs/*/checkpoints/*.pt"))), "none")
    return sorted(store.glob(kind.pattern.format(lost=lost)))


def _tried(arena: Arena, batch: Sequence[Kind], damage: str, draw: random.Random) -> Iterator[FaultOutcome]:
    """Damage one file of each kind, run the command, and judge."""
    began = time.monotonic()
    store = arena.copy("interrupted" if batch[0].base == "interrupted" else "finished")
    outside = store.with_name(f"{store.name}.outside")
    outside.mkdir()
    if batch[0].base == "needed":
        _need(store)
    done: list[tuple[Kind, Path]] = []
    taken: set[Path] = set()
    for kind in batch:
        candidates = [path for path in _paths(kind, store) if path.is_file() and _unit(path, store) not in taken]
        path = candidates[-1] if kind.base == "interrupted" and candidates else (candidates or [None])[0]  # type: ignore[list-item]
        if path is None:
            yield FaultOutcome(kind="damage", fault=f"{kind.name}: {damage}", outcome=SKIPPED, detail="no such file")
        elif DAMAGES[damage](path, outside, draw):
            taken.add(_unit(path, store))
            done.append((kind, path))
        else:
            yield FaultOutcome(kind="damage", fault=f"{kind.name}: {damage}", outcome=SKIPPED, detail="does not apply")
    if not done:
        _remove(arena, store)
        return
    left_out = [str(path.parent.relative_to(store)) for kind, path in done if kind.unread]
    ended = arena.warm.run(store)
    outcome, detail = arena.judge(
        store,
        ended,
        lambda: _clear_away(*(path for _, path in done)),
        tracking=not left_out and not any(kind.untracked for kind, _ in done),
        left_out=left_out,
    )
    links = [target for target in outside.iterdir() if target.is_file() and target.read_text() != _OUTSIDE]
    if links and not any(kind.name in _LINKS_WRITTEN_THROUGH for kind, _ in done):
        outcome, detail = WRONG, "a file outside the store was changed"
    seconds = (time.monotonic() - began) / len(done)
    for kind, _ in done:
        yield FaultOutcome(
            kind="damage", fault=f"{kind.name}: {damage}", outcome=outcome, detail=detail, seconds=seconds
        )
    _remove(arena, store, keep=outcome == WRONG and len(done) == 1)


def _need(store: Path) -> None:
    """Remove records of tunings and the cheapest runs, so that the next command reads pretrainings and trials."""
    for path in sorted(store.glob("tuning/*/record.json")):
        path.unlink()
    for path in sorted(store.glob("runs/*/record.json")):
        if (read_json(path) or {}).get("method") == "fixed":
            shutil.rmtree(path.parent)


def _clear_away(*paths: Path) -> None:
    """Remove files that are in the way, as a user would."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _remove(arena: Arena, store: Path, *, keep: bool = False) -> None:
    if not keep:
        arena.remove(store)
        shutil.rmtree(store.with_name(f"{store.name}.outside"), ignore_errors=True)


# --- folders -----------------------------------------------------------------------------------------------------

_FOLDERS = {
    "a run": ("runs/*", False),
    "all runs": ("runs", False),
    "a tuning": ("tuning/*", False),
    "all tunings": ("tuning", False),
    "the trials of a tuning": ("tuning/*/trials", True),
    "a trial": ("tuning/*/trials/*", True),
    "a pretraining": ("pretrained/*", True),
    "all pretrainings": ("pretrained", True),
    "the leases": ("leases", False),
    "the studies": ("studies", False),
    "the tracking artifacts": ("mlartifacts", False),
    "the tracking database and its artifacts": ("ml*", False),
}
"""Patterns of folders, and whether no command reads them while the results that depend on them are valid."""


def deleted_folders(arena: Arena, names: Sequence[str] = tuple(_FOLDERS)) -> Iterator[FaultOutcome]:
    """Delete each kind of folder of a finished study, and continue it."""
    for name in names:
        began = time.monotonic()
        pattern, unread = _FOLDERS[name]
        store = arena.copy()
        matching = sorted(store.glob(pattern))
        deleted = matching if pattern == "ml*" else matching[:1]
        _clear_away(*deleted)
        left_out = [str(deleted[0].relative_to(store))] if unread else []
        ended = arena.warm.run(store)
        outcome, detail = arena.judge(store, ended, tracking=not unread, left_out=left_out)
        seconds = time.monotonic() - began
        yield FaultOutcome(kind="deleted folder", fault=name, outcome=outcome, detail=detail, seconds=seconds)
        _remove(arena, store, keep=outcome == WRONG)


_RUNNING_FOLDERS = (
    *("runs", "tuning", "pretrained", "leases", "studies", "mlartifacts", "."),
    *("runs/*", "tuning/*/trials/*", "pretrained/*", "runs/*/checkpoints"),
)


def folders_deleted_at_work(
    arena: Arena, seed: int, patterns: Sequence[str] = _RUNNING_FOLDERS, rounds: int = 1
) -> Iterator[FaultOutcome]:
    """Delete each kind of folder at a random moment while a command runs, and run the command again."""
    for number in range(rounds):
        for pattern in patterns:
            draw = random.Random(f"{seed}/{number}/{pattern}")  # noqa: S311
            began = time.monotonic()
            store = arena.fresh()
            command = Command(store)
            while command.running and not _matching(store, pattern):
                time.sleep(0.02)
            time.sleep(draw.random() * arena.seconds / 2)
            matching = _matching(store, pattern)
            shutil.rmtree(draw.choice(matching) if matching else store / pattern, ignore_errors=True)
            try:
                ended = command.wait()
                outcome, detail = _judged_again(arena, store, ended.status, ended.output)
            except TimeoutError as error:
                outcome, detail = WRONG, str(error)
            if outcome != WRONG and (left := command.leftovers()):
                outcome, detail = WRONG, f"left processes behind: {[process.line[:80] for process in left]}"
            fault = f"{'the store' if pattern == '.' else pattern} deleted at work"
            seconds = time.monotonic() - began
            yield FaultOutcome(
                kind="folder deleted at work", fault=fault, outcome=outcome, detail=detail, seconds=seconds
            )
            _remove(arena, store, keep=outcome == WRONG)


def _matching(store: Path, pattern: str) -> list[Path]:
    """Return the folders that match a pattern; "." is the store itself."""
    return [store] if pattern == "." else sorted(store.glob(pattern))


def _judged_again(arena: Arena, store: Path, status: int, output: str) -> tuple[str, str]:
    """Judge a store after one more command: what was deleted while a command ran, the next one makes again."""
    if "Traceback" in output:
        return WRONG, f"exit {status} with a traceback: {output.strip()[-400:]}"
    if status not in (0, 1, 2, 130):
        return WRONG, f"exit {status}: {output.strip()[-300:]}"
    again = arena.warm.run(store)
    wrong = arena.reference.differences(store, left_out=["pretrained", *_trials(arena, store)], tracking=False)
    wrong = wrong or arena.views(store)
    detail = f"exit {status}, then {again.status}"
    if again.status or wrong:
        return WRONG, f"{detail}; {'; '.join(wrong[:3])} {again.output.strip()[-200:] if again.status else ''}"
    return (EQUAL if status == 0 else REPORTED), detail


def _trials(arena: Arena, store: Path) -> list[str]:
    """Return trials that are missing although their tuning is valid, which does not need them any more."""
    paths = [path.relative_to(arena.finished) for path in arena.finished.glob("tuning/*/trials/*")]
    return [str(path) for path in paths if not (store / path / "record.json").exists()]
