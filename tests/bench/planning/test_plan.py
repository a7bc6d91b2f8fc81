import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.compression.policy import uniform
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from bench.errors import BenchError, StudyHaltedError
from bench.planning.builder import stored_specification, stored_unit
from bench.planning.methods import make_method
from bench.planning.networks import model_shape, with_counted_classes
from bench.planning.plan import Plan, make_plan, phases
from bench.planning.units import RunUnit, TrialUnit, Unit, kind_of, planned_epochs, title, trial_of
from bench.spec.schema import canonical_hash
from bench.spec.sources import build
from bench.store.files import read_json, save_state, write_json
from datasets.imagefolder import ImageFolder
from tests.bench.costs.tables import write_table
from tests.datasets.images import make_folder

Planner = Callable[..., Plan]


@pytest.fixture
def plan(tiny: SimpleNamespace) -> Planner:
    """Plans the tiny study with some values changed."""

    def planned(*changes: Mapping[str, Any]) -> Plan:
        return make_plan(tiny.spec(*changes))

    return planned


def run_of(plan: Plan, method: str, seed: int = 0, budget: str | None = None) -> RunUnit:
    found = [u for u in plan.runs if (u.method, u.seed) == (method, seed)]
    (unit,) = [u for u in found if budget is None or (u.budget is not None and u.budget.text == budget)]
    return unit


def identities(plan: Plan) -> set[str]:
    return {unit.identity for _, units in phases(plan) for unit in units}


# --- what there is to do ---


def test_the_units_of_a_study(plan: Planner) -> None:
    tiny = plan()
    assert [title(u) for u in tiny.pretrainings] == ["pretrain for tuning", "pretrain seed 0", "pretrain seed 1"]
    assert [title(u) for u in tiny.tunings] == ["tune sbs 4bit", "tune dnas 4bit"]
    assert [title(u) for u in tiny.runs[::2]] == [
        "run sbs 4bit seed 0",
        "run dnas 4bit seed 0",
        "run fixed 4bit seed 0",
        "run full_precision seed 0",
    ]
    assert len(tiny.runs) == 8
    assert len(identities(tiny)) == 3 + 2 + 8
    assert all(unit.identity == canonical_hash(unit.document) for _, units in phases(tiny) for unit in units)


def test_work_goes_phase_by_phase_and_runs_seed_by_seed(plan: Planner) -> None:
    tiny = plan({"seeds": [3, 1, 2]})
    assert [kind for kind, _ in phases(tiny)] == ["pretrained", "tuning", "runs"]
    assert [u.seed for u in phases(tiny)[2][1]] == [1] * 4 + [2] * 4 + [3] * 4
    methods = [u.method for u in phases(tiny)[2][1]]
    assert methods == ["sbs", "dnas", "fixed", "full_precision"] * 3


def test_whatever_a_unit_needs_is_in_an_earlier_phase(plan: Planner) -> None:
    done: set[str] = set()
    for _, units in phases(plan({"budgets": ["4bit", "0.1x"]})):
        for unit in units:
            needed = [getattr(unit, "pretraining", None), getattr(unit, "tuning", None)]
            assert {found.identity for found in needed if found is not None} <= done
        done |= {unit.identity for unit in units}


def test_a_reference_is_planned_once_for_several_budgets(plan: Planner) -> None:
    several = plan({"budgets": ["4bit", "2bit", "0.1x"]})
    counts = {name: sum(u.method == name for u in several.runs) for name in ("sbs", "fixed", "full_precision")}
    assert counts == {"sbs": 6, "fixed": 6, "full_precision": 2}
    assert len(several.tunings) == 6
    assert len(several.pretrainings) == 3
    assert run_of(several, "full_precision").budget is None
    one = run_of(plan({"budgets": ["2bit"]}), "full_precision")
    assert run_of(several, "full_precision").identity == one.identity


