"""A study as an object: made from values, a preset or a file, run, and read as data frames, policies and charts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bench.errors import BenchError, unknown_name
from bench.interface.specification import make_specification, method_entry, nested_settings, seed_list, task_values
from bench.outputs.commands import DEFAULT_STORE
from bench.spec.sources import merge
from bench.store.files import Store

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import altair
    import pandas as pd
    from torch import nn

    from bench.compression.policy import Policy
    from bench.interface.comparing import PairedComparison
    from bench.planning.plan import Plan
    from bench.reporting.report import Document
    from bench.results.tables import StudyResults

    AnyPath = str | PathLike[str]


class Study:
    """A study: methods × budgets × seeds on one task.

    Any key of the specification may be given by its name, a table as a dictionary: `search={"epochs": 3}`. The page on
    keys lists them all. Nothing is planned or read before it is needed.

        study = Study(methods=["sbs", "fixed"], dataset="digits", model="resnet8", budgets=["4bit"], seeds=3)
        study.run()
        study.results[["method", "top1_mean", "delta"]]

    Args:
        preset: Name of the preset to start from; "quick" when there is no file either.
        file: File to start from: a TOML file, the `study.json` of a study or the `spec.json` of a run.
        schedule: Name of a schedule in place of the preset's own: "quick", "short" or "paper".
        store: Folder of results.
        data_dir: Folder of data sets.
        tracking_uri: MLflow server or database; an SQLite file in the store by default.
        name: Name of the study.
        methods: Names of methods, locations of the form "file.py:Class", or classes that are defined in files; a single
            one need not be in a list.
        model: Name of the model, or "package.module:function".
        dataset: Name of the data set.
        budgets: Budgets, e.g. "4bit", "630.6M", "0.016x", "395KB", "21.6ms" or "29.8mJ"; a single one need not be in a
            list.
        seeds: Number of seeds, or their list.
        settings: Values by key with dots, e.g. `{"search.epochs": 3}`.
        keys: Values of other keys of the specification.

    Attributes:
        spec: Specification of the study.
        store: Store with the results.
        data_dir: Folder of data sets.
        tracking_uri: MLflow server or database.

    Raises:
        BenchError: A key is unknown, or a value is not allowed.
    """

    def __init__(
        self,
        preset: str | None = None,
        *,
        file: AnyPath | None = None,
        schedule: str | None = None,
        store: AnyPath = DEFAULT_STORE,
        data_dir: AnyPath | None = None,
        tracking_uri: str | None = None,
        name: str | None = None,
        methods: str | type | Iterable[str | type] | None = None,
        model: str | None = None,
        dataset: str | None = None,
        budgets: str | Iterable[str] | None = None,
        seeds: int | Iterable[int] | None = None,
        settings: Mapping[str, Any] | None = None,
        **keys: Any,
    ) -> None:
        stated = {
            "name": name,
            "methods": None if methods is None else [method_entry(method) for method in _several(methods, "methods")],
            "budgets": None if budgets is None else _several(budgets, "budgets"),
            "seeds": seed_list(seeds),
        }
        values = merge(nested_settings(settings or {}), {**keys, **{k: v for k, v in stated.items() if v is not None}})
        self.spec = make_specification(
            merge(values, task_values(model, dataset)),
            preset=preset,
            file=None if file is None else Path(file),
            schedule=schedule,
        )
        self.store = Store(Path(store))
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.tracking_uri = tracking_uri

    @classmethod
    def open(
        cls,
        name: str | None = None,
        *,
        store: AnyPath = DEFAULT_STORE,
        data_dir: AnyPath | None = None,
        tracking_uri: str | None = None,
    ) -> Self:
        """Return a study that a store has, e.g. one that `bench run` made.

        Args:
            name: Name of the study; the latest one by default.
            store: Folder of results.
            data_dir: Folder of data sets; needed only to run the study again.
            tracking_uri: MLflow server or database.

        Raises:
            BenchError: There is no such study.
        """
        folder = Store(Path(store))
        document = folder.load_study(name)
        study = cls.__new__(cls)
        file = folder.study(str(document["name"])) / "study.json"
        study.spec = make_specification({}, file=file, elsewhere=True)
        study.store, study.tracking_uri = folder, tracking_uri
        study.data_dir = None if data_dir is None else Path(data_dir)
        return study

    def __repr__(self) -> str:
        spec = self.spec
        methods, budgets = ", ".join(spec.methods), ", ".join(spec.budgets)
        return (
            f"<Study {spec.name}: {methods} at {budgets}, {len(spec.seeds)} seeds, {spec.task.model} on "
            f"{spec.task.dataset}, in {self.store.root}>"
        )

    # --- running ---------------------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> Plan:
        """All units of the study; `study.plan.runs` are its runs.

        Raises:
            BenchError: A name is unknown, or a method cannot do what is asked.
        """
        from bench.planning.networks import with_counted_classes
        from bench.planning.plan import make_plan

        spec = with_counted_classes(self.spec, self.data_dir)
        if spec.accelerator.measured:
            from bench.export.layer_times import with_measured_times

            spec = with_measured_times(spec, self.store, _log.info)
        return make_plan(spec)

    def run(
        self,
        *,
        jobs: int = 1,
        timeout: str | None = None,
        memory_limit: str | None = None,
        retry: str | Sequence[str] = (),
        in_process: bool = False,
        progress: bool = True,
        **settings: Any,
    ) -> Self:
        """Run every unit of the study that has no valid result, and return the study.

        What is interrupted is continued by the same call. Each run has a process of its own; a script needs no
        `if __name__ == "__main__":`.

        Args:
            jobs: Number of runs at the same time.
            timeout: Time limit of each run and trial: "90s", "30min" or "2h".
            memory_limit: Memory limit of each run and trial: "800MB" or "8GB".
            retry: Outcomes to try again: "failed", "diverged", "timeout", "oom" or "all".
            in_process: Whether everything runs in this process and without limits, for debuggers.
            progress: Whether progress is shown: a bar on a terminal or in a notebook, lines elsewhere.
            settings: Further settings of `bench.execution.settings.make_settings`, e.g. `backend` and `scheduler`.

        Raises:
            BenchError: Data are missing, or a setting is not allowed. A run that fails raises nothing; `runs` says why.
        """
        from bench.execution.settings import check_settings, make_settings
        from bench.interface.progress import make_watcher
        from bench.reporting.mlflow.tracker import Tracker
        from bench.study import run_study

        made = make_settings(
            self.store,
            self.data_dir,
            jobs=jobs,
            timeout=timeout,
            memory_limit=memory_limit,
            retry=(retry if isinstance(retry, str) else ",".join(retry)) or None,
            in_process=in_process,
            command=self._command(),
            **settings,
        )
        check_settings(made, self.spec.device, self.spec.devices)
        run_study(self.plan, made, Tracker(self.tracking_uri, self.store.root), make_watcher(show=progress))
        return self

    def _command(self) -> list[str]:
        """Return the words of the command that runs the study again."""
        file = self.store.study(self.spec.name) / "study.json"
        data = [] if self.data_dir is None else ["--data-dir", str(self.data_dir)]
        return ["bench", "run", "--spec", str(file), "--store", str(self.store.root), *data]

    # --- results ---------------------------------------------------------------------------------------------------

    @property
    def document(self) -> Mapping[str, Any]:
        """The study's document: that of the store if it is of this specification, or else as it would be written.

        Raises:
            BenchError: The study has not been run, and its data are missing.
        """
        stored = self.store.study_document(self.spec.name)
        if stored is not None and stored.get("spec") == self.spec.model_dump(mode="json"):
            return stored
        from bench.execution.task_loader import TaskLoader
        from bench.study import study_document

        stored_spec = self.plan.spec.model_dump(mode="json")  # with counted classes and measured times
        if stored is not None and stored.get("spec") == stored_spec:
            return stored
        checksum = TaskLoader(self.plan.spec, self.data_dir).task.data.checksum
        return study_document(self.plan, checksum, self._command())

    @property
    def _results(self) -> StudyResults:
        from bench.results.tables import StudyResults

        return StudyResults(self.store, self.document)

    @property
    def results(self) -> pd.DataFrame:
        """One row for each model, data set, method and budget, as in `results.csv`: means, deviations and differences.

        Percentages are 0 to 100, operations are counts, memory is in KB, times are in seconds, latency is in ms and
        energy in mJ. `delta` is the paired difference to the baseline in points of Top-1, with its 95 % interval.
        """
        from bench.results.differences import result_lines

        return result_lines(self._results)

    @property
    def runs(self) -> pd.DataFrame:
        """One row for each run, as in `runs.csv`, with its id, status and reason, figures, knobs and times."""
        return self._results.runs

    @property
    def status(self) -> pd.DataFrame:
        """One row for each pretraining, tuning and run, with its state and progress."""
        import pandas as pd

        from bench.results.status import UnitState, unit_states

        states = [asdict(state) for state in unit_states(self.store, self.document)]
        return pd.DataFrame(states, columns=list(UnitState.__dataclass_fields__))

    def run_id(self, method: str, *, budget: str | None = None, seed: int | None = None) -> str:
        """Return the id of a finished run.

        Args:
            method: Name of the method.
            budget: Budget; needed when the method has runs at several.
            seed: Seed; the first one that is done by default.

        Raises:
            BenchError: There is no such run, it is not done, or several budgets fit.
        """
        runs = self.runs
        runs = runs[runs["method"] == method]
        if runs.empty:
            raise unknown_name("method", method, self.spec.methods, "study.spec.methods")
        budgets = list(dict.fromkeys(runs["budget"]))
        if budget is None and len(budgets) > 1:
            raise BenchError(
                f"{method} has runs at the budgets {', '.join(budgets)}; name one, e.g. budget='{budgets[0]}'"
            )
        if budget is not None and budget not in budgets:
            raise unknown_name("budget", budget, budgets, "study.spec.budgets")
        runs = runs[(runs["budget"] == (budgets[0] if budget is None else budget)) & (runs["status"] == "done")]
        if seed is not None:
            runs = runs[runs["seed"] == seed]
        if runs.empty:
            which = "" if seed is None else f" with seed {seed}"
            raise BenchError(f"no run of {method}{which} is done; study.runs says why, study.run() continues")
        return str(runs["id"].iloc[0])

    def policy(self, method: str, *, budget: str | None = None, seed: int | None = None) -> Policy:
        """Return the policy of a finished run; the arguments and errors are those of `run_id`."""
        from bench.compression.policy import load_policy

        return load_policy(self.store.unit("runs", self.run_id(method, budget=budget, seed=seed)) / "policy.json")

    def load_network(self, method: str, *, budget: str | None = None, seed: int | None = None) -> nn.Module:
        """Return the compressed network of a finished run; see `bench.load_network`."""
        from bench.export.rebuild import load_network

        return load_network(
            self.run_id(method, budget=budget, seed=seed), store=self.store.root, data_dir=self.data_dir
        )

    # --- tables, figures, comparisons --------------------------------------------------------------------------------

    def report(self, *names: str) -> Document:
        """Return reports of the study as tables and figures.

        Args:
            names: Names of reports, which `bench list reports` lists; all that apply by default.

        Raises:
            BenchError: A name is unknown, or a named report does not apply to the study.
        """
        from bench.reporting.report import make_document

        return make_document(self._results, names or None)

    def figures(self, *names: str) -> dict[str, altair.TopLevelMixin]:
        """Return the figures of reports as Altair charts, by name; a notebook shows a chart that ends a cell.

        Args:
            names: Names of reports, e.g. "tradeoff"; all that apply by default.

        Raises:
            BenchError: As for `report`.
        """
        return {figure.name: figure.draw() for figure in self.report(*names).figures}

    def table(self, *names: str, form: str = "terminal", width: int = 120) -> str:
        """Return tables of reports as text.

        Args:
            names: Names of reports; the comparison of methods by default.
            form: Name of a form, which `bench list forms` lists.
            width: Width in characters, for forms that respect it.

        Raises:
            BenchError: As for `report`, or the form is unknown.
        """
        from bench.plugins.registry import load
        from bench.reporting.report import DEFAULT_REPORT

        render: Callable[[Document, int], str] = load("forms", form).render
        return render(self.report(*(names or (DEFAULT_REPORT,))), width)

    def write_report(self, folder: AnyPath) -> list[Path]:
        """Write all reports that apply into a folder, as a page, tables and figures; return the files."""
        from bench.reporting.report import write_document

        return write_document(self.report(), Path(folder))

    def compare(self, first: str, second: str, *, budget: str | None = None) -> PairedComparison:
        """Compare two methods of the study over their common seeds.

        Args:
            first: Name of a method.
            second: Name of the other method.
            budget: Budget; all by default.

        Raises:
            BenchError: A method or the budget is unknown.
        """
        from bench.interface.comparing import compare

        at = "" if budget is None else f"/{budget}"
        return compare(f"{first}{at}", f"{second}{at}", study=self.spec.name, store=self.store.root)


def _several(given: Any, key: str) -> list[Any]:
    """Return the entries of a list, or a single one as a list.

    Raises:
        BenchError: It is neither.
    """
    if isinstance(given, str | type):
        return [given]
    if not isinstance(given, Iterable):
        raise BenchError(f"'{key}' is {given!r}; give a list")
    return list(given)
