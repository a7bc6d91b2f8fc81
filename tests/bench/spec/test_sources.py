import codecs
import math
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.planning.methods import make_method
from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.spec.sources import (
    build,
    merge,
    nested,
    parse_ablation,
    parse_setting,
    preset_names,
    read_preset,
    read_toml,
    schedule_names,
    with_schedule,
)

# --- presets and files ---


def test_there_are_presets_and_the_default_one_is_among_them() -> None:
    assert {"quick", "cifar100-paper", "cifar100-short"} <= set(preset_names())
    assert "__init__" not in " ".join(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_specification_of_that_name(name: str) -> None:
    spec = build([with_schedule(read_preset(name))])
    assert spec.name == name
    assert spec.baseline in spec.methods
    assert build([spec.model_dump(mode="json")]) == spec


def test_the_papers_preset_is_the_papers_schedule() -> None:
    spec = build([with_schedule(read_preset("cifar100-paper"))])
    assert (spec.search.epochs, spec.search.lr, spec.finetune.epochs) == (30, 1e-3, 200)
    assert (spec.finetune.lr, spec.finetune.decay, spec.finetune.milestones) == (0.1, "step", (80, 120))
    assert (spec.tuning.match, spec.finetune.calibrate, len(spec.seeds)) == ("lambda", False, 5)
    for name, options in spec.options.items():
        assert options["clip_init"] == "paper"
        assert not name.startswith("sbs") or options["threshold_lr"] == "paper"


@pytest.mark.parametrize("name", preset_names())
def test_the_papers_schedule_starts_every_method_as_its_paper_does(name: str) -> None:
    """One start for all there too: none is calibrated that could start as stated."""
    spec = build([with_schedule(read_preset(name), "paper")])
    for method in spec.methods:
        fields = load("methods", method).Options.model_fields
        assert ("clip_init" in fields) == (spec.options.get(method, {}).get("clip_init") == "paper"), method


@pytest.mark.parametrize("name", preset_names())
def test_only_the_papers_schedule_fine_tunes_with_each_methods_own_quantizer(name: str) -> None:
    """Its Appendix F: all compared methods follow the quantization configurations in their papers."""
    recipes = {schedule: build([with_schedule(read_preset(name), schedule)]).recipe for schedule in schedule_names()}
    assert recipes == {"quick": "common", "short": "common", "paper": "own"}


@pytest.mark.parametrize("family", [None, "imagenet", "mobilenet"])
def test_the_papers_schedule_has_the_papers_values_for_methods_that_no_table_has(family: str | None) -> None:
    """A control must differ from its method in what it controls, and in nothing else."""
    values = {"methods": list(available("methods")), "schedule": "paper", "schedules": family}
    spec = build([with_schedule({key: value for key, value in values.items() if value is not None})])
    for method in spec.methods:
        fields, stated = load("methods", method).Options.model_fields, spec.options.get(method, {})
        assert ("clip_init" in fields) == (stated.get("clip_init") == "paper"), method
        assert ("threshold_lr" in fields) == (stated.get("threshold_lr") == "paper"), method
        assert ("final_gates" in fields) == (stated.get("final_gates") == "last"), method
        make_method(method, stated)
    assert spec.options["cost_only"] == spec.options["sbs"] == spec.options["sbs_extended"]
    assert spec.options["cost_only_q"] == spec.options["sbs_q"]


@pytest.mark.parametrize(
    ("preset", "updates"), [("table1", 156), ("table2", 156), ("tableI", 156), ("table4", 78), ("table4-mobilenet", 78)]
)
def test_the_papers_schedule_has_the_options_of_every_compared_methods_paper(preset: str, updates: int) -> None:
    """Each is accepted by its method; HAQ is the published one in length, candidates and images."""
    spec = build([with_schedule(read_preset(preset), "paper")])
    methods = {name: make_method(name, spec.options.get(name, {})) for name in spec.methods}
    assert {"fixed", "haq", "dq"} <= spec.options.keys()
    haq = methods["haq"].options
    assert (haq.bits, haq.episodes, haq.warmup_episodes) == ((2, 3, 4, 5, 6, 7, 8), 600, 20)
    assert (haq.noise_decay, haq.reward_images) == (0.99, 20_000)
    assert haq.finetune_updates == updates == 20_000 // spec.search.batch_size
    if "hawq" in methods:
        assert (methods["hawq"].options.bits, methods["hawq"].options.activations) == ((4, 8), "tied")
    if "dq" in methods and preset in ("table1", "table2", "tableI"):
        assert methods["dq"].options.range_travel == pytest.approx(0.03 * 30 * (45_000 // 128), rel=0.01)
    if "dnas" in methods:
        assert methods["dnas"].options.temperature(1.0) == pytest.approx(5 * math.exp(-0.025 * 30), abs=0.01)


@pytest.mark.parametrize("schedule", schedule_names())
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_takes_every_schedule(name: str, schedule: str) -> None:
    preset = read_preset(name)
    spec = build([with_schedule(preset, schedule)])
    assert spec.name == (name if preset["schedule"] == schedule else f"{name}-{schedule}")
    paper = {"imagenet": (10, 15), "mobilenet": (10, 150)}.get(preset.get("schedules", ""), (30, 200))
    expected = {"quick": (8, 3), "short": (2, 4), "paper": paper}
    assert (spec.search.epochs, spec.finetune.epochs) == expected[schedule]
    assert (spec.task.checkpoint == "torchvision") == ("schedules" in preset and schedule != "quick")
    assert spec.methods == tuple(preset["methods"])
    assert spec.options.keys() <= set(spec.methods)
    assert schedule != "quick" or spec.task.dataset == "digits"


def test_a_presets_own_values_override_its_schedule_but_not_another() -> None:
    values = {"schedule": "short", "name": "mine", "search": {"epochs": 7}}
    assert with_schedule(values)["search"]["epochs"] == 7
    assert with_schedule(values, "short")["search"]["epochs"] == 2
    assert (with_schedule(values)["name"], with_schedule(values, "paper")["name"]) == ("mine", "mine-paper")
    assert with_schedule({"name": "mine"}) == {"name": "mine"}


def test_an_unknown_family_of_schedules_names_the_nearest() -> None:
    with pytest.raises(BenchError, match="unknown family of schedules 'imagnet': did you mean 'imagenet'"):
        with_schedule({"schedule": "paper", "schedules": "imagnet"})


def test_an_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(BenchError, match="unknown schedule 'shrt': did you mean 'short'"):
        with_schedule({}, "shrt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("group_size=1,2", ("group_size", [1, 2])),
        ("gate_training=joint, alternating", ("gate_training", ["joint", "alternating"])),
        ("bits=[2,4],[3,6]", ("bits", [[2, 4], [3, 6]])),
        ("search.lr=1e-3", ("search.lr", [1e-3])),
    ],
)
def test_an_ablation_is_read(text: str, expected: tuple[str, list[Any]]) -> None:
    assert parse_ablation(text) == expected


@pytest.mark.parametrize("text", ["group_size", "=1", "group_size=", "group_size=1,,2", "group_size=1,1"])
def test_an_ablation_that_makes_no_sense(text: str) -> None:
    with pytest.raises(BenchError, match=r"--ablate .*e\.g\. "):
        parse_ablation(text)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(BenchError, match=r"unknown preset 'quik': did you mean 'quick'\? .*bench list presets"):
        read_preset("quik")


def test_a_specification_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('name = "mine"\n[search]\nepochs = 3\n')
    assert read_toml(tmp_path / "study.toml") == {"name": "mine", "search": {"epochs": 3}}


@pytest.mark.parametrize(("content", "told"), [(b"name = ", "not valid TOML"), (b"\xff\xfe=\x00", "not valid TOML")])
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "study.toml").write_bytes(content)
    with pytest.raises(BenchError, match=told):
        read_toml(tmp_path / "study.toml")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot read the specification .*missing\.toml': No such file"):
        read_toml(tmp_path / "missing.toml")
    with pytest.raises(BenchError, match="cannot read the specification"):
        read_toml(tmp_path)


# --- settings ---


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("name=mine", {"name": "mine"}),
        ('name="mine"', {"name": "mine"}),
        ("search.epochs=3", {"search": {"epochs": 3}}),
        ("search.lr=1e-3", {"search": {"lr": 1e-3}}),
        ("finetune.calibrate=false", {"finetune": {"calibrate": False}}),
        ("options.sbs.bits=[2, 4]", {"options": {"sbs": {"bits": [2, 4]}}}),
        ('methods=["sbs", "fixed"]', {"methods": ["sbs", "fixed"]}),
        ("tuning={trials = 3}", {"tuning": {"trials": 3}}),
        (" task.model = resnet8", {"task": {"model": " resnet8"}}),
        ("task.checkpoint=a=b.pt", {"task": {"checkpoint": "a=b.pt"}}),
        ("name=[half", {"name": "[half"}),
        ("name=", {"name": ""}),
    ],
)
def test_settings(text: str, parsed: dict[str, Any]) -> None:
    assert parse_setting(text) == parsed


