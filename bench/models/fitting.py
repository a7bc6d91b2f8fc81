"""Fitting of a checkpoint, as people have them, to a model: what is taken from it, and why it is refused.

Nothing is guessed: every tensor of the model must be in the checkpoint, in its shape, with usable numbers. What else
the file holds is left out only if it is no part of the network, and is named.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.models.entries import COUNTER, Candidate, candidates, common_prefixes, is_counter

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_COUNTS_OF_OPERATIONS = ("total_ops", "total_params")
"""Last parts of the names of tensors that counters of operations leave in every module."""
_SHOWN = 3
"""Number of entries that messages name."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What is taken from a checkpoint.

    Attributes:
        state: State for the model, under its names and in its data types.
        note: Line that names everything mapped, converted and left out; empty if the file holds the state as it is.
    """

    state: Mapping[str, Tensor]
    note: str


def fit(document: Mapping[str, Any], model: nn.Module, name: str) -> Fitted:
    """Find the state of a model in a checkpoint.

    Args:
        document: Content of the checkpoint.
        model: Model that the state is for; it is not changed.
        name: Name of the model, for messages.

    Raises:
        BenchError: The checkpoint lacks something, does not fit, or has unusable numbers. The message continues a
            sentence whose subject is the checkpoint.
    """
    expected = model.state_dict()
    found = candidates(document, expected)
    best = found[0] if found else Candidate(state={})
    translated = None if best.complete or not best.named else _as_the_model_reads(model, best.state)
    state = best.state if translated is None else translated
    differences = _differences(state, expected)
    if differences.any:
        place = f" ({best.words})" if best.words else ""
        raise BenchError(f"does not fit {name}{place}: it {differences.words}{differences.cause}")
    _check_choice(best, found)
    return Fitted(
        state=_usable(state, expected),
        note="; ".join(filter(None, _notes(document, best, found, state, expected, renamed=translated is not None))),
    )


def _as_the_model_reads(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Let the model itself translate the names of older versions, as its `load_state_dict` does.

    Returns:
        The state under the present names, with what the model did not take; `None` if the model lacks something then.
    """
    reader = copy.deepcopy(model)
    try:
        answer = reader.load_state_dict(dict(state), strict=False)
    except (RuntimeError, KeyError, ValueError):  # a shape differs; a rule of the model's own fails
        return None
    present = reader.state_dict()
    taken = [key for key in state if key not in present and key not in answer.unexpected_keys]
    if any(not is_counter(key) for key in answer.missing_keys) or any(state[key].dtype not in _FLOATS for key in taken):
        return None
    ignored = {key: state[key] for key in answer.unexpected_keys}
    return {**present, **{key: value for key, value in state.items() if key in present}, **ignored}


def _check_choice(best: Candidate, found: Sequence[Candidate]) -> None:
    """Check that no other state fits as well and is as likely to be meant."""
    equal = [each.words for each in found if each.complete and best.complete and each.rank == best.rank]
    if len(equal) > 1:
        raise BenchError(
            f"holds several states that fit: {', '.join(equal)}; save the one to start from in a file of its own"
        )


# --- what does not fit ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Differences:
    """Differences between a state and that of the model.

    Attributes:
        state, expected: Both states.
        lacking: Tensors of the model that the state lacks.
        unknown: Tensors of the state that belong to layers which the model has, or has fewer of.
        misshapen: Tensors that differ in shape.
    """

    state: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    lacking: Sequence[str]
    unknown: Sequence[str]
    misshapen: Sequence[str]

    @property
    def any(self) -> bool:
        """Whether there are differences."""
        return bool(self.lacking or self.unknown or self.misshapen)

    @property
    def words(self) -> str:
        """The first differences of each kind, to follow the word "it"."""
        shapes = [
            f"'{key}' in shape {tuple(self.state[key].shape)}, not {tuple(self.expected[key].shape)}"
            for key in self.misshapen
        ]
        parts = (
            _first("lacks", [f"'{key}'" for key in self.lacking]),
            _first("has", shapes),
            _first("has", [f"'{key}'" for key in self.unknown], ", which the network lacks"),
        )
        return ", and ".join(filter(None, parts))

    @property
    def cause(self) -> str:
        """The likely cause, as the end of the message; empty if it cannot be told."""
        weights = [key for key, value in self.expected.items() if value.ndim > 1]
        classes = self._different_in(weights[-1] if weights else "", 0)
        channels = self._different_in(weights[0] if weights else "", 1)
        if self.misshapen and not self.lacking and classes is not None:
            return f"; it has {classes[0]} classes, the data set has {classes[1]}"
        if self.misshapen and not self.lacking and channels is not None:
            return f"; it reads images of {channels[0]} channels, the data set has {channels[1]}"
        if not any(key in self.state for key in self.expected):
            return "; it is of another network" if self.state else "; it holds no tensors"
        if self.lacking and not self.misshapen and all(_module(key) == _module(weights[-1]) for key in self.lacking):
            return f"; it has no last layer '{_module(weights[-1])}' for the classes"
        return "; it is of a larger network" if not self.lacking and not self.misshapen else ""

    def _different_in(self, weight: str, dimension: int) -> tuple[int, int] | None:
        """Return the two sizes of a dimension if they are all that differs, in the layer of a weight alone."""
        if weight not in self.misshapen or any(_module(key) != _module(weight) for key in self.misshapen):
            return None
        given, wanted = list(self.state[weight].shape), list(self.expected[weight].shape)
        if len(given) != len(wanted):
            return None
        sizes = given.pop(dimension), wanted.pop(dimension)
        return sizes if given == wanted else None


