"""The behaviour of `bench speed`; no test checks a duration."""

import gc
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.compression.quantizer import UniformQuantizer
from bench.compression.shapes import LayerShape
from bench.diagnostics.speed.config import REFERENCE, WARM_UP, Candidate, SpeedConfig
from bench.diagnostics.speed.growth import Growth, chart, draw, growth_with_bits, growth_with_depth
from bench.diagnostics.speed.interleave import InterleavedTraining, StepObserver, WatchedData, WatchedForward
from bench.diagnostics.speed.measure import measure
from bench.diagnostics.speed.peak_memory import PeakObserver, peak_in_another_process, peak_in_this_process
from bench.diagnostics.speed.published import sharing
from bench.diagnostics.speed.rows import Row, Speed, Spread
from bench.diagnostics.speed.step_memory import SavedTensors, living_bytes
from bench.diagnostics.speed.trainings import candidates, random_task
from bench.errors import BenchError
from bench.method import Method
from bench.planning.methods import make_method
from bench.training import forward as forward_module
from methods.shared.networks.paths import MixedLayer
from tests.plugins.own_loop import OwnLoop, OwnLoopOptions
from tests.scale.separate_paths import PathPerPair, PathPerWeight

CPU = torch.device("cpu")
CONFIG = SpeedConfig(model="resnet8", dataset="synthetic", batch_size=4, rounds=2, threads=1, memory=False)
SMALL = (
    "--model",
    "resnet8",
    "--dataset",
    "synthetic",
    "--batch-size",
    "4",
    "--rounds",
    "2",
    "--threads",
    "1",
    "--device",
    "cpu",
)
QUICK = (*SMALL, "--compile", "off", "--no-memory")


def own_loop(fifth_step: str = "train") -> Candidate:
    method = OwnLoop(OwnLoopOptions.model_validate({"fifth_step": fifth_step}))
    return Candidate(name="own_loop", what="search", method=method)


def search(name: str, **more: Any) -> Candidate:
    return Candidate(name=name, what="search", method=make_method(name, {}), **more)


# --- steps ---


class Recorder(StepObserver):
    """Writes down the steps that it observes."""

    def __init__(self, warm_up: int) -> None:
        super().__init__(warm_up)
        self.seen: list[str] = []

    def step_begins(self, kind: str) -> None:
        self.seen.append(f"{kind} begins")

    def step_ended(self, kind: str) -> None:
        self.seen.append(f"{kind} ended")


def test_a_step_goes_from_one_request_to_the_next() -> None:
    steps = Recorder(warm_up=2)
    data = WatchedData.watching(random_task(CONFIG, 1).data, steps, epoch=3)
    assert data.batches_per_epoch(4) == 3
    for images, labels in data.training_batches(4, torch.Generator()):
        steps.seen.append(f"{len(images)} images, {len(labels)} labels")
    batch = "4 images, 4 labels"
    assert steps.seen == [
        "warm-up begins", batch, "warm-up ended",
        "counted begins", batch, "counted ended",
        "timed begins", batch, "timed ended",
        "timed begins",  # the epoch is over: what follows is no step
    ]  # fmt: skip


def test_a_stage_that_begins_is_warmed_up_again() -> None:
    steps = Recorder(warm_up=1)
    forward = WatchedForward("off", "fp32", CPU)
    forward.observer = steps
    data = WatchedData.watching(random_task(CONFIG, 1).data, steps, epoch=2)
    for _ in range(2):
        forward.prepare(nn.Identity(), "a stage", 1.0)
        for _ in data.training_batches(4, torch.Generator()):
            pass
    assert [event.split()[0] for event in steps.seen if event.endswith("ended")] == ["counted", "timed"] * 2


def test_watched_data_share_the_tensors_and_leave_the_original_alone() -> None:
    data = random_task(CONFIG, 12).data
    watched = WatchedData.watching(data, Recorder(1), epoch=2)
    assert watched.train.images.data_ptr() == data.train.images.data_ptr()
    assert (data.batches_per_epoch(4), type(data).__name__) == (12, "TaskData")


