"""The specification of a study: one immutable, typed tree of values. `bench.spec.sources` builds it."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bench.inputs.names import STUDY_NAME
from bench.spec.options import Options

Match = Literal["dual", "hinge", "lambda"]
Recipe = Literal["common", "own"]
Allowance = Literal["equal", "policy", "unequal"]
Compile = Literal["auto", "on", "off"]
Precision = Literal["fp32", "bf16"]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
_LARGEST_COUNT = 1_000_000_000
Count = Annotated[int, Field(ge=1, le=_LARGEST_COUNT)]
Processes = Annotated[int, Field(ge=1, le=1024)]
_UNNAMED = Field(exclude_if=lambda value: value is None)
"""For fields added after release: omit them when unset, so that existing ids do not change."""

PUBLISHED_WEIGHTS = "torchvision"
"""Value of `task.checkpoint` that asks for the weights that torchvision publishes for the model."""

ENGINES = ("onnxruntime", "openvino")
"""Runtimes whose times for layers can be measured, as names of hardware."""

REPORT_SEEDS = 1_000_000
"""First tuning seed; report seeds are smaller."""


class ImageOptions(Options):
    """How images of an image folder are read and changed at random in training.

    Attributes:
        mirror: Whether half of the training images are mirrored. Letters, digits and signs must not be.
        crop: Position of the square window in training images: "random", or "middle" as in testing.
        colour: Strength of random changes of brightness, contrast and saturation in training: each is multiplied by a
            factor between 1 − colour and 1 + colour.
        channels: Number of channels: 3 for colour, 1 for grey.
        mean: Mean of each channel, of pixels scaled to [0, 1]; ImageNet's when unset.
        std: Standard deviation of each channel, of pixels scaled to [0, 1]; ImageNet's when unset.
    """

    mirror: bool = True
    crop: Literal["random", "middle"] = "random"
    colour: Annotated[float, Field(ge=0, le=1)] = 0.0
    channels: Literal[1, 3] = 3
    mean: tuple[Fraction, ...] | None = None
    std: tuple[Positive, ...] | None = None

    @model_validator(mode="after")
    def _statistics_are_of_the_channels(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} numbers, but images have {self.channels} channels")
        return self


class TaskSpec(Options):
    """The data set and the model to compress.

    Attributes:
        dataset: Name of a data set.
        model: Name of a model.
        validation_fraction: Share of each class of the training data that is held out as validation data. Everything
            that is chosen is chosen on it.
        train_images: Number of training images to use, the same share of each class; all when unset.
        image_size: Side of the square crop in pixels, for data sets of image files. The preceding resize keeps the
            data set's ratio, e.g. 256/224. The data set's own size when unset.
        classes: Number of classes of an image folder; counted in the folder when unset.
        images: Reading of an image folder, and random changes in training.
        checkpoint: File with a pretrained state of the model, or "torchvision" for its published weights, which must
            be in torchvision's cache folder. Pretraining is skipped. `None` pretrains.
        init: "pretrained" compresses a pretrained network, "scratch" a freshly initialised one (paper, Section 5.6).
    """

    dataset: str = "digits"
    model: str = "resnet20"
    validation_fraction: Fraction = 0.1
    train_images: Count | None = None
    image_size: Annotated[Annotated[int, Field(ge=8)] | None, _UNNAMED] = None
    classes: Annotated[Annotated[int, Field(ge=2)] | None, _UNNAMED] = None
    images: Annotated[ImageOptions | None, _UNNAMED] = None
    checkpoint: str | None = None
    init: Literal["pretrained", "scratch"] = "pretrained"


_FIRST_LIMIT = 5.0


class Schedule(Options):
    """A training schedule.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Images per update.
        lr: Largest learning rate.
        decay: Course of the learning rate: "step" divides it by 10 at the milestones, "cosine" lowers it to 0,
            "one_cycle" raises and then lowers it.
        milestones: Epochs at which "step" divides the rate.
        momentum: Momentum of SGD.
        nesterov: Whether SGD uses Nesterov's momentum.
        weight_decay: Weight decay of SGD.
        max_grad_norm: Upper bound of the gradient's norm over all weights; larger gradients are scaled down to it.
            No bound when unset.
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