def test_a_method_whose_strength_moves_by_itself_is_not_tuned(plan: Planner) -> None:
    """Other knobs are; and its runs depend on the mode, which those of other methods without tuning do not."""
    methods = {"methods": ["sbs", "quantize_then_prune", "fixed"]}
    dual, hinge = (plan(methods, {"tuning": {"match": match}}) for match in ("dual", "hinge"))
    assert [unit.method for unit in dual.tunings] == ["quantize_then_prune"]
    assert [unit.method for unit in hinge.tunings] == ["sbs", "quantize_then_prune"]
    runs = {unit.method: unit for unit in dual.runs}
    assert runs["sbs"].tuning is None
    assert runs["quantize_then_prune"].tuning is dual.tunings[0]
    assert runs["sbs"].document["match"] == "dual"
    assert planned_epochs(runs["sbs"]) == planned_epochs(run_of(hinge, "sbs", runs["sbs"].seed))
    assert "match" not in runs["fixed"].document
    assert runs["fixed"].identity == run_of(hinge, "fixed", runs["fixed"].seed).identity
    narrow, wide = (plan(methods, {"tuning": {"match": "dual", "tolerance": width}}) for width in (0.03, 0.05))
    assert run_of(narrow, "sbs").identity != run_of(wide, "sbs").identity


def test_tuning_uses_a_seed_of_its_own(plan: Planner) -> None:
    tiny = plan({"seeds": [0, 1, 999_999]})
    seeds = {u.seed for u in tiny.tunings}
    assert len(seeds) == 1
    assert seeds.isdisjoint(u.seed for u in tiny.runs)
    assert {u.pretraining.seed for u in tiny.tunings} == seeds
    assert all(u.pretraining.seed == u.seed for u in tiny.runs)
    assert {u.seed for u in plan({"tuning": {"seed": 1}}).tunings}.isdisjoint(seeds)


def test_all_methods_of_a_seed_start_from_one_pretraining(plan: Planner) -> None:
    for seed in (0, 1):
        assert len({u.pretraining.identity for u in plan().runs if u.seed == seed}) == 1


def test_planned_epochs(plan: Planner) -> None:
    epochs = {"pretrain": {"epochs": 7}, "search": {"epochs": 3}, "finetune": {"epochs": 5}}
    tiny = plan({**epochs, "tuning": {"trials": 4, "finetune_epochs": 2}})
    assert planned_epochs(tiny.pretrainings[0]) == 7
    assert planned_epochs(tiny.tunings[0]) == 4 * (3 + 2)
    assert planned_epochs(run_of(tiny, "sbs")) == 3 + 5
    assert planned_epochs(run_of(tiny, "fixed")) == 5 + 3  # as many updates as with a search
    scratch = plan({"task": {"init": "scratch"}})
    assert planned_epochs(scratch.pretrainings[0]) == 0


# --- identity ---


def test_the_same_study_twice_is_the_same(plan: Planner) -> None:
    assert identities(plan()) == identities(plan())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another"},
        {"methods": ["full_precision", "fixed", "dnas", "sbs"]},
        {"baseline": "dnas"},
        {"seeds": [1, 0]},
        {"options": {"sbs": {"gate_training": "alternating"}}},  # the default, spelled out
        {"options": {"sbs": {"group_size": 4}}},  # that of the network
        {"budgets": ["4bit"], "task": {"dataset": "synthetic"}},
    ],
    ids=str,
)
def test_what_changes_no_number_changes_no_identity(plan: Planner, change: dict[str, Any]) -> None:
    assert identities(plan(change)) == identities(plan())


@pytest.mark.parametrize(
    "change",
    [
        {"methods": ["sbs", "fixed"]},
        {"seeds": [0]},
        {"seeds": [0, 1, 2]},
        {"methods": ["sbs", "dnas", "sbs_q", "fixed", "full_precision"]},
        {"budgets": ["4bit", "2bit"]},
    ],
    ids=str,
)
def test_a_larger_study_shares_what_it_has_in_common(plan: Planner, change: dict[str, Any]) -> None:
    one, other = identities(plan(change)), identities(plan())
    assert one < other or one > other