# --- alternation ---


def a_training(training: InterleavedTraining, log: list[str], name: str, steps: int = 99) -> Callable[[], None]:
    data = WatchedData.watching(random_task(CONFIG, 1).data, training, epoch=steps)

    def train() -> None:
        for _ in range(2):
            log.extend(name for _ in data.training_batches(4, torch.Generator()))

    return train


def test_trainings_take_turns_step_by_step() -> None:
    log: list[str] = []
    first, second = (InterleavedTraining(2, CPU) for _ in range(2))
    first.start(a_training(first, log, "a"))
    second.start(a_training(second, log, "b"))
    assert log == ["a", "a", "b", "b"]  # both are warm
    for training in (first, second, second, first):
        assert training.step()
    assert log[4:] == ["a", "b", "b", "a"]
    assert [len(training.seconds) for training in (first, second)] == [2, 2]
    first.stop()
    second.stop()
    assert len(log) == 8


def test_a_training_that_ends_early_takes_no_more_turns() -> None:
    training = InterleavedTraining(2, CPU)
    training.start(a_training(training, [], "a", steps=2))  # 2 epochs of 2 steps, of which 2 warm up
    assert [training.step() for _ in range(4)] == [True, True, False, False]
    assert training.finished and len(training.seconds) == 2
    training.stop()


def test_a_mode_around_a_training_is_its_own() -> None:
    seen: dict[str, list[tuple[bool, bool]]] = {"low": [], "plain": []}

    def in_mode(training: InterleavedTraining, name: str, mode: AbstractContextManager[Any]) -> Callable[[], None]:
        data = WatchedData.watching(random_task(CONFIG, 1).data, training, epoch=9)

        def train() -> None:
            with mode:
                for _ in data.training_batches(4, torch.Generator()):
                    seen[name].append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))

        return train

    def low() -> Iterator[None]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            yield

    both = {"low": contextmanager(low)(), "plain": nullcontext()}
    trainings = {name: InterleavedTraining(1, CPU) for name in both}
    for name, mode in both.items():
        trainings[name].start(in_mode(trainings[name], name, mode))
    for name in ("low", "plain", "plain", "low", "plain", "low"):
        trainings[name].step()
        assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == (True, False)
    for each in trainings.values():
        each.stop()
    assert seen == {"low": [(False, True)] * 4, "plain": [(True, False)] * 4}
    assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == (True, False)


def test_nothing_is_counted_after_a_failure() -> None:
    training = InterleavedTraining(1, CPU)
    data = WatchedData.watching(random_task(CONFIG, 1).data, training, epoch=9)

    def train() -> None:
        for _ in data.training_batches(4, torch.Generator()):
            raise ValueError("in the step that is counted")

    with pytest.raises(ValueError, match="that is counted"):
        training.start(train)
    training.stop()
    torch.ones(3, requires_grad=True).exp()
    assert training._saved.end() == 0


# --- memory ---


def test_saved_bytes_of_a_network_counted_by_hand() -> None:
    layer, images = nn.Linear(4, 3), torch.rand(2, 4)
    saved = SavedTensors()
    saved.begin()
    hidden = F.relu(layer(images))
    (hidden * hidden).sum().backward()
    # The images, 2 × 4, for the gradient of the weight; the outcome of the ReLU, 2 × 3, which both it and the square
    # keep, once. The weight is a parameter.
    assert saved.end() == 4 * (2 * 4 + 2 * 3)
    saved.begin()
    assert saved.end() == 0


def test_views_of_parameters_are_no_activations() -> None:
    weight, x = nn.Parameter(torch.rand(5, 4)), torch.rand(2, 4, requires_grad=True)
    saved = SavedTensors()
    saved.begin()
    (x @ weight.t()).sum().backward()
    assert saved.end() == 4 * 2 * 4


