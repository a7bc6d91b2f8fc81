"""The specification of a study: one immutable, typed tree, and where its values come from.

Precedence, lowest first: defaults, the schedule that a preset names, preset or specification file (TOML), `--schedule`,
`--set key=value`, flags.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from functools import reduce
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from bench.errors import BenchError, unknown_name
from bench.plugins.method_files import with_files
from bench.spec.options import Options, explain

Match = Literal["hinge", "lambda"]
Recipe = Literal["common", "own"]
Compile = Literal["auto", "on", "off"]
Precision = Literal["fp32", "bf16"]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
_UNNAMED = Field(exclude_if=lambda value: value is None)
"""Of values that came later: where they are absent they are not named, so that older results keep their ids."""

PUBLISHED_WEIGHTS = "torchvision"
"""As a checkpoint: the weights that torchvision publishes for the model."""

REPORT_SEEDS = 1_000_000
"""Report seeds lie below this number, tuning seeds from it on."""


class TaskSpec(Options):
    """What is compressed.

    Attributes:
        dataset: Name of a data set.
        model: Name of a model.
        validation_fraction: Share of the training data, class by class, on which everything is chosen.
        train_images: Use only so many training images, class by class alike; all when absent.
        image_size: Side of the images in pixels, of data sets of image files: that of the crop. The resize before it
            keeps the data set's ratio, 256/224. The data set's own when absent.
        classes: Number of classes of an image folder; found in the folder when the study is planned.
        checkpoint: A file with a pretrained state of the model, or "torchvision" for its published weights, which are
            looked for where torchvision puts them; pretraining is skipped.
        init: Compress a pretrained network, or train from scratch (paper, Section 5.6).
    """

    dataset: str = "digits"
    model: str = "resnet20"
    validation_fraction: Fraction = 0.1
    train_images: Count | None = None
    image_size: Annotated[Annotated[int, Field(ge=8)] | None, _UNNAMED] = None
    classes: Annotated[Annotated[int, Field(ge=2)] | None, _UNNAMED] = None
    checkpoint: str | None = None
    init: Literal["pretrained", "scratch"] = "pretrained"


class Schedule(Options):
    """A training schedule.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Images an update.
        lr: The largest learning rate.
        decay: "step" divides by 10 at the milestones, "cosine" falls to 0, "one_cycle" rises and falls.
        milestones: Epochs at which "step" divides.
        momentum, nesterov, weight_decay: Of SGD.
        max_grad_norm: Gradients of a larger norm, over all weights, are scaled down to it before an update.
    """

    epochs: Count = 1
    batch_size: Count = 128
    lr: Positive = 0.1
    decay: Literal["step", "cosine", "one_cycle"] = "cosine"
    milestones: tuple[int, ...] = ()
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    max_grad_norm: Annotated[Positive | None, _UNNAMED] = None

    @model_validator(mode="after")
    def _milestones_have_an_effect(self) -> Self:
        if self.milestones and self.decay != "step":
            raise ValueError(f"milestones have no effect with decay = '{self.decay}'; use decay = 'step'")
        if self.decay == "step" and not self.milestones:
            raise ValueError("decay = 'step' needs milestones, e.g. [80, 120]")
        return self


class SearchSchedule(Options):
    """Length and rate of a search; the weights' rate is constant (paper, Section 4.2)."""

    epochs: Count = 1
    batch_size: Count = 128
    lr: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    max_grad_norm: Annotated[Positive | None, _UNNAMED] = None


class FinetuneSchedule(Schedule):
    """The schedule of fine-tuning.

    Attributes:
        calibrate: Set clip values anew for the found bits before the first update; otherwise training starts
            from those of the search, as the paper does.
    """

    calibrate: bool = True


class TuningSpec(Options):
    """How methods with a knob are brought onto the budget.

    Attributes:
        match: "hinge": λ acts above the budget only, Optuna chooses λ by validation accuracy among trials within
            the window. "lambda": plain λ log R, Optuna brackets log λ onto the budget.
        trials: Searches at most, for each method and budget.
        stop_early: End a tuning when more trials would tell no more: in mode "lambda" at a search of which repair moves
            two gates at most, in mode "hinge" at three such searches that validation cannot tell apart.
        tolerance: The window is [1 − tolerance, 1] × budget.
        repair: Move the fewest gates of smallest margin to end inside the window.
        finetune_epochs: Short fine-tuning of each trial before its validation accuracy is read.
        seed: Number of the tuning seed; tuning seeds are disjoint from report seeds.
    """

    match: Match = "hinge"
    trials: Count = 4
    stop_early: bool = True
    tolerance: Fraction = 0.03
    repair: bool = True
    finetune_epochs: Annotated[int, Field(ge=0)] = 1
    seed: Annotated[int, Field(ge=0, le=999)] = 0


