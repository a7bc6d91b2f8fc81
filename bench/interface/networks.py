"""Networks of finished runs as modules of PyTorch."""

from os import PathLike
from pathlib import Path

from torch import nn

from bench.errors import BenchError
from bench.export.rebuild import rebuild
from bench.outputs.commands import DEFAULT_STORE
from bench.results.selection import select
from bench.store.files import Store


def load_network(
    run: str, *, store: str | PathLike[str] = DEFAULT_STORE, data_dir: str | PathLike[str] | None = None
) -> nn.Module:
    """Return the compressed network of a finished run, on the CPU and in evaluation mode.

    It is a module like any other: it can be called, moved to a device, trained and saved with `torch.save`. It has the
    filters that the policy keeps, and it quantizes its weights and activations whenever it is called. It reads images
    of shape (N, channels, height, width) that are normalised with the mean and deviation of the data set, and returns
    logits of shape (N, classes).

    Args:
        run: Id of the run, or its beginning; `study.runs` and `bench status` list them.
        store: Folder of results.
        data_dir: Folder of data sets.

    Raises:
        BenchError: There is no such run, it has no network, its files are damaged, or it was made by a version that
            did not record how its weights are quantized.
    """
    folder = Store(Path(store))
    selection = select(folder, run)
    if selection.kind != "run":
        raise BenchError(f"'{run}' is a {selection.kind}, not a run; give the id of a run, e.g. study.run_id('sbs')")
    return rebuild(folder, selection.name, None if data_dir is None else Path(data_dir)).network