def test_bytes_of_living_tensors() -> None:
    gc.collect()  # what earlier tests left behind would vanish in between
    before = living_bytes([])
    model, kept = nn.Linear(100, 10, bias=False), torch.zeros(1000)
    view = kept[:10]
    assert living_bytes([]) - before == 4 * (1000 + 1000)
    model(torch.zeros(1, 100)).sum().backward()
    assert living_bytes([kept]) - before == 4 * (1000 + 1000)  # the weight and its gradient
    assert len(view) == 10


def test_peaks_are_those_of_steps_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = PeakObserver(random_task(CONFIG, 1).data)
    kinds: list[str] = []
    monkeypatch.setattr(PeakObserver, "step_ended", lambda _, kind: kinds.append(kind))
    data = WatchedData.watching(random_task(CONFIG, 1).data, steps, epoch=4)
    list(data.training_batches(4, torch.Generator()))
    assert kinds == ["warm-up", "counted", "timed", "timed"]


def test_a_step_takes_some_memory() -> None:
    if Path("/proc/self/clear_refs").exists():
        assert peak_in_this_process(replace(CONFIG, batch_size=16), REFERENCE) > 0


# --- all together ---


@pytest.fixture(scope="module")
def measured() -> Speed:
    methods: dict[str, Method] = {
        name: make_method(name, {}) for name in ("sbs", "prune_then_quantize", "dnas", "fixed")
    }
    wanted = [*candidates(methods, [False], "fp32"), own_loop()]
    return measure(CONFIG, wanted)


def test_everything_makes_the_same_number_of_steps(measured: Speed) -> None:
    assert [(row.what, row.name) for row in measured.rows] == [
        ("training", "float"),
        ("search", "sbs"),
        ("search", "prune_then_quantize"),
        ("search", "dnas"),
        ("fine-tuning", "4 bit"),
        ("fine-tuning", "4 bit as dnas"),
        ("search", "own_loop"),
    ]
    assert {row.steps for row in measured.rows} == {CONFIG.rounds}
    assert {len(row.seconds) for row in measured.rows} == {CONFIG.rounds}
    assert measured.layers == 10


def test_the_reference_is_itself(measured: Speed) -> None:
    reference = measured.rows[0]
    assert reference.ratio == Spread(median=1, low=1, high=1, mean=1)
    assert (reference.saved_ratio, reference.compiled, reference.precision) == (1, False, "fp32")


def test_figures_follow_from_the_steps(measured: Speed) -> None:
    reference = measured.rows[0]
    for row in measured.rows:
        assert row.milliseconds.median == pytest.approx(1e3 * sum(row.seconds) / 2)
        assert row.ratio.mean == pytest.approx(sum(row.seconds) / sum(reference.seconds))
        ratios = [own / plain for own, plain in zip(row.seconds, reference.seconds, strict=True)]
        assert row.ratio.median == pytest.approx(sum(ratios) / 2)
        assert min(ratios) <= row.ratio.low <= row.ratio.high <= max(ratios)
        assert row.images_per_second == pytest.approx(4e3 / row.milliseconds.median)


def test_a_loop_of_ones_own_on_the_float_network_saves_what_the_reference_does(measured: Speed) -> None:
    by_name = {row.name: row for row in measured.rows}
    assert by_name["own_loop"].saved_ratio == 1
    assert (by_name["sbs"].saved_ratio or 0) > 1


def test_a_search_that_trains_nothing_is_left_out_with_a_note(measured: Speed) -> None:
    (note,) = measured.notes
    assert note.startswith("search fixed is left out: draws no training batches")


def test_a_search_that_is_short_has_the_steps_that_it_made() -> None:
    found = measure(replace(CONFIG, rounds=4), [own_loop("leave")])
    assert [row.steps for row in found.rows] == [4, 1]  # it left in its fifth step, after three to warm up
    assert found.notes == ["search own_loop ended by itself after 1 timed steps"]