@pytest.mark.parametrize("text", ["search.epochs", "", "=3", "  =3"])
def test_settings_without_key_or_value(text: str) -> None:
    with pytest.raises(BenchError, match=r"is not of the form key=value, e\.g\. --set search\.epochs=3"):
        parse_setting(text)


# --- layers ---


def test_later_layers_win_value_by_value() -> None:
    preset = {"name": "preset", "search": {"epochs": 10, "lr": 0.1}, "seeds": [0, 1, 2]}
    file = {"name": "file", "search": {"epochs": 5}}
    setting = parse_setting("search.epochs=3")
    flags = {"seeds": [7]}
    spec = build([preset, file, setting, flags])
    assert (spec.name, spec.search.epochs, spec.search.lr, spec.seeds) == ("file", 3, 0.1, (7,))
    assert build([]).search.epochs == 1


def test_merging_leaves_both_sides_as_they_were() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": {"e": 5}}
    assert merge(base, over) == {"a": {"b": 4, "c": 2}, "d": {"e": 5}}
    assert (base, over) == ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": {"e": 5}})


# --- encodings of files ---

TEXT = 'name = "größe"\r\nseeds = [3]\r\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_with_and_without_a_byte_order_mark_are_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(TEXT.encode(encoding))
    assert read_toml(path) == {"name": "größe", "seeds": [3]}


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    for mark, encoding in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")):
        path.write_bytes(mark + TEXT.encode(encoding))
        assert read_toml(path)["name"] == "größe"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TEXT.encode("utf-16-le"), "zero byte, as in UTF-16 without a byte-order mark.*; save it as UTF-8"),
        (TEXT.encode("latin-1"), "no UTF-8 text"),
        (b"\xff\xfex", "no UTF-8 text"),  # half a character
        (b"a = " + b"[" * 50_000, "nested too deeply"),
    ],
)
def test_other_files_are_one_line(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=told) as caught:
        read_toml(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_values_that_are_nested_too_deeply_are_a_text() -> None:
    assert parse_setting("a=" + "[" * 50_000) == {"a": "[" * 50_000}


def test_options_of_a_file_for_a_method_that_does_not_take_part_are_refused() -> None:
    """A schedule has options for many methods, and those of a file are meant."""
    for schedule in schedule_names():
        with pytest.raises(BenchError, match="options are given for 'sb', which is not among the methods sbs"):
            build([with_schedule({"schedule": schedule, "methods": ["sbs"], "options": {"sb": {}}})])


@pytest.mark.parametrize("values", [{"methods": 5}, {"options": 5}, {"schedules": ["imagenet"]}, {"schedules": {}}])
def test_values_of_wrong_types_beside_a_schedule_are_one_line(values: dict[str, Any]) -> None:
    with pytest.raises(BenchError) as told:
        build([with_schedule({"schedule": "paper", **values})])
    assert "\n" not in str(told.value)


def test_what_would_take_for_ever_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("a." * 5000 + "b = 1")
    with pytest.raises(BenchError, match="its values are nested too deeply"):
        read_toml(tmp_path / "deep.toml")
    with pytest.raises(BenchError, match="has more than 100 parts"):
        nested("a." * 5000 + "b", 1)
    with pytest.raises(BenchError, match="nested more than 100 deep"):
        build([reduce(lambda inner, _: {"a": inner}, range(200), {})])
    with pytest.raises(BenchError, match="0 is listed twice"):
        build([{"seeds": [*range(60_000), 0]}])
    with pytest.raises(BenchError, match=r"'search\.epochs' is 9223372036854775808, but must be at most"):
        build([{"search": {"epochs": 1 << 63}}])