ALL = {"pretrain", "tuning", "sbs", "fixed", "full_precision"}
SEARCHED = {"tuning", "sbs"}
RUNS = ALL - {"pretrain"}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"threads": 2}, ALL),
        ({"device": "cuda"}, ALL),
        ({"task": {"dataset": "digits"}}, ALL),
        ({"task": {"model": "resnet20"}}, ALL),
        ({"task": {"validation_fraction": 0.3}}, ALL),
        ({"task": {"train_images": 64}}, ALL),
        ({"task": {"init": "scratch"}}, ALL),
        ({"pretrain": {"epochs": 2}}, ALL),
        ({"pretrain": {"nesterov": False}}, ALL),
        ({"search": {"epochs": 2}}, RUNS),
        ({"finetune": {"lr": 0.01}}, RUNS),
        ({"finetune": {"calibrate": False}}, RUNS),
        ({"recipe": "own"}, RUNS),
        ({"tuning": {"match": "lambda"}}, SEARCHED),
        ({"tuning": {"trials": 3}}, SEARCHED),
        ({"tuning": {"seed": 1}}, SEARCHED),
        ({"options": {"sbs": {"group_size": 8}}}, SEARCHED),
        ({"options": {"fixed": {"bits": 3}}}, {"fixed"}),
        ({"tuning": {"tolerance": 0.05}}, SEARCHED | {"fixed"}),
        ({"budgets": ["2bit"]}, SEARCHED | {"fixed"}),
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else str(value),  # the same in every process
)
def test_what_changes_a_number_changes_the_identity(plan: Planner, change: dict[str, Any], changed: set[str]) -> None:
    def by_name(planned: Plan) -> dict[str, str]:
        runs = {name: run_of(planned, name).identity for name in ("sbs", "fixed", "full_precision")}
        return runs | {"pretrain": planned.pretrainings[1].identity, "tuning": planned.tunings[0].identity}

    before, after = by_name(plan()), by_name(plan(change))
    assert {name for name in before if before[name] != after[name]} == changed


def test_seeds_and_cuda_devices(plan: Planner) -> None:
    assert run_of(plan(), "sbs", 0).identity != run_of(plan(), "sbs", 1).identity
    assert identities(plan({"device": "cuda:1"})) == identities(plan({"device": "cuda"}))


def test_a_checkpoint_counts_by_its_content(plan: Planner, tmp_path: Path) -> None:
    first, second, other = tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt"
    save_state(first, {"w": torch.zeros(3)})
    second.write_bytes(first.read_bytes())
    save_state(other, {"w": torch.ones(3)})
    planned = [plan({"task": {"checkpoint": str(path)}}) for path in (first, second, other)]
    assert identities(planned[0]) == identities(planned[1])
    assert identities(planned[0]).isdisjoint(identities(planned[2]))
    assert identities(planned[0]).isdisjoint(identities(plan()))
    assert planned_epochs(planned[0].pretrainings[0]) == 0
    assert identities(planned[0]) == identities(plan({"task": {"checkpoint": str(first)}, "pretrain": {"epochs": 9}}))


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"methods": ["sbss"]}, r"unknown method 'sbss': did you mean 'sbs'\?"),
        ({"task": {"dataset": "cifar_100"}}, r"unknown dataset 'cifar_100': did you mean 'cifar100'\?"),
        ({"task": {"model": "resnet80"}}, r"unknown model 'resnet80': did you mean 'resnet8'\?"),
        ({"budgets": ["4bit", "lots"]}, "budget 'lots' is not understood"),
        ({"options": {"sbs": {"group_sise": 4}}}, r"'group_sise': did you mean 'group_size'\?"),
        ({"options": {"fixed": {"bits": 0}}}, r"'options\.fixed\.bits' is 0, .*--set options\.fixed\.bits="),
        ({"options": {"full_precision": {"bits": 3}}}, "'bits'"),
        ({"accelerator": {"hardware": "bf_f"}}, r"unknown hardware 'bf_f': did you mean 'bf_s'"),
        ({"accelerator": {"hardware": "/nowhere/x.toml"}}, "cannot read the hardware configuration '/nowhere/x.toml'"),
        ({"baseline": "fixd"}, r"unknown method 'fixd': did you mean 'fixed'\?"),
        ({"threads": 1_000_000}, "'threads' is 1000000, .*1024"),
        ({"task": {"checkpoint": "/nowhere/model.pt"}}, "cannot read the checkpoint '/nowhere/model.pt': No such file"),
    ],
    ids=str,
)
def test_names_and_values_that_are_not_allowed(plan: Planner, change: dict[str, Any], told: str) -> None:
    with pytest.raises(BenchError, match=told) as caught:
        plan(change)
    assert "\n" not in str(caught.value)


