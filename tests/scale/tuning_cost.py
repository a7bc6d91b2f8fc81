"""Count the searches that each method needs to reach a budget, on real searches.

    python -m tests.scale.tuning_cost --records DIR [--tasks resnet8/synthetic resnet20/digits] [--methods sbs dnas …]
                                      [--budgets 3bit 4bit …] [--match lambda hinge] [--trials 10] [--early]
                                      [--seeds 0 1 2]

Searches are those of a preset, at its tuning seed. Each search is stored in DIR and never repeated, so that the script
can be stopped at any time, and a comparison of two ways of tuning needs only the searches in which they differ.
Strengths are rounded to one per cent for this purpose. In mode "lambda" a search does not depend on its budget, so that
one search serves all budgets.

`--early` leaves out the searches that only a tuning without early stopping makes; a hit without repair is then counted
among the other searches only. With `--seeds` two strengths are tried at seeds of runs: the one that tuning chooses, and
the one that it would have chosen without early stopping.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.compression.policy import policy_from_json
from bench.errors import NonFiniteLossError, UnreachableBudgetError
from bench.execution.context import UnitContext, UnitRequest
from bench.execution.stages.finetuning import compressed_network, finetune
from bench.execution.stages.pretraining import perform_pretraining
from bench.execution.stages.search import check_reachable, decision_from_json, matched_search
from bench.execution.task_loader import TaskLoader
from bench.matching.repair import repair
from bench.matching.trial import Trial
from bench.matching.tune import Tuning, tune
from bench.planning.methods import make_method
from bench.planning.plan import make_plan
from bench.planning.units import TrialUnit, TuningUnit, Unit, kind_of, title, trial_of
from bench.spec.schema import canonical_hash
from bench.spec.seeds import derive
from bench.spec.sources import build, read_preset, with_schedule
from bench.store.files import Store, load_state, read_json, write_json
from bench.training.loop import evaluate

METHODS = [
    *("sbs", "sbs_q", "sbs_p", "cost_only"),
    *("dnas", "multi_path", "prune_then_quantize", "quantize_then_prune"),
]
BUDGETS = ["3bit", "4bit", "5bit", "0.016x"]
FLOAT_BUDGETS = ["0.4x", "0.6x", "0.8x"]
"""Budgets of `sbs_p`, which prunes at full precision and reaches no lower ones."""
FEW_GATES = 2
ROUNDING = math.log(1.01)
NEVER = 1000


class Quiet:
    """A watcher that shows nothing."""

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """Ignore an epoch."""


def note(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Recorded:
    """Searches on one task in one mode, each made once and stored."""

    def __init__(self, task: str, match: str, options: argparse.Namespace) -> None:
        model, _, dataset = task.partition("/")
        self.folder = options.records / task.replace("/", "-")
        self.match, self.early = match, options.early
        chosen = {"dataset": dataset, "model": model, "train_images": options.images}
        asked = {
            "methods": options.methods,
            "budgets": [*options.budgets, *FLOAT_BUDGETS],
            "seeds": options.seeds or [0],
            "device": "cpu",
            "task": {key: value for key, value in chosen.items() if value is not None},
            "tuning": {"match": match, "trials": options.trials},
        }
        spec = build([with_schedule(read_preset(options.preset)), asked])
        self.plan = make_plan(spec)
        self.store = Store(self.folder / "store")
        self.loader = TaskLoader(spec, options.data_dir)

    def units(self, method: str) -> Iterator[TuningUnit]:
        """Return the tunings of a method, without those whose budget is below its cheapest policy."""
        for unit in self.plan.tunings:
            if unit.method != method or (method == "sbs_p") != (unit.budget.text in FLOAT_BUDGETS):
                continue
            try:
                check_reachable(self.plan.network, make_method(method, unit.options), method, unit.budget)
            except UnreachableBudgetError:
                continue
            yield unit

    def trial(self, unit: TuningUnit, number: int, knobs: Mapping[str, float], seed: int | None = None) -> Trial | None:
        """Return a trial of a tuning from the stored search; at the seed of a run if one is given."""
        rounded = {name: math.exp(round(math.log(value) / ROUNDING) * ROUNDING) for name, value in knobs.items()}
        kept = self._kept(unit, rounded, seed)
        if kept["diverged"]:
            return None
        decisions = [decision_from_json(fields) for fields in kept["decisions"]]
        repaired = repair(self.plan.network, policy_from_json(kept["policy"]), decisions, unit.budget)
        return Trial(
            number=number,
            knobs=dict(knobs),
            raw_cost=repaired.raw_cost,
            cost=repaired.cost,
            repaired_gates=repaired.moved,
            within_budget=unit.budget.matches(repaired.cost),
            validation_top1=kept["validation_top1"],
            validation_loss=0.0,
            validation_images=len(self.loader.task.data.validation),
            seconds=kept["seconds"],
            policy={},
            curves=[],
            record={},
        )

    def _kept(self, unit: TuningUnit, knobs: Mapping[str, float], seed: int | None) -> Mapping[str, Any]:
        where = self.match if self.match == "lambda" else f"hinge-{unit.budget.text}"
        where = where if seed is None else f"{where}-{seed}"
        name = canonical_hash({key: f"{value:.4g}" for key, value in knobs.items()})
        path = self.folder / unit.method / where / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            trial = trial_of(unit, 0, knobs)
            write_json(path, self._searched(trial if seed is None else replace(trial, seed=seed)))
        found: Mapping[str, Any] = read_json(path)
        return found

    def _searched(self, unit: TrialUnit) -> Mapping[str, Any]:
        """Make one search; in mode "hinge" also its accuracy after repair, since its budget is known."""
        tuning, context = unit.tuning, self._context(unit)
        context.checkpoints.clear()  # of the search before: all work in one folder
        state, method = self._pretrained(unit.seed), make_method(tuning.method, tuning.options)
        try:
            found = matched_search(context, method, tuning.budget, unit.knobs, state)
        except NonFiniteLossError:
            return {"diverged": True, "knobs": unit.knobs}
        top1 = 0.0
        if self.match == "hinge":
            network = compressed_network(context, method, found)
            short = {"epochs": unit.spec.tuning.finetune_epochs, "decay": "cosine", "milestones": ()}
            finetune(context, network, unit.spec.finetune.model_copy(update=short))
            top1 = evaluate(network, context.task.data, context.task.data.validation).top1
        share, seconds = found.raw_cost / tuning.budget.limit, context.clock.total()
        note(f"{tuning.method} {tuning.budget.text} {unit.knobs}: {share:.3f} of it, {top1:.1f} %, {seconds:.1f} s")
        return {
            "diverged": False,
            "knobs": unit.knobs,
            "policy": found.result.policy.to_json(),
            "decisions": [asdict(decision) for decision in found.result.decisions],
            "validation_top1": top1,
            "seconds": seconds,
            "record": json.loads(json.dumps(found.result.record)),
        }

    def _pretrained(self, seed: int) -> Mapping[str, Any]:
        """Return the network from which searches of a seed start."""
        unit: Unit = next(unit for unit in self.plan.pretrainings if unit.seed == seed)
        path = self.store.unit("pretrained", unit.identity) / "model.pt"
        if not path.exists():
            perform_pretraining(self._context(unit))
        return load_state(path)

    def _context(self, unit: Unit) -> UnitContext:
        """Return the context of a unit, with the task that all units share."""
        request = UnitRequest(
            kind=kind_of(unit),
            identity=unit.identity,
            title=title(unit),
            store=self.store.root,
            data_dir=None,
            data_checksum="",
        )
        return UnitContext(request, unit, {"files": {}}, Quiet(), self.loader)


@dataclass(frozen=True, kw_only=True)
class Count:
    """The numbers of trials of one tuning.

    Attributes:
        raw, near, repaired: Trials until the first cost inside the window: before repair, after repair that moved few
            gates, and after any repair.
        patient, made: Trials of a tuning without early stopping, and of one with it.
        moved: Number of gates that repair moved in the chosen trial.
        raw_share: Cost of the chosen trial before repair, as a share of the budget.
    """

    raw: int
    near: int
    repaired: int
    patient: int
    made: int
    moved: int
    raw_share: float


def tuned(recorded: Recorded, unit: TuningUnit, *, stop_early: bool) -> tuple[Trial | None, Sequence[Trial]]:
    """Tune once; return the chosen trial, if any, and all trials."""
    made: list[Trial] = []

    def search(number: int, knobs: Mapping[str, float]) -> Trial | None:
        trial = recorded.trial(unit, number, knobs)
        made.extend([] if trial is None else [trial])
        return trial

    tuning = Tuning(
        name="tuning cost",
        knobs=make_method(unit.method, unit.options).knobs(recorded.loader.spec.tuning.match),
        budget=unit.budget,
        spec=recorded.loader.spec.tuning.model_copy(update={"stop_early": stop_early}),
        seed=derive("tuning", unit.seed),
    )
    try:
        return tune(tuning, search)[0], made
    except (UnreachableBudgetError, NonFiniteLossError):
        return None, made


def counted(recorded: Recorded, unit: TuningUnit) -> Count:
    """Tune with and without early stopping; the trials of the former are the first ones of the latter."""
    chosen, early = tuned(recorded, unit, stop_early=True)
    trials = early if recorded.early else tuned(recorded, unit, stop_early=False)[1]
    budget = unit.budget
    steps = [
        f"{t.knobs['strength']:.3g}→{t.raw_cost / budget.limit:.3f}({t.repaired_gates}, {t.validation_top1:.1f} %)"
        for t in trials
    ]
    note(f"    {unit.method} {budget.text}, {len(early)} of {len(trials)}: {', '.join(steps)}")

    def first(hits: Sequence[bool]) -> int:
        return next((number for number, hit in enumerate(hits, 1) if hit), NEVER)

    return Count(
        raw=first([budget.matches(t.raw_cost) for t in trials]),
        near=first([t.within_budget and t.repaired_gates <= FEW_GATES for t in trials]),
        repaired=first([t.within_budget for t in trials]),
        patient=len(trials),
        made=len(early),
        moved=0 if chosen is None else chosen.repaired_gates,
        raw_share=math.nan if chosen is None else chosen.raw_cost / budget.limit,
    )


def row(title: str, counts: Sequence[Count]) -> str:
    """Return a row of the table over several tunings: median and maximum of each count."""

    def cell(name: str) -> str:
        values = [getattr(count, name) for count in counts]
        found = (statistics.median(values), max(values))
        return ", ".join("never" if value >= NEVER / 2 else f"{value:g}" for value in found)

    names = ("raw", "near", "repaired", "patient", "made", "moved")
    return f"| {title} | {len(counts)} | {' | '.join(map(cell, names))} |"


def at_seeds(recorded: Recorded, unit: TuningUnit, seeds: Sequence[int]) -> str:
    """Return the costs of runs before repair, at the strengths chosen with and without early stopping."""
    parts = []
    for stop_early in (True, False):
        chosen, trials = tuned(recorded, unit, stop_early=stop_early)
        if chosen is None:
            continue
        runs = [recorded.trial(unit, 0, chosen.knobs, seed) for seed in seeds]
        done = [run for run in runs if run is not None]
        shares = " ".join(f"{run.raw_cost / unit.budget.limit:.3f}" for run in done)
        gates = statistics.mean(run.repaired_gates for run in done)
        parts.append(f"{len(trials)} | {chosen.raw_cost / unit.budget.limit:.3f} | {shares} | {gates:.1f}")
    return f"| {unit.method} {unit.budget.text} | " + " | ".join(parts) + " |"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["resnet8/synthetic", "resnet20/digits"])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--match", nargs="+", default=["lambda", "hinge"])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--early", action="store_true")
    parser.add_argument("--seeds", nargs="*", type=int, default=[])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--images", type=int, help="training images")
    parser.add_argument("--data-dir", type=Path)
    return parser.parse_args()


def main() -> None:
    """Make the missing searches, and print the tables."""
    options = arguments()
    table = [
        "| | tunings | no repair | at most 2 gates | any repair | trials, patient | trials made | gates moved |",
        "| --- " * 8 + "|",
    ]
    seeds = ["| | trials | cost | runs | gates | trials | cost | runs | gates |", "| --- " * 9 + "|"]
    for match in options.match:
        together: list[Count] = []
        for task in options.tasks:
            recorded = Recorded(task, match, options)
            for method in options.methods:
                units = list(recorded.units(method))
                counts = [counted(recorded, unit) for unit in units]
                together += counts
                table += [row(f"{match}, {task}, {method}", counts)] if counts else []
                seeds += [at_seeds(recorded, unit, options.seeds) for unit in units if options.seeds]
        table += [row(f"**{match}, all**", together)]
    note("\n".join([*table, "", *(seeds if options.seeds else [])]))


if __name__ == "__main__":
    main()
