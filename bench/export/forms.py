"""The forms in which a network can be exported, and the engines in which each promises equal predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from bench.errors import BenchError, unknown_name
from bench.export.engines import Engine, NumpyEngine, OnnxruntimeEngine, OpenvinoEngine, QonnxEngine
from bench.export.graph.operations import Graph, Quantize
from bench.export.packed import FILE, packed_files

Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of exported networks.

    Attributes:
        name: Name of the form.
        file: Name of the file of the network.
        files: Function that makes its files by name.
        engines: Function that returns the engines that execute the files, and whether each must predict as the harness.
        limits: Differences from the harness's network, in words.
    """

    name: str
    file: str
    files: Callable[[Graph], Files]
    engines: Callable[[Files, Graph], Sequence[tuple[Engine, bool]]]
    limits: tuple[str, ...] = ()


def form_named(name: str) -> Form:
    """Return a form.

    Raises:
        BenchError: There is no such form, or it needs packages that are not installed.
    """
    if name not in FORMS:
        raise unknown_name("format", name, FORMS, "bench export --help")
    if name != "packed":
        require(("onnx", "onnxruntime", *(["qonnx"] if name == "qonnx" else [])), f"--format {name}")
    return FORMS[name]()


def require(packages: Sequence[str], what: str) -> None:
    """Check that packages of the extra `export` are installed.

    Args:
        packages: Names of packages.
        what: Name of the command or option that needs the packages, for the message.

    Raises:
        BenchError: One is missing.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise BenchError(f"{what} needs {' and '.join(missing)}; install the extra: pip install 'sbs-bench[export]'")


def network_file(files: Files) -> bytes:
    """Return the content of the network's own file."""
    return next(iter(files.values()))


def _packed() -> Form:
    def engines(files: Files, graph: Graph) -> list[tuple[Engine, bool]]:
        return [(NumpyEngine(files[FILE], graph.quantizers), True)]

    return Form(name="packed", file=FILE, files=packed_files, engines=engines)


def _onnx() -> Form:
    from bench.export.onnx_forms.integer import FILE, LIMITS, IntegerForm

    def files(graph: Graph) -> Files:
        return {FILE: IntegerForm(graph).model().SerializeToString()}

    return Form(
        name="onnx",
        file=FILE,
        files=files,
        engines=lambda made, graph: _runtimes(made[FILE], graph, promised=True),
        limits=LIMITS,
    )


def _onnx_qdq() -> Form:
    from bench.export.onnx_forms.qdq import FILE, LIMITS, QdqForm

    def files(graph: Graph) -> Files:
        return {FILE: QdqForm(graph).model().SerializeToString()}

    def engines(made: Files, graph: Graph) -> list[tuple[Engine, bool]]:
        return _runtimes(made[FILE], graph, promised=False)

    return Form(name="onnx-qdq", file=FILE, files=files, engines=engines, limits=LIMITS)


def _qonnx() -> Form:
    from bench.export.onnx_forms.qonnx import FILE, LIMITS, QonnxForm

    def files(graph: Graph) -> Files:
        return {FILE: QonnxForm(graph).model().SerializeToString()}

    def engines(made: Files, graph: Graph) -> list[tuple[Engine, bool]]:
        return [(QonnxEngine(made[FILE], graph.quantizers), True)]

    return Form(name="qonnx", file=FILE, files=files, engines=engines, limits=LIMITS)


def _runtimes(content: bytes, graph: Graph, *, promised: bool) -> list[tuple[Engine, bool]]:
    """Return the installed engines of an ONNX file. The unoptimised one executes it as it is written."""
    engines: list[tuple[Engine, bool]] = [
        (OnnxruntimeEngine(content, graph.quantizers, "none"), True),
        (OnnxruntimeEngine(content, graph.quantizers, "all"), promised),
    ]
    if find_spec("openvino") is not None:
        engines.append((OpenvinoEngine(content, graph.quantizers), promised))
    return engines


def fast_engines() -> list[Callable[[bytes, Sequence[Quantize]], Engine]]:
    """Return functions that load an ONNX file in the installed runtimes, as these execute it fastest."""
    further: list[Callable[[bytes, Sequence[Quantize]], Engine]] = [OpenvinoEngine] if find_spec("openvino") else []
    return [OnnxruntimeEngine, *further]


FORMS: Mapping[str, Callable[[], Form]] = {"packed": _packed, "onnx": _onnx, "onnx-qdq": _onnx_qdq, "qonnx": _qonnx}
"""Functions that return forms, by name; those of ONNX import packages of the extra `export`."""
