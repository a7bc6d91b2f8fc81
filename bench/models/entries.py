"""Where in a checkpoint the state of a network is: under which entry, and behind which prefix of the names.

Trainings keep more than the network, and wrap it. The state is looked for in the file itself and in its entries, e.g.
`state_dict`; and prefixes that all names of the network have in common, e.g. `module.`, are ignored. Several states may
fit. Averaged weights (EMA) are taken only where no others fit, since an entry without that name is what was trained.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_DEEPEST = 3
"""Number of levels of entries in which states are looked for."""
_ENTRIES = ("state_dict", "model_state_dict", "model")
"""Usual names of the entry with the network, the most usual first."""
_WRAPPERS = frozenset({"module", "_orig_mod", "model", "backbone", "net", "network"})
"""Usual names of modules that wrap a network; their names make prefixes."""
_AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?)([._]|$)")

COUNTER = "num_batches_tracked"
"""Last part of the names of counters in batch normalisations, which files of PyTorch before 0.4.1 lack."""


def is_counter(name: str) -> bool:
    """Whether a tensor is the counter of a batch normalisation."""
    return name.rpartition(".")[2] == COUNTER


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A state in a checkpoint that may be the network's.

    Attributes:
        entry: Names of the entries that lead to it; empty for the file itself.
        removed: Prefix of the names in the file that the model's names lack.
        added: Prefix of the model's names that the names in the file lack.
        state: Tensors with that prefix in the file, under the model's names.
        outside: Names of the state's other tensors, as the file has them.
        named, matching: Numbers of the model's tensors with their name in it, and with their name and shape.
        complete: Whether it has all tensors of the model, each in its shape.
    """

    entry: tuple[str, ...] = ()
    removed: str = ""
    added: str = ""
    state: Mapping[str, Tensor]
    outside: tuple[str, ...] = ()
    named: int = 0
    matching: int = 0
    complete: bool = False

    @property
    def averaged(self) -> bool:
        """Whether its name says that it holds averaged weights."""
        return bool(_AVERAGED.search(".".join((*self.entry, self.removed))))

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Place in the order of preference among states that fit equally well; the lowest is preferred."""
        known = [*_ENTRIES, self.entry[-1]].index(self.entry[-1]) + 1 if self.entry else 0
        wrapped = set(filter(None, (self.removed + self.added).split(".")))
        return self.averaged, known, 0 if not wrapped else 1 if wrapped <= _WRAPPERS else 2

    @property
    def words(self) -> str:
        """Description of the place, e.g. "its entry 'state_dict' without the prefix 'module.'"; may be empty."""
        entry = f"its entry '{'.'.join(self.entry)}'" if self.entry else ""
        removed = f"without the prefix '{self.removed}'" if self.removed else ""
        added = f"with the prefix '{self.added}'" if self.added else ""
        return " ".join(filter(None, (entry, removed, added)))


def candidates(document: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[Candidate]:
    """List the states in a checkpoint, the best first: most of the model's tensors, then the order of preference.

    Args:
        document: Content of the checkpoint.
        expected: State of the model.
    """
    found = [
        _candidate(entry, tensors, removed, added, expected)
        for entry, tensors in _states(document, ())
        for removed, added in _prefixes(tensors, list(expected))
    ]
    return sorted(found, key=lambda each: (-each.matching, -each.named, each.rank))


def _states(document: Mapping[Any, Any], entry: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every dictionary with tensors, with the names of the entries that lead to it."""
    tensors = {name: value for name, value in document.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield entry, tensors
    if len(entry) < _DEEPEST:
        for name, value in document.items():
            if isinstance(name, str) and isinstance(value, Mapping):
                yield from _states(value, (*entry, name))


def _prefixes(names: Mapping[str, Tensor], expected: list[str]) -> set[tuple[str, str]]:
    """Return the pairs of prefixes to try, removed and added: none, and all with which some of the names agree."""
    found = {("", "")}
    for added in common_prefixes(expected):
        for probe in (expected[0], expected[len(expected) // 2], expected[-1]):
            short = probe[len(added) :]
            ends = [name for name in names if name == short or name.endswith(f".{short}")]
            found.update((name[: len(name) - len(short)], added) for name in ends)
    return found


def common_prefixes(names: list[str]) -> list[str]:
    """Return the prefixes that all names share, each up to a dot: "" and "net." for "net.a.x" and "net.b.x"."""
    shared: list[str] = [""]
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(f"{shared[-1]}{parts[0]}.")
    return shared


def _candidate(
    entry: tuple[str, ...], tensors: Mapping[str, Tensor], removed: str, added: str, expected: Mapping[str, Tensor]
) -> Candidate:
    state = {added + name[len(removed) :]: value for name, value in tensors.items() if name.startswith(removed)}
    needed = [name for name in expected if not is_counter(name)]
    named = [name for name in needed if name in state]
    matching = [name for name in named if state[name].shape == expected[name].shape]
    return Candidate(
        entry=entry,
        removed=removed,
        added=added,
        state=state,
        outside=tuple(name for name in tensors if not name.startswith(removed)),
        named=len(named),
        matching=len(matching),
        complete=len(matching) == len(needed),
    )
