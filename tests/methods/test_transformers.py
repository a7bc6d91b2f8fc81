"""Methods on a transformer: layers of tokens and products are searched, heads and hidden units are pruned."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.compression.compress import QuantizedProduct, calibrate, compress
from bench.compression.quantizer import Shifted, clips_of, read_clips
from bench.costs.counter import price
from bench.costs.measures import BOPS, Measure, Memory
from bench.method import Method, SearchJob
from methods.bayesian_bits import BayesianBits
from methods.clado import Clado, CladoOptions
from methods.djpq import Djpq
from methods.dnas import Dnas
from methods.dq import Dq
from methods.edmips import Edmips
from methods.evopress import Evopress, EvopressOptions
from methods.fixed import Fixed
from methods.fliqs import Fliqs
from methods.geta import Geta
from methods.greedy import Greedy
from methods.haq import Haq, HaqOptions
from methods.hawq import Hawq
from methods.hawq_v3 import HawqV3
from methods.ip import Ip
from methods.joint_mps import JointMps
from methods.limpq import Limpq
from methods.multi_path import MultiPath
from methods.random_policy import RandomPolicy
from methods.sbs import Sbs, SbsOptions, search_space
from methods.shared.bit_sharing.network import SharedNetwork, Start

METHODS: dict[str, Callable[[], Method]] = {
    "sbs": Sbs,
    "fixed": Fixed,
    "random": RandomPolicy,
    "dnas": Dnas,
    "multi_path": MultiPath,
    "edmips": Edmips,
    "dq": Dq,
    "djpq": Djpq,
    "bayesian_bits": BayesianBits,
    "hawq": Hawq,
    "hawq_v3": HawqV3,
    "ip": Ip,
    "limpq": Limpq,
    "clado": lambda: Clado(CladoOptions(bits=(2, 4), batches=1)),
    "haq": lambda: Haq(HaqOptions(episodes=3, warmup_episodes=1)),
    "greedy": Greedy,
    "joint_mps": JointMps,
    "fliqs": Fliqs,
    "geta": Geta,
    "evopress": lambda: Evopress(EvopressOptions(generations=2, offspring=4, survivors=(1,), images=(8,), initial=4)),
}
WITHOUT_DECISIONS = {"fixed", "random", "hawq_v3", "ip", "limpq", "clado", "evopress"}


def products(model: nn.Module) -> list[QuantizedProduct]:
    return [module for module in model.modules() if isinstance(module, QuantizedProduct)]


def bits_of(quantizer: nn.Module) -> int:
    inner = quantizer.quantizer if isinstance(quantizer, Shifted) else quantizer
    return int(inner.bits)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_searches_a_transformer(compact_job: SearchJob, name: str) -> None:
    torch.manual_seed(0)
    method = METHODS[name]()
    result = method.search(
        replace(compact_job, knobs={"strength": 0.3, "bits": 4, "headroom": 0.0}, stage=compact_job.stage)
    )
    network = compact_job.task.network
    assert price(network, result.policy).bops > 0
    about = {(decision.layer, decision.what) for decision in result.decisions}
    names = [layer.name for layer in network.layers if layer.kind == "matmul"]
    chosen = {(product, what) for product in names for what in ("weight_bits", "activation_bits")}
    assert len(chosen) == 10 and (chosen <= about or name in WITHOUT_DECISIONS)
    model = compact_job.task.make_model()
    model.load_state_dict(dict(result.state))
    compressed = compress(model, network, result.policy, clips=result.clips, quantizer=method.quantizer)
    for product, module in zip(names, products(compressed), strict=True):
        choice = result.policy.layers[product]
        found = [bits_of(quantizer) for quantizer in (module.weight_quantizer, module.activation_quantizer)]
        assert found == [choice.weight_bits, choice.activation_bits]
    images = compact_job.task.data.calibration_batches(1, 16)[0]
    calibrate(compressed, images)
    assert bool(compressed.eval()(images).isfinite().all())


@pytest.mark.parametrize("measure", [BOPS, Memory()])
def test_the_differentiable_cost_is_the_exact_one(compact_job: SearchJob, measure: Measure) -> None:
    job = replace(compact_job, measure=measure)
    space = search_space(job.task.network, SbsOptions(), prune=True)
    network = SharedNetwork(job, space, SbsOptions().layer_settings(), Start(state=job.pretrained, clips={}))
    calibrate(network.model, job.task.data.calibration_batches(1, 8)[0])
    with torch.no_grad():
        for layer in network.layers.values():
            layer.weight_quantizer.thresholds.fill_(1.0 if layer.shape.kind == "matmul" else 0.02)
            if layer.filter_gates is not None:
                metric = layer.filter_gates.groups.metric(layer.weight)
                layer.filter_gates.threshold.copy_(metric.sort().values[(len(metric) - 1) // 2] * (1 + 1e-6))
        network.model(job.task.data.calibration_batches(1, 8)[0])
    policy = network.policy(network.decisions())
    kept = [choice.kept_filters for choice in policy.layers.values() if choice.kept_filters is not None]
    assert [len(filters) for filters in kept] == [1, 64, 1, 64]  # one of two heads, four of eight groups of units
    bits = {layer.shape.kind: layer.weight_quantizer.chosen_bits().item() for layer in network.layers.values()}
    assert bits["matmul"] == 2 < bits["linear"]
    assert network.relaxed_cost().item() == pytest.approx(measure.price(job.task.network, policy), rel=1e-12)


def test_learned_ranges_of_products_are_found_again(compact_job: SearchJob) -> None:
    job = compact_job
    space = search_space(job.task.network, SbsOptions(), prune=False)
    network = SharedNetwork(job, space, SbsOptions().layer_settings(), Start(state=job.pretrained, clips={}))
    calibrate(network.model, job.task.data.calibration_batches(1, 8)[0])
    policy = network.policy(network.decisions())
    clips = network.clips(policy)
    compressed = compress(job.float_model(), job.task.network, policy, clips=clips)
    names = [layer.name for layer in job.task.network.layers if layer.kind == "matmul"]
    for name, rebuilt in zip(names, products(compressed), strict=True):
        found = read_clips(clips_of(name, rebuilt.weight_quantizer, rebuilt.activation_quantizer))
        assert found == {key: value for key, value in clips.items() if key.startswith(f"{name}.")}
        assert found[f"{name}.weight"] != 1