def test_a_failure_is_one_line_that_names_the_training() -> None:
    with pytest.raises(BenchError) as caught:
        measure(CONFIG, [search("sbs_q"), own_loop("raise")])
    told = str(caught.value)
    assert told.startswith("search own_loop failed while it was measured: ValueError: it was told to; leave it out")
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_interruption_during_a_step_ends_everything() -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(CONFIG, [search("sbs_q"), own_loop("interrupt")])


def test_an_interruption_between_steps_ends_everything() -> None:
    def tell(text: str) -> None:
        if text == "round 2 of 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(CONFIG, [own_loop()], tell)


def test_compiled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiled:
        def __init__(self, network: nn.Module, stage: str, record: dict[str, Any]) -> None:
            self.network = network
            record["compiled"].append(stage)
            record["compile_seconds"] += 7.0

        def __call__(self, *args: Any) -> Any:
            return self.network(*args)

    monkeypatch.setattr(forward_module, "_Compiled", Compiled)
    monkeypatch.setattr(forward_module, "_obstacle", lambda _: None)
    modes = (False, True)
    wanted = [search("prune_then_quantize", compiled=mode) for mode in modes]
    wanted += [replace(own_loop(), compiled=True), replace(REFERENCE, compiled=True)]
    found = measure(CONFIG, wanted)
    assert [(row.name, row.compile_seconds) for row in found.rows] == [
        ("float", None),
        ("prune_then_quantize", None),
        ("prune_then_quantize", 14.0),  # two stages
        ("float", 7.0),
    ]
    (note,) = found.notes
    assert note.startswith(
        "search own_loop compiled is left out: its networks do not go through `SearchJob.in_training`"
    )


