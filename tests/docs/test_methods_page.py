"""`docs/methods.md` says of every method what its code says."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from bench.method import Method
from bench.plugins.entry_points import available
from methods.dnas import Dnas
from methods.sbs_extended import SbsExtendedOptions

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_methods.py"


def script() -> ModuleType:
    """`docs/make_methods.py` as a module."""
    spec = importlib.util.spec_from_file_location("make_methods", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = script()


@pytest.fixture(scope="module")
def methods() -> Mapping[str, type[Method]]:
    known: Mapping[str, type[Method]] = MAKE.methods()
    return known


def section(text: str, name: str) -> str:
    """The section of a method, in one line."""
    _, _, rest = text.partition(f"### {name}\n")
    return " ".join(rest.partition("\n### ")[0].split())


def test_the_page_shows_the_methods_as_they_are(methods: Mapping[str, type[Method]]) -> None:
    text = MAKE.PAGE.read_text()
    assert MAKE.page(text, methods) == text, "run .venv/bin/python docs/make_methods.py"


def test_every_method_has_a_section_with_all_that_it_declares(methods: Mapping[str, type[Method]]) -> None:
    assert methods.keys() == available("methods").keys()
    text = MAKE.PAGE.read_text()
    for name, kind in methods.items():
        own = section(text, name)
        for declared in (kind.summary, kind.source, *kind.deviations):
            assert declared in own, name
        assert all(sentence.endswith(".") for sentence in kind.deviations), name


def test_every_method_states_its_family(methods: Mapping[str, type[Method]]) -> None:
    assert {kind.family for kind in methods.values()} <= {
        *("reference", "uniform", "control", "sensitivity", "learned gates", "learned ranges", "multi-path"),
        *("reinforcement learning", "evolution", "saliency"),
    }


def test_a_section_follows_its_method(methods: Mapping[str, type[Method]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dnas, "deviations", (*Dnas.deviations, "It is another one."))
    written = MAKE.page(MAKE.PAGE.read_text(), methods)
    assert "* It is another one." in section(written, "dnas")
    assert "It is another one." not in section(written, "multi_path")


def test_options_are_shown_with_default_paper_and_meaning() -> None:
    own = section(MAKE.PAGE.read_text(), "dnas")
    assert "| `temperature_end` | `0.5` | `2.36` (ImageNet: `3.89`) | First and last temperature" in own
    assert "| `range_travel` | `4.0` | `316.0` (ImageNet: default) |" in section(MAKE.PAGE.read_text(), "dq")
    assert "Options: those of [`sbs`](#sbs), and | option" in section(MAKE.PAGE.read_text(), "sbs_extended")


def test_meanings_come_from_the_class_and_those_that_it_extends() -> None:
    found = MAKE.meanings(SbsExtendedOptions)
    assert found.keys() == SbsExtendedOptions.model_fields.keys()
    assert found["gate_start"] == "State in which the gates of bits start: open, as in the paper, or shut."
    assert found["bits"] == "Candidates for weights and activations, each a multiple of the one before."