class AcceleratorSpec(Options):
    """The simulated accelerator on which latency and energy are estimated; see `docs/bitfusion.md`.

    Attributes:
        hardware: Name of a configuration of BitFusion, or a file with one.
        batch: Images that are computed together; latency and energy are stated per image.
        depthwise: How depthwise convolutions are carried out: "dense" computes every channel with every other, as the
            paper's figures do; "channelwise" each by itself.
    """

    hardware: str = "bf_e"
    batch: Count = 16
    depthwise: Literal["dense", "channelwise"] = "dense"


class StudySpec(Options):
    """All runs of one command: methods × budgets × seeds on one task.

    Attributes:
        name: Name of the study and of its folder.
        methods: Names of methods.
        method_files: By name, the places of methods that are in files and not registered, `/path/file.py:Class`.
        options: Options by method name.
        published: Number of the paper's table whose figures stand beside these, "1" to "12" or "I".
        further_models: Models on which everything is done as well, besides the task's.
        ablate: For options of methods, or other keys of the specification, values that are tried one at a time.
        budgets: See `bench.costs.budget`.
        seeds: Report seeds.
        recipe: "common": all fine-tune with the plain quantizer; "own": with the one of the method's paper.
        baseline: The method to which the table compares the others, when it is in the study.
        device: Where training happens; "auto" is resolved when the study is planned.
        threads: CPU threads of a run; part of its identity, since sums round differently with other counts.
        devices: Cards of a host that one run uses, or processes on the CPU; part of its identity like threads.
        compile: Whether networks of searches and of fine-tuning are compiled: "on", "off", or where a stage is long
            enough to be worth it. Part of a run's identity, since sums round differently.
        precision: Of training: single, or bfloat16 where autocast allows it. Accuracy is always read in single.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] = "quick"
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("sbs", "dnas", "fixed", "full_precision")
    method_files: Mapping[str, str] = Field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    published: Annotated[str, Field(pattern=r"^([1-9]|1[0-2]|I)$")] | None = None
    further_models: tuple[str, ...] = ()
    ablate: Mapping[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    budgets: Annotated[tuple[str, ...], Field(min_length=1)] = ("4bit",)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=REPORT_SEEDS)], ...], Field(min_length=1)] = (0, 1, 2)
    recipe: Recipe = "common"
    baseline: str = "fixed"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Count = 2
    devices: Count = 1
    compile: Compile = "auto"
    precision: Precision = "fp32"
    accelerator: AcceleratorSpec = AcceleratorSpec()
    task: TaskSpec = TaskSpec()
    pretrain: Schedule = Schedule()
    search: SearchSchedule = SearchSchedule()
    finetune: FinetuneSchedule = FinetuneSchedule()
    tuning: TuningSpec = TuningSpec()

    @field_validator("methods", "seeds", "budgets")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        repeated = sorted({str(value) for value in values if values.count(value) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is listed twice; each may appear once")
        return values

    @model_validator(mode="after")
    def _models_differ(self) -> Self:
        models = (self.task.model, *self.further_models)
        if len(set(models)) < len(models):
            raise ValueError(f"a model is listed twice in {', '.join(models)}; each may appear once")
        if self.further_models and self.task.checkpoint not in (None, PUBLISHED_WEIGHTS):
            raise ValueError(f"task.checkpoint is for one model, but there are {len(models)}; give one --model")
        return self

    @model_validator(mode="after")
    def _options_belong_to_methods(self) -> Self:
        for what, named in (("options are", self.options), ("a file is", self.method_files)):
            for name in named:
                if name not in self.methods:
                    raise ValueError(
                        f"{what} given for '{name}', which is not among the methods {', '.join(self.methods)}"
                    )
        return self

    @model_validator(mode="after")
    def _devices_share_batches(self) -> Self:
        if self.devices > 1 and ":" in self.device:
            raise ValueError(
                f"device '{self.device}' is one card, but devices is {self.devices}; use --device cuda, or --devices 1"
            )
        for name in ("pretrain", "search", "finetune"):
            size = getattr(self, name).batch_size
            if size % self.devices:
                near = max(1, round(size / self.devices)) * self.devices
                raise ValueError(
                    f"{name}.batch_size is {size}, which cannot be divided among {self.devices} devices; "
                    f"give a multiple of {self.devices}, e.g. --set {name}.batch_size={near}"
                )
        return self


def preset_names() -> list[str]:
    """The names of the presets that come with the harness."""
    files = resources.files("bench.spec.presets").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset's values.

    Raises:
        BenchError: There is no such preset.
    """
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names(), "bench list presets")
    return tomllib.loads(resources.files("bench.spec.presets").joinpath(f"{name}.toml").read_text())