class _Deep(nn.Module):
    """Networks of all depths share the code of their forward pass."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.slow
def test_the_compiler_takes_any_number_of_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "_obstacle", lambda _: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    records = []
    for depth in range(1, 13):
        forward = WatchedForward("on", "fp32", CPU)
        training = InterleavedTraining(1, CPU)
        network = _Deep(depth)
        training.start(lambda call=forward.prepare, network=network: call(network, "test", 1.0)(torch.zeros(1, 2)))
        training.stop()
        records.append(forward.record)
    assert [record["compiled"] for record in records] == [["test"]] * 12


def test_candidates_for_each_mode_and_precision() -> None:
    methods: dict[str, Method] = {"dnas": make_method("dnas", {}), "sbs": make_method("sbs", {})}
    found = candidates(methods, (False, True), "bf16")
    assert len(found) == 2 * (1 + 2 + 1 + 1)
    assert {candidate.precision for candidate in found} == {"bf16"}
    assert replace(REFERENCE, precision="bf16") in found  # a row beside the reference in single precision


def test_what_random_images_look_like() -> None:
    task = random_task(CONFIG, 3)
    assert tuple(task.data.train.images.shape) == (40, 3, 16, 16)  # ten batches at least
    assert len(task.data.validation) == 4
    assert task.network.model == "resnet8"


def test_a_spread_of_one_and_of_several() -> None:
    assert asdict(Spread.from_values([3.0])) == {"median": 3, "low": 3, "high": 3, "mean": 3}
    assert asdict(Spread.from_values([1.0, 2, 3, 4, 10])) == {"median": 3, "low": 2, "high": 4, "mean": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fifth_step", "told"),
    [
        ("raise", "search own_loop failed while it was measured: ValueError: it was told to"),
        ("end process", "its process ended by itself; it may have run out of memory"),
    ],
)
def test_processes_that_measure_memory(fifth_step: str, told: str) -> None:
    with pytest.raises(BenchError, match=told):
        peak_in_another_process(CONFIG, own_loop(fifth_step))


# --- growth, and the paper ---


def row(name: str, step: float, memory: int, *, compiled: bool = False, what: Any = "search") -> Row:
    return Row(
        name=name, what=what, detail="", compiled=compiled, precision="fp32", steps=2,
        milliseconds=Spread.from_values([step]), ratio=Spread.from_values([step, 2 * step]), images_per_second=1 / step,
        seconds=[step, 2 * step], saved_bytes=memory, peak_bytes=10 * memory,
    )  # fmt: skip


def test_the_cost_of_a_search_without_bit_sharing_beside_the_printed_one() -> None:
    config = replace(CONFIG, model="resnet20")
    rows = [
        row("float", 1, 1, what="training"),
        row("sbs_q", 2.0, 10),
        row("multi_path", 3.0, 40),
        row("dnas", 8.0, 90),
    ]
    rows += [row("own_loop", 1, 1), row("multi_path", 4.0, 10, compiled=True)]
    multi_path, dnas = sharing(Speed(config=config, rows=rows, notes=[], layers=22))
    assert (multi_path.time, multi_path.saved, multi_path.peak) == pytest.approx((1.5, 4, 4))
    assert (multi_path.published_time, multi_path.published_memory) == pytest.approx((2.8 / 0.8, 4.4 / 1.5))
    assert (dnas.method, dnas.time, dnas.published_memory, dnas.source) == ("dnas", 4, None, "Table 1")


def test_another_model_has_no_printed_figures() -> None:
    rows = [row("float", 1, 1, what="training"), row("sbs_q", 2.0, 10), row("multi_path", 3.0, 40)]
    (line,) = sharing(Speed(config=CONFIG, rows=rows, notes=[], layers=10))
    assert (line.time, line.published_time, line.published_memory, line.source) == (1.5, None, None, "")


def test_growth_with_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.diagnostics.speed.growth.CHAINS", ((8,), (4, 8)))
    found = growth_with_bits(CONFIG, ["sbs_q", "multi_path"], [False], lambda _: None)
    numbers = [(number, row.name) for number, row in found.rows]
    assert numbers == [(1, "sbs_q"), (2, "sbs_q"), (2, "multi_path")]
    (note,) = found.notes
    assert note.startswith("multi_path cannot choose from 8:")
    points = found.to_json()["rows"]
    assert [point["bits"] for point in points] == [number for number, _ in found.rows]
    assert points[1]["detail"] == "4,8"
    for ending in ("svg", "png"):
        draw(found, tmp_path / f"growth.{ending}")
        assert (tmp_path / f"growth.{ending}").stat().st_size > 1000


def test_growth_with_depth_is_beside_the_reference_of_each_depth() -> None:
    settings = [CONFIG, replace(CONFIG, model="resnet20")]
    found = growth_with_depth(settings, {"sbs_q": make_method("sbs_q", {})}, [False], lambda _: None)
    assert [(number, row.detail) for number, row in found.rows] == [(10, "resnet8"), (22, "resnet20")]


def test_a_method_without_bits_cannot_grow() -> None:
    with pytest.raises(BenchError, match="--growth bits: fixed cannot choose from 8"):
        growth_with_bits(CONFIG, ["fixed"], [False], lambda _: None)


@pytest.mark.parametrize("layer", [PathPerWeight, PathPerPair])
def test_separate_paths_are_the_same_function_as_one_convolution(layer: type[MixedLayer]) -> None:
    shape = LayerShape(name="conv", kind="conv", position="middle", in_channels=3, out_channels=5, kernel=(3, 3))
    mixed = MixedLayer(nn.Conv2d(3, 5, 3), shape, (2, 4, 8), UniformQuantizer)
    mixed.probabilities = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    images = torch.rand(2, 3, 6, 6)
    mixed.calibrate(images)
    expected = mixed(images)
    mixed.__class__ = layer
    assert torch.allclose(mixed(images), expected, atol=1e-5)


# --- the command ---


def test_the_table(bench: Callable[..., Any], plugin: Callable[..., None]) -> None:
    plugin("methods", "own_loop", OwnLoop)
    answer = bench("speed", *QUICK, "--methods", "sbs_q,multi_path,own_loop,fixed")
    assert answer.status == 0
    for text in ("resnet8, synthetic's shape, batches of 4, 2 rounds, cpu, 1 thread, fp32", "× fp32", "1.00–1.00"):
        assert text in answer.out
    assert "own_loop" in answer.out and "note: search fixed is left out: draws no training batches" in answer.out
    assert "cost of search against sbs_q" in answer.out
    assert list(Path.cwd().iterdir()) == []


def test_the_json(bench: Callable[..., Any]) -> None:
    answer = bench("speed", *QUICK, "--methods", "sbs_q,multi_path", "--json", "--precision", "bf16")
    found = json.loads(answer.out)
    assert found.keys() == {
        "model", "dataset", "batch_size", "rounds", "threads", "device", "precision", "memory", "warm_up",
        "hardware", "versions", "layers", "rows", "notes", "sharing",
    }  # fmt: skip
    assert (found["device"], found["warm_up"], found["precision"]) == ("cpu", WARM_UP, "bf16")
    assert found["rows"][0].keys() == {
        "name", "what", "detail", "compiled", "precision", "steps", "milliseconds", "ratio", "images_per_second",
        "seconds", "saved_bytes", "saved_ratio", "peak_bytes", "peak_ratio", "compile_seconds",
    }  # fmt: skip
    assert [(row["name"], row["precision"]) for row in found["rows"]] == [
        ("float", "fp32"), ("float", "bf16"), ("sbs_q", "bf16"), ("multi_path", "bf16"), ("4 bit", "bf16"),
    ]  # fmt: skip
    assert [line["method"] for line in found["sharing"]] == ["multi_path"]
    assert all(math.isfinite(row["ratio"][key]) for row in found["rows"] for key in ("median", "low", "high", "mean"))


def test_growth_on_the_command_line(bench: Callable[..., Any], tmp_path: Path) -> None:
    plot = tmp_path / "growth.svg"
    options = ("--growth", "depth", "--model", "resnet8", "--methods", "sbs_q", "--plot", plot)
    answer = bench("speed", *SMALL[2:], "--compile", "off", "--no-memory", *options)
    assert answer.status == 0 and f"drawn: {plot}" in answer.out
    assert "search step" in plot.read_text() or plot.stat().st_size > 1000
    answer = bench("speed", *SMALL[2:], "--compile", "off", "--no-memory", *options[:6], "--json")
    found = json.loads(answer.out)
    assert (found["growth"], found["model"], found["rows"][0]["depth"]) == ("depth", "resnet8", 10)


def test_both_means_uncompiled_where_nothing_can_be_compiled(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    answer = bench("speed", *SMALL, "--no-memory", "--methods", "sbs_q", "--json")
    assert {row["compiled"] for row in json.loads(answer.out)["rows"]} == {False}
    assert "--compile on: there is no C++ compiler" in bench("speed", *SMALL, "--compile", "on").refusal


def test_a_method_that_fails_is_one_line(bench: Callable[..., Any], plugin: Callable[..., None]) -> None:
    class Failing(OwnLoop):
        def __init__(self, options: Any = None) -> None:
            super().__init__(OwnLoopOptions(fifth_step="raise"))

    plugin("methods", "failing", Failing)
    told = bench("speed", *QUICK, "--methods", "failing").refusal
    assert told.startswith("search failing failed while it was measured: ValueError: it was told to")


def test_growth_is_drawn_as_one_line_for_each_search() -> None:
    points = [(2, row("a", 1, 1)), (1, row("a", 2, 1)), (1, row("a", 1, 1, compiled=True))]
    (drawn,) = chart(Growth(axis="bits", rows=points, notes=[])).to_dict()["datasets"].values()
    lines = [(point["search"], point["number"], point["ratio"]) for point in drawn]
    assert lines == [("a", 1, 3.0), ("a, compiled", 1, 1.5), ("a", 2, 1.5)]


@pytest.mark.slow
def test_a_real_command_that_is_interrupted() -> None:
    command = [sys.executable, "-m", "bench", "speed", *QUICK, "--methods", "sbs_q", "--rounds", "5000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while psutil.Process(process.pid).cpu_times().user < 6 and time.monotonic() < deadline:  # imports take less
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert said.splitlines()[-1].startswith("bench: interrupted") and "Traceback" not in said
