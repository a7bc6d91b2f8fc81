"""`bench cost`: one policy or two, as tables and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.compression.policy import Policy, uniform
from bench.compression.space_size import policies
from bench.planning.networks import model_shape

Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("cost", "give one of --bits N, --policy FILE and --diff A B"),
        ("cost --bits 4 --policy p.json", "give one of --bits N, --policy FILE and --diff A B"),
        ("cost --bits 4 --diff 4bit 8bit", "give one of --bits N, --policy FILE and --diff A B"),
        ("cost --bits 4 --json --long", "--long adds a table for one policy; leave it out with --json"),
        ("cost --diff 4bit 8bit --long", "--long adds a table for one policy; leave it out with --diff"),
        ("cost --bits 33", "'--bits': 33 is not in the range"),
        ("cost --bits 4 --model resnet21", "unknown model 'resnet21'"),
        ("cost --bits 4 --dataset cifar", "unknown dataset 'cifar': did you mean 'cifar10"),
        ("cost --policy missing.json", "cannot read the policy file 'missing.json': No such file"),
        ("cost --bits 4 --by flops", "'flops' is not one of 'bops', 'memory', 'latency', 'energy'"),
        ("cost --bits 4 --by memory --json", "--by memory chooses what the table shows; it has no effect with --json"),
        ("cost --bits 16 --by latency", "weight_bits is 16; allowed on bf_e: 1 to 8; allowed here: bops, memory"),
        ("cost --bits 4 --hardware bf_f", "unknown hardware 'bf_f': did you mean 'bf_"),
        ("cost --bits 4 --hardware none.toml", "cannot read the hardware configuration 'none.toml'"),
        ("cost --bits 4 --batch 0", "'--batch': 0 is not in the range"),
        ("cost --bits 4 --depthwise none", "'none' is not one of 'dense', 'channelwise'"),
        ("cost --bits 4 --model here.nets:make", "cannot load model 'here.nets:make'"),
        ("cost --diff 4bit", "Option '--diff' requires 2 arguments"),
        ("cost --diff 4bit 33bit", "--diff '33bit': bits go from 1 to 32"),
        ("cost --diff 4bit 8bits", "cannot read the policy file '8bits': No such file or directory; --diff takes"),
    ],
)
def test_bad_usage_is_one_clear_line(bench: Command, arguments: str, message: str) -> None:
    assert message in bench(*arguments.split()).refusal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must be an object with dataset, layers, model"),
        ('{"model": "resnet8", "dataset": "digits"}', "lacks 'layers'"),
        ('{"model": "resnet8", "dataset": "digits", "layer": {}}', "'layer': did you mean 'layers'?"),
        ('{"model": "resnet8", "dataset": "digits", "layers": {}}', "must be a non-empty object of layer names"),
        (
            '{"model": "resnet8", "dataset": "digits", "layers": {"conv1": {"weight_bits": 0, "activation_bits": 8, '
            '"kept_filters": null}}}',
            "weight_bits is 0; allowed: a whole number from 1 to 32",
        ),
        (
            '{"model": "resnet8", "dataset": "digits", "layers": {"conv1": {"weight_bits": 8, "activation_bits": 8, '
            '"kept_filters": null}}}',
            "the policy has no entry for layer",
        ),
    ],
)
def test_a_malformed_policy(bench: Callable[..., Any], tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "policy.json").write_text(content)
    assert message in bench("cost", "--policy", tmp_path / "policy.json").refusal


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """ResNet-8 at 4 bits, one layer at 2/8 bits with half of its 16 filters."""
    network = model_shape("resnet8", "digits")
    policy = uniform(network, 4).with_layer(
        "stages.0.0.conv1", weight_bits=2, activation_bits=8, kept_filters=tuple(range(8))
    )
    return written(policy, tmp_path / "pruned.json")


def written(policy: Policy, file: Path) -> Path:
    file.write_text(json.dumps(policy.to_json()))
    return file


def test_as_json_integers_are_exact(bench: Command) -> None:
    found = json.loads(bench("cost", "--model", "resnet20", "--dataset", "cifar100", "--bits", 4, "--json").out)
    assert list(found) == [
        *("model", "dataset", "macs", "bops", "memory_bits", "memory_kb", "peak_memory_bits", "parameters"),
        *("unquantized", "latency_ms", "energy_mj", "hardware", "batch", "depthwise", "search_space", "layers"),
    ]
    assert (found["macs"], found["bops"], found["memory_bits"]) == (40_818_944, 674_643_968, 1_994_624)
    assert (found["memory_kb"], found["parameters"]) == (249.328, 276_656)
    assert found["peak_memory_bits"] == (276_656 - 6_832) * 4 + 6_832 * 8 + 16 * 32 * 32 * 4
    assert (found["hardware"], found["batch"], found["depthwise"]) == ("bf_e", 16, "dense")
    assert found["search_space"] == policies(model_shape("resnet20", "cifar100"))
    layers = found["layers"]
    assert [layer["name"] for layer in layers][:2] == ["conv1", "stages.0.0.conv1"] and len(layers) == 22
    for total in ("macs", "bops", "memory_bits", "parameters"):
        assert all(isinstance(layer[total], int) for layer in layers)
        assert sum(layer[total] for layer in layers) == found[total]
    assert all(layer["bops"] == layer["macs"] * layer["weight_bits"] * layer["activation_bits"] for layer in layers)
    assert all(isinstance(layer[key], int) for layer in layers for key in ("cycles", "dram_bits"))
    assert found["latency_ms"] == pytest.approx(sum(layer["cycles"] for layer in layers) / 500e3 / 16)
    assert found["energy_mj"] == pytest.approx(sum(layer["energy_nj"] for layer in layers) / 1e6 / 16)


def test_as_json_what_the_accelerator_lacks_is_null(bench: Command) -> None:
    found = json.loads(bench("cost", "--model", "resnet8", "--dataset", "digits", "--bits", 32, "--json").out)
    assert found["latency_ms"] is found["energy_mj"] is None
    keys = ("cycles", "dram_bits", "energy_nj")
    assert all(layer[key] is None for layer in found["layers"] for key in keys)


def test_hardware_batch_and_depthwise_mode_are_chosen(bench: Command, tmp_path: Path) -> None:
    def figures(*options: object) -> tuple[Any, ...]:
        found = json.loads(bench("cost", "--bits", 8, "--model", "mobilenet_v3_large", "--json", *options).out)
        return found["latency_ms"], found["hardware"], found["batch"], found["depthwise"]

    usual = figures()
    assert usual[1:] == ("bf_e", 16, "dense")
    dense, channelwise = usual[0], figures("--depthwise", "channelwise")
    assert channelwise[0] < dense and channelwise[3] == "channelwise"
    assert figures("--hardware", "bf_s")[0] < dense
    assert figures("--batch", 1)[0] != dense
    slow = (Path(__file__).parents[3] / "bench/costs/accelerator/configurations/bf_e.toml").read_text()
    (tmp_path / "slow.toml").write_text(slow.replace("frequency_hz = 500_000_000", "frequency_hz = 250_000_000"))
    assert figures("--hardware", tmp_path / "slow.toml")[0] == pytest.approx(2 * dense)


def test_a_policy_file_as_a_run_keeps_it(bench: Command, finished: Any) -> None:
    record = finished.record("sbs 0")
    file = finished.store.unit("runs", record["id"]) / "policy.json"
    found = json.loads(bench("cost", "--policy", file, "--json").out)
    assert (found["model"], found["dataset"]) == ("resnet8", "synthetic")
    assert (found["bops"], found["memory_bits"]) == (record["metrics"]["bops"], record["metrics"]["memory_bits"])


def test_a_policy_file_says_what_it_is_for(bench: Command, pruned: Path) -> None:
    message = bench("cost", "--policy", pruned, "--model", "resnet20").refusal
    assert message == "--model resnet20 contradicts the policy, which is for resnet8; leave it out"
    assert bench("cost", "--policy", pruned, "--model", "resnet8").status == 0


def test_as_a_table(bench: Command) -> None:
    answer = bench("cost", "--bits", 32)
    assert answer.status == 0
    assert "resnet20 on cifar100, for one image: 41,798.6 M BOPs" in answer.out and "41,798,598,656" in answer.out
    assert "Latency and energy: bf_e, batch 16, depthwise dense" in answer.out
    assert "not known for 22 layers; the first is 'conv1': weight_bits is 32" in answer.out
    assert "policies with candidates 2, 4, 8 and groups of 4" in answer.out


def long_lines(bench: Command, monkeypatch: pytest.MonkeyPatch, *options: object) -> dict[str, str]:
    """Return, by layer, the number of filters and whether they may go."""
    monkeypatch.setenv("COLUMNS", "200")
    answer = bench("cost", "--bits", 4, "--long", *options)
    assert answer.status == 0, answer.err
    lines = [line.split(maxsplit=1) for line in answer.out.partition("May lose filters")[2].splitlines()]
    return {line[0]: " ".join(line[1].split()) for line in lines if len(line) == 2}


def test_which_layers_may_lose_filters(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    found = long_lines(bench, monkeypatch, "--model", "resnet8", "--dataset", "digits")
    network = model_shape("resnet8", "digits")
    assert {name: found[name] for name in (layer.name for layer in network.layers)} == {
        "conv1": "16 no: it is the first layer",
        "stages.0.0.conv1": "16 yes",
        "stages.0.0.conv2": "16 no: they are added to those of another layer",
        "stages.1.0.conv1": "32 yes",
        "stages.1.0.conv2": "32 no: they are added to those of another layer",
        "stages.1.0.downsample.0": "32 no: they are added to those of another layer",
        "stages.2.0.conv1": "64 yes",
        "stages.2.0.conv2": "64 no: they are added to those of another layer",
        "stages.2.0.downsample.0": "64 no: they are added to those of another layer",
        "fc": "10 no: it is the last layer",
    }
    assert found["·"].startswith("112 filters of 3 layers may be removed, by default in groups of 4")


KINDS = """
import torch
import torch.nn.functional as F
from torch import nn


