"""Pages in MLflow: a policy's figures are those of the cost counter and of plain arithmetic."""

from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from bench.compression.policy import LayerPolicy, Policy, uniform
from bench.costs.counter import price
from bench.planning.networks import model_shape
from bench.reporting.mlflow import pages as tracking_pages
from bench.reporting.mlflow.pages import policy_page, table_page
from bench.reporting.report import Column, Table


class Cells(HTMLParser):
    """The text of every cell, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        self._open &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


def table(policies: list[Policy]) -> dict[str, dict[str, str]]:
    """By layer and heading."""
    cells = Cells()
    cells.feed(policy_page(policies, "sbs 4bit"))
    head, *rows = cells.rows
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


NETWORK = model_shape("resnet8", "digits")
PRUNABLE = next(layer.name for layer in NETWORK.layers if layer.prunable)
FILTERS = NETWORK[PRUNABLE].out_channels


def pruned(bits: int, kept: int) -> Policy:
    return uniform(NETWORK, bits).with_layer(PRUNABLE, kept_filters=tuple(range(kept)))


def test_a_page_shows_what_the_counter_says() -> None:
    policy = pruned(4, 3)
    found, cost = table([policy]), price(NETWORK, policy)
    assert list(found) == [layer.name for layer in NETWORK.layers]
    assert found[PRUNABLE]["Kept filters"] == f"3 of {FILTERS}"
    for layer in cost.layers:
        row = found[layer.name]
        assert (row["Weight bits"], row["Activation bits"]) == (str(layer.weight_bits), str(layer.activation_bits))
        assert float(row["% of BOPs"]) == pytest.approx(100 * layer.bops / cost.bops, rel=5e-3)
        kept = 3 if layer.name == PRUNABLE else layer.out_channels
        assert row["Kept filters"] == f"{kept} of {NETWORK[layer.name].out_channels}"


def test_several_policies_show_mean_and_range() -> None:
    row = table([pruned(2, 2), pruned(4, 4), pruned(8, FILTERS)])[PRUNABLE]
    assert row["Weight bits"] == "4.67 [2, 8]"
    assert row["Kept filters"] == f"{(6 + FILTERS) / 3:.3g} of {FILTERS} [2, {FILTERS}]"
    first = table([pruned(2, 2), pruned(4, 4)])[NETWORK.layers[0].name]
    assert first["Weight bits"] == "8"  # the same in all: no range


@pytest.mark.parametrize("model", ["nobodys", "resnet8"])
def test_an_unknown_network_is_shown_without_its_sizes(model: str) -> None:
    """The model is not installed here, or has other layers than it had."""
    layers = {
        "a<b": LayerPolicy(weight_bits=3, activation_bits=5, kept_filters=(0, 2)),
        "c": LayerPolicy(weight_bits=4, activation_bits=4),
    }
    found = table([Policy(model=model, dataset="digits", layers=layers)])
    assert found["a<b"] == {"Weight bits": "3", "Activation bits": "5", "Kept filters": "2"}
    assert found["c"]["Kept filters"] == "all"


def test_a_model_that_fails_does_not_stop_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: str, dataset: str) -> Any:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("bench.planning.networks.model_shape", broken)
    tracking_pages._network.cache_clear()
    try:
        assert "% of BOPs" not in table([pruned(4, 3)])[PRUNABLE]
    finally:
        tracking_pages._network.cache_clear()


def test_a_page_draws_no_random_numbers() -> None:
    """It may be made between two steps of a training in the same process."""
    tracking_pages._network.cache_clear()
    before = torch.get_rng_state()
    policy_page([pruned(4, 3)], "x")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_page_needs_nothing_from_elsewhere() -> None:
    page = policy_page([pruned(4, 3)], "<i>")
    assert "http" not in page and "<script" not in page and "&lt;i&gt;" in page


def test_a_table_is_shown_whole() -> None:
    columns = (Column(title="Method", align="left"), Column(title="Δ"))
    rows = (("sbs", "[−1, 1]"), ("<dnas>", ""))
    page = table_page(Table(name="table", title="A & B", columns=columns, rows=rows, notes=("n<6: too few",)))
    cells = Cells()
    cells.feed(page)
    assert cells.rows == [["Method", "Δ"], *map(list, rows)]
    assert "A &amp; B" in page and "n&lt;6: too few" in page and "<dnas>" not in page
    assert page.count("text-align: left") == 3  # of the style sheet's first column, and of both rows
