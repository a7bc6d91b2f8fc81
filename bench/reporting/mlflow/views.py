"""The views with which MLflow's page of a study opens: columns, order, filter and charts, stored as experiment tags.

MLflow shows no params, metrics or tags in its run table until a user picks them. A view that is saved with an
experiment can be named in a URL. It is stored as a tag, whose value has had two forms. This module writes both into one
document: versions up to 3.14 read the state from the document itself, later ones from its field `state`, compressed.
(`mlflow/server/js/src/experiment-tracking/components/experiment-page`: `models/ExperimentPageUIState.tsx`,
`utils/savedViewEnvelope.ts`, `hooks/useSharedExperimentViewState.ts`.)
"""

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.reporting.charts import method_looks

COLOUR = "mlflow.runColor"
"""The tag that gives a run its colour in MLflow's lists and plots."""

_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag without which MLflow asks each visitor about the kind of the experiment."""
_PREFIX = "mlflow.sharedViewState."
_SECTION = "comparison"
_WIDTH = 100
_WIDTHS = {"method": 150, "budget": 80, "seed": 60, "bops": 110, "raw_cost": 110, "result": 120, "delta": 230}
_WIDTHS |= {"search_seconds": 130, "share": 90, "effort": 90, "knob.strength": 120, "validation_top1": 130}
"""Widths in pixels of columns whose contents do not fit otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One saved view.

    Attributes:
        key: Name in the URL.
        name: Name in MLflow's menu of views.
        summary: Contents in a few words.
        phase: Phase of the runs that are shown: `run`, `summary` or `trial`.
        params, tags, metrics: Columns, in this order.
        order: Metric or param that orders the runs, as MLflow writes it.
        ascending: Whether the smallest value comes first.
        charts: Charts of the chart mode; `_scatter`, `_parallel` and `_bars` make them.
    """

    key: str
    name: str
    summary: str
    phase: str
    params: tuple[str, ...]
    metrics: tuple[str, ...]
    tags: tuple[str, ...] = ()
    order: str
    ascending: bool
    charts: tuple[Mapping[str, Any], ...] = ()

    @property
    def tag(self) -> str:
        """The experiment's tag that holds the view."""
        return f"{_PREFIX}{self.key}"

    @property
    def columns(self) -> list[str]:
        """The columns of the table, as MLflow writes them."""
        named = (("params", self.params), ("tags", self.tags), ("metrics", self.metrics))
        return [_column(kind, name) for kind, names in named for name in names]


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _chart(number: int, kind: str, **fields: Any) -> dict[str, Any]:
    common = {"uuid": f"{_SECTION}-{number}", "type": kind, "metricSectionId": _SECTION, "runsCountToCompare": 100}
    return common | {"deleted": False, "isGenerated": False, **fields}


def _scatter(number: int, across: str, up: str) -> dict[str, Any]:
    return _chart(number, "SCATTER", xaxis={"key": across, "type": "METRIC"}, yaxis={"key": up, "type": "METRIC"})


def _parallel(number: int, params: tuple[str, ...], metrics: tuple[str, ...]) -> dict[str, Any]:
    return _chart(number, "PARALLEL", selectedParams=params, selectedMetrics=metrics, showAllRuns=True)


def _bars(number: int, metric: str) -> dict[str, Any]:
    return _chart(number, "BAR", metricKey=metric)


VIEWS = (
    View(
        key="bench-methods",
        name="Methods",
        summary="mean and standard deviation over seeds",
        phase="summary",
        params=(),
        metrics=("n", "n_failed"),
        tags=("result", "delta", "share", "effort", "flags"),
        order=_column("metrics", "top1_mean"),
        ascending=False,
        charts=(
            _scatter(1, "budget_share", "top1_mean"),
            _parallel(2, ("method",), ("search_seconds_mean", "budget_share", "top1_mean")),
            _bars(3, "top1_mean"),
            _bars(4, "top1_std"),
        ),
    ),
    View(
        key="bench-runs",
        name="Runs",
        summary="every seed",
        phase="run",
        params=("method", "budget", "seed"),
        metrics=("top1", "bops", "search_seconds"),
        tags=("status",),
        order=_column("params", "method"),
        ascending=True,
        charts=(
            _scatter(1, "bops", "top1"),
            _parallel(2, ("method", "budget"), ("search_seconds", "bops", "top1")),
        ),
    ),
    View(
        key="bench-tuning",
        name="Tuning",
        summary="every trial",
        phase="trial",
        params=("method", "budget", "knob.strength"),
        metrics=("validation_top1", "cost", "raw_cost", "seconds"),
        tags=("status", "within_budget"),
        order=_column("params", "method"),
        ascending=True,
        charts=(
            _scatter(1, "cost", "validation_top1"),
            _parallel(2, ("method", "knob.strength"), ("cost", "validation_top1")),
        ),
    ),
)
"""The views of every study; `bench ui` opens the first one."""


def experiment_tags(created: int) -> dict[str, str]:
    """Return the tags of a study's experiment that hold the views.

    Args:
        created: Time at which the experiment was made, in milliseconds since 1970.
    """
    return _KIND | {view.tag: _document(view, created) for view in VIEWS}


def view_url(server: str, experiment: str, view: View, *, charts: bool = False) -> str:
    """Return the URL of an experiment in MLflow's user interface, opened with a view."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{experiment_url(server, experiment)}?viewStateShareKey={view.key}&workflowType=machine_learning{mode}"


def experiment_url(server: str, experiment: str) -> str:
    """Return the URL of an experiment in MLflow's user interface."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs"


def colours(methods: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return, by method, the tag that gives all of its runs the colour that the method has in figures."""
    return {method: {COLOUR: look.colour} for method, look in method_looks(methods).items()}


def _document(view: View, created: int) -> str:
    state = _state(view)
    return json.dumps({**state, "name": view.name, "createdAt": created, "state": _compressed(state)})


def _compressed(state: Mapping[str, Any]) -> str:
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    return f"deflate;{base64.b64encode(packed).decode()}"


def _state(view: View) -> dict[str, Any]:
    """Return the state of a view as MLflow stores it; a setting that is missing here has MLflow's default."""
    section = {"uuid": _SECTION, "name": "Comparison", "display": True, "isReordered": True, "deleted": False}
    widths = {column: _WIDTHS.get(column.rpartition("`")[0].partition("`")[2], _WIDTH) for column in view.columns}
    return {
        "searchFilter": f"tags.phase = '{view.phase}'",
        "orderByKey": view.order,
        "orderByAsc": view.ascending,
        "selectedColumns": view.columns,
        "columnOrder": view.columns,
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": view.charts,
        "compareRunSections": [section | {"isGenerated": False, "columns": 1}],
        "isAccordionReordered": True,
    }