def smaller_limit(max_grad_norm: float | None) -> float:
    """Return a limit of gradients' norm to try after a training has diverged: half of the present one, or 5."""
    return _FIRST_LIMIT if max_grad_norm is None else max_grad_norm / 2


class SearchSchedule(Options):
    """The schedule of a search, with a constant learning rate for weights (paper, Section 4.2).

    The attributes mean the same as in `Schedule`.
    """

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
        calibrate: Whether clip values are calibrated again for the chosen bits before the first update. If not,
            training starts from the search's clip values, as in the paper.
    """

    calibrate: bool = True


class TuningSpec(Options):
    """Tuning of a method's knobs until its network meets the budget.

    Attributes:
        match: "dual": λ moves during each search and brings its cost onto the budget, so that it is not tuned. "hinge":
            the cost term acts above the budget only, and Optuna chooses λ by validation accuracy among trials within
            the window. "lambda": the cost term is λ log R, and Optuna brackets log λ onto the budget.
        trials: Largest number of searches per knob, for each method and budget; diverged ones count. A method with
            three knobs may make three times as many as one with a single knob. Mode "lambda" tunes one knob only.
        stop_early: Whether a tuning may end before its last trial. In mode "lambda" it ends when repair changed at most
            two choices of a search; in mode "hinge" after three such searches whose validation accuracies do not
            differ significantly.
        tolerance: Relative width of the window [1 − tolerance, 1] × budget, in which a cost counts as matched.
        repair: Whether a policy outside the window is moved into it, by changing the fewest choices with the smallest
            margins.
        finetune_epochs: Epochs of fine-tuning before a trial's validation accuracy is read.
        seed: Number of the tuning seed, counted from 0; tuning seeds are disjoint from report seeds.
    """

    match: Match = "dual"
    trials: Count = 4
    stop_early: bool = True
    tolerance: Fraction = 0.03
    repair: bool = True
    finetune_epochs: Annotated[int, Field(ge=0, le=_LARGEST_COUNT)] = 1
    seed: Annotated[int, Field(ge=0, le=999)] = 0


class AcceleratorSpec(Options):
    """The hardware that latency and energy are estimated for: simulated (`docs/bitfusion.md`), or measured by layers.

    Attributes:
        hardware: Name of a BitFusion configuration, or the path of a TOML file with one. Or "onnxruntime" or
            "openvino", whose times for the layers are measured on this machine when a study is planned; then it becomes
            the path of the JSON file with these times.
        batch: Images per batch; latency and energy are stated per image. 1 by default for measured times.
        depthwise: Execution of depthwise convolutions by the simulated accelerator: "dense" computes every input
            channel for every output channel, as the paper's figures do; "channelwise" computes each channel by itself.
    """

    hardware: str = "bf_e"
    batch: Count = Field(default_factory=lambda values: 1 if _is_measured(values.get("hardware")) else 16)
    depthwise: Literal["dense", "channelwise"] = "dense"

    @model_validator(mode="after")
    def _depthwise_is_simulated(self) -> Self:
        if self.measured and self.depthwise != "dense":
            raise ValueError(f"depthwise is about simulated accelerators; leave it out for '{self.title}'")
        return self

    @property
    def measured(self) -> bool:
        """Whether the times of layers are measured and not simulated."""
        return _is_measured(self.hardware)

    @property
    def title(self) -> str:
        """Name of the hardware, without folder and ending if it is a file."""
        path = Path(self.hardware)
        return path.stem if path.suffix in (".toml", ".json") else self.hardware


def _is_measured(hardware: Any) -> bool:
    return isinstance(hardware, str) and (hardware in ENGINES or hardware.endswith(".json"))


class StudySpec(Options):
    """A study: all runs of one command, methods × budgets × seeds on one task.

    Attributes:
        name: Name of the study and of its folder.
        methods: Names of methods.
        method_files: Locations of methods that are not registered, `/path/file.py:Class`, by method name.
        options: Options by method name.
        published: Number of the paper's table to compare with in the report, "1" to "12" or "I".
        further_models: Models to run the study on besides the task's.
        ablate: Values to try one at a time, by key: an option of methods, or another key of the specification.
        budgets: Budgets: "4bit" or "2.5bit", what so many bits cost; "630.6M", bit operations, also with k, G or T;
            "0.016x", a share of full precision; "395KB" or "2MB", memory; "21.6ms", latency; "29.8mJ", energy;
            "4bit:KB" or "0.9x:ms", the first two kinds in another measure; "1.2ms@onnxruntime", in ms or mJ on this
            hardware, which becomes that of `accelerator`.
        seeds: Report seeds.
        allowance: Equality of training after the pretrained network. "equal": every network gets the updates of one
            search and one fine-tuning; fine-tuning is longer where the search has not trained the weights. "policy":
            searches hand on their policy alone, and every network is fine-tuned from the pretrained weights. "unequal":
            fine-tuning is equally long for all, whatever the search has trained, as in papers.
        recipe: Quantizer in fine-tuning: "common" uses the plain one for all methods, "own" that of a method's paper.
        baseline: Method that the report compares the others with, if it is in the study.
        device: Device to train on; "auto" is resolved when the study is planned.
        threads: CPU threads of a run. Part of its identity, since the order of sums depends on it.
        devices: GPUs of one host, or CPU processes, that one run uses. Part of its identity, like threads.
        compile: Whether networks are compiled in searches and fine-tuning: "on", "off", or "auto" for stages that are
            long enough. Part of a run's identity, since compiled sums round differently.
        precision: Precision of training: "fp32", or "bf16" where autocast allows it. Accuracy is always evaluated in
            single precision.
    """

    name: Annotated[str, Field(pattern=f"^{STUDY_NAME}$")] = "quick"
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("sbs", "dnas", "fixed", "full_precision")
    method_files: Mapping[str, str] = Field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    published: Annotated[str, Field(pattern=r"^([1-9]|1[0-2]|I)$")] | None = None
    further_models: tuple[str, ...] = ()
    ablate: Mapping[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    budgets: Annotated[tuple[str, ...], Field(min_length=1)] = ("4bit",)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=REPORT_SEEDS)], ...], Field(min_length=1)] = (0, 1, 2)
    allowance: Allowance = "equal"
    recipe: Recipe = "common"
    baseline: str = "fixed"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Processes = 2
    devices: Processes = 1
    compile: Compile = "auto"
    precision: Precision = "fp32"
    accelerator: AcceleratorSpec = Field(default_factory=lambda values: _named_hardware(values.get("budgets", ())))
    task: TaskSpec = TaskSpec()
    pretrain: Schedule = Schedule()
    search: SearchSchedule = SearchSchedule()
    finetune: FinetuneSchedule = FinetuneSchedule()
    tuning: TuningSpec = TuningSpec()

    @field_validator("methods", "seeds", "budgets")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        repeated = sorted(str(value) for value, number in Counter(values).items() if number > 1)
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is listed twice; each may appear once")
        return values

    @model_validator(mode="after")
    def _budgets_are_on_one_hardware(self) -> Self:
        for text in self.budgets:
            name = hardware_of(text)
            if name not in (None, self.accelerator.title):
                raise ValueError(
                    f"budget '{text}' is on '{name}', but the study's hardware is '{self.accelerator.title}'; a study "
                    f"has one: --set accelerator.hardware={name}"
                )
        return self

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
        for what, names in (("options are", self.options), ("a file is", self.method_files)):
            for name in names:
                if name not in self.methods:
                    raise ValueError(
                        f"{what} given for '{name}', which is not among the methods {', '.join(self.methods)}"
                    )
        return self

    @model_validator(mode="after")
    def _devices_share_batches(self) -> Self:
        if self.devices > 1 and ":" in self.device:
            raise ValueError(
                f"device '{self.device}' is one GPU, but devices is {self.devices}; use --device cuda, or --devices 1"
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


def _named_hardware(budgets: tuple[str, ...]) -> AcceleratorSpec:
    """Return the hardware that budgets name; the default one if they name none."""
    named = next((name for name in map(hardware_of, budgets) if name is not None), None)
    return AcceleratorSpec() if named is None else AcceleratorSpec(hardware=named)


def hardware_of(budget: str) -> str | None:
    """Return the hardware that a budget names, "onnxruntime" in "1.2ms@onnxruntime"; `None` if it names none."""
    return budget.partition("@")[2] or None


def canonical_hash(document: Any) -> str:
    """Hash a JSON document independently of the order of its keys: 16 hexadecimal digits of SHA-256."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
