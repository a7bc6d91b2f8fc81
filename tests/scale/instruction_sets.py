"""Find the operations whose bits depend on the processor's instruction set, and how far apart they are.

    python -m tests.scale.instruction_sets --model resnet20 --images 32

PyTorch has code of its own for each instruction set, and so have its libraries oneDNN (convolutions) and MKL (matrix
products). Environment variables keep them from using the newer sets, so that one machine can act as several. In a first
process, which uses everything, the script records every operation of one training step: of a network with the common
quantizers at 4 bits, and of the gates of SBS. Further processes, one for each setting, repeat every operation with the
inputs that were recorded, and then the whole step with their own. The script prints, for each kind of operation, how
many calls give other bits, and the largest difference relative to the largest number of the result; the first call in
the order of the step; and how far apart the weights are after the step. Random draws are compared too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bench.api import compress, uniform
from bench.compression.compress import calibrate
from bench.compression.quantizer import positive
from bench.compression.shapes import trace
from bench.data.task_data import TaskData
from bench.plugins.registry import load
from bench.spec.seeds import generator, start_process_deterministically
from datasets.digits import Digits
from methods.shared.bit_sharing.quantization import bit_sharing

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "AVX-512, without VNNI and BF16": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "AVX2 in PyTorch": {"ATEN_CPU_CAPABILITY": "avx2"},
    "AVX2 in oneDNN": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX2 in MKL": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
"""Variables of each setting. A processor without AVX-512 is "AVX2"."""
_UNDEFINED = ("empty", "new_empty", "empty_like", "empty_strided")
_BITS = (2, 4, 8)
_NOT_STORED = (torch.Generator, torch.memory_format)
"""Arguments that cannot be written into a file: of random draws, which are compared apart, and of copies."""
Call = tuple[str, Any, Any, Any]
"""Name, arguments, named arguments and results of an operation."""


class _Recorder(TorchDispatchMode):
    """A list of all operations, with copies of what they read and return."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        before = _copied((args, named))  # an operation may change what it reads
        results = func(*args, **named)
        stored = not any(isinstance(leaf, _NOT_STORED) for leaf in tree_leaves((args, named)))
        if stored and func.namespace == "aten" and _name(func).split(".")[0] not in _UNDEFINED:
            self.calls.append((_name(func), *before, _copied(results)))
        return results


def _name(func: Any) -> str:
    return str(func).removeprefix("aten.")


def _copied(values: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), values)


def step(model_name: str, images: int) -> Iterator[Callable[[], Tensor]]:
    """Prepare one step without recording, then yield it; the second yield is the search's gates.

    Args:
        model_name: Name of the network.
        images: Number of images of the batch.
    """
    start_process_deterministically(0, threads=1)
    data = TaskData(Digits(), Digits().load(None), validation_fraction=0.1, device=torch.device("cpu"))
    model = load("models", model_name)(1, 10)
    shapes = trace(model, data.image_shape, name=model_name, dataset="digits")
    network = compress(model, shapes, uniform(shapes, 4))
    batch, labels = next(data.training_batches(images, generator("instruction sets")))
    calibrate(network, batch)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    network.train()

    def train() -> Tensor:
        F.cross_entropy(network(batch), labels).backward()
        optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    def gates() -> Tensor:
        x = batch.detach().clone().relu().requires_grad_()
        clip = torch.tensor(0.9, requires_grad=True)
        thresholds = torch.tensor([0.0, 1.0], requires_grad=True)
        values, _, metrics = bit_sharing(x, positive(clip), thresholds, _BITS, "activation")
        values.square().sum().backward()
        return torch.cat([metrics, *(leaf.grad.flatten() for leaf in (x, clip, thresholds) if leaf.grad is not None)])

    yield train
    yield gates


def draws() -> dict[str, Tensor]:
    """Draw numbers as the harness does."""
    kinds: dict[str, Callable[[torch.Generator], Tensor]] = {
        "uniform numbers": lambda source: torch.rand(4096, generator=source),
        "normal numbers": lambda source: torch.randn(4096, generator=source),
        "few normal numbers": lambda source: torch.randn(15, generator=source),
        "orders of images": lambda source: torch.randperm(4096, generator=source),
    }
    return {name: draw(torch.Generator().manual_seed(0)) for name, draw in kinds.items()}


def record(arguments: argparse.Namespace) -> None:
    """Record all calls and results of a step in a file."""
    recorder, results = _Recorder(), []
    for act in step(arguments.model, arguments.images):
        with recorder:
            results.append(act())
    torch.save({"calls": recorder.calls, "results": results, "draws": draws()}, arguments.file)


def repeat(arguments: argparse.Namespace) -> None:
    """Repeat the calls of a file with their recorded inputs, and print what differs as JSON."""
    recorded = torch.load(arguments.file, weights_only=False)
    start_process_deterministically(0, threads=1)
    kinds: dict[str, list[float]] = {}
    first = None
    for index, (name, args, named, expected) in enumerate(recorded["calls"]):
        packet, overload = name.split(".")
        function = getattr(getattr(torch.ops.aten, packet), overload)
        apart = _apart(function(*args, **named), expected)
        kinds.setdefault(packet, []).append(apart)
        if apart and first is None:
            first = f"{name}, call {index + 1} of {len(recorded['calls'])}"
    found = draws()
    again = zip(step(arguments.model, arguments.images), recorded["results"], strict=True)
    answer = {
        "calls": {name: [len(values), sum(map(bool, values)), max(values)] for name, values in kinds.items()},
        "first": first,
        "draws": {name: _apart(found[name], drawn) for name, drawn in recorded["draws"].items()},
        "steps": [_apart(act(), result) for act, result in again],
    }
    sys.stdout.write(json.dumps(answer))


def _apart(found: Any, expected: Any) -> float:
    """Return the largest difference relative to the largest number of the same tensor; 0 if all bits are equal."""
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    return max((_distance(one, other) for one, other in pairs if isinstance(one, Tensor)), default=0.0)


def _distance(one: Tensor, other: Tensor) -> float:
    if torch.equal(one, other):
        return 0.0
    gap = (one.double() - other.double()).abs().max()
    return float(gap / other.double().abs().max().clamp_min(1e-300))


def main() -> None:
    """Read the command line; record, then repeat with every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--part", choices=["record", "repeat"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        {"record": record, "repeat": repeat}[arguments.part](arguments)
        return
    sys.stdout.write(f"first process: {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}\n\n")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.scale.instruction_sets", "--model", arguments.model]
        command += ["--images", str(arguments.images), "--file", str(Path(folder) / "calls.pt"), "--part"]
        subprocess.run([*command, "record"], check=True)
        for name, variables in {"the same again": {}, **SETTINGS}.items():
            environment = os.environ | variables
            answer = subprocess.run([*command, "repeat"], check=True, env=environment, stdout=subprocess.PIPE)
            _show(name, json.loads(answer.stdout))


def _show(name: str, answer: dict[str, Any]) -> None:
    lines = [f"{name}: first difference in {answer['first']}"]
    lines += ["after a step: weights {:.1e}, gates and their gradients {:.1e}".format(*answer["steps"])]
    lines += [f"{kind}: {apart:.1e}" for kind, apart in answer["draws"].items() if apart]
    for kind, (count, differing, apart) in sorted(answer["calls"].items()):
        if differing:
            lines.append(f"{kind}: {differing} of {count} calls, by up to {apart:.1e}")
    sys.stdout.write("\n  ".join(lines) + "\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