def _module(key: str) -> str:
    return key.rpartition(".")[0]


def _first(verb: str, things: Sequence[str], end: str = "") -> str:
    """Name the first of several things after a verb: "lacks 'a', 'b' and 7 more"; nothing for none."""
    if not things:
        return ""
    more = f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
    return f"{verb} {', '.join(things[:_SHOWN])}{more}{end}"


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> _Differences:
    needed = [key for key in expected if not is_counter(key)]
    prefix = common_prefixes(list(expected))[-1]
    own = {key[len(prefix) :].split(".")[0] for key in expected}
    return _Differences(
        state=state,
        expected=expected,
        lacking=[key for key in needed if key not in state],
        unknown=[
            key for key in state if key not in expected and _is_of_the_network(key[len(prefix) :], state[key], own)
        ],
        misshapen=[key for key in needed if key in state and state[key].shape != expected[key].shape],
    )


def _is_of_the_network(key: str, tensor: Tensor, own: set[str]) -> bool:
    """Whether an additional tensor belongs to a layer that the network has, or continues a sequence of layers.

    Such a tensor takes part in what the checkpoint's network computes. A branch beside it, such as an auxiliary head,
    has a name of its own; indices and counts are no weights.
    """
    first, _, rest = key.partition(".")
    counts = key.rpartition(".")[2] in _COUNTS_OF_OPERATIONS and tensor.numel() == 1
    if counts or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    return first in own or first.isdigit() if rest else tensor.ndim > 0


# --- what is taken -------------------------------------------------------------------------------------------------


def _usable(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state to the data types of the model; missing counters begin at 0.

    Raises:
        BenchError: Tensors have another type, numbers that are not finite, or negative variances.
    """
    given = {key: state[key] for key in expected if _is_given(key, state, expected)}
    _refuse("numbers of an unusable type", (key for key in given if not _convertible(given[key], expected[key])))
    converted = {key: value.detach().to(expected[key].dtype) for key, value in given.items()}
    # A model may be built with infinite numbers, e.g. in a mask of its attention.
    finite = {key: value for key, value in converted.items() if bool(expected[key].isfinite().all())}
    _refuse("NaN or infinite numbers", (key for key, value in finite.items() if not bool(value.isfinite().all())))
    variances = {key: value for key, value in converted.items() if key.rpartition(".")[2] == "running_var"}
    _refuse("negative variances", (key for key, value in variances.items() if bool((value < 0).any())))
    return {key: converted.get(key, torch.zeros_like(value)) for key, value in expected.items()}


def _is_given(key: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether the value of a tensor comes from the checkpoint: all do except counters that it lacks."""
    fits = key in state and state[key].shape == expected[key].shape and _convertible(state[key], expected[key])
    return fits or not is_counter(key)


def _convertible(given: Tensor, wanted: Tensor) -> bool:
    """Whether a tensor may be converted to the data type of another without a change of meaning."""
    if given.layout != torch.strided or given.is_meta or given.is_quantized:
        return False
    if wanted.is_floating_point():
        return given.dtype in _FLOATS
    return not given.is_floating_point() and given.is_complex() == wanted.is_complex()


def _refuse(fault: str, keys: Iterable[str]) -> None:
    """Refuse the checkpoint if a fault was found in any tensor."""
    wrong = [f"'{key}'" for key in keys]
    if wrong:
        raise BenchError(f"{_first(f'has {fault} in', wrong)}; start from another file")


# --- the note ------------------------------------------------------------------------------------------------------


def _notes(
    document: Mapping[str, Any],
    best: Candidate,
    found: Sequence[Candidate],
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    renamed: bool,
) -> Iterator[str]:
    """Yield what was mapped, converted and left out, each in a few words or none."""
    yield best.words and f"read {best.words}"
    yield "its old names are translated by the model" if renamed else ""
    floats = Counter(value.dtype for key, value in best.state.items() if key in expected and value.is_floating_point())
    others = [str(dtype).removeprefix("torch.") for dtype in floats if dtype != torch.float32]
    yield (others and f"converted from {' and '.join(others)} to float32") or ""
    missing = sum(not _is_given(key, state, expected) for key in expected)
    yield f"{missing} missing counters '{COUNTER}' begin at 0" if missing else ""
    unused = [each.words or "the file itself" for each in found if each is not best and each.complete]
    yield f"not {', '.join(unused)}, which fits too" if unused else ""
    left_out = [*_grouped(key for key in state if key not in expected), *_grouped(best.outside)]
    left_out += _beside(document, best.entry)
    yield f"left out, as they are no part of the network: {', '.join(left_out)}" if left_out else ""


def _grouped(keys: Iterable[str]) -> list[str]:
    """Name tensors by the module that they are in: "'aux1' (8 tensors)"."""
    counts = Counter(key.partition(".")[0] for key in keys)
    return [f"'{name}' ({count} tensors)" if count > 1 else f"'{name}'" for name, count in counts.items()]


def _beside(document: Mapping[Any, Any], entry: Sequence[str]) -> list[str]:
    """Name the entries beside the one that the state is in, on every level."""
    if not entry:
        return [f"'{name}'" for name, value in document.items() if not isinstance(value, Tensor)]
    beside = [f"'{name}'" for name in document if name != entry[0]]
    return beside + (_beside(document[entry[0]], entry[1:]) if entry[1:] else [])
