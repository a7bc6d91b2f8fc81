"""Try every classification family of torchvision, and fill in the table of `docs/models.md`.

    .venv/bin/python docs/make_coverage.py 64 224        # about an hour on one core
    .venv/bin/python docs/make_coverage.py 64 --only resnet18,vit_b_16

Each network is taken as torchvision builds it, with 10 classes, and tried in the same five ways:

* counted: the harness's multiplications are those that PyTorch's own counter finds in torchvision's network;
* quantized: the compressed network passes the check that it is the network (`bench.compression.function_check`);
* pruned: the share of the filters in searched layers that may be removed; removing them is part of that check;
* searched: `sbs` makes two updates and returns a policy that can be priced;
* exported: the network with that policy, in each form of `bench export`, predicts as the harness on a few images.

Every row is written to `docs/results/coverage.csv` as soon as it is made, and is not made again, so that the script
continues where it was stopped. To make a row again, delete it there.
"""

import argparse
import csv
import re
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
import torchvision
from make_results import fill_in, markdown
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.api import Arrays, Dataset, SearchJob, Task, TaskData, uniform
from bench.compression.compress import calibrate, compress
from bench.compression.function_check import check_function
from bench.compression.policy import Policy, check
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import price
from bench.errors import BenchError, first_line
from bench.export.forms import form_named
from bench.export.graph.reading import read_graph
from bench.export.verification import verify
from bench.models.normal_form import normal_form
from bench.reporting.report import Column, Document, Section, Table
from bench.spec.schema import SearchSchedule
from methods.sbs import Sbs

FAMILIES = {
    "AlexNet": "alexnet",
    "ConvNeXt": "convnext_tiny",
    "DenseNet": "densenet121",
    "EfficientNet": "efficientnet_b0",
    "EfficientNetV2": "efficientnet_v2_s",
    "GoogLeNet": "googlenet",
    "Inception v3": "inception_v3",
    "MaxViT": "maxvit_t",
    "MNASNet": "mnasnet1_0",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3": "mobilenet_v3_small",
    "RegNet": "regnet_y_400mf",
    "ResNet": "resnet18",
    "ResNeXt": "resnext50_32x4d",
    "ShuffleNetV2": "shufflenet_v2_x0_5",
    "SqueezeNet": "squeezenet1_1",
    "Swin Transformer": "swin_t",
    "Swin Transformer V2": "swin_v2_t",
    "VGG": "vgg11_bn",
    "Vision Transformer": "vit_b_16",
    "Wide ResNet": "wide_resnet50_2",
}
"""Smallest network of every family."""
PAGE = Path(__file__).resolve().parent / "models.md"
ROWS = Path(__file__).resolve().parent / "results" / "coverage.csv"
_CLASSES = 10
_OUTCOMES = ("counted", "quantized", "searched", "exported")
_FORMS = ("packed", "onnx")
_NO = "no: "
"""Beginning of an outcome that gives a reason."""
_MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class Row:
    """Outcome for one network and image size.

    Attributes:
        family, model: Names of the family and the network.
        size: Height of the images in pixels.
        multiplications: Multiplications for an image, in millions.
        counted, quantized, pruned, searched, exported: Outcomes in words.
        seconds: Seconds that the row took.
    """

    family: str
    model: str
    size: int
    multiplications: str = ""
    counted: str = ""
    quantized: str = ""
    pruned: str = ""
    searched: str = ""
    exported: str = ""
    seconds: str = ""


def build(model: str, size: int) -> nn.Module:
    """Build a network as torchvision does."""
    options: dict[str, object] = {"weights": None, "num_classes": _CLASSES}
    if model.startswith("vit"):
        options["image_size"] = size
    if model == "maxvit_t":
        options["input_size"] = (size, size)
    if model in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    torch.manual_seed(0)
    try:
        built: nn.Module = torchvision.models.get_model(model, **options)
    except ValueError as error:
        raise BenchError(f"torchvision does not build it for this size: {first_line(error)}") from error
    return built


def counted_by_pytorch(model: str, size: int) -> int:
    """Count the multiplications of torchvision's own network, on a device where nothing is computed or fused."""
    network = build(model, size).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():  # without gradients attention would be one fused operation
        network(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def tried(family: str, model: str, size: int) -> Row:
    """Try one network; the first thing that fails ends the row."""
    begin = time.monotonic()
    row = {"family": family, "model": model, "size": size}
    try:
        make = partial(_normal, model, size)
        network = trace(make(), (3, size, size), name=model, dataset="noise", classes=_CLASSES)
        own = sum(layer.macs for layer in network.layers) + sum(rest.macs for rest in network.unquantized)
        row |= {"multiplications": f"{own / _MILLION:.1f}", "counted": _count(network, own, model, size)}
        check_function(make(), network, (3, size, size))
        row |= {"quantized": "yes", "pruned": _pruned(network)}
        data = _noise(size)
        policy = searched(make, network, data)
        row["searched"] = f"{price(network, policy).bops / price(network, uniform(network, 8)).bops:.2f} of 8 bit"
        row["exported"] = exported(make, network, policy, data)
    except BenchError as error:
        row[next(key for key in _OUTCOMES if key not in row)] = f"{_NO}{_without_place(str(error))}"
    return Row(**row, seconds=f"{time.monotonic() - begin:.0f}")  # type: ignore[arg-type]


def _without_place(text: str) -> str:
    """Return a message without the path on this machine that it names, and without the advice that follows."""
    return re.sub(r" \(\S+\.py:\d+\)", "", text).partition("; ")[0]


def _normal(model: str, size: int) -> nn.Module:
    return normal_form(build(model, size), model)


def _count(network: NetworkShape, own: int, model: str, size: int) -> str:
    """Compare with PyTorch's count, and state what is not quantized and what is the same for all images."""
    theirs = counted_by_pytorch(model, size)
    rest, constant = (sum(each.macs for each in group) for group in (network.unquantized, network.constant))
    share = f", {100 * rest / own:.1f} % not quantized" if rest else ""
    share += f", with {constant / _MILLION:.1f} M that read no image" if constant else ""
    return f"equal{share}" if own + constant == theirs else f"{_NO}{own + constant} here, {theirs} in PyTorch's count"


def _pruned(network: NetworkShape) -> str:
    layers = [layer for layer in network.middle if layer.kind != "matmul"]
    free = sum(layer.out_channels for layer in layers if layer.prunable)
    return f"{100 * free / sum(layer.out_channels for layer in layers):.0f} %"


class _Noise(Dataset):
    """Random images of any size."""

    summary = "random images"
    num_classes = _CLASSES
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, size: int) -> None:
        self.image_shape = (3, size, size)

    def load(self, data_dir: Path | None) -> Arrays:
        """Draw the images."""
        draws = torch.Generator().manual_seed(0)
        count = 2 * _CLASSES
        images = torch.randint(0, 256, (count, *self.image_shape), generator=draws, dtype=torch.uint8)
        labels = torch.arange(count) % _CLASSES
        tested = 4
        return Arrays(
            train_images=images, train_labels=labels, test_images=images[:tested], test_labels=labels[:tested]
        )


