"""The policy: bits of weights and activations, and kept filters, layer by layer.

`check` says which policies there are. It is called before a policy is priced, whether a file, a method or repair made
it. Bits and indices are whole numbers of Python: a policy turns those of NumPy and PyTorch into them when it is made.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, unknown_name
from bench.inputs.reading import JSON_BYTES, parse_json, read_bytes, with_whole_characters
from bench.outputs.commands import command

if TYPE_CHECKING:  # shapes are traced by PyTorch; policies are read without it
    from bench.compression.shapes import LayerShape, NetworkShape

FULL_PRECISION_BITS = 32
EDGE_BITS = 8
"""Bits of the first and the last layer in every quantized network (paper, Section 4.2)."""
_MOST_SHOWN = 4
"""Largest number of kept filters that a message shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPolicy:
    """Bits and kept filters of one layer.

    Attributes:
        weight_bits: Bits of weights, or of the right operand of a product of activations, 1 to 32.
        activation_bits: Bits of the layer's input, or of the left operand, 1 to 32.
        kept_filters: Indices of the kept filters in rising order, or of the kept heads; `None` keeps all.
    """

    weight_bits: int
    activation_bits: int
    kept_filters: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            value = getattr(self, name)
            if type(value) is not int:
                object.__setattr__(self, name, whole_number(value))
        kept = self.kept_filters
        if kept is not None and not (type(kept) is tuple and {*map(type, kept)} <= {int}):
            object.__setattr__(self, "kept_filters", _whole_numbers(kept))


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpace:
    """The choices that a search has for one layer.

    Attributes:
        weight_bits, activation_bits: Candidates for the bits, rising; a single candidate is fixed.
        group_size: Number of filters that are pruned together; 0 when the search does not prune the layer.
        kept_filters: Filters that were chosen before the search; `None` for all.
    """

    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    group_size: int = 0
    kept_filters: tuple[int, ...] | None = None

    @property
    def pruned(self) -> bool:
        """Whether the layer may have fewer filters than the float network."""
        return self.group_size > 0 or self.kept_filters is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The choices for all layers of a network: the exchange format between search, costs, fine-tuning and reports.

    Attributes:
        model: Name of the model.
        dataset: Name of the data set.
        layers: Choices by layer name, in order of execution.
    """

    model: str
    dataset: str
    layers: Mapping[str, LayerPolicy]

    def with_layer(self, name: str, **changes: Any) -> Policy:
        """Return a copy in which one layer is changed."""
        return replace(self, layers={**self.layers, name: replace(self.layers[name], **changes)})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that `docs/formats.md` documents."""
        layers = {
            name: {
                "weight_bits": layer.weight_bits,
                "activation_bits": layer.activation_bits,
                "kept_filters": None if layer.kept_filters is None else list(layer.kept_filters),
            }
            for name, layer in self.layers.items()
        }
        return {"model": self.model, "dataset": self.dataset, "layers": layers}


def uniform(network: NetworkShape, bits: int) -> Policy:
    """Return the policy with `bits` in every layer but the first and the last, which have 8.

    32 bits means full precision in all layers.
    """
    edge = bits if bits == FULL_PRECISION_BITS else EDGE_BITS
    layers = {}
    for layer in network.layers:
        own = bits if layer.position == "middle" else edge
        layers[layer.name] = LayerPolicy(weight_bits=own, activation_bits=own)
    return Policy(model=network.model, dataset=network.dataset, layers=layers)


def kept_inputs(policy: Policy, layer: LayerShape) -> tuple[int, ...] | None:
    """Return the kept input channels of a layer; `None` when all are kept."""
    return None if layer.producer is None else policy.layers[layer.producer].kept_filters


def kept_outputs(policy: Policy, layer: LayerShape) -> tuple[int, ...] | None:
    """Return the kept filters of a layer, chosen for itself or for its leader; `None` when all are kept."""
    return policy.layers[layer.leader or layer.name].kept_filters


