"""Comparison of an imported network with what is said of it: its model's name, and the document of its export."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.compression.shapes import LayerShape, NetworkShape, trace
from bench.costs.counter import NetworkCost
from bench.errors import BenchError, printable
from bench.export.graph.operations import Graph
from bench.export.importing.files import NetworkFile
from bench.export.verification import Agreement, Verification
from bench.models.build import build_model
from bench.outputs.commands import shell
from bench.plugins.entry_points import available, is_own
from bench.store.exports import DOCUMENT, StoredExport, read_document

_ELSEWHERE_SHARE = 0.01
"""Largest share of predictions in floating point that another processor or version of an engine changes."""

_MOST_SHOWN = 3
"""Largest number of layers that are named."""


@dataclass(frozen=True)
class ModelComparison:
    """Comparison of a file's layers with those of the model that it names.

    Attributes:
        known: Whether the harness has a model of this name.
        differences: Sentences on what differs between file and model, apart from removed filters.
        filters, all_filters: Numbers of outputs of all layers in the file and in the model.
    """

    known: bool
    differences: Sequence[str] = ()
    filters: int = 0
    all_filters: int = 0


def compare_with_model(shape: NetworkShape, graph: Graph) -> ModelComparison:
    """Compare the layers of a file with those of the model that it names. Only models of the harness are built."""
    if shape.model not in available("models") or not is_own("models", shape.model):
        return ModelComparison(known=False)
    try:
        model = build_model(shape.model, graph.image_shape, graph.classes)
        full = trace(model, graph.image_shape, name=shape.model, dataset=shape.dataset)
    except BenchError as error:
        return ModelComparison(known=True, differences=[printable(str(error))])
    own = {layer.name: layer for layer in shape.layers}
    differences = [
        f"it has a layer '{name}', which {shape.model} has not"
        for name in own.keys() - {each.name for each in full.layers}
    ]
    for layer in full.layers:
        if layer.name not in own:
            differences.append(f"layer '{layer.name}' of {shape.model} is missing")
        elif not _is_reduced(own[layer.name], layer):
            differences.append(f"layer '{layer.name}' is not that of {shape.model}")
    filters, all_filters = (sum(layer.out_channels for layer in side.layers) for side in (shape, full))
    shown = differences[:_MOST_SHOWN]
    if len(differences) > len(shown):
        shown.append(f"{len(differences) - len(shown)} more layers are not those of {shape.model}")
    return ModelComparison(True, shown, filters, all_filters)


def _is_reduced(own: LayerShape, full: LayerShape) -> bool:
    """Whether a layer is another one, or that with fewer filters."""
    keys = ("kind", "kernel", "stride", "in_size", "out_size", "position")
    same = all(getattr(own, key) == getattr(full, key) for key in keys)
    groups = own.depthwise if full.depthwise else own.groups == full.groups
    return same and groups and own.in_channels <= full.in_channels and own.out_channels <= full.out_channels


@dataclass
class Recorded:
    """What the document beside a file says of it.

    Attributes:
        document: The document.
        equal: Images with the recorded prediction, by engine.
        faults: Sentences on claims that the file does not keep.
    """

    document: StoredExport
    equal: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def read_recorded(file: NetworkFile) -> Recorded | None:
    """Read the document beside a file; `None` if there is none, or if it says nothing of this form.

    Raises:
        BenchError: It is damaged.
    """
    path = file.path.parent / DOCUMENT
    if not path.exists():
        return None
    document = read_document(path)
    if document is None:
        raise BenchError(
            f"'{path}' is damaged or was written by an earlier version; to import the file alone: {shell('rm', path)}"
        )
    return Recorded(document) if file.form in document.forms else None


def compare_with_recorded(recorded: Recorded, file: NetworkFile, cost: NetworkCost) -> None:
    """Note what differs from what is recorded of the file and its cost."""
    document, form = recorded.document, recorded.document.forms[file.form]
    if file.sha256 not in form.sha256.values():
        recorded.faults.append(f"the file is another one than {DOCUMENT} describes: its SHA-256 is {file.sha256}")
    for what, own, said in (
        ("model", file.graph.model, document.model),
        ("data set", file.graph.dataset, document.dataset),
        ("BOPs", cost.bops, document.counted.bops),
        ("KB of memory", cost.memory_kb, document.counted.memory_kb),
    ):
        if own != said:
            recorded.faults.append(f"{what}: {own} in the file, {printable(str(said))} in {DOCUMENT}")


def compare_predictions(recorded: Recorded, verification: Verification) -> None:
    """Count predictions that are the recorded ones, engine by engine, on the same test split."""
    document = recorded.document
    said = [] if document.predictions is None else [int(number) for number in document.predictions.split(" ")]
    if len(said) != len(verification.predictions):
        recorded.faults.append(f"{DOCUMENT} has {len(said)} predictions for {len(verification.predictions)} images")
        return
    forms = {(form, entry.engine): entry for form, made in document.forms.items() for entry in made.agreements}
    for agreement in verification.agreements:
        entry = forms.get((agreement.form, agreement.engine))
        if entry is None or entry.differing is None:
            continue
        expected = _with(said, {int(image): number for image, number in entry.differing.items()})
        predicted = _with(verification.predictions, {int(key): made for key, made in agreement.differing.items()})
        equal = sum(own == other for own, other in zip(predicted, expected, strict=True))
        recorded.equal[agreement.engine] = equal
        allowed = 0 if agreement.form == "packed" else _ELSEWHERE_SHARE * len(said)
        if len(said) - equal > allowed:
            recorded.faults.append(f"{len(said) - equal} of {len(said)} predictions by {agreement.engine} are others")


def _with(predictions: Sequence[int], differing: dict[int, int]) -> list[int]:
    return [differing.get(image, number) for image, number in enumerate(predictions)]


def broken(agreements: Sequence[Agreement]) -> Iterator[str]:
    """Name engines whose predictions differ from those of the rebuilt network where this is promised."""
    for agreement in agreements:
        if agreement.broken:
            differing = agreement.images - agreement.equal
            yield f"{differing} of {agreement.images} predictions by {agreement.engine} are not those of the network"