class Kinds(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.expand = nn.Conv2d(8, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 8, 1, groups=4)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.last_but_one = nn.Conv2d(8, 6, 1)
        self.after = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc = nn.Linear(6, classes)

    def forward(self, images):
        x = self.depthwise(self.expand(self.stem(images)))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = self.grouped(x) if self.with_groups else self.expand.weight.new_zeros(1) + x[:, :8]
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.fc(self.after(self.last_but_one(x)).mean((2, 3)))

    with_groups = True


def make(channels, classes):
    return Kinds(channels, classes)


def listed(channels, classes):
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(),
        nn.Linear(256, classes),
    )
    model.prunable = ["1"]
    return model


class Unreadable(nn.Sequential):
    def forward(self, images):
        return super().forward(images * 2 if images.sum() > 0 else images)


def unreadable(channels, classes):
    return Unreadable(nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(256, classes))
"""


def test_why_layers_may_not_lose_filters(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nets_of_all_kinds.py").write_text(KINDS)
    monkeypatch.syspath_prepend(str(Path.cwd()))

    def lines(function: str) -> dict[str, str]:
        return long_lines(bench, monkeypatch, "--model", f"nets_of_all_kinds:{function}", "--dataset", "digits")

    found = lines("make")
    assert found["expand"] == found["depthwise"] == found["excite"]
    assert found["expand"] == "12 no: 'grouped' is a convolution in 4 groups"
    assert found["squeeze"] == "3 yes"
    assert found["grouped"] == "8 no: 'grouped' is a convolution in 4 groups"
    assert found["left"] == found["right"] == "4 no: the operation 'cat' reads them"
    assert found["last_but_one"] == found["after"] == "6 no: the last layer, 'fc', reads them"
    found = lines("listed")
    assert (found["1"], found["2"]) == ("8 yes", "4 no: the model does not list it in `prunable`")
    assert lines("unreadable")["1"] == "4 no: the forward pass cannot be read"
    found = long_lines(bench, monkeypatch, "--model", "mobilenet_v3_large")
    expansion = next(name for name, words in found.items() if "yes, together with" in words)
    follower = found[expansion].rpartition(" ")[2]
    assert found[follower].endswith(f"only with {expansion}")


def test_a_model_of_ones_own(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_small_nets.py").write_text(
        "from torch import nn\n\n\ndef make(channels, classes):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    options = ("--model", "my_small_nets:make", "--dataset", "digits")
    answer = bench("cost", *options, "--bits", 8)
    assert answer.status == 0 and "my_small_nets:make on digits" in answer.out
    found = json.loads(bench("cost", *options, "--bits", 8, "--json").out)
    assert found["bops"] == 64 * (4 * 9 * 36 + 144 * 10) and found["search_space"] == 1


def test_the_difference_of_two_uniform_policies(bench: Command) -> None:
    options = ("--model", "resnet56", "--dataset", "cifar100", "--diff", "4bit", "3bit")
    found = json.loads(bench("cost", *options, "--json").out)
    assert (found["model"], found["dataset"], found["first"]["policy"]) == ("resnet56", "cifar100", "4bit")
    assert (found["first"]["bops"], found["second"]["bops"]) == (2_033_598_464, 1_156_464_640)
    assert found["second"]["memory_kb"] == 536.24
    assert found["difference_percent"]["bops"] == pytest.approx(-43.1321, abs=1e-4)
    assert len(found["layers"]) == 58
    middle = found["layers"][1]
    assert (middle["first"]["weight_bits"], middle["second"]["weight_bits"]) == (4, 3)
    assert middle["difference_percent"]["bops"] == pytest.approx(100 * (9 / 16 - 1))
    text = bench("cost", *options).out
    assert "resnet56 on cifar100: A is 4bit, B is 3bit" in text and "-43.1" in text


def test_the_difference_to_a_file_is_on_the_files_network(bench: Command, pruned: Path) -> None:
    found = json.loads(bench("cost", "--diff", "4bit", pruned, "--json").out)
    assert (found["model"], found["dataset"]) == ("resnet8", "digits")
    layer = found["layers"][1]
    assert (layer["first"]["filters"], layer["second"]["filters"]) == (16, 8)
    assert (layer["second"]["weight_bits"], layer["second"]["activation_bits"]) == (2, 8)
    assert layer["difference_percent"]["bops"] == pytest.approx(-50)
    assert found["layers"][2]["difference_percent"]["bops"] == pytest.approx(-50)  # it reads the filters that went
    assert "8 of 16" in bench("cost", "--diff", "4bit", pruned).out


def test_the_difference_of_what_cannot_be_priced_is_null(bench: Command) -> None:
    found = json.loads(bench("cost", "--model", "resnet8", "--diff", "8bit", "32bit", "--json").out)
    assert found["first"]["latency_ms"] > 0 and found["second"]["latency_ms"] is None
    assert found["difference_percent"]["latency_ms"] is None and found["difference_percent"]["bops"] > 0


def test_differences_that_make_no_sense(bench: Command, pruned: Path, tmp_path: Path) -> None:
    other = written(uniform(model_shape("resnet8", "cifar10"), 4), tmp_path / "other.json")
    message = bench("cost", "--diff", pruned, other).refusal
    assert (
        f"'{pruned}' is for resnet8 on digits, '{other}' for resnet8 on cifar10; both must be for the same" in message
    )
    short = json.loads(pruned.read_text())
    del short["layers"]["fc"]
    (tmp_path / "short.json").write_text(json.dumps(short))
    message = bench("cost", "--diff", "4bit", tmp_path / "short.json").refusal
    assert "short.json': the policy has no entry for layer 'fc' of resnet8" in message
    (tmp_path / "bad.json").write_text("{")
    assert "bad.json' is not valid JSON" in bench("cost", "--diff", "4bit", tmp_path / "bad.json").refusal
    assert "--dataset cifar10 contradicts" in bench("cost", "--diff", "4bit", pruned, "--dataset", "cifar10").refusal
