"""Printed commands do in a shell what they say, whatever the names in them are."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.outputs.commands import command, join, quoted, shell, split, study_command

HOSTILE = (
    *(
        "a b",
        "a  b",
        " ",
        "",
        "it's",
        '"',
        "'",
        "''",
        "\\",
        "\\n",
        "$HOME",
        "$(touch owned)",
        "`touch owned`",
        "a;b",
        "a&b",
    ),
    *(
        "!x",
        "*",
        "~",
        "#x",
        "a\nb",
        "a\tb",
        "\x1b[31mred",
        "\u202eevil",
        "\udcff",
        "é",
        "漢 字",
        "$'x'",
        "x $'b'",
        "-x",
        "{a,b}",
    ),
)
WORDS = st.lists(
    st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
    min_size=1,
    max_size=30,
)


def words_of_shell(line: str) -> list[str]:
    """The words that a shell makes of a line."""
    ended = subprocess.run(
        ["/bin/bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    return [part.decode("utf-8", "surrogateescape") for part in ended.stdout.split(b"\0")[:-1]]


@settings(max_examples=40, deadline=None)
@given(WORDS)
def test_a_shell_reads_back_the_words(words: list[str]) -> None:
    line = join(words)
    assert words_of_shell(line) == words
    assert split(line) == words
    assert line.isprintable() and "`" not in line and "  " not in line


def test_every_hostile_word_is_one_argument() -> None:
    assert words_of_shell(join(HOSTILE)) == list(HOSTILE)
    assert quoted("plain-name_1.toml") == "plain-name_1.toml"


def test_a_path_is_no_option() -> None:
    assert command("restore", Path("-x.tar.gz")) == "bench restore ./-x.tar.gz"
    assert shell("rm", Path("a b")) == "rm 'a b'"


@pytest.mark.parametrize(
    ("own", "store", "option"),
    [
        ("", "bench-store", ""),
        ("", "other", " --store other"),
        ("other", "other", ""),
        ("other", "bench-store", " --store bench-store"),
        ("", "it's", " --store 'it'\"'\"'s'"),
    ],
)
def test_a_store_is_named_unless_the_command_takes_it_by_itself(
    monkeypatch: pytest.MonkeyPatch, own: str, store: str, option: str
) -> None:
    monkeypatch.setenv("BENCH_STORE", own)
    assert command("report", store=Path(store)) == f"bench report{option}"
    assert ("--store" in command("report", store=Path(store).absolute())) == bool(option)


@pytest.mark.parametrize(
    ("stated", "line"),
    [
        ("bench run --seeds 3", "bench run --seeds 3 --store 's t'"),
        ("bench run --store x --seeds 3", "bench run --store x --seeds 3"),
        ("bench run --store=x", "bench run --store=x"),
        ("bench run; rm -rf ~", ""),
        ("bench run ; rm -rf ~", "bench run ';' rm -rf '~' --store 's t'"),
        ("bench run `x` $(y)\nz", "bench run $'\\140x\\140' '$(y)' z --store 's t'"),
        ("rm -rf ~", ""),
        ("bench clean --yes", ""),
        ("bench run 'open", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_what_a_document_states_is_a_run_and_nothing_more(stated: object, line: str) -> None:
    assert study_command(stated, Path("s t")) == line
