"""Import of an exported file: what it costs, whether it is what it is said to be, and how it predicts."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.costs.breakdown import CostBreakdown, breakdown
from bench.data.dataset import Dataset
from bench.data.image_decoding import loading_workers
from bench.data.subset import Subset
from bench.errors import BenchError
from bench.export.importing.claims import (
    ModelComparison,
    Recorded,
    broken,
    compare_predictions,
    compare_with_model,
    compare_with_recorded,
    read_recorded,
)
from bench.export.importing.files import NetworkFile, read_network_file
from bench.export.verification import Verification, verify
from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.spec.schema import AcceleratorSpec


@dataclass(frozen=True, kw_only=True)
class ImportedNetwork:
    """A network that was read from a file, and evaluated.

    Attributes:
        file: The file, with the network as a module.
        cost: Costs of the layers that are in the file.
        model: Comparison with the model that the file names.
        dataset: Name of the data set on which it was evaluated.
        verification: Predictions of the rebuilt network, and of the engines that execute the file.
        recorded: Figures recorded beside the file, and how they agree; `None` without such a record.
    """

    file: NetworkFile
    cost: CostBreakdown
    model: ModelComparison
    dataset: str
    verification: Verification
    recorded: Recorded | None

    @property
    def faults(self) -> list[str]:
        """What is not as the file or the document beside it says."""
        recorded = [] if self.recorded is None else self.recorded.faults
        return [*self.model.differences, *recorded, *broken(self.verification.agreements)]

    def to_json(self) -> Mapping[str, Any]:
        """Return the document that `bench import --json` prints."""
        graph, recorded = self.file.graph, self.recorded
        return {
            "file": str(self.file.path),
            "form": self.file.form,
            "bytes": len(self.file.content),
            "sha256": self.file.sha256,
            "model": graph.model,
            "dataset": graph.dataset,
            "image_shape": list(graph.image_shape),
            "policy": self.file.policy.to_json(),
            "cost": self.cost.to_json(),
            "filters": asdict(self.model),
            "evaluated_on": self.dataset,
            "images": len(self.verification.predictions),
            "top1": self.verification.top1,
            "agreements": [agreement.to_json() for agreement in self.verification.agreements],
            "recorded": None if recorded is None else _recorded_json(recorded),
            "faults": self.faults,
        }


def _recorded_json(recorded: Recorded) -> Mapping[str, Any]:
    document = recorded.document
    return {"run": document.run, "top1": document.recorded_top1, "equal_predictions": recorded.equal}


def import_network(
    path: Path | str, *, dataset: str | None = None, data_dir: Path | str | None = None
) -> ImportedNetwork:
    """Read a file that `bench export` wrote, price it, and evaluate it on the test split of a data set.

    Args:
        path: Path of the file. If `export.json` lies beside it, the network is compared with what is recorded there.
        dataset: Name of the data set; by default the one that the file names.
        data_dir: Folder of data sets.

    Raises:
        BenchError: The file cannot be read, the data set is unknown or missing, or its images do not fit.
    """
    file = read_network_file(Path(path))
    recorded = read_recorded(file)
    shape = file.shape
    cost = breakdown(AcceleratorSpec(), shape, file.policy)
    model = compare_with_model(shape, file.graph)
    chosen, images = _test_images(file, dataset, None if data_dir is None else Path(data_dir))
    engines = [(file.form, engine, promised) for engine, promised in file.engines()]
    verification = verify(file.network, file.graph, images, engines)
    if recorded is not None:
        compare_with_recorded(recorded, file, cost.cost)
        if chosen == file.graph.dataset:
            compare_predictions(recorded, verification)
    return ImportedNetwork(
        file=file, cost=cost, model=model, dataset=chosen, verification=verification, recorded=recorded
    )


def _test_images(file: NetworkFile, name: str | None, data_dir: Path | None) -> tuple[str, Subset]:
    """Return the test split of a data set, and the name of the data set.

    Raises:
        BenchError: The data set is unknown or missing, or its images or classes do not fit the network.
    """
    graph = file.graph
    chosen = name or graph.dataset
    if name is None and chosen not in available("datasets"):
        raise BenchError(
            f"the network is for the data set '{chosen}', which is not known here; name yours: --dataset NAME"
        )
    kind: type[Dataset] = load("datasets", chosen)
    dataset, classes = kind.described(data_dir=data_dir), graph.classes
    if dataset.image_shape != graph.image_shape:
        with suppress(BenchError):  # data sets of image files have images of any size
            dataset = kind.described(image_size=graph.image_shape[1], data_dir=data_dir)
    if dataset.image_shape != graph.image_shape or dataset.num_classes != classes:
        raise BenchError(
            f"'{file.path}' reads images of shape {graph.image_shape} and knows {classes} classes; "
            f"{chosen} has {dataset.image_shape} and {dataset.num_classes}; choose another with --dataset NAME"
        )
    contents = dataset.load(data_dir)
    contents.check(dataset)
    device = torch.device("cpu")
    return chosen, contents.parts(dataset)[1].on(device, loading_workers(torch.get_num_threads(), device))