def test_methods_have_their_options() -> None:
    assert make_method("fixed", {"bits": 3}).options.bits == 3
    assert make_method("fixed", {}).options.bits is None
    with pytest.raises(BenchError, match=r"'options\.fixed\.bits' is '3'"):
        make_method("fixed", {"bits": "3"})


# --- what a unit's folder holds of it ---


def everything(planned: Plan) -> list[Unit]:
    trials = [trial_of(unit, 3, {"strength": 0.1 + 0.2}) for unit in planned.tunings]
    return [*(unit for _, units in phases(planned) for unit in units), *trials]


def test_every_unit_comes_back_from_its_folder(plan: Planner, tmp_path: Path) -> None:
    changes = {"options": {"sbs": {"bits": [2, 8]}, "fixed": {"bits": 3}}, "budgets": ["4bit", "0.016x"]}
    planned = plan(changes)
    for unit in everything(planned):
        write_json(tmp_path / "spec.json", stored_specification(unit))
        found = stored_unit(read_json(tmp_path / "spec.json"))
        assert (found.spec, found.network) == (planned.spec, planned.network)
        assert (type(found), found.identity, found.seed) == (type(unit), unit.identity, unit.seed)
        assert found.document == unit.document
        assert (kind_of(found), title(found)) == (kind_of(unit), title(unit))
        if isinstance(unit, TrialUnit):
            assert isinstance(found, TrialUnit) and found.knobs == unit.knobs  # to the last bit


def test_a_stored_unit_whose_specification_was_changed_is_refused(plan: Planner) -> None:
    planned = plan()
    for unit in everything(planned):
        stored = json.loads(json.dumps(stored_specification(unit)))
        stored["specification"]["task"]["train_images"] = 64
        if isinstance(unit, TrialUnit):
            stored["id"] = stored["id"].replace("-", "x-")
        with pytest.raises(BenchError, match=f"the specification stored for {title(unit)} is that of unit"):
            stored_unit(stored)


def test_a_trial_is_known_by_its_tuning_and_number(plan: Planner) -> None:
    tuning = plan().tunings[0]
    first, second = trial_of(tuning, 0, {"strength": 0.1}), trial_of(tuning, 1, {"strength": 0.1})
    assert (first.identity, second.identity) == (f"{tuning.identity}-0", f"{tuning.identity}-1")
    assert kind_of(first) == "trials" and title(first) == f"{title(tuning)} trial 1"
    assert first.document != trial_of(tuning, 0, {"strength": 0.2}).document
    assert first.seed == tuning.seed


# --- data sets of image files ---


def test_the_classes_of_a_folder_are_counted_once(
    tmp_path: Path, tiny: SimpleNamespace, plugin: Callable[..., None]
) -> None:
    plugin("datasets", "imagefolder", ImageFolder)
    make_folder(tmp_path, train=1, test=1)
    spec = tiny.spec({"methods": ["fixed"], "seeds": [0], "task": {"dataset": "imagefolder", "image_size": 32}})
    with pytest.raises(BenchError, match=r"no folder of its own.*--data-dir DIR"):
        make_plan(spec)
    counted = with_counted_classes(spec, tmp_path)
    assert counted.task.classes == 4
    assert with_counted_classes(counted, None) == counted
    assert with_counted_classes(tiny.spec(), None) == tiny.spec()
    network = make_plan(counted).network
    assert (network.layers[0].in_channels, network.layers[-1].out_channels) == (3, 4)
    larger = make_plan(tiny.spec(counted.model_dump(mode="json"), {"task": {"image_size": 64}}))
    assert larger.runs[0].identity != make_plan(counted).runs[0].identity
    assert 3.9 < _macs(larger.network) / _macs(network) < 4.1


def _macs(network: NetworkShape) -> int:
    return price(network, uniform(network, 8)).macs


@pytest.mark.parametrize("key", ["image_size", "classes"])
def test_what_a_data_set_has_no_choice_in_is_refused(tiny: SimpleNamespace, key: str) -> None:
    with pytest.raises(BenchError, match=rf"task\.{key} = 16 has no effect on Synthetic.*16×16; leave it out"):
        make_plan(tiny.spec({"task": {key: 16}}))


