"""`bench compare` and `bench plan` as a user types them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import fake_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fake = fake_store.FakeStore(tmp_path / "store", spec={"methods": ["fixed", "sbs", "dnas"]})
    fake.seeds("fixed", [70.0, 71.0, 72.0])
    fake.seeds("sbs", [71.0, 71.5, 73.5])
    fake.document()
    return fake.root


def test_compare_prints_verdict_costs_and_layers(bench: Callable[..., Any], store: Path) -> None:
    answer = bench("compare", "sbs", "fixed", "--all", "--store", store)
    assert (answer.status, answer.err) == (0, "")
    text = " ".join(answer.out.split())
    assert "A = sbs, B = fixed" in text
    assert "undecided: sbs minus fixed is +1.00 points, 95 % interval [-0.24, +2.24], 3 pairs" in text
    assert "39.50 39.50" in text and "stem 8 8 100" in text


def test_compare_as_json(bench: Callable[..., Any], store: Path) -> None:
    answer = bench("compare", "quick/sbs", "quick/fixed/4bit", "--json", "--store", store)
    document = json.loads(answer.out)
    assert document["lines"][0]["difference"] == 1.0
    assert document["layers"][0]["first"]["layers"]["stem"]["weight_bits"] == 8


def test_plan_prints_seeds_and_time(bench: Callable[..., Any], store: Path) -> None:
    answer = bench("plan", "quick", "--detect", "0.3", "--store", store)
    assert (answer.status, answer.err) == (0, "")
    text = " ".join(answer.out.split())
    assert "quick: seeds to find 0.3 points against fixed" in text
    assert "Each comparison by itself: 24 seeds (95 % interval 9 to 864), 21 more than there are" in text


def test_plan_says_in_a_line_that_there_is_no_forecast_reason(bench: Callable[..., Any], tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path / "store", spec={"methods": ["fixed", "sbs"]})
    fake.run("sbs", 0, 70.0)
    fake.document()
    answer = bench("plan", "--detect", "0.3", "--store", fake.root)
    assert answer.status == 0 and answer.out.startswith("no forecast for study quick yet: ")
    assert len(answer.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("compare", "sbs", "fixd"), "unknown study, method or run 'fixd': did you mean 'fixed'?"),
        (("compare", "quick", "sbs"), "'quick' is a study and 'sbs' a method"),
        (("compare", "fixed-4", "sbs"), "run 'fixed-4' is ambiguous: 3 ids begin with it"),
        (("compare", "sbs"), "Missing argument 'B'"),
        (("plan", "--detect", "0"), "--detect 0 is no difference in Top-1; give points above 0 up to 100, e.g. 0.3"),
        (("plan", "--detect", "nan"), "'nan' is not a number; write it in the digits 0 to 9, e.g. 0.3"),
        (("plan",), "Missing option '--detect'"),
        (("plan", "--detect", "1", "--baseline", "fixt"), "did you mean 'fixed'?"),
        (("plan", "quik", "--detect", "1"), "no study 'quik'"),
    ],
)
def test_mistakes_are_one_line(
    bench: Callable[..., Any], store: Path, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in bench(*arguments, "--store", store).refusal


def test_layers_of_a_real_study(bench: Callable[..., Any], finished: Any) -> None:
    answer = bench("compare", "sbs", "fixed", "--json", "--store", finished.store.root)
    (layers,) = json.loads(answer.out)["layers"]
    folders = [finished.store.unit("runs", finished.record(f"sbs {seed}")["id"]) for seed in (0, 1)]
    policies = [json.loads((folder / "policy.json").read_text())["layers"] for folder in folders]
    assert layers["first"]["layers"].keys() == policies[0].keys()
    for shape in finished.plan.network.layers:
        found, (a, b) = layers["first"]["layers"][shape.name], [policy[shape.name] for policy in policies]
        kept = [shape.out_channels if entry["kept_filters"] is None else len(entry["kept_filters"]) for entry in (a, b)]
        assert found["weight_bits"] == (a["weight_bits"] + b["weight_bits"]) / 2
        assert found["activation_bits"] == (a["activation_bits"] + b["activation_bits"]) / 2
        assert found["kept"] == pytest.approx(sum(kept) / 2 / shape.out_channels)
    assert any(layer["kept"] < 1 for layer in layers["first"]["layers"].values())
    assert all(layer["kept"] == 1 for layer in layers["second"]["layers"].values())


def test_neither_command_needs_torch(store: Path) -> None:
    code = (
        "import sys\nfrom bench.__main__ import main\n"
        f"for arguments in (['compare', 'sbs', 'fixed'], ['plan', '--detect', '0.3']):\n"
        f"    sys.argv = ['bench', *arguments, '--store', {str(store)!r}]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code\n"
        "assert 'scipy' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
