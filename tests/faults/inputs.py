"""Bad inputs over all commands: each ends with exit status 2 and one clear line, and nothing is written."""

import json
import os
import random
import time
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from tests.faults.faults import CLEAR, WRONG, Arena, FaultOutcome
from tests.faults.points import SmallStudy
from tests.faults.study import NAME, SETTINGS, Ended

_TEXTS = (
    "",
    " ",
    "../../etc",
    "/etc/passwd",
    "no such",
    "\x1b[31mred",
    "\u202ename",
    "a\nb",
    "x" * 5000,
    "-",
    "*",
    "a,,b",
)
_NUMBERS = ("", "x", "-1", "1_0", "\u0663", "1e3x", "0x10", "9" * 30, "nan", "1,5", "1.5.5", "--")
_FILES = ("missing", "folder", "pipe", "zero", "loop", "empty", "garbage", "deep.json", "other.json", "broken.toml")
_STUDY = ("run", *SETTINGS, "--store", "{new}", "--data-dir", "{files}")

_FORMS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    *(
        ((*_STUDY, f"--{option}={{}}"), _TEXTS)
        for option in ("budget", "seeds", "methods", "model", "dataset", "name", "backend", "timeout", "memory-limit")
    ),
    *(((*_STUDY, f"--{option}={{}}"), _TEXTS) for option in ("retry", "device", "ablate", "set", "preset", "schedule")),
    *(((*_STUDY, f"--{option}={{}}"), _TEXTS) for option in ("tracking-uri", "optuna-storage", "scheduler")),
    *(((*_STUDY, f"--{option}={{}}"), _NUMBERS) for option in ("jobs", "runs-per-card", "devices")),
    *(
        ((*_STUDY, "--set", f"{key}={{}}"), _NUMBERS[:4] + _NUMBERS[7:])
        for key in ("threads", "tuning.trials", "search.epochs", "finetune.lr", "task.validation_fraction")
    ),
    (("run", "--spec={file}", "--store", "{new}"), _FILES),
    *(((command, "--store={store}", "--", "{}"), _TEXTS) for command in ("status", "report", "ui", "sync", "clean")),
    *((("report", NAME, f"--{option}={{}}", "--store={store}"), _TEXTS) for option in ("report", "format")),
    (("ui", NAME, "--port={}", "--store={store}"), _NUMBERS),
    (("ui", NAME, "--host={}", "--store={store}"), _TEXTS),
    (("sync", NAME, "--tracking-uri={}", "--store={store}"), _TEXTS),
    (("compare", "--store={store}", "--", "{}", "fixed"), _TEXTS),
    (("compare", "--store={store}", "--", f"{NAME}/{{}}", "fixed"), _TEXTS[1:]),
    (("plan", NAME, "--detect={}", "--store={store}"), _NUMBERS),
    (("plan", NAME, "--detect=1", "--baseline={}", "--store={store}"), _TEXTS),
    (("list", "--", "{}"), _TEXTS),
    *((("list", kind, "--", "{}"), _TEXTS) for kind in ("methods", "models", "presets", "forms")),
    *(
        ((*("cost", "--bits=4"), f"--{option}={{}}"), _TEXTS)
        for option in ("model", "dataset", "hardware", "depthwise")
    ),
    *((("cost", "--model=resnet8", "--dataset=digits", f"--{option}={{}}"), _NUMBERS) for option in ("bits",)),
    *((("cost", "--bits=4", f"--{option}={{}}"), _NUMBERS) for option in ("batch", "image-size")),
    (("cost", "--policy={file}"), _FILES),
    (("cost", "--diff", "4bit", "{file}"), _FILES),
    (("cost", "--bits=4", "--hardware={file}"), _FILES[1:]),
    *((("speed", f"--{option}={{}}"), _NUMBERS) for option in ("rounds", "threads", "batch-size")),
    *((("speed", f"--{option}={{}}"), _TEXTS) for option in ("methods", "model", "device")),
    (("validate", "--", "{}"), _TEXTS),
    (("validate", "fixed", "--set={}"), _TEXTS),
    *((("doctor", f"--{option}={{}}", "--store={store}"), _TEXTS) for option in ("preset", "study")),
    (("archive", "--store={store}", "--", "{}", "{new}"), _TEXTS),
    (("archive", NAME, "{file}", "--store={store}"), _FILES[1:]),
    (("restore", "{file}", "--store={new}"), _FILES),
    (("restore", "{archive}", "--name={}", "--store={new}"), _TEXTS),
)
"""Commands with one bad value, `{}` or a bad file, and the values."""