def whole_number(value: Any) -> Any:
    """Return a whole number of NumPy or PyTorch as Python's own, which JSON can hold; other values unchanged."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return value
    try:
        return operator.index(value)
    except TypeError:  # e.g. a tensor of floating-point numbers
        return value


def _whole_numbers(values: Any) -> Any:
    """Return a sequence, array or tensor of whole numbers as a tuple of Python's own; other values unchanged."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return tuple(whole_number(value) for value in values) if isinstance(values, list | tuple | range) else values


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        BenchError: The file is missing, is not JSON, or does not have the form of a policy.
    """
    try:
        content = read_bytes(path, JSON_BYTES)
        document = with_whole_characters(parse_json(content), content)
    except OSError as error:
        raise BenchError(f"cannot read the policy file '{path}': {error.strerror}") from error
    except ValueError as error:
        raise BenchError(f"the policy file '{path}' is not valid JSON: {error}") from error
    return policy_from_json(document, where=f"the policy file '{path}'")


def policy_from_json(document: Any, *, where: str = "the policy") -> Policy:
    """Build a policy from its JSON form.

    Raises:
        BenchError: A field is missing, has the wrong type, or is unknown.
    """
    fields = _expect_keys(document, {"model", "dataset", "layers"}, where)
    for key in ("model", "dataset"):
        if not isinstance(fields[key], str):
            raise BenchError(f"{where}: '{key}' must be a name, got {fields[key]!r}")
    if not isinstance(fields["layers"], dict) or not fields["layers"]:
        raise BenchError(f"{where}: 'layers' must be a non-empty object of layer names")
    layers = {}
    for name, entry in fields["layers"].items():
        values = _expect_keys(entry, {"weight_bits", "activation_bits", "kept_filters"}, f"{where}, layer '{name}'")
        layers[name] = LayerPolicy(
            weight_bits=_expect_bits(values["weight_bits"], f"{where}, layer '{name}', weight_bits"),
            activation_bits=_expect_bits(values["activation_bits"], f"{where}, layer '{name}', activation_bits"),
            kept_filters=_expect_filters(values["kept_filters"], f"{where}, layer '{name}', kept_filters"),
        )
    return Policy(model=fields["model"], dataset=fields["dataset"], layers=layers)


def check(network: NetworkShape, policy: Policy) -> None:
    """Check that a policy fits a network, in types and meaning.

    Raises:
        BenchError: A layer is missing or unknown, bits are not a whole number from 1 to 32, a layer is pruned that
            cannot be, or kept filters do not exist.
    """
    if not isinstance(policy, Policy) or not isinstance(policy.layers, Mapping):
        raise BenchError(f"a policy must be a bench.api.Policy with a dictionary of layers, got {_kind(policy)}")
    names = {layer.name for layer in network.layers}
    for name in policy.layers:
        if name not in names:
            see = command("cost", "--model", network.model, "--dataset", network.dataset, "--bits", 8)
            raise unknown_name("layer in the policy", str(name), names, see)
    for layer in network.layers:
        if layer.name not in policy.layers:
            raise BenchError(f"the policy has no entry for layer '{layer.name}' of {network.model}; add it")
        _check_layer(network, layer, policy.layers[layer.name])


def _check_layer(network: NetworkShape, layer: LayerShape, choice: LayerPolicy) -> None:
    where = f"layer '{layer.name}' of {network.model}"
    if not isinstance(choice, LayerPolicy):
        raise BenchError(f"{where} must have a bench.api.LayerPolicy, got {_kind(choice)}")
    _expect_bits(choice.weight_bits, f"{where}: weight_bits")
    _expect_bits(choice.activation_bits, f"{where}: activation_bits")
    if choice.kept_filters is not None:
        _check_kept(network, layer, choice.kept_filters)


def _kind(value: object) -> str:
    return type(value).__name__


def _check_kept(network: NetworkShape, layer: LayerShape, kept: tuple[int, ...]) -> None:
    if not layer.prunable:
        follows = "" if layer.leader is None else f" by itself, only together with '{layer.leader}'"
        raise BenchError(
            f"layer '{layer.name}' of {network.model} cannot be pruned{follows}; its kept_filters must be null"
        )
    whole = type(kept) is tuple and {*map(type, kept)} == {int}
    if not whole or not _rising(kept) or kept[0] < 0 or kept[-1] >= layer.filters:
        raise BenchError(
            f"layer '{layer.name}' keeps filters {_shown(kept)}; "
            f"allowed: one or more of 0 to {layer.filters - 1}, in rising order"
        )


def _rising(kept: tuple[int, ...]) -> bool:
    return all(low < high for low, high in pairwise(kept))


def _shown(kept: Any) -> str:
    if not isinstance(kept, list | tuple):
        return repr(kept)
    return f"[{', '.join(map(repr, kept[:_MOST_SHOWN]))}{', …' if len(kept) > _MOST_SHOWN else ''}]"


def _expect_keys(value: Any, keys: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BenchError(f"{where} must be an object with {', '.join(sorted(keys))}, got {type(value).__name__}")
    for key in value:
        if key not in keys:
            raise unknown_name(f"key in {where}", key, keys, "bench cost --help")
    for key in sorted(keys):
        if key not in value:
            raise BenchError(f"{where} lacks '{key}'")
    return value


def _expect_bits(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= FULL_PRECISION_BITS:
        raise BenchError(f"{where} is {value!r}; allowed: a whole number from 1 to {FULL_PRECISION_BITS}")
    return value


def _expect_filters(value: Any, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not whole or sorted(set(value)) != value:
        raise BenchError(f"{where} must be null or a list of different whole numbers in rising order")
    return tuple(value)