def test_identities_do_not_name_what_there_is_no_choice_in(tiny: SimpleNamespace) -> None:
    """Results from before there was such a choice stay what they are."""
    plain = make_plan(tiny.spec())
    documents = [unit.document for unit in (*plain.pretrainings, *plain.runs)]
    assert not [key for key in ("image_size", "classes", "max_grad_norm") if key in json.dumps(documents)]
    limited = make_plan(tiny.spec({"finetune": {"max_grad_norm": 5.0}}))
    assert not {run.identity for run in plain.runs} & {run.identity for run in limited.runs}


@pytest.mark.parametrize("method", ["sbs_p", "prune_then_quantize"])
def test_what_works_at_full_precision_cannot_have_a_budget_of_the_accelerator(method: str) -> None:
    spec = build([{"methods": [method], "budgets": ["0.5x:ms"], "device": "cpu"}])
    with pytest.raises(BenchError, match=f"{method} prunes at full precision, which the accelerator cannot compute"):
        make_plan(spec)
    assert make_plan(build([{"methods": [method], "budgets": ["0.2x:KB"], "device": "cpu"}])).runs


# --- measured times ---


def test_identities_have_the_checksum_of_measured_times(plan: Planner, tmp_path: Path) -> None:
    network = model_shape("resnet8", "synthetic")

    def planned(folder: str, rest: float, *changes: Mapping[str, Any]) -> Plan:
        path = tmp_path / folder / "onnxruntime.json"
        path.parent.mkdir(exist_ok=True)
        return plan({"accelerator": {"hardware": write_table(path, network, rest=rest)}}, *changes)

    measured = {"budgets": ["0.9x:ms@onnxruntime"]}
    first = planned("a", 0.25, measured)
    assert identities(planned("b", 0.25, measured)) == identities(first)  # wherever the file lies
    other = planned("a", 0.5, measured)
    with_table = {unit.identity for unit in (*first.runs, *first.tunings) if unit.budget is not None}
    assert with_table.isdisjoint(unit.identity for unit in (*other.runs, *other.tunings))
    assert {unit.identity for unit in first.pretrainings} == {unit.identity for unit in other.pretrainings}
    # A run at another budget records a latency too, but its tuning does not depend on it.
    bops = planned("a", 0.25), planned("a", 0.5)
    assert [unit.identity for unit in bops[0].tunings] == [unit.identity for unit in bops[1].tunings]
    assert {unit.identity for unit in bops[0].runs}.isdisjoint(unit.identity for unit in bops[1].runs)


def test_a_unit_is_refused_once_its_measured_times_have_changed(plan: Planner, tmp_path: Path) -> None:
    network, path = model_shape("resnet8", "synthetic"), tmp_path / "onnxruntime.json"
    hardware = write_table(path, network, rest=0.25)
    made = plan({"budgets": ["0.9x:ms@onnxruntime"], "accelerator": {"hardware": hardware}})
    stored = json.loads(json.dumps(stored_specification(run_of(made, "sbs"))))
    assert stored_unit(stored).identity == run_of(made, "sbs").identity
    write_table(path, network, rest=0.5)
    with pytest.raises(StudyHaltedError, match="run the study's command again"):
        stored_unit(stored)


def test_full_precision_can_be_measured(plan: Planner, tmp_path: Path) -> None:
    """A simulated accelerator has at most 8 bits, and fewer bits are cheaper on it; both need not hold elsewhere."""
    hardware = write_table(tmp_path / "onnxruntime.json", model_shape("resnet8", "synthetic"))
    made = plan(
        {"methods": ["sbs_p", "fixed"], "budgets": ["0.9x:ms@onnxruntime"], "accelerator": {"hardware": hardware}}
    )
    assert {unit.method for unit in made.runs} == {"sbs_p", "fixed"}
    assert all(reach.cheapest is None and reach.costliest is None for reach in made.reaches)


def test_times_that_are_not_measured_yet_are_one_clear_line(plan: Planner) -> None:
    with pytest.raises(BenchError, match="the times of 'openvino' are not measured yet; type: bench cost --hardware"):
        plan({"budgets": ["1.2ms@openvino"]})
