"""Reading of a compressed network into the graph that is exported. What the graph cannot express is refused by name."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from bench.compression.compress import QuantizedLayer, QuantizedProduct
from bench.compression.geometry import ConvGeometry, LinearGeometry
from bench.compression.heads import JoinHeads, SplitHeads
from bench.compression.kernels import steps
from bench.compression.quantizer import Shifted, UniformQuantizer, positive
from bench.compression.structure.graph import operation_name, traced
from bench.compression.structure.node_shapes import shape_of
from bench.errors import BenchError
from bench.export.graph.calls import BINARY, OPERATIONS, REASONS, Call, UnhandledError, shape_for_one
from bench.export.graph.operations import (
    IMAGE,
    LOGITS,
    PIXEL_BITS,
    AddConstant,
    Codes,
    Graph,
    Layer,
    Operation,
    Permute,
    Prepend,
    Product,
    Quantize,
    Reals,
    Rescale,
    Reshape,
    Select,
)
from bench.export.graph.steps import MOST_BITS

_SAME = frozenset({"identity", "dropout", "stochastic_depth", "contiguous", "clone", "detach"})
"""Operations that change nothing in evaluation."""


class Pixels(Protocol):
    """The shape of images, and the mean and standard deviation of their pixels, from 0 to 255, by channel."""

    image_shape: tuple[int, int, int]
    pixel_mean: Tensor
    pixel_std: Tensor


def read_graph(network: nn.Module, data: Pixels, *, model: str, dataset: str) -> Graph:
    """Read a compressed network.

    Args:
        network: Compressed network in evaluation mode, on the CPU.
        data: Shape of the network's images, and their normalisation.
        model: Name of the model.
        dataset: Name of the data set.

    Raises:
        BenchError: The network has an operation, a layer or a quantizer that cannot be exported, or cannot be traced.
    """
    mean, std = _reals(data.pixel_mean), _reals(data.pixel_std)
    images = torch.zeros(2, *data.image_shape).to(memory_format=torch.channels_last)
    try:
        graph = traced(network, images, (QuantizedLayer, QuantizedProduct))
    except Exception as error:
        # A user's forward function may raise any exception when it gets a proxy instead of a tensor.
        raise BenchError(
            f"'{model}' cannot be exported: its forward pass depends on its data and cannot be traced: {error}"
        ) from error
    reader = _Reader(graph, model, mean, std)
    return Graph(
        model=model,
        dataset=dataset,
        image_shape=data.image_shape,
        mean=mean,
        std=std,
        operations=tuple(reader.operations),
        output=reader.output,
    )


class _Reader:
    """A walk over a traced network that collects operations.

    Attributes:
        operations: Operations in order of execution.
        output: Name of the tensor of logits.
    """

    def __init__(self, graph: fx.GraphModule, model: str, mean: Reals, std: Reals) -> None:
        self.operations: list[Operation] = []
        self.output = ""
        self._model, self._mean, self._std = model, mean, std
        self._modules = dict(graph.named_modules())
        self._names: dict[fx.Node, str] = {}
        self._folded: set[fx.Node] = set()
        self._constants: dict[fx.Node, Reals] = {}
        self._graph = graph
        for node in graph.graph.nodes:
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        if node in self._folded:
            return
        if node.op == "placeholder":
            self._names[node] = IMAGE
        elif node.op == "output":
            self.output = self._names[node.all_input_nodes[0]]
        elif shape_of(node) is None:
            return  # a size, which the shapes of results have already
        elif node.op == "get_attr":
            self._constant(node)
        else:
            module = self._modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, QuantizedLayer):
                self._layer(node, str(node.target))
            elif isinstance(module, QuantizedProduct):
                self._product(node, str(node.target), module)
            elif isinstance(module, JoinHeads):
                self._joined(node)
            elif self._splits(node):
                self._split(node)
            elif not self._with_constant(node):
                self._operation(node)

    def _add(self, node: fx.Node, kind: type[Operation], inputs: tuple[str, ...], **values: Any) -> None:
        """Add an operation that makes the tensor of a node."""
        made = kind(name=_name(node), inputs=inputs, shape=shape_for_one(node), **values)
        self.operations.append(made)
        self._names[node] = made.name

    # --- numbers that are the same for all images -----------------------------------------------------------------

    def _constant(self, node: fx.Node) -> None:
        path, _, name = str(node.target).rpartition(".")
        values = getattr(self._graph.get_submodule(path), name)
        if isinstance(values, Tensor) and values.ndim > 1 and len(values) == 1:
            self._constants[node] = _reals(values[0])

    def _with_constant(self, node: fx.Node) -> bool:
        """Add an operation of a tensor and a constant, or note that it makes another constant of one."""
        name, sources = operation_name(node, self._modules), node.all_input_nodes
        constants = [source for source in sources if source in self._constants]
        tensors = [source for source in sources if source in self._names]
        if name == "expand" and constants == sources[:1] and not tensors:
            self._constants[node] = self._constants[constants[0]]
        elif name in ("add", "iadd") and len(constants) == len(tensors) == 1 and len(node.args) == 2:
            values = self._constants[constants[0]]
            if values.shape != shape_for_one(node):
                raise self._refusal(f"{_label(node)} adds numbers of shape {values.shape}")
            self._add(node, AddConstant, (self._names[tensors[0]],), values=values)
        elif name in ("cat", "concat") and len(constants) == len(tensors) == 1 and list(node.args[0]) == sources:  # type: ignore[arg-type]
            dimension = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            if sources != [*constants, *tensors] or dimension != 1 or len(shape_for_one(node)) != 2:
                raise self._refusal(f"{_label(node)} joins other things than tokens to tokens")
            self._add(node, Prepend, (self._names[tensors[0]],), values=self._constants[constants[0]])
        elif name in ("mul", "imul") and len(tensors) == len(sources) == 1 and len(node.args) == 2:
            number = next(argument for argument in node.args if not isinstance(argument, fx.Node))
            if type(number) not in (int, float):
                raise self._refusal(f"{_label(node)} multiplies by {number!r}")
            self._add(node, Rescale, (self._names[tensors[0]],), factor=float(number))  # type: ignore[arg-type]
        else:
            return False
        return True

    # --- heads of attention ---------------------------------------------------------------------------------------

    def _splits(self, node: fx.Node) -> bool:
        """Whether a node takes one part of what `SplitHeads` returns."""
        source = node.args[0] if node.args else None
        if operation_name(node, self._modules) != "getitem" or not isinstance(source, fx.Node):
            return False
        return source.op == "call_module" and isinstance(self._modules[str(source.target)], SplitHeads)

    def _split(self, node: fx.Node) -> None:
        """Take a part, (heads, tokens, channels), of a projection (tokens, parts·heads·channels)."""
        split, part = node.args
        heads, tokens, channels = shape_for_one(node)
        parts = self._modules[str(split.target)].parts  # type: ignore[union-attr]
        read, name = self._names[split.all_input_nodes[0]], _name(node)  # type: ignore[union-attr]
        if part not in range(parts):
            raise self._refusal(f"{_label(node)} takes other parts than one")
        cut, turned = (tokens, parts, heads, channels), (parts, heads, tokens, channels)
        self.operations += [
            Reshape(name=f"{name}.parts", inputs=(read,), shape=cut),
            Permute(name=f"{name}.heads", inputs=(f"{name}.parts",), shape=turned, axes=(1, 2, 0, 3)),
        ]
        self._add(node, Select, (f"{name}.heads",), index=part)

    def _joined(self, node: fx.Node) -> None:
        """Make (tokens, heads·channels) of (heads, tokens, channels)."""
        source, name = node.all_input_nodes[0], _name(node)
        heads, tokens, channels = shape_for_one(source)
        shape, read = (tokens, heads, channels), (self._names[source],)
        self.operations.append(Permute(name=f"{name}.tokens", inputs=read, shape=shape, axes=(1, 0, 2)))
        self._add(node, Reshape, (f"{name}.tokens",))

    def _product(self, node: fx.Node, path: str, module: QuantizedProduct) -> None:
        if operation_name(node, {str(node.target): module.product}) != "matmul":
            raise self._refusal(f"{_label(node)} multiplies in a way of its own")
        left, right = (
            self._quantized(source, path, what, quantizer, right=what == "right operand")
            for source, what, quantizer in (
                (node.args[0], "left operand", module.activation_quantizer),
                (node.args[1], "right operand", module.weight_quantizer),
            )
        )
        self._add(node, Product, (left.name, right.name), path=path, left=left, right=right)

    # --- other operations -----------------------------------------------------------------------------------------

    def _operation(self, node: fx.Node) -> None:
        name = operation_name(node, self._modules)
        if name in _SAME:
            self._names[node] = self._names[node.all_input_nodes[0]]
            return
        make = OPERATIONS.get(name)
        if make is None:
            raise self._refusal(
                f"{_label(node)} is {REASONS.get(name, f'the operation {name!r}, which is not handled')}"
            )
        sources = [source for source in node.all_input_nodes if source in self._names]
        inputs = tuple(self._names[source] for source in sources)
        if IMAGE in inputs:
            raise self._refusal(f"{_label(node)} reads the image; only the first layer may read it")
        if name in BINARY and len(inputs) != 2:
            raise self._refusal(f"{_label(node)} is '{name}' with a number; only two tensors are handled")
        try:
            made = make(
                Call(node, sources, self._modules),
                {"name": _name(node), "inputs": inputs, "shape": shape_for_one(node)},
            )
        except UnhandledError as error:
            raise self._refusal(f"{_label(node)} is '{name}' {error}") from error
        self.operations.append(made)
        self._names[node] = made.name

    def _layer(self, node: fx.Node, path: str) -> None:
        module = self._modules[path]
        source = node.all_input_nodes[0]
        factor, constant, last = self._normalisation(node, module)
        read, bits, clip, offset = self._input(source, path, module)
        channels = module.weight.shape[1] * _groups(module)
        image = read == IMAGE
        codes, weight_bits, weight_step = self._weights(path, module)
        shape = shape_for_one(source)
        linear = isinstance(module.geometry, LinearGeometry)
        if len(shape) not in ((1, 2) if linear else (3,)):
            raise self._refusal(f"layer '{path}' reads a tensor of shape {shape} for one image")
        step = clip / steps(bits)
        self.operations.append(
            Layer(
                name=_name(last),
                inputs=(read,),
                shape=shape_for_one(last),
                path=path,
                linear=linear,
                codes=codes,
                weight_bits=weight_bits,
                weight_step=weight_step,
                input_bits=bits,
                input_steps=1 / self._std if image else np.full(channels, step),
                input_offsets=-self._mean / self._std if image else np.full(channels, offset),
                factor=factor,
                constant=constant,
                input_shape=shape,
                **self._geometry(path, module),
            )
        )
        self._names[last] = _name(last)

    def _normalisation(self, node: fx.Node, module: Any) -> tuple[Reals, Reals, fx.Node]:
        """Return scale and shift after a layer, and the last node that they stand for."""
        outputs = module.weight.shape[0]
        factor = np.ones(outputs)
        bias = np.zeros(outputs) if module.bias is None else _reals(module.bias)
        users = list(node.users)
        norm = self._modules.get(str(users[0].target)) if len(users) == 1 and users[0].op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
            return factor, bias, node
        self._folded.add(users[0])
        factor = 1 / np.sqrt(_reals(norm.running_var) + norm.eps)
        factor = factor if norm.weight is None else factor * _reals(norm.weight)
        shift = np.zeros(outputs) if norm.bias is None else _reals(norm.bias)
        return factor, factor * (bias - _reals(norm.running_mean)) + shift, users[0]

    def _input(self, source: fx.Node, path: str, module: Any) -> tuple[str, int, float, float]:
        """Quantize the input of a layer.

        Returns:
            Name of the codes, their bits, the clip value, and the value of code 0. The last two have no meaning for the
            image.
        """
        quantizer = module.activation_quantizer
        if self._names[source] == IMAGE:
            if not isinstance(quantizer, nn.Identity):
                raise self._refusal(f"layer '{path}' quantizes the image")
            return IMAGE, PIXEL_BITS, 1.0, 0.0
        made = self._quantized(source, path, "input", quantizer)
        return made.name, made.bits, made.clip, made.offset

    def _quantized(self, source: Any, path: str, what: str, quantizer: Any, *, right: bool = False) -> Quantize:
        """Quantize a tensor that a layer or a product reads."""
        offset = 0.0
        if type(quantizer) is Shifted:
            offset, quantizer = quantizer.offset.item(), quantizer.quantizer
        self._check_quantizer(path, what, quantizer)
        made = Quantize(
            name=f"{path}.{'right' if right else 'input'}",
            inputs=(self._names[source],),
            shape=shape_for_one(source),
            layer=path,
            bits=quantizer.bits,
            clip=positive(quantizer.clip).item(),
            offset=offset,
            right=right,
        )
        self.operations.append(made)
        return made

    def _weights(self, path: str, module: Any) -> tuple[Codes, int, float]:
        self._check_quantizer(path, "weight", module.weight_quantizer)
        codes, step = weight_codes(module.weight_quantizer, module.weight)
        return codes.reshape(*codes.shape, 1, 1) if codes.ndim == 2 else codes, module.weight_quantizer.bits, step

    def _check_quantizer(self, path: str, what: str, quantizer: Any) -> None:
        if type(quantizer) is not UniformQuantizer:
            raise self._refusal(
                f"the {what} of layer '{path}' has a {type(quantizer).__name__}; only networks with the common "
                "quantizer (recipe = common) are exported"
            )
        if quantizer.bits > MOST_BITS:
            raise self._refusal(
                f"the {what} of layer '{path}' has {quantizer.bits} bits; at most {MOST_BITS} are exported"
            )

    def _geometry(self, path: str, module: Any) -> dict[str, Any]:
        geometry = module.geometry
        if isinstance(geometry, LinearGeometry):
            return {}
        if not isinstance(geometry, ConvGeometry):
            raise self._refusal(f"layer '{path}' has a forward function of its own")
        if geometry.padding_mode != "zeros":
            raise self._refusal(f"layer '{path}' pads with '{geometry.padding_mode}'; only zeros are handled")
        return {
            "stride": geometry.stride,
            "padding": _padding(geometry, module.weight.shape[2:]),
            "dilation": geometry.dilation,
            "groups": geometry.groups,
        }

    def _refusal(self, reason: str) -> BenchError:
        return BenchError(f"'{self._model}' cannot be exported: {reason}; nothing was written")


def weight_codes(quantizer: UniformQuantizer, weight: Tensor) -> tuple[Codes, float]:
    """Return the codes of quantized weights, and the step v/n such that a weight is step·(2·code − n).

    Raises:
        BenchError: The codes do not give exactly the quantized weights, e.g. because these are not finite.
    """
    with torch.no_grad():
        values = quantizer(weight)
        levels, step = steps(quantizer.bits), positive(quantizer.clip).item() / steps(quantizer.bits)
        odd = (values.double() / step).round()
        codes = (odd + levels) / 2
        exact = torch.equal(torch.mul(odd.float(), step), values)
        if not exact or bool((codes != codes.round()).any()) or codes.min() < 0 or codes.max() > levels:
            raise BenchError(f"the weights of a layer with {quantizer.bits} bits are not on its grid: are they finite?")
    return np.ascontiguousarray(codes.numpy().astype(np.uint8)), step


def _padding(geometry: ConvGeometry, kernel: torch.Size) -> tuple[int, int, int, int]:
    """Return the rows and columns of zeros above, left, below and right."""
    if geometry.padding == "valid":
        return 0, 0, 0, 0
    if geometry.padding == "same":
        total = [reach * (size - 1) for reach, size in zip(geometry.dilation, kernel, strict=True)]
        top, left = (number // 2 for number in total)
        return top, left, total[0] - top, total[1] - left
    vertical, horizontal = (int(number) for number in geometry.padding)
    return vertical, horizontal, vertical, horizontal


def _groups(module: Any) -> int:
    return module.geometry.groups if isinstance(module.geometry, ConvGeometry) else 1


def _reals(tensor: Tensor) -> Reals:
    return tensor.detach().numpy().astype(np.float64)


def _name(node: fx.Node) -> str:
    """Return the name of a node's tensor; names with a dot are never those of nodes."""
    return f"{node.name}.result" if node.name in (IMAGE, LOGITS) else node.name


def _label(node: fx.Node) -> str:
    return f"'{node.target}'" if node.op == "call_module" else f"'{node.name}'"
