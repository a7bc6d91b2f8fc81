"""The check on two more networks, with kinds of layers that the small one lacks.

One has depthwise and grouped convolutions and a gate, the other attention, whose products of activations have no
weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.diagnostics.validation import budgets, results
from bench.diagnostics.validation.small_task import task_of
from bench.diagnostics.validation.under_test import TOLERANCE, MethodUnderTest
from bench.diagnostics.validation.verdicts import NotApplicable
from bench.errors import UnreachableBudgetError
from bench.models.attention import SelfAttention

_TIGHT = 1 + TOLERANCE / 3
"""Budget with the cheapest policy in its window, relative to the cost of that policy."""


class ManyKinds(nn.Module):
    """A network with a depthwise convolution, a squeeze-excite gate, a shortcut and a grouped convolution.

    Args:
        in_channels: Number of channels of an image.
        num_classes: Number of logits.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1))
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.grouped = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, of shape (images, classes)."""
        stem = F.relu(self.stem(images))
        expanded = F.relu(self.depthwise(F.relu(self.expand(stem))))
        added = stem + self.project(expanded * torch.sigmoid(self.gate(expanded)))
        logits: Tensor = self.fc(F.relu(self.grouped(added)).mean((2, 3)))
        return logits


class Attending(nn.Module):
    """A network with attention over the positions of a small map.

    Args:
        in_channels: Number of channels of an image.
        num_classes: Number of logits.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.patches = nn.Conv2d(8, 8, 2, stride=2)
        self.norm = nn.LayerNorm(8)
        self.attention = SelfAttention(nn.MultiheadAttention(8, 2, batch_first=True), "attention")
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, of shape (images, classes)."""
        tokens = self.patches(F.relu(self.stem(images))).flatten(2).transpose(1, 2)
        normalised = self.norm(tokens)
        attended, _ = self.attention(normalised, normalised, normalised, need_weights=False)
        logits: Tensor = self.fc((tokens + attended).mean(1))
        return logits


_NETWORKS: Mapping[str, type[ManyKinds | Attending]] = {
    "depthwise and grouped layers and a gate": ManyKinds,
    "attention": Attending,
}
"""Networks, by what they have."""


def other_layers(under_test: MethodUnderTest) -> str:
    """Check result and repair on networks with other kinds of layers, up to the lowest cost.

    Checks that the method does not pass on the small network are left out, since they report that themselves.
    """
    _ = under_test.plain
    checks = (results.search, results.policy, results.decisions, results.network, budgets.within_reach, _cheap)
    passed = [check for check in checks if check is results.search or _passes(check, under_test)]
    for kinds, network in _NETWORKS.items():
        _check_on(_on_network(under_test, network), passed, kinds)
    return f"networks with {' and with '.join(_NETWORKS)}: valid policies, at the lowest cost too"


def _check_on(other: MethodUnderTest, checks: Sequence[Callable[[MethodUnderTest], str]], kinds: str) -> None:
    for check in checks:
        try:
            check(other)
        except NotApplicable:
            continue
        except Exception as error:
            error.add_note(f"on a network with {kinds}")
            raise


def _on_network(under_test: MethodUnderTest, network: type[ManyKinds | Attending]) -> MethodUnderTest:
    """Take the same method and images, and another network."""
    data = under_test.small_task.task.data
    made = task_of(data, lambda: network(data.image_shape[0], data.num_classes), network.__name__)
    return MethodUnderTest(
        name=under_test.name,
        small_task=replace(made, patience=under_test.small_task.patience),
        options=under_test.options,
        location=under_test.location,
    )


def _passes(check: Callable[[MethodUnderTest], str], under_test: MethodUnderTest) -> bool:
    try:
        check(under_test)
    except NotApplicable:
        return True
    except Exception:  # reported by the check of its own
        return False
    return True


def _cheap(under_test: MethodUnderTest) -> str:
    """Check a search that is pressed to the lowest cost, and its repair."""
    if under_test.strength_is_tuned:
        result = budgets.at_end(under_test, "strength", "high")
    else:
        cheapest = under_test.cheapest()
        if cheapest is None:
            raise NotApplicable("cheapest() is not defined")
        try:
            result = under_test.search("tight", under_test.job(budget=under_test.price(cheapest) * _TIGHT))
        except UnreachableBudgetError as error:
            raise NotApplicable("the lowest cost is out of reach") from error
    results.valid_policy(under_test, result.policy)
    repaired, _ = under_test.repaired(result, 1.0)
    return results.valid_policy(under_test, repaired)
