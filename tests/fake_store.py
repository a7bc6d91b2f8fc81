"""Stores with made-up results, for tests that read a store and train nothing."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.spec.sources import build
from bench.store.files import Store, manifest, read_checked, write_checked, write_json, write_text
from bench.store.staleness import fingerprint

BUDGET_BOPS = 40e6
MODEL = "resnet8"
DATA_CHECKSUM = "d" * 64
POLICY = {
    "model": MODEL,
    "dataset": "digits",
    "layers": {"stem": {"weight_bits": 8, "activation_bits": 8, "kept_filters": None}},
}


@dataclass
class FakeStore:
    """A store with one study that grows run by run.

    Attributes:
        root: The store's folder.
        name: The study's name.
        spec: Values of the study's specification.
    """

    root: Path
    name: str = "quick"
    spec: dict[str, Any] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    tunings: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.root)

    def run(
        self,
        method: str,
        seed: int,
        top1: float | None = None,
        *,
        budget: str | None = "4bit",
        status: str = "done",
        metrics: Mapping[str, Any] | None = None,
        id_suffix: str = "",
        policy: Mapping[str, Any] = POLICY,
        **fields: Any,
    ) -> str:
        """Add a run and return its id; without `top1` it has no figures."""
        named = re.sub(r"[^\w.-]", "_", method)  # the name of an ablation's variant has brackets
        identity = str(fields.get("id") or f"{named}-{budget or 'none'}-{seed}{id_suffix}")
        record = {
            "id": identity,
            "kind": "run",
            "status": status,
            "reason": None,
            "model": MODEL,
            "dataset": "digits",
            "method": method,
            "budget": budget,
            "budget_cost": BUDGET_BOPS if budget else None,
            "seed": seed,
            "recipe": "common",
            "match": "hinge",
            "options": {},
            "knobs": {},
            "tuning": None,
            "metrics": {} if top1 is None else figures(top1) | _costs(metrics or {}),
            "times": {} if top1 is None else {"search_seconds": 10.0 + seed, "total_seconds": 30.0},
            "peak_memory_mb": 200.0 + seed,
            "within_budget": None if budget is None or top1 is None else True,
            "started": "2026-01-01T00:00:00+00:00",
            "finished": None if status in ("planned", "running") else "2026-01-01T00:01:00+00:00",
            "fingerprint": made_with(method, fields.get("model", MODEL)),
            "attempt": 1,
            "files": self._outcome(identity, policy) if status == "done" else {},
        }
        self.runs.append(identity)
        self.store.write_record("runs", identity, record | fields)
        return identity

    def seeds(self, method: str, values: Iterable[float], **fields: Any) -> list[str]:
        """Add one run for each value, with seeds 0, 1, …"""
        return [self.run(method, seed, value, **fields) for seed, value in enumerate(values)]

    def missing(self, identity: str) -> None:
        """Add a run that has not been started."""
        self.runs.append(identity)

    def damaged(self, identity: str) -> None:
        """Add a run whose record was cut off."""
        self.runs.append(identity)
        folder = self.store.unit("runs", identity)
        write_checked(folder / "spec.json", {"id": identity, "unit": {}, "depends_on": {}, "specification": {}})
        write_text(folder / "record.json", '{"id": "x", "status": "do')

    def failed(self, method: str, seed: int, reason: str, **fields: Any) -> str:
        """Add a run that failed, with its traceback."""
        identity = self.run(method, seed, status="failed", reason=reason, **fields)
        write_text(self.store.unit("runs", identity) / "error.txt", f"Traceback\n{reason}\n")
        return identity

    def tuning(self, method: str, trials: Sequence[float], *, budget: str = "4bit", seconds: float = 45.0) -> str:
        """Add a tuning with one trial for each strength, and return its id."""
        identity = f"tuning-{method}-{budget}"
        common = {"status": "done", "reason": None, "model": MODEL, "dataset": "digits", "method": method}
        common |= {"budget": budget, "budget_cost": BUDGET_BOPS, "seed": 1000, "fingerprint": made_with(method)}
        record = common | {"id": identity, "kind": "tuning", "knobs": {"strength": trials[0]}, "files": {}}
        record |= {"chosen_trial": 0, "trials_used": len(trials), "tuning_seconds": seconds}
        self.store.write_record("tuning", identity, record)
        for number, strength in enumerate(trials):
            named = f"{identity}-{number}"
            folder = self.store.unit("trials", named)
            write_json(folder / "trial.json", trial(number, strength))
            record = common | {"id": named, "kind": "trial", "knobs": {"strength": strength}}
            self.store.write_record("trials", named, record | {"files": manifest(folder, ["trial.json"])})
        self.tunings.append(identity)
        return identity

    def document(self, **spec: Any) -> dict[str, Any]:
        """Write the study's document to the store and return it."""
        task = {"dataset": "digits", "model": MODEL}
        values = {"name": self.name, "task": task, "baseline": "fixed"} | self.spec | spec
        document = {
            "name": self.name,
            "spec": build([values]).model_dump(mode="json"),
            "runs": self.runs,
            "tunings": self.tunings,
            "pretrained": [],
            "data_checksum": DATA_CHECKSUM,
            "created": "2026-01-01T00:00:00+00:00",
            "command": "bench run",
        }
        path = self.store.study(self.name) / "study.json"
        write_checked(path, document)
        written = read_checked(path)
        assert written is not None
        return written

    def _outcome(self, identity: str, policy: Mapping[str, Any]) -> dict[str, Any]:
        folder = self.store.unit("runs", identity)
        write_json(folder / "policy.json", policy)
        write_json(folder / "curves.json", curves())
        return manifest(folder, ["policy.json", "curves.json"])


