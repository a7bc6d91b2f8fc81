"""Engines that execute exported networks, for their verification and for measurements."""

import os
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from typing import Any, Literal, Protocol
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from bench.export.executor import PackedNetwork
from bench.export.graph.operations import IMAGE, LOGITS, Quantize

Array = NDArray[Any]
Codes = Mapping[str, Array]
Optimisation = Literal["none", "all"]


class Engine(Protocol):
    """Executes a network in one form.

    Attributes:
        name: Name of the engine, with its setting if it has several.
        version: Version of the engine.
    """

    name: str
    version: str

    def logits(self, images: Array) -> Array:
        """Compute the logits (N, classes) of images `uint8` (N, C, H, W)."""
        ...

    def run(self, images: Array) -> tuple[Array, Codes]:
        """Compute logits, and the codes of every layer's input by the names of the quantizers."""
        ...


class NumpyEngine:
    """Executes a packed network.

    Args:
        content: Content of the file.
        quantizers: Quantizers of the network.
    """

    name = "numpy"

    def __init__(self, content: bytes, quantizers: Sequence[Quantize]) -> None:
        self.version = version("numpy")
        self._network = PackedNetwork(content)
        self._names = {quantizer.name for quantizer in quantizers}
        self._unit = 2.0 ** self._network.program["fraction_bits"]

    def logits(self, images: Array) -> Array:
        """Compute logits."""
        logits: Array = self._network.run(images) / self._unit
        return logits

    def run(self, images: Array) -> tuple[Array, Codes]:
        """Compute logits and codes."""
        codes: dict[str, Array] = {}

        def keep(name: str, values: Array) -> None:
            if name in self._names:
                codes[name] = values.astype(np.uint8)

        return self._network.run(images, keep) / self._unit, codes


class _OnnxEngine:
    """Executes an ONNX model as it is, and a copy in which codes are outputs, for comparisons."""

    name: str
    version: str

    def __init__(self, content: bytes, quantizers: Sequence[Quantize]) -> None:
        self._content, self._quantizers = content, quantizers
        self._plain = self._loaded(content)
        self._exposed: Any = None

    def logits(self, images: Array) -> Array:
        """Compute logits."""
        return self._outputs(self._plain, images)[0]

    def run(self, images: Array) -> tuple[Array, Codes]:
        """Compute logits by the model as it is, and codes by the copy."""
        if self._exposed is None:
            self._exposed = self._loaded(_exposed(self._content, [made.name for made in self._quantizers]))
        values = self._outputs(self._exposed, images)[1:]
        codes = {made.name: _codes(found, made) for made, found in zip(self._quantizers, values, strict=True)}
        return self.logits(images), codes

    def _loaded(self, content: bytes) -> Any:
        raise NotImplementedError

    def _outputs(self, loaded: Any, images: Array) -> list[Array]:
        raise NotImplementedError


class OnnxruntimeEngine(_OnnxEngine):
    """Executes an ONNX model with onnxruntime on one thread.

    Args:
        content: Content of the file.
        quantizers: Quantizers of the network.
        optimisation: Optimisations of the graph: none, or all that the runtime has, which is its default.
    """

    def __init__(self, content: bytes, quantizers: Sequence[Quantize], optimisation: Optimisation = "all") -> None:
        import onnxruntime

        self.name, self.version = f"onnxruntime, {optimisation} optimisations", onnxruntime.__version__
        levels = onnxruntime.GraphOptimizationLevel
        self._level = {"none": levels.ORT_DISABLE_ALL, "all": levels.ORT_ENABLE_ALL}[optimisation]
        super().__init__(content, quantizers)

    def _loaded(self, content: bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = self._level
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def _outputs(self, loaded: Any, images: Array) -> list[Array]:
        outputs: list[Array] = loaded.run(None, {IMAGE: images})
        return outputs


class OpenvinoEngine(_OnnxEngine):
    """Executes an ONNX model with OpenVINO on one thread, with real numbers in float32."""

    name = "openvino"

    def __init__(self, content: bytes, quantizers: Sequence[Quantize]) -> None:
        os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
        self.version = version("openvino")
        super().__init__(content, quantizers)

    def _loaded(self, content: bytes) -> Any:
        core = _openvino_core()
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        return core.compile_model(core.read_model(content), "CPU", settings)

    def _outputs(self, loaded: Any, images: Array) -> list[Array]:
        results = loaded(images, share_inputs=False, share_outputs=False)
        return [results[output] for output in loaded.outputs]


@cache
def _openvino_core() -> Any:
    """Return the one core of this process: its threads must not end before the process does."""
    import openvino

    return openvino.Core()


class QonnxEngine:
    """Executes a model of the QONNX dialect with the package `qonnx`, node by node.

    Args:
        content: Content of the file.
        quantizers: Quantizers of the network.
    """

    name = "qonnx"

    def __init__(self, content: bytes, quantizers: Sequence[Quantize]) -> None:
        self.version = version("qonnx")
        self._quantizers = quantizers
        self._content = content
        self._model: Any = None

    def logits(self, images: Array) -> Array:
        """Compute logits."""
        return self.run(images)[0]

    def run(self, images: Array) -> tuple[Array, Codes]:
        """Compute logits and codes."""
        from qonnx.core import onnx_exec

        if self._model is None or self._model.get_tensor_shape(IMAGE) != list(images.shape):
            self._model = self._for_shape(images.shape)
        # qonnx makes a model of each node in onnx's newest version of the format, which onnxruntime may not know yet.
        readable = partial(onnx_exec.qonnx_make_model, ir_version=self._model.model.ir_version)
        with patch.object(onnx_exec, "qonnx_make_model", readable):
            tensors = onnx_exec.execute_onnx(self._model, {IMAGE: images}, return_full_exec_context=True)
        return tensors[LOGITS], {made.name: _codes(tensors[made.name], made) for made in self._quantizers}

    def _for_shape(self, shape: Sequence[int]) -> Any:
        """Return the model for so many images; inferred shapes of another number would stay in the same model."""
        import onnx
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.infer_shapes import InferShapes

        model = ModelWrapper(onnx.ModelProto.FromString(self._content))
        model.set_tensor_shape(IMAGE, list(shape))
        return model.transform(InferShapes())


def _exposed(content: bytes, names: Sequence[str]) -> bytes:
    """Return a copy of an ONNX model in which further tensors are outputs."""
    import onnx

    model = onnx.ModelProto.FromString(content)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return bytes(model.SerializeToString())


def _codes(values: Array, quantizer: Quantize) -> Array:
    """Return codes, which some forms hold as multiples of the step."""
    return values if values.dtype == np.uint8 else np.rint(values / quantizer.step).astype(np.uint8)
