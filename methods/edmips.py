"""EdMIPS (Cai and Vasconcelos 2020, arXiv 2004.05795): shared weights under a mixture of widths.

Each searched layer has one weight. Its quantized forms, and those of its input, are averaged with softmax weights of
learned logits, and convolved once (the paper's composite convolution). Weights and logits learn in the same step on
the training data, without noise; the cost is the product of expected widths; the final width is the argmax.

What differs from the paper: the common quantizer stands in the place of its fixed Gaussian steps, first and last layer
have 8 bits and are counted, the search starts from pretrained weights, the cost term is the harness's, and logits
learn by Adam with a rate that follows from the length of the search, since 25 epochs of SGD are not given here.
"""

from itertools import pairwise
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from bench import replicas
from bench.checkpoints import Stateful
from bench.compression import calibrate
from bench.method import Capabilities, Knob, Method, SearchJob, SearchResult
from bench.network import NetworkShape
from bench.options import Strict
from bench.policy import Policy, uniform
from bench.quantization import UniformQuantizer
from bench.spec import Match
from bench.training import Meter, evaluate, reestimate_norms, sgd, weight_groups
from methods.multi_path import History, PathNetwork

_FIRST_LOGIT = 0.01
"""Where all logits start (the authors' code)."""


class EdmipsOptions(Strict):
    """Options of EdMIPS.

    Attributes:
        bits: Candidates for weights and activations.
        logit_travel: Rate × updates of the logits (Adam).
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=2)] = (2, 4, 8)
    logit_travel: Annotated[float, Field(gt=0)] = 6.0

    @model_validator(mode="after")
    def _bits_rise(self) -> Self:
        if any(high <= low for low, high in pairwise(self.bits)):
            raise ValueError(f"bit candidates {list(self.bits)} must rise, e.g. [2, 4, 8]")
        return self


class Edmips(Method):
    """EdMIPS with the common quantizer."""

    summary = "EdMIPS: one weight under a softmax mixture of widths, weights and logits trained together"
    capabilities = Capabilities(budget="strength", mixed_precision=True, data_parallel=True)
    Options = EdmipsOptions
    options: EdmipsOptions

    def knobs(self, match: Match) -> dict[str, Knob]:
        """λ."""
        return {"strength": Knob(low=0.01, high=1.0, log=True)}

    def cheapest(self, network: NetworkShape) -> Policy:
        """The least candidate everywhere."""
        return uniform(network, min(self.options.bits))

    def search(self, job: SearchJob) -> SearchResult:
        """Train the mixture, then take the argmax."""
        network = PathNetwork(job, self.options.bits, UniformQuantizer, shared=True)
        data = job.task.data
        with torch.no_grad():
            for logits in network.logits():
                logits.fill_(_FIRST_LOGIT)
        calibrate(network.model, data.calibration_batches(1, job.schedule.batch_size)[0])
        reestimate_norms(network.model, data, job.schedule.batch_size)
        start_top1 = evaluate(network.model, data, data.validation).top1
        record = _train(job, network, self.options)
        decisions = network.decisions()
        policy = network.policy(decisions)
        return SearchResult(
            policy=policy,
            state=network.state(policy, job.pretrained),
            clips=network.clips(policy),
            decisions=decisions,
            record={"start_top1": start_top1, **record},
        )


def _train(job: SearchJob, network: PathNetwork, options: EdmipsOptions) -> dict[str, Any]:
    """Weights and logits by L = L_ce + the cost term, in the same step."""
    logits, term, history = network.logits(), job.cost_term(), History()
    of_weights = sgd(weight_groups(network.model, exclude=logits), job.schedule)
    of_logits = torch.optim.Adam(logits, lr=options.logit_travel / job.steps)
    network.model.train()
    forward = job.in_training(network.model)
    parts: dict[str, Stateful] = {"model": network.model, "history": history}
    parts |= {"of_weights": of_weights, "of_logits": of_logits}
    for epoch, batches in job.epochs(parts):
        meter = Meter(job.task.device)
        for images, labels in batches:
            network.draw(temperature=1.0, noise=None)
            outputs = forward(images)
            loss = F.cross_entropy(outputs, labels)
            network.model.zero_grad(set_to_none=True)
            (loss + term(network.expected_cost(), network.actual_cost())).backward()  # type: ignore[no-untyped-call]
            replicas.average_gradients(network.model.parameters())
            of_weights.step()
            of_logits.step()
            meter.add(loss, outputs, labels)
        cost = float(network.actual_cost())
        entry = {"epoch": epoch + 1, **meter.figures(), "cost": cost, "budget_share": cost / job.budget}
        history.entries.append(entry)
        job.report({**entry, "epochs": job.schedule.epochs})
    return {
        "history": history.entries,
        "logits": {name: layer.logits.tolist() for name, layer in network.layers.items()},
    }
