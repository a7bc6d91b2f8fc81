"""The tutorial: a newcomer's files and commands, page by page, as they are printed, with shorter trainings."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "tutorial"
ORDER = ["first-study", "own-data", "own-network", "own-method", "device"]
"""A page may use the files of the pages before it."""
FASTER = ["--in-process", "--set", "pretrain.epochs=2", "--set", "search.epochs=1", "--set", "finetune.epochs=1"]
"""Added to every study, so that the tests are fast; the pages ask for more epochs."""
SMALLER = ('in {"train": 200, "test": 100}', 'in {"train": 20, "test": 10}')
"""Numbers of pictures for each class, on the page and here."""


def files(name: str) -> Iterator[tuple[str, str]]:
    """The files that a page tells its reader to write, with their contents."""
    text = (PAGES / f"{name}.md").read_text()
    yield from re.findall(r"[Ww]rite this\s+into\s+`([\w.]+)`[^`]*?:?\n\n```\w+\n(.*?)```", text, re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """The commands of a page in their order."""
    text = (PAGES / f"{name}.md").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"(?m)^ {4}((?:bench|python) .*)$", text)]


def ended(printed: str, unit: str) -> bool:
    """Whether a study reported the end of a unit, on a line of its own."""
    return re.search(rf"(?m)^  {unit} +\S", printed) is not None


@pytest.fixture
def walk(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Follows a page in an empty folder that has the files of the pages before it; returns what was printed."""

    def write(name: str) -> None:
        for file, text in files(name):
            Path(file).write_text(text.replace(*SMALLER))

    def carry_out(program: str, *arguments: str) -> str:
        if program == "python":
            names = [str(path) for pattern in arguments for path in sorted(Path().glob(pattern)) or [pattern]]
            command = [sys.executable, *names]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        faster = FASTER if arguments[0] == "run" and "--dry-run" not in arguments else []
        answer = bench(*arguments, *faster)
        assert answer.status == 0, (arguments, answer.out, answer.err)
        return str(answer.out)

    def follow(name: str) -> list[str]:
        monkeypatch.syspath_prepend(str(Path.cwd()))
        for earlier in ORDER[: ORDER.index(name)]:
            write(earlier)
            for program, *arguments in commands(earlier):
                if program == "python" and arguments[0] == "make_shapes.py":
                    carry_out(program, *arguments)
        write(name)
        return [carry_out(*command) for command in commands(name)]

    return follow


def test_every_page_of_the_tutorial_is_followed() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(ORDER)


@pytest.mark.slow
def test_the_first_study(walk: Callable[[str], list[str]]) -> None:
    first, again, compared, status, _ = walk("first-study")
    assert "1 pretrainings, 2 runs" in first and ended(first, "run fixed 4bit seed 0")
    assert ended(again, "run fixed 4bit seed 2")
    assert not ended(again, "run fixed 4bit seed 0"), "it is not repeated"
    assert "undecided" in compared or "no verdict" in compared
    assert status.count("done") >= 9
    assert Path("first-report/index.html").is_file()


@pytest.mark.slow
def test_own_images(walk: Callable[[str], list[str]]) -> None:
    _, doctor, plan, study, more, grey = walk("own-data")
    assert "data imagefolder" in doctor and "warn     data imagefolder" not in doctor
    assert doctor.endswith("no problems\n")
    assert "run sbs 4bit seed 0" in plan and "planned" in plan
    assert ended(study, "run sbs 4bit seed 0")
    assert ended(more, "run fixed 3bit seed 2")
    assert ended(grey, "run fixed 4bit seed 0")


@pytest.mark.slow
def test_own_network(walk: Callable[[str], list[str]]) -> None:
    cost, study, _, loaded = walk("own-network")
    page = (PAGES / "own-network.md").read_text()
    (printed,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert set(printed.splitlines()) <= set(cost.splitlines()), "the table of the page is that of the command"
    assert ended(study, "run fixed 4bit seed 0")
    assert re.search(r"pretrain seed 0 +planned +0 s", loaded), "nothing is trained"


@pytest.mark.slow
def test_own_method(walk: Callable[[str], list[str]]) -> None:
    checks, compared, report, small = walk("own-method")
    assert "FAIL" not in checks
    assert ended(compared, "run ladder 4bit seed 0")
    assert "ladder" in report
    assert ended(small, "run ladder 3bit seed 0")


@pytest.mark.slow
def test_a_network_for_a_device(walk: Callable[[str], list[str]]) -> None:
    study, chosen, exported, _, classes = walk("device")
    assert ended(study, "run fixed 8bit seed 0")
    assert "export it: bench export " in chosen
    assert "30/30" in exported
    assert len(classes.split()) == 2


def test_the_failed_check_of_the_page_is_what_the_command_prints(bench: Callable[..., Any]) -> None:
    """The method without its error."""
    (source,) = [text for file, text in files("own-method") if file == "ladder.py"]
    without = re.sub(r"        if job\.price\(policy\) > job\.budget:\n            raise .*\n", "", source)
    assert without != source
    Path("ladder.py").write_text(without)
    answer = bench("validate", "ladder.py:Ladder")
    (printed,) = re.findall(r"```text\n(.*?)```", (PAGES / "own-method.md").read_text(), re.DOTALL)
    assert answer.status == 1
    assert " ".join(printed.split()) in " ".join(answer.out.split())
