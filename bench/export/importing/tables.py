"""Tables of an imported network: what it is and costs beside what is recorded, and how each engine predicts."""

from collections.abc import Mapping

from bench.costs.counter import BITS_PER_KB
from bench.errors import printable
from bench.export.importing.claims import ModelComparison, Recorded
from bench.export.importing.files import NetworkFile
from bench.export.importing.imported import ImportedNetwork
from bench.export.verification import equal_predictions
from bench.reporting.report import Column, Table

_UNKNOWN = "–"


def network_table(imported: ImportedNetwork) -> Table:
    """Return what a network is and costs, beside what is recorded."""
    file, cost, top1 = imported.file, imported.cost.cost, imported.verification.top1
    weights = sum(layer.weight_memory_bits for layer in cost.layers)
    figures = {
        "model": file.graph.model,
        "data set": file.graph.dataset,
        "layers": str(len(file.graph.layers)),
        "filters": _filters(imported.model),
        "file KB": f"{len(file.content) / 1000:.1f}",
        "weights KB": f"{weights / BITS_PER_KB:.1f}",
        "BOPs M": _millions(cost.bops),
        "memory KB": f"{cost.memory_kb:.1f}",
        f"Top-1 % on {imported.dataset}": f"{top1:.2f}",
    }
    recorded = {} if imported.recorded is None else _recorded(imported.recorded, file)
    return Table(
        name="imported",
        title=f"{printable(file.path.name)}: a network in the form {file.form}",
        columns=(Column(title="", align="left"), Column(title="in the file"), Column(title="recorded")),
        rows=tuple((title, figure, recorded.get(title, _UNKNOWN)) for title, figure in figures.items()),
        notes=(
            "in the file: counted from the layers that it has, and evaluated here. recorded: in export.json beside it.",
        ),
    )


def _recorded(recorded: Recorded, file: NetworkFile) -> Mapping[str, str]:
    """Return what the document beside a file says, by the titles of the rows."""
    document = recorded.document
    sizes = document.forms[file.form].files
    figures = {
        "model": document.model and printable(document.model),
        "data set": document.dataset and printable(document.dataset),
        "file KB": sizes and f"{next(iter(sizes.values())) / 1000:.1f}",
        "BOPs M": _millions(document.counted.bops),
        "memory KB": document.counted.memory_kb and f"{document.counted.memory_kb:.1f}",
        f"Top-1 % on {document.dataset}": document.recorded_top1 and f"{document.recorded_top1:.2f}",
    }
    return {title: str(figure) for title, figure in figures.items() if figure}


def _filters(model: ModelComparison) -> str:
    if not model.known:
        return "of a model that is not known here"
    return "of another model" if model.differences else f"{model.filters} of {model.all_filters}"


def _millions(value: float) -> str:
    return f"{value / 1e6:.2f}"


def predictions_table(imported: ImportedNetwork) -> Table:
    """Return how each engine predicts, beside the rebuilt network and beside what is recorded."""
    recorded = {} if imported.recorded is None else imported.recorded.equal
    rows = tuple(
        (
            f"{agreement.engine} {agreement.version}",
            f"{agreement.top1:.2f}",
            equal_predictions(agreement.to_json()),
            f"{recorded[agreement.engine]}/{agreement.images}" if agreement.engine in recorded else _UNKNOWN,
            f"{agreement.codes_differing:,} of {agreement.codes:,}",
        )
        for agreement in imported.verification.agreements
    )
    titles = ("engine", "Top-1 %", "equal to the network", "equal to recorded", "codes differing")
    return Table(
        name="predictions",
        title=f"Predictions on the test split of {imported.dataset}",
        columns=tuple(Column(title=title) for title in titles),
        rows=rows,
        notes=(
            "equal to the network: images with the prediction of the network that is rebuilt from the file in float32; "
            "near ties: others, in which float32 rounds a number half-way between two codes another way.",
        ),
    )
