"""Exported files of networks, read from anywhere."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.compression.policy import Policy
from bench.compression.shapes import NetworkShape
from bench.errors import BenchError, printable
from bench.export.engines import Engine
from bench.export.forms import form_named, require
from bench.export.graph.operations import Graph
from bench.export.graph.tensors import ProgramError
from bench.export.importing.packed_file import read_packed
from bench.export.importing.rebuilt import RebuiltNetwork, policy_of, shape_of
from bench.inputs.reading import read_bytes

_LARGEST_FILE = 1 << 30


@dataclass(frozen=True)
class NetworkFile:
    """A network in an exported file.

    Attributes:
        path: Path of the file.
        content: Content of the file.
        form: Form of the network.
        graph: Graph of the network.
    """

    path: Path
    content: bytes
    form: str
    graph: Graph

    @property
    def shape(self) -> NetworkShape:
        """Shapes of the layers that are in the file."""
        return shape_of(self.graph)

    @property
    def policy(self) -> Policy:
        """Bits of the layers."""
        return policy_of(self.graph)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def network(self) -> RebuiltNetwork:
        """The network as a module of PyTorch, in evaluation mode."""
        return RebuiltNetwork(self.graph).eval()

    def engines(self) -> Sequence[tuple[Engine, bool]]:
        """Return the engines that execute the file, and whether each must predict as the network does."""
        form = form_named(self.form)
        return form.engines({form.file: self.content}, self.graph)


def read_network_file(path: Path) -> NetworkFile:
    """Read a file that `bench export` wrote; nothing in it is executed.

    Args:
        path: Path of the file, whose ending says whether it is a packed network or an ONNX model.

    Raises:
        BenchError: It is missing, damaged, or was not written by this version of the harness.
    """
    read = READERS.get(path.suffix)
    if read is None:
        raise BenchError(
            f"'{path}' is no exported network; allowed: files that `bench export` wrote, "
            f"with the endings {' and '.join(READERS)}"
        )
    try:
        content = read_bytes(path, _LARGEST_FILE)
    except OSError as error:
        raise BenchError(f"cannot read '{path}': {error.strerror}") from error
    try:
        form, graph = read(content)
        file = NetworkFile(path, content, form, graph)
        file.network  # noqa: B018  (only now are all names of layers known to be possible)
    except ProgramError as error:
        raise BenchError(
            f"'{path}' is not a network that this version of `bench export` writes: {printable(str(error))}; "
            "ask for the file again, or export it again"
        ) from error
    return file


def is_network_file(name: str) -> bool:
    """Whether a name is that of an exported file, and not of a run."""
    return Path(name).suffix in READERS


def _packed(content: bytes) -> tuple[str, Graph]:
    return "packed", read_packed(content)


def _onnx(content: bytes) -> tuple[str, Graph]:
    require(("onnx", "onnxruntime"), "an ONNX file")
    from bench.export.importing.onnx_file import read_onnx

    return read_onnx(content)


READERS: Mapping[str, Callable[[bytes], tuple[str, Graph]]] = {".safetensors": _packed, ".onnx": _onnx}
"""Functions that read a file, by its ending."""
