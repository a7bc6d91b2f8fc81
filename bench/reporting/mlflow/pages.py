"""The pages that MLflow shows as artifacts of a run. They are small and need no other file.

The page of a policy shows the bits of every layer as shaded cells, and kept filters and costs as bars. The page of a
table shows it whole, whereas MLflow's own view of Markdown cuts off wide tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING

from bench.compression.policy import Policy
from bench.errors import BenchError
from bench.outputs.escaping import in_html
from bench.reporting.report import Table

if TYPE_CHECKING:
    from bench.compression.shapes import NetworkShape

_DARKEST_BITS = 8
_STYLE = """
body { font: 14px sans-serif; margin: 16px; color: #222 }
table { border-collapse: collapse }
th, td { padding: 3px 12px; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
small, p { color: #666; font-size: 12px; margin: 6px 0 }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """One figure of a layer over several policies.

    Attributes:
        title: Heading.
        values: Values, one for each policy.
        full: Value of a full bar or of the darkest cell.
        bar: Whether the cell has a bar; otherwise it is shaded.
        suffix: Text after the figure.
    """

    title: str
    values: Sequence[float]
    full: float
    bar: bool = False
    suffix: str = ""


def policy_page(policies: Sequence[Policy], title: str) -> str:
    """Render one policy, or the mean of several with their range, as a self-contained page.

    Args:
        policies: One or more policies of the same network. If the network is not known on this machine, the page has
            no costs, and no total numbers of filters.
        title: Heading of the page.
    """
    network = _network(policies[0].model, policies[0].dataset)
    bops = [_bops(policy, network) for policy in policies]
    rows = {layer: _columns(layer, policies, network, bops) for layer in policies[0].layers}
    heads = ["Layer", *(column.title for column in next(iter(rows.values())))]
    lines = [f"<td>{in_html(layer)}</td>{''.join(map(_cell, columns))}" for layer, columns in rows.items()]
    many = [f"Means of {len(policies)} seeds; in brackets the least and the greatest"] if len(policies) > 1 else []
    return _page(title, heads, lines, many)


def table_page(table: Table) -> str:
    """Render a report's table as a self-contained page."""
    starts = [f'<td style="text-align: {column.align}">' for column in table.columns]
    lines = [
        "".join(start + in_html(cell) + "</td>" for start, cell in zip(starts, row, strict=True)) for row in table.rows
    ]
    heads = [column.title for column in table.columns]
    return _page(table.title, heads, lines, table.explained(), headline=table.headline)


def _page(
    title: str, heads: Sequence[str], rows: Sequence[str], notes: Sequence[str], headline: Sequence[str] = ()
) -> str:
    """Render a page with one table.

    Args:
        title: Heading of the page.
        heads: Headings of the columns.
        rows: Cells of each row, as HTML.
        notes: Lines below the table.
        headline: Lines above the table.
    """
    above = "\n".join(f"<p><b>{in_html(sentence)}</b></p>" for sentence in headline)
    head = "".join(f"<th>{in_html(text)}</th>" for text in heads)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    below = "\n".join(f"<p>{in_html(note)}</p>" for note in notes)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{in_html(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h3>{in_html(title)}</h3>\n{above}\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n{below}\n</body></html>\n"
    )


def _columns(
    layer: str, policies: Sequence[Policy], network: "NetworkShape | None", bops: Sequence[Mapping[str, int]]
) -> list[_Column]:
    choices = [policy.layers[layer] for policy in policies]
    columns = [
        _Column(title="Weight bits", values=[choice.weight_bits for choice in choices], full=_DARKEST_BITS),
        _Column(title="Activation bits", values=[choice.activation_bits for choice in choices], full=_DARKEST_BITS),
    ]
    total = {} if network is None else {shape.name: shape.filters for shape in network.layers}
    kept = [total.get(layer) if choice.kept_filters is None else len(choice.kept_filters) for choice in choices]
    counts = [count for count in kept if count is not None]
    if len(counts) < len(kept):  # the network is not known here
        columns.append(_Column(title="Kept filters", values=counts, full=max(counts, default=1)))
    else:
        out_of = f" of {total[layer]}" if layer in total else ""
        columns.append(
            _Column(title="Kept filters", values=counts, full=total.get(layer, max(counts)), bar=True, suffix=out_of)
        )
    if all(bops):
        shares = [100 * cost[layer] / sum(cost.values()) for cost in bops]
        most = max(max(cost.values()) / sum(cost.values()) for cost in bops)
        columns.append(_Column(title="% of BOPs", values=shares, full=100 * most, bar=True))
    return columns


def _cell(column: _Column) -> str:
    if not column.values:
        return "<td>all</td>"
    mean, least, most = fmean(column.values), min(column.values), max(column.values)
    spread = f" <small>[{least:.3g}, {most:.3g}]</small>" if least < most else ""
    share = min(1.0, mean / column.full) if column.full else 0.0
    return f'<td style="{_shade(share, bar=column.bar)}">{mean:.3g}{column.suffix}{spread}</td>'


def _shade(share: float, *, bar: bool) -> str:
    if bar:
        return f"background: linear-gradient(90deg, #cfe4f2 {100 * share:.0f}%, transparent 0)"
    return f"background: rgba(0, 114, 178, {0.6 * share:.2f})"


def _bops(policy: Policy, network: "NetworkShape | None") -> dict[str, int]:
    """Return BOPs by layer; nothing when the network is not known or the policy does not fit it."""
    from bench.costs.counter import price

    try:
        return {} if network is None else {layer.name: layer.bops for layer in price(network, policy).layers}
    except BenchError:
        return {}


@cache
def _network(model: str, dataset: str) -> "NetworkShape | None":
    """Return a network's shapes; `None` when its model or data set is not installed or fails."""
    import torch

    from bench.planning.networks import model_shape

    try:
        with torch.device("meta"):  # draws no random numbers, because a study may be running in this process
            return model_shape(model, dataset)
    except Exception:  # a user's model may raise anything; its results are shown all the same
        return None
