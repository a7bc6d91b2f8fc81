"""Known answers: every policy within a budget's window is trained, so that the regret of each method's choice is known.

    python -m tests.long.known_answers --folder build/known-answers

The space: 2 or 4 bits for the weights and for the input of each of five layers, 1,024 policies, quantization only. The
true accuracy of a policy is its mean Top-1 on the test part over seeds of fine-tuning, from one pretrained network and
exactly as the harness fine-tunes a run. All policies within the windows of three budgets are trained, and those that a
method chose outside them. Then every method runs through the harness at these budgets. Its regret is the true accuracy
of the best policy within the window minus that of its own choice.

Searches hand on their policies alone (`allowance = "policy"`). A run must therefore measure exactly what is known of
its policy at its seed, which is checked. Finished parts are kept in `--folder`, and the same command continues from
there. The results are `truth.csv` and `choices.csv`; `tests.long.regret` makes tables of them.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench.api import Budget, NetworkShape, Policy, SearchResult, fit, generator, price, uniform
from bench.compression.policy import policy_from_json
from bench.execution.context import UnitContext, UnitRequest
from bench.execution.stages.finetuning import compressed_network, finetune
from bench.execution.stages.search import MatchedSearch
from bench.execution.task_loader import TaskLoader
from bench.planning.methods import make_method, method_class
from bench.planning.networks import task_network
from bench.planning.units import RunUnit, Unit
from bench.spec.schema import StudySpec
from bench.spec.seeds import derive, start_process_deterministically
from bench.spec.sources import build
from bench.store.files import read_json, save_state
from bench.training.loop import evaluate
from tests.conftest import Worked, work
from tests.long.known_task import DATASET, registered

BITS = (2, 4)
FRACTIONS = (0.25, 0.5, 0.75)
"""Places of the budgets between the cheapest and the costliest policy, on a scale of ratios."""
METHODS = (
    *("random", "cost_only", "greedy", "hawq", "haq", "sbs_q", "multi_path", "dnas", "edmips", "dq", "djpq"),
    "bayesian_bits",
)
"""Methods whose policies lie in the space. The network has no filters to prune, so that none of them prunes."""
VALUES: dict[str, Any] = {
    "name": "known-answers",
    "seeds": [0, 1, 2],
    "device": "cpu",
    "threads": 1,
    "compile": "off",
    "allowance": "policy",
    "task": {"dataset": DATASET, "model": "tests.long.known_task:chain5", "validation_fraction": 0.33},
    "pretrain": {"epochs": 40, "batch_size": 32, "lr": 0.1, "decay": "one_cycle"},
    "search": {"epochs": 6, "batch_size": 32, "lr": 0.01},
    "finetune": {"epochs": 2, "batch_size": 32, "lr": 0.01, "decay": "one_cycle"},
}
"""Fifteen updates an epoch."""


# --- the space ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """All policies of a network; a policy's key is its bits in order, e.g. "42 24": weights, then input of each layer.

    Attributes:
        network: Shapes of the network.
        costs: Bit operations by key.
        budgets: Budgets at `FRACTIONS`.
    """

    network: NetworkShape
    costs: Mapping[str, float]
    budgets: Sequence[Budget]

    @classmethod
    def of(cls, network: NetworkShape, tolerance: float) -> "Space":
        """Enumerate the policies of a network."""
        pairs = [f"{weight}{activation}" for weight, activation in product(BITS, BITS)]
        keys = map(" ".join, product(pairs, repeat=len(network.middle)))
        costs = {key: float(price(network, policy_of_key(network, key)).bops) for key in keys}
        low, high = min(costs.values()), max(costs.values())
        limits = [int(low * (high / low) ** fraction) for fraction in FRACTIONS]
        budgets = [Budget(text=str(limit), limit=limit, tolerance=tolerance) for limit in limits]
        return cls(network, costs, budgets)

    def window(self, budget: Budget) -> list[str]:
        """Return the keys of all policies that meet a budget."""
        return [key for key, cost in self.costs.items() if budget.matches(cost)]


def policy_of_key(network: NetworkShape, key: str) -> Policy:
    """Return the policy of a key."""
    policy = uniform(network, BITS[0])
    for layer, (weight, activation) in zip(network.middle, key.split(), strict=True):
        policy = policy.with_layer(layer.name, weight_bits=int(weight), activation_bits=int(activation))
    return policy


def key_of_policy(network: NetworkShape, policy: Policy) -> str:
    """Return the key of a policy, which must lie in the space.

    Raises:
        ValueError: It does not.
    """
    layers = [policy.layers[layer.name] for layer in network.middle]
    key = " ".join(f"{layer.weight_bits}{layer.activation_bits}" for layer in layers)
    if policy != policy_of_key(network, key) or not set(key) <= set(map(str, (*BITS, " "))):
        raise ValueError(f"the policy {key} is not one of the space: {policy.to_json()}")
    return key


# --- the truth ----------------------------------------------------------------------------------------------------


class Truth:
    """Trains policies from one pretrained network, as the harness fine-tunes a run, and keeps their accuracies.

    Args:
        values: Specification of the study.
        folder: Folder of the pretrained network and of the accuracies; made if it does not exist.

    Attributes:
        spec: Specification, with the pretrained network as its checkpoint.
        space: The space.
        rows: Accuracy on the test part in percent, by key and seed.
    """

    def __init__(self, values: Mapping[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / "pretrained.pt"
        if not checkpoint.exists():
            _pretrain(build([values]), checkpoint)
        self.spec = build([values, {"task": {"checkpoint": str(checkpoint)}}])
        self._loader, self._state = TaskLoader(self.spec, None), torch.load(checkpoint, weights_only=True)
        self.folder, self._file = folder, folder / "trained.csv"
        self.rows: dict[tuple[str, int], float] = {}
        if self._file.exists():
            known = pd.read_csv(self._file, names=["policy", "seed", "top1"], dtype={"policy": str})
            self.rows = {(row.policy, row.seed): row.top1 for row in known.itertuples()}
        self.space = Space.of(task_network(self.spec.task), self.spec.tuning.tolerance)

    def train(self, keys: Iterable[str], seeds: Iterable[int]) -> None:
        """Train policies that are not known yet, seed by seed."""
        for seed, key in product(seeds, list(keys)):
            if (key, seed) not in self.rows:
                self.rows[key, seed] = self._top1(key, seed)
                with self._file.open("a") as file:
                    file.write(f"{key},{seed},{self.rows[key, seed]}\n")

    def _top1(self, key: str, seed: int) -> float:
        start_process_deterministically(derive("known answers"), self.spec.threads)
        request = UnitRequest(
            kind="runs", identity="none", title=key, store=self.folder, data_dir=None, data_checksum=""
        )
        unit = Unit(identity="none", document={}, seed=seed, spec=self.spec)
        context = UnitContext(request, unit, {}, _Silent(), self._loader)
        policy = policy_of_key(self.space.network, key)
        found = MatchedSearch(
            result=SearchResult(policy=policy, state=self._state), policy=policy, repaired=None, raw_cost=0.0, updates=0
        )
        network = compressed_network(context, make_method("fixed", {}), found)
        finetune(context, network, self.spec.finetune)
        data = context.task.data
        return evaluate(network, data, data.test).top1

    def table(self) -> pd.DataFrame:
        """Return cost and accuracies of all trained policies, a column for each seed."""
        seeds = pd.Series(self.rows).unstack().add_prefix("seed")
        return seeds.rename_axis("policy").assign(cost=pd.Series(self.space.costs))


class _Silent:
    """A watcher that shows nothing."""

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        pass


def _pretrain(spec: StudySpec, path: Path) -> None:
    start_process_deterministically(derive("pretrain"), spec.threads)
    task = TaskLoader(spec, None).task
    model = task.make_model()
    fit(model, task.data, spec.pretrain, generator("order", "pretrain"), lambda _: None)
    save_state(path, model.state_dict())


# --- choices of methods -------------------------------------------------------------------------------------------


def choices(truth: Truth, methods: Sequence[str], budgets: Sequence[Budget], folder: Path) -> pd.DataFrame:
    """Run methods through the harness, and return what they chose, a row for each run.

    Args:
        truth: Task, schedules and pretrained network.
        methods: Names of methods.
        budgets: Budgets to run them at.
        folder: Folder of the store.
    """
    options = {name: {"bits": BITS} for name in methods if "bits" in method_class(name).Options.model_fields}
    asked = {"methods": methods, "options": options, "budgets": [budget.text for budget in budgets]}
    worked = work(build([truth.spec.model_dump(mode="json"), asked]), folder)
    chosen = pd.DataFrame([_choice(worked, unit, truth.space) for unit in worked.plan.runs])
    for row in chosen.dropna(subset=["policy"]).itertuples():
        if truth.rows.get((row.policy, row.seed), row.top1) != row.top1:
            raise AssertionError(f"a run of {row.method} measured {row.top1}, and not what is known of its policy")
    return chosen


def _choice(worked: Worked, unit: RunUnit, space: Space) -> dict[str, object]:
    record = worked.store.record("runs", unit.identity) or {}
    row = {"method": unit.method, "budget": unit.budget.text, "seed": unit.seed, "status": record.get("status")}
    if record.get("status") != "done":
        return row
    found = policy_from_json(read_json(worked.store.unit("runs", unit.identity) / "policy.json"))
    return {**row, "policy": key_of_policy(space.network, found), "top1": record["metrics"]["top1"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/known-answers"), help="for finished parts and tables"
    )
    parser.add_argument("--seeds", type=int, default=4, help="seeds of fine-tuning of each policy (4)")
    parser.add_argument("--methods", default=",".join(METHODS), help="names of methods; none for the truth alone")
    asked = parser.parse_args(arguments)
    with registered():
        truth = Truth(VALUES, asked.folder.resolve())
        budgets, seeds = truth.space.budgets, range(asked.seeds)
        truth.train([key for budget in budgets for key in truth.space.window(budget)], seeds)
        if methods := [name for name in asked.methods.split(",") if name]:
            chosen = choices(truth, methods, budgets, asked.folder.resolve() / "store")
            truth.train(chosen["policy"].dropna(), seeds)
            chosen.round(4).to_csv(asked.folder / "choices.csv", index=False)
        truth.table().round(4).to_csv(asked.folder / "truth.csv")


if __name__ == "__main__":
    main()
