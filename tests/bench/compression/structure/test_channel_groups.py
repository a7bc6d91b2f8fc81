"""Which channels belong together, on small networks that each show one rule, and on all of ours."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression.policy import uniform
from bench.compression.shapes import NetworkShape, trace
from bench.compression.structure.channel_groups import Role, Structure, analyse
from bench.errors import BenchError
from bench.models.build import build_model

Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Named layers and a function that executes them."""

    def __init__(self, body: Body, **layers: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def conv(inputs: int, outputs: int, kernel: int = 1, **others: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **others)


def read(body: Body, **layers: nn.Module) -> Structure:
    """The structure of a network on images of three channels."""
    return analyse(Net(body, **layers).eval(), torch.zeros(1, 3, 8, 8), name="net")


def between(change: Body, **others: nn.Module) -> Structure:
    """The structure of a network with an operation between a convolution of 8 filters and the layer that reads it."""
    layers = {"first": conv(3, 8, 3), "last": conv(8, 4), **others}
    return read(lambda net, x: net.last(change(net, net.first(x))), **layers)


# --- blocks -----------------------------------------------------------------------------------------------------


def test_basic_block() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x).relu()
        y = net.bn2(net.conv2(net.bn1(net.conv1(x)).relu()))
        return net.head((y + net.norm(net.down(x))).relu())  # type: ignore[no-any-return]

    found = read(
        body,
        stem=conv(3, 4, 3),
        conv1=conv(4, 6, 3),
        bn1=nn.BatchNorm2d(6),
        conv2=conv(6, 5, 3),
        bn2=nn.BatchNorm2d(5),
        down=conv(4, 5),
        norm=nn.BatchNorm2d(5),
        head=conv(5, 2),
    )
    # Nothing is added to the stem's filters: they may go, and take inputs of both readers with them.
    assert found.prunable == ("stem", "conv1")
    assert found.norms == {"bn1": "conv1"}
    assert found.roles["conv1"] == Role(producer="stem", signed_input=False, normalized=True)
    assert found.roles["conv2"] == Role(producer="conv1", signed_input=False, normalized=True)
    assert found.roles["down"] == Role(producer="stem", signed_input=False, normalized=True, shortcut=True)
    assert found.roles["head"] == Role(signed_input=False)
    assert found.obstacles == {
        **dict.fromkeys(("conv2", "down"), "they are added to those of another layer"),
        "head": "they are the network's output",
    }


def test_bottleneck() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x).relu()
        y = net.bn2(net.conv2(net.bn1(net.conv1(x)).relu())).relu()
        return net.head((net.bn3(net.conv3(y)) + x).relu())  # type: ignore[no-any-return]

    found = read(
        body,
        stem=conv(3, 8, 3),
        conv1=conv(8, 4),
        bn1=nn.BatchNorm2d(4),
        conv2=conv(4, 4, 3, stride=1),
        bn2=nn.BatchNorm2d(4),
        conv3=conv(4, 8),
        bn3=nn.BatchNorm2d(8),
        head=conv(8, 2),
    )
    assert found.prunable == ("conv1", "conv2")
    assert found.norms == {"bn1": "conv1", "bn2": "conv2"}
    assert [found.roles[name].producer for name in ("conv1", "conv2", "conv3")] == [None, "conv1", "conv2"]
    # conv3 shares the channels of the stem; no 1×1 convolution here is a shortcut's.
    assert found.obstacles.keys() == {"stem", "conv3", "head"}
    assert not any(role.shortcut for role in found.roles.values())


