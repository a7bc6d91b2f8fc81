"""`bench list`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.spec.sources import preset_names
from tests.bench.cli.printed import table_rows


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("methods", ["sbs", "dnas", "fixed", "full_precision", "cost_only", "multi_path"]),
        ("models", ["resnet8", "resnet20", "resnet56"]),
        ("datasets", ["digits", "cifar10", "cifar100", "synthetic"]),
        ("presets", preset_names()),
        ("reports", ["comparison", "ablation", "published"]),
        ("forms", ["terminal", "markdown", "latex", "csv"]),
    ],
)
def test_lists_have_a_line_on_each(bench: Callable[..., Any], kind: str, expected: list[str]) -> None:
    answer = bench("list", kind)
    assert (answer.status, answer.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert set(expected) <= lines.keys()
    assert all(len(summary) > 10 for summary in lines.values())


def test_presets_say_how_long_they_take_with_each_schedule(bench: Callable[..., Any]) -> None:
    answer = bench("list", "presets", "--long")
    rows = {row[0]: row[1:] for row in table_rows(answer.out)}
    assert rows.keys() == set(preset_names())
    assert all(time.split()[1] in ("s", "min", "h", "d") for times in rows.values() for time in times[1:])


def test_long_is_for_methods_and_presets_alone(bench: Callable[..., Any]) -> None:
    message = "--long describes methods, presets and keys only; it has no effect on models"
    assert message in bench("list", "models", "--long").refusal


def test_methods_tell_all_of_themselves(bench: Callable[..., Any]) -> None:
    answer = bench("list", "methods", "--long", *available("methods"))
    assert (answer.status, answer.err) == (0, "")
    message = {block.splitlines()[0]: block for block in answer.out.split("\n\n")}
    assert message.keys() == available("methods").keys()
    for name, block in message.items():
        method = load("methods", name)
        words = " ".join(block.split())
        for text in (method.summary, method.family, method.source, *method.deviations, *method.Options.model_fields):
            assert text and " ".join(text.split()) in words, (name, text)
    assert "can: the harness brings it onto the budget by λ, removes filters, chooses bits layer by layer" in " ".join(
        message["sbs"].split()
    )
    assert "bits = [2, 4, 8]" in message["sbs"] and "bits (absent)" in message["fixed"]


def test_the_abilities_of_all_methods_fit_80_columns(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("bench.outputs.terminal.is_terminal", lambda: True)
    lines = bench("list", "methods", "--long", "--color", "never").out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert rows.keys() >= available("methods").keys()
    assert max(map(len, lines)) <= 80 and "Left out" not in "".join(lines)
    assert rows["sbs"].split()[1:4] == ["strength", "yes", "yes"]
    assert rows["haq"].split()[1:5] == ["one", "search", "yes", "yes"]
    assert rows["dnas"].rstrip().endswith("Wu et al. 2018")


def test_a_list_can_be_of_some(bench: Callable[..., Any]) -> None:
    assert bench("list", "methods", "fixed").out.startswith("fixed  Uniform precision")
    assert bench("list", "models", "resnet8", "resnet20").out.count("\n") == 2
    Path("mine.py").write_text("from methods.fixed import Fixed\n\n\nclass Mine(Fixed):\n    summary = 'My own'\n")
    message = bench("list", "methods", "--long", "mine.py:Mine").out
    assert message.startswith("mine\n    My own\n    family:     uniform\n    source:") and "can:" in message
    assert "unknown method 'fixd': did you mean 'fixed'?" in bench("list", "methods", "fixd").refusal
    assert "unknown model 'resnet9'" in bench("list", "models", "resnet9").refusal
    assert "unknown preset 'quik': did you mean 'quick'?" in bench("list", "presets", "quik").refusal


def test_keys_of_the_specification_are_listed_with_their_defaults(bench: Callable[..., Any]) -> None:
    lines = bench("list", "keys").out.splitlines()
    assert [line for line in lines if line.startswith("search.epochs = 1 ")] and len(lines) > 50
    assert [line.split(" = ")[0] for line in bench("list", "keys", "accelerator").out.splitlines()] == [
        "accelerator.hardware",
        "accelerator.batch",
        "accelerator.depthwise",
    ]
    said = bench("list", "keys", "--long", "tuning.match").out
    assert said.startswith('tuning.match = "dual"\n    "dual", "hinge", "lambda"\n    "dual": λ moves')
    assert "unknown key 'serach': did you mean 'search'?" in bench("list", "keys", "serach").refusal