def preset_summary(name: str) -> str:
    """What a preset is for: the comment that its file begins with."""
    text = resources.files("bench.spec.presets").joinpath(f"{name}.toml").read_text()
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ").strip() for line in comment)


def schedule_names() -> list[str]:
    """The names of the schedules that presets are made with, the shortest first."""
    return ["quick", "short", "paper"]


def with_schedule(values: Mapping[str, Any], asked: str | None = None) -> dict[str, Any]:
    """The values of a preset or specification file with those of its schedule.

    Args:
        values: May name a schedule in `schedule`, whose values they override, and in `schedules` a family in which
            schedules have other values, e.g. "imagenet".
        asked: A schedule that overrides them; the study is then called after it.

    Raises:
        BenchError: There is no such schedule.
    """
    own = with_files({key: value for key, value in values.items() if key not in ("schedule", "schedules")})
    named, family = values.get("schedule"), values.get("schedules")
    if asked is None:
        return own if named is None else _only_known_options(merge(_read_schedule(str(named), family), own))
    found = merge(own, _read_schedule(asked, family))
    return _only_known_options(found if asked == named else {**found, "name": f"{own.get('name', 'study')}-{asked}"})


def _read_schedule(name: str, family: str | None) -> dict[str, Any]:
    """A schedule's values: those of its family where it has its own, else the common ones."""
    if name not in schedule_names():
        raise unknown_name("schedule", name, schedule_names(), "bench run --help")
    folder = resources.files("bench.spec.presets.schedules")
    families = {file.name.rpartition("-")[0] for file in folder.iterdir() if "-" in file.name}
    if family is not None and family not in families:
        raise unknown_name("family of schedules", str(family), families, "docs/paper.md")
    own = folder.joinpath(f"{family}-{name}.toml")
    return tomllib.loads((own if own.is_file() else folder.joinpath(f"{name}.toml")).read_text())


def _only_known_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without options of methods that do not take part; a schedule has some for many."""
    methods = values.get("methods", StudySpec.model_fields["methods"].default)
    options = {name: own for name, own in values.get("options", {}).items() if name in methods}
    return {**values, "options": options}


def read_toml(path: Path) -> dict[str, Any]:
    """A specification file's values.

    Raises:
        BenchError: The file cannot be read or is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"cannot read the specification '{path}': {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"the specification '{path}' is not valid TOML: {error}") from error


def parse_setting(text: str) -> dict[str, Any]:
    """One `--set key=value` as a nested dictionary; the value is read as TOML, a bare word as a string.

    Raises:
        BenchError: There is no "=" or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BenchError(f"--set {text!r} is not of the form key=value, e.g. --set search.epochs=3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return nested(key.strip(), parsed)


def parse_ablation(text: str) -> tuple[str, list[Any]]:
    """One `--ablate key=a,b` as the key and its values; a value that has commas itself is in brackets, [2,4],[3,6].

    Raises:
        BenchError: There is no "=", no key or no value, or a value is listed twice.
    """
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise BenchError(f"--ablate {text!r} is not of the form key=a,b, e.g. --ablate group_size=1,2,4")
    try:
        found = tomllib.loads(f"value = [{values}]")["value"]
    except tomllib.TOMLDecodeError:
        found = [value.strip() for value in values.split(",")]
    if "" in found or any(found.count(value) > 1 for value in found):
        raise BenchError(f"--ablate {text!r} has an empty value, or one twice; give each once, e.g. group_size=1,2,4")
    return key.strip(), list(found)


def nested(path: str, value: Any) -> dict[str, Any]:
    """A value under a path of keys, "search.epochs", as a nested dictionary."""
    found: Any = value
    for part in reversed(path.split(".")):
        found = {part: found}
    return dict(found)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` in which the values of `over` win, table by table."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def build(layers: Iterable[Mapping[str, Any]]) -> StudySpec:
    """The specification from layers of values, lowest precedence first.

    Raises:
        BenchError: A key is unknown, or a value is not allowed.
    """
    values = with_files(reduce(merge, layers, {}))
    try:
        return StudySpec.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise explain(error, "", StudySpec) from error


def canonical_hash(document: Any) -> str:
    """The identity of a JSON document: 16 hexadecimal digits of SHA-256 over its canonical form."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