def inverted_residual(gate: Body, **layers: nn.Module) -> Structure:
    """Expansion to 8 channels, depthwise convolution, a gate on it, projection, addition."""

    def body(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = F.hardswish(net.bn1(net.expand(x)))
        y = net.bn2(net.depthwise(y))
        return net.head(net.project(F.hardswish(y * gate(net, y))) + x)  # type: ignore[no-any-return]

    return read(
        body,
        stem=conv(3, 4, 3),
        expand=conv(4, 8),
        bn1=nn.BatchNorm2d(8),
        depthwise=conv(8, 8, 5, groups=8),
        bn2=nn.BatchNorm2d(8),
        project=conv(8, 4),
        head=conv(4, 2),
        **layers,
    )


def gate_of_convolutions(net: Any, y: Tensor) -> Tensor:
    return net.scale(net.fc2(F.relu(net.fc1(net.pool(y)))))  # type: ignore[no-any-return]


def gate_of_linear_layers(net: Any, y: Tensor) -> Tensor:
    squeezed = net.pool(y).view(y.size(0), 8)
    return net.scale(net.fc2(F.relu(net.fc1(squeezed)))).view(y.size(0), 8, 1, 1)  # type: ignore[no-any-return]


def gate_of_means(net: Any, y: Tensor) -> Tensor:
    squeezed = y.mean((2, 3), keepdim=True)
    return net.scale(net.fc2(net.fc1(squeezed).relu_()))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("gate", "linear"),
    [
        pytest.param(gate_of_convolutions, False, id="convolutions"),
        pytest.param(gate_of_linear_layers, True, id="linear layers"),
        pytest.param(gate_of_means, False, id="means"),
    ],
)
def test_inverted_residual_with_squeeze_and_excite(gate: Body, linear: bool) -> None:
    kind: Callable[[int, int], nn.Module] = nn.Linear if linear else conv
    layers = {"pool": nn.AdaptiveAvgPool2d(1), "fc1": kind(8, 2), "fc2": kind(2, 8), "scale": nn.Hardsigmoid()}
    found = inverted_residual(gate, **layers)
    assert found.prunable == ("expand", "fc1")  # squeezing layers may lose filters as any others
    assert found.norms == {"bn1": "expand", "bn2": "expand"}
    roles = found.roles
    assert {name: roles[name].leader for name in roles if roles[name].leader} == {
        "depthwise": "expand",
        "fc2": "expand",
    }
    assert {name: roles[name].producer for name in roles if roles[name].producer} == {
        "depthwise": "expand",
        "fc1": "expand",
        "project": "expand",
        "fc2": "fc1",
    }
    signed = {"stem", "expand", "depthwise", "fc1", "project", "head"}  # all but what reads a ReLU
    assert {name for name, role in roles.items() if role.signed_input} == signed
    assert {name for name, role in roles.items() if role.normalized} == {"expand", "depthwise"}
    assert found.obstacles["stem"] == "they are added to those of another layer"


def test_without_a_gate_the_depthwise_convolution_follows_alone() -> None:
    found = inverted_residual(lambda net, y: torch.sigmoid(y))
    assert found.prunable == ("expand",)
    assert found.roles["depthwise"] == Role(producer="expand", leader="expand", signed_input=True, normalized=True)
    assert found.roles["project"].producer == "expand"


