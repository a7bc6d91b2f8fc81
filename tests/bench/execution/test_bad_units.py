"""One bad unit never ends a study: whatever a method does is the ending of its own runs."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from bench.compression.policy import Policy, uniform
from bench.errors import BenchError
from bench.execution.stages import runs, search
from bench.method import Capabilities, Decision, Method, SearchJob, SearchResult
from bench.results.tables import StudyResults


class Bad(Method):
    """Does what a test tells it to."""

    summary = "for tests"
    capabilities = Capabilities(budget="direct", prunes=True)
    act: ClassVar[Callable[[SearchJob], Any]]

    def search(self, job: SearchJob) -> SearchResult:
        result: SearchResult = type(self).act(job)
        return result


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def raising(error: BaseException) -> Callable[[SearchJob], Any]:
    def act(_: SearchJob) -> Any:
        raise error

    return act


def returning(change: Callable[[Policy], Any]) -> Callable[[SearchJob], Any]:
    return lambda job: SearchResult(policy=change(uniform(job.task.network, 4)), state=job.pretrained)


def without_a_layer(policy: Policy) -> Policy:
    return replace(policy, layers={name: layer for name, layer in policy.layers.items() if name != "fc"})


PRUNED = "stages.1.0.conv1"
ENDINGS: dict[str, tuple[Callable[[SearchJob], Any], str]] = {
    "BenchError": (raising(BenchError("a mistake")), "a mistake"),
    "PermissionError": (raising(PermissionError(13, "Permission denied", "/x")), "PermissionError: [Errno 13]"),
    "a full disk elsewhere": (raising(OSError(28, "No space left on device", "/x")), "OSError: [Errno 28]"),
    "SystemExit": (raising(SystemExit(0)), "SystemExit: 0"),
    "BaseException": (raising(BaseException("rare")), "BaseException: rare"),
    "GeneratorExit": (raising(GeneratorExit()), "GeneratorExit"),
    "an exception without words": (raising(SpeechlessError()), "SpeechlessError"),
    "half a character": (raising(ValueError("a\ud800b")), r"ValueError: a\ud800b"),
    "several lines": (raising(ValueError("first\nsecond")), "ValueError: first"),
    "control characters": (raising(ValueError("\x1b[31mred\x07")), r"ValueError: \x1b[31mred\x07"),
    "no result": (lambda _: None, "it is a NoneType; expected a bench.api.SearchResult"),
    "no policy": (returning(lambda _: None), "a policy must be a bench.api.Policy"),
    "a missing layer": (returning(without_a_layer), "the policy has no entry for layer 'fc'"),
    "negative bits": (returning(lambda policy: policy.with_layer("fc", weight_bits=-8)), "weight_bits is -8"),
    "many bits": (returning(lambda policy: policy.with_layer("fc", activation_bits=64)), "activation_bits is 64"),
    "filters twice": (
        returning(lambda policy: policy.with_layer(PRUNED, kept_filters=(1, 1))),
        "keeps filters [1, 1]",
    ),
    "no filters": (returning(lambda policy: policy.with_layer(PRUNED, kept_filters=())), "keeps filters []"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_study_goes_on_and_the_run_has_failed_with_its_reason_and_line(
    ending: str, tiny: SimpleNamespace, copied: Path, plugin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    act, told = ENDINGS[ending]
    monkeypatch.setattr(Bad, "act", staticmethod(act), raising=False)
    plugin("methods", "bad", Bad)
    worked = tiny.work(tiny.spec({"methods": ["bad", "full_precision"], "seeds": [0]}), copied)
    record = worked.record("bad 0")
    assert (record["status"], record["method"], record["seed"]) == ("failed", "bad", 0)
    assert record["finished"] and record["reason"].isprintable()
    line = worked.watcher.outcomes["run bad 4bit seed 0"]
    assert line.isprintable() and line.startswith(f"failed: {record['reason']}; traceback: ")
    assert Path(line.partition("; traceback: ")[2]).read_text().startswith("Traceback")
    assert told in record["reason"]
    assert re.search(r"tests/bench/execution/test_bad_units\.py:\d+", record["reason"])
    assert worked.record("full_precision 0")["status"] == "done"
    assert StudyResults(worked.store, worked.document).runs["status"].tolist().count("failed") == 1


def test_numbers_of_numpy_and_pytorch_in_a_result_are_written_as_pythons_own(
    tiny: SimpleNamespace, copied: Path, plugin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(job: SearchJob) -> SearchResult:
        job.report(
            {"epoch": np.int64(1), "epochs": np.int64(1), "loss": np.float32(0.5), "accuracy": torch.tensor(7.0)}
        )
        policy = uniform(job.task.network, 4).with_layer("fc", weight_bits=np.int64(3))
        bits = Decision(
            layer="fc",
            what="weight_bits",
            options=(np.int64(3), np.int64(8)),
            chosen=np.int64(0),
            margins=(np.float32(1),),
        )
        record = {"count": np.int64(4), "shares": np.array([0.5, 1.0]), "history": [{"loss": torch.tensor(0.25)}]}
        return SearchResult(policy=policy, state=job.pretrained, decisions=[bits], record=record)

    monkeypatch.setattr(Bad, "act", staticmethod(act), raising=False)
    monkeypatch.setattr(search, "INTERVAL_SECONDS", 0.0)  # the result goes into a checkpoint
    plugin("methods", "bad", Bad)
    worked = tiny.work(tiny.spec({"methods": ["bad"], "seeds": [0]}), copied)
    assert worked.record("bad 0")["status"] == "done", worked.record("bad 0")["reason"]
    folder = copied / "runs" / worked.plan.runs[0].identity
    assert json.loads((folder / "search.json").read_text()) == {
        "count": 4,
        "shares": [0.5, 1.0],
        "history": [{"loss": 0.25}],
    }
    entries = json.loads((folder / "curves.json").read_text())
    assert {"phase": "search", "epoch": 1, "epochs": 1, "loss": 0.5, "accuracy": 7.0} in entries


def test_a_record_that_cannot_be_written_is_not_left_running(
    tiny: SimpleNamespace, copied: Path, plugin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(job: SearchJob) -> SearchResult:
        return SearchResult(policy=uniform(job.task.network, 4), state=job.pretrained)

    monkeypatch.setattr(runs, "repair_share", lambda *_: {1, 2})
    monkeypatch.setattr(Bad, "act", staticmethod(act), raising=False)
    plugin("methods", "bad", Bad)
    worked = tiny.work(tiny.spec({"methods": ["bad"], "seeds": [0]}), copied)
    record = worked.record("bad 0")
    assert record["status"] == "failed" and "set is not JSON serializable" in record["reason"]
    assert (copied / "runs" / worked.plan.runs[0].identity / "error.txt").exists()


# --- in processes of their own ---

FILE = """
import os
from bench.api import Capabilities, Method, SearchResult, uniform

class Bad(Method):
    summary = "for tests"
    capabilities = Capabilities(budget="direct")

    def search(self, job):
        ACT
"""
ACTS = {
    "os._exit(0)": ("killed", "its process died (exit status 0)"),
    "raise SystemExit(0)": ("failed", "SystemExit: 0 ("),
    "raise KeyboardInterrupt": ("failed", "KeyboardInterrupt ("),
    "raise ValueError(chr(0xd800) + chr(27))": ("failed", r"ValueError: \ud800\x1b ("),
}


@pytest.mark.slow
@pytest.mark.parametrize("act", ACTS)
def test_it_does_so_too_when_runs_have_processes_of_their_own(
    act: str, tiny: SimpleNamespace, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "bad.py"
    file.write_text(FILE.replace("ACT", act))
    spec = tiny.spec({"methods": [f"{file}:Bad"], "seeds": [0]})
    worked = tiny.work(spec, copied, isolated=True)
    record = worked.record("bad 0")
    status, reason = ACTS[act]
    assert record["status"] == status and record["reason"].startswith(reason)
    assert status == "killed" or record["reason"].endswith(f"{file}:10)")
