"""What commands print: commands that can be typed, and foreign texts that do nothing to the terminal."""

import ast
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import bench.cli
from bench import __main__ as console_script
from bench.cli.main import bench as command_line
from bench.errors import BenchError
from bench.reporting.mlflow import ui
from bench.store.cleaning.usage import read_usage
from tests import fake_store
from tests.bench.outputs.test_commands import words_of_shell

HOSTILE_FOLDER = "a 'b' \"c\"  $(touch owned) `touch owned`;\n\u202e\x1b[31m!"
EVIL = "\x1b[2J\x1b[31m\u202eevil\nbench: done"


def run(*words: str) -> tuple[int, str]:
    """The exit status and the output of a command, errors included."""
    ended = CliRunner().invoke(command_line, words, standalone_mode=False)
    text = ended.output
    if isinstance(ended.exception, BenchError):
        text += str(ended.exception)
    elif ended.exception is not None:
        raise ended.exception
    return (2 if ended.exception else ended.return_value or 0), text


def printed(text: str) -> Iterator[list[str]]:
    """The commands in a text, as a shell reads them: between backquotes, or at the end of a line after a colon."""
    for line in re.findall(r"`(bench [^`]*)`|: (bench [^\n`]*)$", text, re.MULTILINE):
        words = words_of_shell("".join(line))
        assert words[0] == "bench"
        yield words[1:]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / HOSTILE_FOLDER
    fake = fake_store.two_done(root)
    fake.document()
    return root


def test_printed_commands_do_what_they_say(store: Path, tmp_path: Path) -> None:
    """One command leads to the next, over a store and a file with names that shells and terminals would act on."""
    file = tmp_path / 'it\'s a "file"\t;.tar.gz'
    status, text = run("archive", "quick", str(file), "--store", str(store))
    ((*restore,),) = printed(text)
    assert status == 0 and restore == ["restore", str(file)]
    other = store.with_name(store.name + "2")
    status, text = run(*restore, "--store", str(other))
    (report,) = printed(text)
    assert status == 0 and report == ["report", "quick", "--store", str(other)]
    status, text = run(*report)
    assert status == 0 and "sbs" in text
    lost = fake_store.FakeStore(other).run("sbs", 7, 70.0)
    for path in [*(other / "runs" / lost).iterdir(), other / "runs" / lost]:
        os.utime(path, (0, 0))
    status, text = run("clean", "--store", str(other))
    (clean,) = printed(text)
    assert status == 0 and clean == ["clean", "--yes", "--store", str(other)]
    assert run(*clean)[0] == 0 and not (other / "runs" / lost).exists()
    status, text = run("compare", "nothing", "sbs", "--store", str(other))
    (look,) = printed(text)
    assert status == 2 and run(*look)[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("report", "nothing"),
        ("plan", "--detect", "1", "--baseline", "nothing"),
        ("compare", "quick/nothing", "sbs"),
        ("compare", "quick/sbs/9bit", "sbs"),
        ("compare", "nothing/sbs", "sbs"),
        ("clean", "nothing"),
        ("doctor",),
        ("ui",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("empty", [False, True], ids=["store", "empty store"])
def test_every_printed_command_is_one_of_the_harness(
    store: Path, tmp_path: Path, words: tuple[str, ...], empty: bool
) -> None:
    """It can be parsed, and says which store it is about."""
    root = tmp_path / f"{HOSTILE_FOLDER} empty" if empty else store
    root.mkdir(exist_ok=True)
    (root / "leases").mkdir(exist_ok=True)
    (root / "leases" / "dead.json").write_text("{}")
    _, text = run(*words, "--store", str(root))
    for command in printed(text):
        name, *rest = command
        command_line.commands[name].make_context(name, rest)
        if command_line.commands[name].params and name not in ("list", "cost", "speed"):
            assert str(root) in command


def test_commands_in_messages_name_the_store(store: Path) -> None:
    (store / "studies" / "quick" / "study.json").write_text("{")
    usage = read_usage(fake_store.FakeStore(store).store)
    ((*clean,),) = printed(usage.doubt() or "")
    assert clean == ["clean", "quick", "--yes", "--store", str(store)]
    tracker = SimpleNamespace(uri="sqlite:////nothing", root=store, option=())
    with pytest.raises(BenchError) as caught:
        ui._require_experiment(tracker, "quick")  # type: ignore[arg-type]
    ((*sync,),) = printed(str(caught.value))
    assert sync == ["sync", "quick", "--store", str(store)]


# --- foreign texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["status", "report", "report --report failures", "clean", "doctor", "compare sbs fixed"]
)
def test_texts_of_a_store_do_nothing_to_the_terminal(tmp_path: Path, words: str) -> None:
    fake = fake_store.two_done(tmp_path / HOSTILE_FOLDER)
    fake.run("fixed", 0, 69.0, versions={EVIL: EVIL}, hardware={"gpu": EVIL})
    fake.run("fixed", 1, status="failed", reason=EVIL)
    fake.document()
    (fake.root / "studies" / f"x{EVIL}").mkdir()
    _, text = run(*words.split(), "--store", str(fake.root))
    assert [line for line in text.split("\n") if not line.isprintable()] == []
    assert "\nbench: done" not in text


def test_messages_of_the_log_are_one_line() -> None:
    record = logging.LogRecord("bench", logging.WARNING, "", 0, "%s", (EVIL,), None)
    assert console_script._OneLine("bench: %(message)s").format(record).isprintable()


def test_commands_print_through_one_function() -> None:
    """`click.echo` alone would show foreign texts as they are; documents, JSON and help escape theirs themselves."""
    known = (
        "json.dumps(",
        "render(document, ",
        "context.get_help(",
        "in_terminal(",
    )
    for path in Path(bench.cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("click.echo", "click.secho", "print"):
                assert ast.unparse(node.args[0]).startswith(known), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "console.print":
                assert re.match(r"(simple_table|_\w*table)\(", ast.unparse(node.args[0])), f"{path}:{node.lineno}"
