"""Shapes of the results of a graph's nodes."""

from typing import Any

import torch
from torch import Tensor, fx

_KEY = "bench_shape"


class _Recorder(fx.Interpreter):
    """Executes a graph, and notes the shape of every tensor with the node that made it.

    PyTorch's `ShapeProp` does the same, but loads its symbolic algebra, which takes a fifth of the time that PyTorch
    itself takes, and prints the traceback of an error.
    """

    def run_node(self, n: fx.Node) -> Any:
        """Execute one node."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta[_KEY] = result.shape
        return result


def record_shapes(graph: fx.GraphModule, images: Tensor) -> None:
    """Execute a graph, so that `shape_of` knows the shapes of its nodes.

    Args:
        graph: Graph of a network.
        images: Batch of images.
    """
    _Recorder(graph).run(images)


def shape_of(node: object) -> torch.Size | None:
    """Return the shape of a node's tensor; `None` if its value is not a tensor."""
    shape = node.meta.get(_KEY) if isinstance(node, fx.Node) else None
    return shape if isinstance(shape, torch.Size) else None