def bad_inputs(arena: Arena, seed: int, count: int) -> Iterator[FaultOutcome]:
    """Give commands bad values, one each; all commands and options take turns.

    Args:
        arena: Arena to use.
        seed: Seed of the order.
        count: Number of inputs.
    """
    small = SmallStudy(arena)
    folder = arena.folder / "inputs"
    places = {"files": str(folder), "new": str(folder / "new"), "store": str(arena.folder / "inputs-store")}
    places["archive"] = str(folder / "study.tar.gz")
    if not folder.exists():
        _make_files(folder)
        small.warm.bench("archive", NAME, places["archive"], "--store", str(small.reference.root))
        small.warm.bench("restore", places["archive"], "--store", places["store"])
    for words in _drawn(seed)[:count]:
        began, before = time.monotonic(), _listing(arena.folder)
        ended = small.warm.bench(*(_filled(word, places, folder) for word in words))
        wrong = _wrong(ended) or _changes(before, _listing(arena.folder))
        shown = " ".join(ascii(word)[1:60].rstrip("'") for word in words if word not in SETTINGS)
        yield FaultOutcome(
            kind=f"bad input: {words[0]}",
            fault=shown,
            outcome=WRONG if wrong else CLEAR,
            detail=wrong or ended.last_line[:160],
            seconds=time.monotonic() - began,
        )


def _drawn(seed: int) -> list[tuple[str, ...]]:
    """Return all commands with one bad value each, so that the first ones have every option."""
    draw = random.Random(seed)  # noqa: S311
    by_form = []
    for words, values in _FORMS:
        made = [tuple(_with(word, value) for word in words) for value in values]
        by_form.append(draw.sample(made, len(made)))
    draw.shuffle(by_form)
    return [words for words in chain.from_iterable(zip_longest(*by_form)) if words is not None]


def _with(word: str, value: str) -> str:
    return word.replace("{}", value) if "{}" in word else word.replace("{file}", f"{{files}}/{value}")


def _filled(word: str, places: dict[str, str], folder: Path) -> str:
    for name, path in places.items():
        word = word.replace(f"{{{name}}}", path)
    return word


def _make_files(folder: Path) -> None:
    (folder / "folder").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "empty").touch()
    (folder / "garbage").write_bytes(bytes(range(256)) * 8)
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "other.json").write_text(json.dumps({"name": [1], "layers": {"a": 3}, "seeds": {"x": None}}))
    (folder / "broken.toml").write_text('name = "x\nmethods = [')


def _listing(folder: Path) -> dict[str, int]:
    """Return the files of a folder with their sizes, without logs, locks and signs of life."""
    left_out = (".log", ".lock", ".note")
    return {
        str(path.relative_to(folder)): path.lstat().st_size
        for path in folder.rglob("*")
        if not path.name.endswith(left_out) and "leases" not in path.parts and not path.is_dir()
    }


def _changes(before: dict[str, int], after: dict[str, int]) -> str:
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"files changed: {', '.join(changed[:3])}" if changed else ""


def _wrong(ended: Ended) -> str:
    lines = ended.output.strip().splitlines()
    if "Traceback" in ended.output:
        return f"a traceback: {ended.output.strip()[-300:]}"
    if ended.status != 2:
        return f"exit {ended.status}: {ended.output.strip()[-300:]}"
    if not ended.is_clear or not all(line.isprintable() for line in lines):
        return f"no clear line: {ended.output.strip()[-300:]!a}"
    return ""