def test_two_factors_live_and_die_together() -> None:
    """The layer that is executed first is the producer."""

    def body(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.last(net.one(x).sigmoid() * net.other(x))  # type: ignore[no-any-return]

    found = read(body, stem=conv(3, 4), one=conv(4, 6), other=conv(4, 6), last=conv(6, 2))
    assert found.prunable == ("stem", "one")
    assert (found.roles["other"].leader, found.roles["one"].leader) == ("one", None)
    assert found.roles["last"].producer == "one"


# --- obstacles --------------------------------------------------------------------------------------------------


def second(net: Any, x: Tensor) -> Tensor:
    return torch.cat([x, x], 1)[:, :8]


BLOCKING: dict[str, tuple[Body, dict[str, nn.Module], str]] = {
    "concatenation": (second, {}, "the operation 'cat' reads them"),
    "channels cut off": (lambda net, x: x[:, torch.arange(8)], {}, "the operation 'getitem' reads them"),
    "two halves": (
        lambda net, x: torch.cat([x.chunk(2, 1)[0], x.chunk(2, 1)[1]], 1),
        {},
        "the operation 'chunk' reads them",
    ),
    "PReLU, a slope a channel": (
        lambda net, x: net.prelu(x),
        {"prelu": nn.PReLU(8)},
        "the operation 'prelu' reads them",
    ),
    "group normalisation": (
        lambda net, x: net.norm(x),
        {"norm": nn.GroupNorm(2, 8)},
        "the operation 'groupnorm' reads them",
    ),
    "channels shuffled": (
        lambda net, x: net.shuffle(x),
        {"shuffle": nn.ChannelShuffle(2)},
        "the operation 'channelshuffle' reads them",
    ),
    "softmax over channels": (lambda net, x: x.softmax(1), {}, "the operation 'softmax' reads them"),
    "another addition": (
        lambda net, x: x + net.other(x),
        {"other": conv(8, 8)},
        "they are added to those of another layer",
    ),
    "another addition in place": (
        lambda net, x: x.add_(net.other(x)),
        {"other": conv(8, 8)},
        "they are added to those of another layer",
    ),
    "difference": (lambda net, x: x - net.other(x), {"other": conv(8, 8)}, "they are added to those of another layer"),
    "quotient": (lambda net, x: x / net.other(x), {"other": conv(8, 8)}, "the operation 'truediv' reads them"),
    "grouped reader": (
        lambda net, x: net.other(x),
        {"other": conv(8, 8, groups=2)},
        "'other' is a convolution in 2 groups",
    ),
    "depthwise with a multiplier": (
        lambda net, x: net.other(x)[:, :8],
        {"other": conv(8, 16, groups=8)},
        "'other' is a convolution in 8 groups",
    ),
    "a map for all channels": (lambda net, x: x * x.mean(1, keepdim=True), {}, "the operation 'mean' reads them"),
    "mean over the channels, as many as rows": (
        lambda net, x: x.mean(1).unsqueeze(1).expand(-1, 8, -1, -1),
        {},
        "the operation 'mean' reads them",
    ),
    "sum over everything": (lambda net, x: x * x.sum(), {}, "the operation 'sum' reads them"),
    "factors that meet the columns, as many as channels": (
        lambda net, x: x * x.mean((2, 3)),
        {},
        "the operation 'mul' reads them",
    ),
    "channels turned to rows": (lambda net, x: x.mT + x.mT, {}, "the operation 'getattr' reads them"),
    "reshaped": (lambda net, x: x.reshape(1, 8, 64, 1), {}, "the operation 'reshape' reads them"),
}


@pytest.mark.parametrize("case", BLOCKING)
def test_what_keeps_filters_from_going(case: str) -> None:
    change, layers, reason = BLOCKING[case]
    found = between(change, **layers)
    assert "first" not in found.prunable
    assert found.obstacles["first"] == reason
    assert found.roles["last"].producer is None


class TwoOutputs(nn.Module):
    """The last layer reads one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(3, 8), conv(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return self.last(x), x.relu()


def test_what_the_network_returns_stays() -> None:
    found = analyse(TwoOutputs(), torch.zeros(1, 3, 4, 4), name="net")
    assert found.prunable == ()
    assert found.obstacles == dict.fromkeys(("first", "last"), "they are the network's output")


def test_a_grouped_convolution_decides_about_nothing() -> None:
    found = between(lambda net, x: net.other(x), other=conv(8, 8, groups=4))
    assert found.prunable == ()
    assert found.obstacles["other"] == "'other' is a convolution in 4 groups"
    assert found.roles["other"].leader is None


def test_depthwise_convolution_of_the_image_stays() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        return net.last(net.first(x))  # type: ignore[no-any-return]

    found = read(body, first=conv(3, 3, 3, groups=3), last=conv(3, 2))
    assert found.prunable == ()
    assert found.roles["first"] == Role(signed_input=True)
    assert found.roles["last"].producer is None


def test_what_no_layer_reads_stays() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        x = net.first(x)
        net.unread(x)
        return net.last(x)  # type: ignore[no-any-return]

    found = read(body, first=conv(3, 8), unread=conv(8, 4), last=conv(8, 2))
    assert found.prunable == ("first",)
    assert found.obstacles["unread"] == "no layer reads them"


def test_a_normalisation_that_two_layers_share_keeps_both() -> None:
    """Its parameters belong to the channels of both."""

    def body(net: Any, x: Tensor) -> Tensor:
        return net.last(net.norm(net.second(net.norm(net.first(x)))))  # type: ignore[no-any-return]

    found = read(body, first=conv(3, 8), second=conv(8, 8), norm=nn.BatchNorm2d(8), last=conv(8, 2))
    assert found.prunable == () and found.norms == {}
    assert found.obstacles["first"] == found.obstacles["second"] == "the normalisation 'norm' also reads other channels"


def test_linear_layers_lose_hidden_units() -> None:
    found = between(lambda net, x: net.other(x.mean((2, 3))).view(1, 8, 1, 1), other=nn.Linear(8, 8))
    assert found.prunable == ("first", "other")
    assert (found.roles["other"].producer, found.roles["last"].producer) == ("first", "other")


class Tokens(nn.Module):
    """Two linear layers on the channels of a map, which are its last dimension, or on another one."""

    def __init__(self, between_them: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.fc1, self.fc2, self.last = conv(3, 4), nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.between_them = between_them

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = self.between_them(self.fc1(tokens))
        return self.last(self.fc2(tokens).amax(1))  # type: ignore[no-any-return]


# By case: what happens between the two layers on (1, 4, 8), whether hidden units may go, whether the result is signed.
OVER_TOKENS: dict[str, tuple[Callable[[Tensor], Tensor], bool, bool]] = {
    "nothing": (lambda x: x, True, True),
    "GELU": (F.gelu, True, True),
    "ReLU": (lambda x: x.relu(), True, False),
    "dropout": (lambda x: F.dropout(F.relu(x), 0.5, training=False), True, False),
    "a number": (lambda x: x / 2, True, True),
    "a gate of its own": (lambda x: x * x.sigmoid(), True, True),
    "view of the same shape": (lambda x: x.view(1, 4, 8), False, True),
    "softmax over hidden units": (lambda x: x.softmax(-1), False, False),
    "softmax over tokens": (lambda x: x.softmax(1), True, False),
    "layer norm": (lambda x: F.layer_norm(x, (8,)), False, True),
    "transposed twice": (lambda x: x.transpose(1, 2).transpose(1, 2), False, True),
    "other tokens": (lambda x: x[:, 1:], False, True),
    "half of the units": (lambda x: torch.cat([x[:, :, :4], x[:, :, 4:]], 2), False, True),
    "mean over units": (lambda x: x + x.mean(2, keepdim=True), False, True),
    "pooling": (lambda x: F.max_pool1d(x, 1), False, True),
    "pooling of a map": (lambda x: F.adaptive_avg_pool2d(x, (4, 8)), False, True),
    "the tokens' dimension": (lambda x: F.linear(x.transpose(1, 2), torch.eye(4)).transpose(1, 2), False, True),
}


@pytest.mark.parametrize("case", OVER_TOKENS)
def test_hidden_units_of_layers_over_tokens(case: str) -> None:
    change, kept, signed = OVER_TOKENS[case]
    found = analyse(Tokens(change).eval(), torch.zeros(1, 3, 2, 2), name="net")
    assert found.prunable == (("fc1",) if kept else ())
    assert found.roles["fc2"].producer == ("fc1" if kept else None)
    assert found.roles["fc2"].signed_input == signed


def test_a_linear_layer_over_another_dimension_is_no_reader_of_channels() -> None:
    """The channels of a convolution are its second dimension; a linear layer on a map reads the last one."""
    found = between(lambda net, x: net.other(x.relu()), other=nn.Linear(8, 8))
    assert found.prunable == ()
    assert found.obstacles["first"] == "'other' reads another dimension"


def pooled(net: Any, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


ONTO_LINEAR: dict[str, tuple[Body, bool]] = {
    "flatten of a 1×1 map": (lambda net, x: torch.flatten(pooled(net, x), 1), True),
    "view of a 1×1 map": (lambda net, x: pooled(net, x).view(x.size(0), -1), True),
    "reshape of a 1×1 map": (lambda net, x: pooled(net, x).reshape(x.shape[0], 8), True),
    "squeeze": (lambda net, x: pooled(net, x).squeeze(-1).squeeze(-1), True),
    "mean": (lambda net, x: x.mean([2, 3]), True),
    "mean from behind": (lambda net, x: x.mean(dim=(-2, -1)), True),
    "largest": (lambda net, x: x.amax((2, 3)), True),
    "one after the other": (lambda net, x: x.sum(2).sum(2), True),
    "flatten of a 2×2 map": (lambda net, x: torch.flatten(F.adaptive_max_pool2d(x, (2, 1)), 1)[:, :8], False),
    "view of the whole map": (lambda net, x: x.view(1, -1)[:, :8], False),
}


@pytest.mark.parametrize("case", ONTO_LINEAR)
def test_linear_readers(case: str) -> None:
    """Groups can lose inputs if each has one channel."""
    change, kept = ONTO_LINEAR[case]
    found = between(change, last=nn.Linear(8, 4))
    assert found.prunable == (("first",) if kept else ())
    assert found.roles["last"].producer == ("first" if kept else None)


# --- operations that leave channels alone, and signs -----------------------------------------------------------


def after_relu(change: Body) -> Body:
    return lambda net, x: change(net, x.relu())


# By case: what happens between convolution and reader, whether the result can be negative.
HARMLESS: dict[str, tuple[Body, bool]] = {
    "nothing": (lambda net, x: x, True),
    "relu": (lambda net, x: torch.relu(x), False),
    "relu, method": (lambda net, x: x.relu(), False),
    "relu, in place": (lambda net, x: F.relu(x, inplace=True), False),
    "relu, method in place": (lambda net, x: x.relu_(), False),
    "relu, module": (lambda net, x: net.act(x), False),
    "relu6": (lambda net, x: F.relu6(x), False),
    "sigmoid": (lambda net, x: x.sigmoid(), False),
    "hard sigmoid": (lambda net, x: F.hardsigmoid(x), False),
    "hard swish": (lambda net, x: F.hardswish(x), True),
    "hard swish, in place": (lambda net, x: F.hardswish(x, inplace=True), True),
    "silu": (lambda net, x: F.silu(x), True),
    "gelu": (lambda net, x: F.gelu(x), True),
    "mish": (lambda net, x: F.mish(x), True),
    "tanh": (lambda net, x: torch.tanh(x), True),
    "leaky relu": (lambda net, x: F.leaky_relu(x, 0.1), True),
    "elu": (lambda net, x: F.elu(x), True),
    "bounds": (lambda net, x: F.hardtanh(x), True),
    "maximum of anything": (lambda net, x: F.max_pool2d(x, 2), True),
    "maximum of relu": (after_relu(lambda net, x: F.max_pool2d(x, 2)), False),
    "mean of relu": (after_relu(lambda net, x: F.avg_pool2d(x, 2)), False),
    "mean of the map": (after_relu(lambda net, x: F.adaptive_avg_pool2d(x, 1)), False),
    "dropout": (after_relu(lambda net, x: F.dropout(x, 0.1)), False),
    "dropout of channels": (after_relu(lambda net, x: F.dropout2d(x, 0.1)), False),
    "a copy": (after_relu(lambda net, x: x.clone().contiguous()), False),
    "relu twice, added": (after_relu(lambda net, x: x + x.sigmoid()), False),
    "relu twice, subtracted": (after_relu(lambda net, x: torch.add(x, x.sigmoid(), alpha=-1)), True),
    "relu and anything, added": (lambda net, x: x.relu() + x, True),
    "relu, gated": (after_relu(lambda net, x: x * x.sigmoid()), False),
    "relu, gated in place": (after_relu(lambda net, x: x.mul_(x.sigmoid())), False),
    "relu and anything, multiplied": (lambda net, x: torch.mul(x.relu(), x), True),
    "a number added": (after_relu(lambda net, x: x + 0.5), True),
    "a number taken away": (after_relu(lambda net, x: torch.add(x, -0.5)), True),
    "a number multiplied": (after_relu(lambda net, x: 0.5 * x), True),
    "normalisation of relu": (after_relu(lambda net, x: net.norm(x)), True),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless_operations_and_their_signs(case: str) -> None:
    change, signed = HARMLESS[case]
    found = between(change, act=nn.ReLU(inplace=True), norm=nn.BatchNorm2d(8))
    assert found.prunable == ("first",)
    assert found.roles["last"] == Role(producer="first", signed_input=signed)


MODULES = {
    "relu": (nn.ReLU(), False),
    "relu6": (nn.ReLU6(inplace=True), False),
    "sigmoid": (nn.Sigmoid(), False),
    "hard sigmoid": (nn.Hardsigmoid(), False),
    "hard swish": (nn.Hardswish(), True),
    "silu": (nn.SiLU(), True),
    "gelu": (nn.GELU(), True),
    "leaky relu": (nn.LeakyReLU(0.1), True),
    "identity": (nn.Identity(), True),
    "dropout": (nn.Dropout2d(0.2), True),
    "maximum": (nn.MaxPool2d(2), True),
    "mean": (nn.AvgPool2d(2), True),
    "mean of the map": (nn.AdaptiveAvgPool2d(1), True),
    "relu, then maximum": (nn.Sequential(nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Dropout(0.1)), False),
}


@pytest.mark.parametrize("case", MODULES)
def test_harmless_modules_and_their_signs(case: str) -> None:
    module, signed = MODULES[case]
    found = between(lambda net, x: net.act(x), act=module)
    assert found.prunable == ("first",)
    assert found.roles["last"] == Role(producer="first", signed_input=signed)


@pytest.mark.parametrize("case", sorted(HARMLESS))
def test_no_sign_is_claimed_that_is_wrong(case: str) -> None:
    """An input that counts as non-negative has no negative value."""
    change, signed = HARMLESS[case]
    net = Net(change, act=nn.ReLU(inplace=True), norm=nn.BatchNorm2d(8)).eval()
    values = 3 * torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert signed or float(net(values).min()) >= 0


def test_a_normalisation_belongs_to_the_one_layer_that_it_alone_reads() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        x = net.first(x)
        return net.last(net.norm(x) * x)  # type: ignore[no-any-return]

    found = read(body, first=conv(3, 8), norm=nn.BatchNorm2d(8), last=conv(8, 2))
    assert not found.roles["first"].normalized
    assert found.norms == {"norm": "first"}


@pytest.mark.parametrize(
    ("kernel", "shared", "added"), [(3, True, True), (1, False, True), (1, True, False), (1, True, True)]
)
def test_what_a_shortcut_is(kernel: int, shared: bool, added: bool) -> None:
    """A 1×1 convolution that shares its input with another layer and whose output is added."""

    def body(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        way = net.way(x) if shared else net.way(x.relu())
        side = net.side(x)
        return net.head(way + side if added else way + side.relu())  # type: ignore[no-any-return]

    found = read(body, stem=conv(3, 4), way=conv(4, 4, 3), side=conv(4, 4, kernel), head=conv(4, 2))
    assert found.roles["side"].shortcut == (kernel == 1 and shared and added)
    assert not found.roles["way"].shortcut


# --- networks that cannot be read -------------------------------------------------------------------------------


def depending_on_data(net: Any, x: Tensor) -> Tensor:
    x = net.norm(net.first(x)).relu()
    return net.last(x if x.sum() > -1 else -x)  # type: ignore[no-any-return]


def untraceable() -> Net:
    return Net(depending_on_data, first=conv(3, 8), norm=nn.BatchNorm2d(8), last=conv(8, 2))


def test_a_network_that_cannot_be_traced_is_not_pruned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        network = trace(untraceable(), (3, 8, 8), name="odd", dataset="none")
    (message,) = caplog.messages
    assert "model 'odd' cannot be traced symbolically, so its filters cannot be pruned" in message
    assert [layer.name for layer in network.layers] == ["first", "last"]
    for layer in network.layers:
        assert layer.signed_input and not layer.normalized  # a norm follows the first, but nothing shows it
        assert (layer.prunable, layer.producer, layer.leader, layer.shortcut) == (False, None, None, False)
    assert network.norms == ()
    assert set(uniform(network, 4).layers) == {"first", "last"}  # and it is still priced and quantized


def test_what_cannot_be_read_cannot_be_stated_either() -> None:
    model = untraceable()
    model.prunable = ("first",)  # type: ignore[assignment]
    with pytest.raises(BenchError, match="'first' in `prunable`, but it is"):
        trace(model, (3, 8, 8), name="odd", dataset="none")


# --- what becomes of it in the network --------------------------------------------------------------------------


class Plain(nn.Sequential):
    """Convolutions one after another, and a classifier."""

    def __init__(self) -> None:
        super().__init__(
            conv(3, 8), nn.ReLU(), conv(8, 6), nn.ReLU(), conv(6, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 2),
        )  # fmt: skip


def test_the_edges_keep_their_channels() -> None:
    """Searches do not mask the input of the last layer, so the filters that it reads are kept."""
    network = trace(Plain(), (3, 8, 8), name="plain", dataset="none")
    assert [layer.name for layer in network.layers if layer.prunable] == ["2"]
    assert {layer.name: layer.producer for layer in network.layers} == {"0": None, "2": None, "4": "2", "7": None}


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ("0", "it is the first layer"),
        ("4", "the last layer, '7', reads them"),
        ("7", "it is the last layer"),
        ("1", "it is no layer with filters of its own"),
    ],
)
def test_a_statement_that_cannot_hold_is_refused(stated: str, reason: str) -> None:
    model = Plain()
    model.prunable = ("2", stated)  # type: ignore[assignment]
    with pytest.raises(BenchError, match=f"model 'plain' lists '{stated}' in `prunable`, but {reason}"):
        trace(model, (3, 8, 8), name="plain", dataset="none")


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = Plain().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, (3, 8, 8), name="plain", dataset="none")
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- our networks -----------------------------------------------------------------------------------------------


@cache
def network_of(model: str, size: int = 32) -> NetworkShape:
    return trace(build_model(model, (3, size, size), 10), (3, size, size), name=model, dataset="none")


MOBILE = ("mobilenet_v2", "mobilenet_v3_large")
EXPECTED: dict[str, list[str]] = {
    "resnet8": [f"stages.{stage}.0.conv1" for stage in range(3)],
    "resnet20": [f"stages.{stage}.{block}.conv1" for stage in range(3) for block in range(3)],
    "resnet56": [f"stages.{stage}.{block}.conv1" for stage in range(3) for block in range(9)],
    "resnet18": [f"layer{stage}.{block}.conv1" for stage in range(1, 5) for block in range(2)],
    "resnet50": [
        f"layer{stage}.{block}.conv{number}"
        for stage, blocks in enumerate((3, 4, 6, 3), 1)
        for block in range(blocks)
        for number in (1, 2)
    ],
    "mobilenet_v2": [f"features.{block}.conv.0.0" for block in range(2, 18)],
    "mobilenet_v3_large": [f"features.{block}.block.0.0" for block in range(2, 16)],
}


@pytest.mark.parametrize("model", EXPECTED)
def test_which_layers_of_our_networks_may_lose_filters(model: str) -> None:
    network = network_of(model)
    assert [layer.name for layer in network.layers if layer.prunable] == EXPECTED[model]
    assert {layer for _, layer in network.norms} == set(EXPECTED[model])
    assert network.group_size == (4 if model in ("resnet8", "resnet20", "resnet56") else 8 if model in MOBILE else 16)


@pytest.mark.parametrize("model", [model for model in EXPECTED if model not in MOBILE])
def test_in_residual_networks_only_shortcuts_are_shortcuts(model: str) -> None:
    network = network_of(model)
    assert {layer.name for layer in network.layers if layer.shortcut} == {
        layer.name for layer in network.layers if "downsample" in layer.name
    }
    assert {"resnet50": 4, "resnet18": 3}.get(model, 2) == sum(layer.shortcut for layer in network.layers)
    # Nothing leads, and all but the image comes from a ReLU.
    assert {layer.leader for layer in network.layers} == {None}
    assert [layer.name for layer in network.layers if layer.signed_input] == ["conv1"]
    assert [layer.name for layer in network.layers if not layer.normalized] == ["fc"]


@pytest.mark.parametrize("model", MOBILE)
def test_in_mobile_networks_the_rest_of_a_block_follows_its_expansion(model: str) -> None:
    network = network_of(model)
    part = "conv" if model == "mobilenet_v2" else "block"
    for expansion in EXPECTED[model]:
        block = expansion.removesuffix("0.0")
        of_block = [layer for layer in network.layers if layer.name.startswith(block)]
        gated = any(layer.name.endswith("fc2") for layer in of_block)
        led = [layer.name for layer in of_block if layer.leader == expansion]
        assert led == [f"{block}1.0", *([f"{block}2.fc2"] if gated else [])]
        reading = [layer.name for layer in of_block if layer.producer == expansion]
        projection = f"{block}{3 if gated else 2}.0" if part == "block" else f"{block}2"
        assert reading == [f"{block}1.0", *([f"{block}2.fc1"] if gated else []), projection]
        assert sum(layer.depthwise for layer in of_block) == 1
    assert sum(layer.leader is not None for layer in network.layers) == {"mobilenet_v2": 16}.get(model, 14 + 8)
    assert not any(layer.shortcut for layer in network.layers)


def test_signs_in_mobile_networks() -> None:
    """Expansions read sums of normalised values; after ReLU6 nothing is negative, after hard-swish much is."""
    second = network_of("mobilenet_v2")
    of_second = {layer.name for layer in second.layers if not layer.signed_input}
    assert of_second == {
        layer.name
        for layer in second.layers
        if layer.depthwise or layer.name == "classifier.1" or layer.producer or layer.name == "features.1.conv.1"
    }
    third = network_of("mobilenet_v3_large")
    plain = {layer.name for layer in third.layers if not layer.signed_input}
    blocks = {f"features.{block}.block." for block in range(1, 7)}  # those with ReLU
    assert {name for name in plain if not name.endswith("fc2")} == {
        layer.name
        for layer in third.layers
        if any(layer.name.startswith(block) for block in blocks)
        and not layer.name.endswith("fc2")
        and (layer.depthwise or layer.producer or layer.name == "features.1.block.1.0")
    } - {"features.1.block.0.0"}
    assert {layer.name for layer in third.layers if layer.name.endswith("fc2")} <= plain