def made_with(method: str, model: str = MODEL) -> dict[str, Any]:
    """Return the fingerprint of a result that is up to date; an unknown method has no source."""
    try:
        return fingerprint(method, DATA_CHECKSUM, model)
    except BenchError:
        return fingerprint(None, DATA_CHECKSUM, model)


def _costs(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics whose cost is the bit operations, which budgets limit here."""
    return {"cost": metrics["bops"], **metrics} if "bops" in metrics else dict(metrics)


def figures(top1: float) -> dict[str, Any]:
    """Return the metrics of a run."""
    return {
        "top1": top1,
        "top5": 99.0,
        "loss": 0.5,
        "validation_top1": top1 + 1,
        "bops": 39.5e6,
        "cost": 39.5e6,
        "raw_cost": 41e6,
        "repaired_gates": 1,
        "memory_kb": 33.25,
        "pretrained_top1": None,
    }


def curves(epochs: int = 2) -> list[dict[str, Any]]:
    """Return epoch figures of a search and a fine-tuning."""
    phases = ("search", "finetune")
    return [
        {"phase": p, "epoch": e, "loss": 1.0 / (e + 1), "accuracy": 50.0 + e} for p in phases for e in range(epochs)
    ]


def trial(number: int, strength: float) -> dict[str, Any]:
    """Return one tuning trial."""
    return {
        "number": number,
        "knobs": {"strength": strength},
        "raw_cost": 41e6,
        "cost": 39e6,
        "repaired_gates": 2,
        "within_budget": True,
        "validation_top1": 90.0 + number,
        "seconds": 11.0,
        "policy": POLICY,
        "curves": curves(1),
    }


def mixed(root: Path) -> FakeStore:
    """Make a study of two methods with three seeds each, a reference, and everything that can go wrong."""
    fake = FakeStore(root, spec={"methods": ["fixed", "sbs", "dnas", "full_precision"]})
    fake.seeds("fixed", [70.0, 71.0, 72.0])
    tuning = fake.tuning("sbs", [0.2, 0.4])
    for seed, top1 in enumerate([72.0, 72.5, 74.5]):
        fake.run("sbs", seed, top1, tuning=tuning, knobs={"strength": 0.2})
    fake.run("dnas", 0, 69.0, within_budget=False)
    fake.run("dnas", 1, status="unreachable", reason="the cheapest policy costs 44.1 M")
    fake.failed("dnas", 2, "NaN loss")
    fake.run("dnas", 3, status="running")
    fake.seeds("full_precision", [80.0, 81.0], budget=None, metrics={"bops": 2.5e9})
    fake.missing("not-yet-run")
    fake.damaged("cut-off")
    return fake


def two_done(root: Path) -> FakeStore:
    """Make a study with two runs that are done and one that is planned."""
    fake = FakeStore(root)
    fake.seeds("sbs", [70.0, 72.0])
    fake.missing("sbs-4bit-2")
    return fake
