"""The views with which MLflow's page of a study opens: columns, order, filter and charts, kept as experiment tags.

MLflow shows no params, metrics or tags in its run table until somebody picks them. A view that is saved with an
experiment can be named in a URL. It is a tag; its value has had two forms, and this module writes both into one
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

from bench.reporting.charts import COLOURS

COLOUR = "mlflow.runColor"
"""The tag that gives a run its colour in MLflow's lists and plots."""

_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Without it MLflow asks each visitor what the experiment is about."""
_PREFIX = "mlflow.sharedViewState."
_SECTION = "comparison"
_WIDTH = 100
_WIDTHS = {"method": 150, "budget": 80, "seed": 60, "bops": 110, "raw_cost": 110, "bops_mean": 120}
_WIDTHS |= {"search_seconds": 130, "search_seconds_mean": 170, "knob.strength": 120, "validation_top1": 130}
"""Of columns whose contents do not fit, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One saved view.

    Attributes:
        key: In the URL.
        name: In MLflow's menu of views.
        summary: What it shows, in a few words.
        phase: The runs in it: `run`, `summary` or `trial`.
        params, metrics, tags: Columns, in this order: params, metrics, tags.
        order: The metric or param that orders the runs, as MLflow writes it.
        ascending: Whether the least comes first.
        charts: Of the chart mode, see `_scatter` and the like.
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
        named = (("params", self.params), ("metrics", self.metrics), ("tags", self.tags))
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
        key="bench-methods",
        name="Methods",
        summary="mean and standard deviation over seeds",
        phase="summary",
        params=("method", "budget"),
        metrics=("top1_mean", "top1_std", "bops_mean", "search_seconds_mean", "n", "n_failed"),
        order=_column("metrics", "top1_mean"),
        ascending=False,
        charts=(
            _scatter(1, "bops_mean", "top1_mean"),
            _parallel(2, ("method", "budget"), ("search_seconds_mean", "bops_mean", "top1_mean")),
            _bars(3, "top1_mean"),
            _bars(4, "top1_std"),
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
"""The views of every study, the one that `bench ui` opens first."""


def experiment_tags(created: int) -> dict[str, str]:
    """The tags of a study's experiment that make MLflow's page of it readable.

    Args:
        created: When the experiment was made, milliseconds since 1970.
    """
    return _KIND | {view.tag: _document(view, created) for view in VIEWS}


def view_url(server: str, experiment: str, view: View, *, charts: bool = False) -> str:
    """The page of an experiment in MLflow's user interface, opened with a view."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{experiment_url(server, experiment)}?viewStateShareKey={view.key}&workflowType=machine_learning{mode}"


def experiment_url(server: str, experiment: str) -> str:
    """The page of an experiment in MLflow's user interface."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs"


def colours(methods: Iterable[str]) -> dict[str, dict[str, str]]:
    """By method the tag that gives all of its runs one colour."""
    return {method: {COLOUR: COLOURS[index % len(COLOURS)]} for index, method in enumerate(dict.fromkeys(methods))}


def _document(view: View, created: int) -> str:
    state = _state(view)
    return json.dumps({**state, "name": view.name, "createdAt": created, "state": _compressed(state)})


def _compressed(state: Mapping[str, Any]) -> str:
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    return f"deflate;{base64.b64encode(packed).decode()}"


def _state(view: View) -> dict[str, Any]:
    """What MLflow keeps of a view; everything that is not named here is as MLflow has it."""
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
        "compareRunSections": [section | {"isGenerated": False, "columns": 2}],
        "isAccordionReordered": True,
    }