def _noise(size: int) -> TaskData:
    dataset = _Noise(size)
    return TaskData(dataset, dataset.load(None), validation_fraction=0.5, device=torch.device("cpu"))


def searched(make: partial[nn.Module], network: NetworkShape, data: TaskData) -> Policy:
    """Let `sbs` make two updates, and check its policy."""
    updates = 2
    job = SearchJob(
        task=Task(data=data, network=network, make_model=make),
        pretrained=make().state_dict(),
        knobs={"strength": 0.1},
        budget=float(price(network, uniform(network, 4)).bops),
        match="hinge",
        schedule=SearchSchedule(epochs=1, batch_size=_CLASSES // updates),
        seed=0,
        report=lambda _: None,
    )
    policy = Sbs().search(job).policy
    check(network, policy)
    return policy


def exported(make: partial[nn.Module], network: NetworkShape, policy: Policy, data: TaskData) -> str:
    """Export the untrained network with a policy, and compare its predictions with those of the harness."""
    compressed = compress(make(), network, policy)
    images, _ = next(data.train.unchanged(_CLASSES))
    calibrate(compressed, data.normalize(images))
    graph = read_graph(compressed.eval(), data, model=network.model, dataset="noise")
    engines = []
    for name in _FORMS:
        form = form_named(name)
        engines += [(name, engine, promised) for engine, promised in form.engines(form.files(graph), graph)]
    broken = [result for result in verify(compressed, graph, data.test, engines).agreements if result.broken]
    if broken:
        return _NO + ", ".join(f"{result.form} in {result.engine} predicts otherwise" for result in broken)
    return ", ".join(_FORMS)


def read_rows() -> dict[tuple[str, int], Row]:
    """Read the rows that were made before."""
    if not ROWS.exists():
        return {}
    with ROWS.open(newline="") as file:
        rows = [Row(**{**entry, "size": int(entry["size"])}) for entry in csv.DictReader(file)]  # type: ignore[arg-type]
    return {(row.model, row.size): row for row in rows}


def write_rows(rows: dict[tuple[str, int], Row]) -> None:
    """Write all rows, by image size and family."""
    with ROWS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, sorted(rows.values(), key=lambda row: (row.size, row.family.lower()))))


def table(rows: dict[tuple[str, int], Row]) -> Table:
    """Make the table of all rows."""
    titles = (
        "Family",
        "Network",
        "Pixels",
        "M multiplications",
        "Counted",
        "Quantized",
        "May lose",
        "Searched",
        "Exported",
        "s",
    )
    numbers = {"Pixels", "M multiplications", "May lose", "s"}
    columns = tuple(Column(title=title, align="right" if title in numbers else "left") for title in titles)
    cells: list[tuple[str, ...]] = []
    sizes: dict[tuple[str, str, str], list[int]] = {}
    for row in rows.values():
        values = {name: str(value) for name, value in asdict(row).items()}
        for name in _OUTCOMES:
            if values[name].startswith(_NO):
                sizes.setdefault((row.family, name, values[name]), []).append(row.size)
                values[name] = "no"
        cells.append(tuple(values.values()))
    notes = (
        f"{family}, {name}, {' and '.join(map(str, at))} pixels: {reason.removeprefix(_NO)}"
        for (family, name, reason), at in sizes.items()
    )
    versions = f"torch {torch.__version__.partition('+')[0]}, torchvision {torchvision.__version__.partition('+')[0]}"
    title = f"Families of torchvision ({versions})"
    return Table(name="coverage", title=title, columns=columns, rows=tuple(cells), notes=tuple(notes))


def main() -> None:
    """Try what was not tried before, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="+", type=int, help="heights of the images in pixels")
    parser.add_argument("--only", default=",".join(FAMILIES.values()), help="names of networks, with commas")
    given = parser.parse_args()
    torch.set_num_threads(1)  # so that the seconds of rows can be compared, whatever else the machine does
    wanted = given.only.split(",")
    rows = read_rows()
    for size in given.sizes:
        for family, model in FAMILIES.items():
            if model in wanted and (model, size) not in rows:
                rows[model, size] = tried(family, model, size)
                write_rows(rows)
                print(rows[model, size])  # noqa: T201
    section = Section(name="coverage", title="", parts=(table(read_rows()),))
    fill_in("coverage", markdown(Document(study="", sections=(section,))), [PAGE])


if __name__ == "__main__":
    main()
