"""EdMIPS (Cai and Vasconcelos 2020, arXiv 2004.05795): one weight under a mixture of candidate bits.

Each searched layer has one weight. Its quantized forms, and those of its input, are averaged with softmax weights of
learned logits, and convolved once (the paper's composite convolution; `methods.shared.networks.paths`). Weights and
logits learn in the same step on the training data, without noise, by L_ce plus the cost term. The cost is the product
of expected bits; the found bits are those of the largest logits.
"""

import torch
from torch import Tensor

from bench.api import SearchJob, UniformQuantizer, sgd, weight_groups
from methods.shared.history import History
from methods.shared.networks.paths import PathMethod, PathNetwork
from methods.shared.training import train_jointly

_FIRST_LOGIT = 0.01
"""First value of all logits (the authors' code)."""


class Edmips(PathMethod):
    """EdMIPS with the common quantizer."""

    summary = "EdMIPS: one weight under a softmax mixture of candidate bits, weights and logits trained together"
    family = "multi-path"
    source = (
        "Cai and Vasconcelos 2020, Rethinking Differentiable Search for Mixed-Precision Neural Networks, "
        "arXiv 2004.05795"
    )
    deviations = (
        "The common quantizer replaces the paper's fixed steps for Gaussian values; its clip values start at the least "
        "squared error on one batch.",
        "Candidates are by default 2, 4 and 8 bits; the paper has 1 to 4 for weights and 2 to 4 for inputs.",
        "The first and the last layer have 8 bits and are counted; the authors keep them at full precision and do not "
        "count them.",
        "The search starts from pretrained weights.",
        "The cost term is the harness's, λ log R; the authors add R itself, relative to the MACs of its first layer.",
        "Logits learn by Adam with a rate that follows from the length of the search; the paper trains them by SGD for "
        "25 epochs.",
        "Logits have no weight decay; the authors' code decays them by 1e-4 like weights.",
        "The found network is fine-tuned from the searched weights, with the schedule of all methods; the authors' "
        "code trains it for 95 epochs.",
    )

    def network(self, job: SearchJob) -> PathNetwork:
        """Build a network in which all paths of a layer have the same weight."""
        network = PathNetwork(job, self.options.bits, UniformQuantizer, shared=True)
        with torch.no_grad():
            for logits in network.logits():
                logits.fill_(_FIRST_LOGIT)
        return network

    def train(self, job: SearchJob, network: PathNetwork) -> History:
        """Train weights and logits together."""
        logits, term = network.logits(), job.cost_term()
        of_weights = sgd(weight_groups(network.model, exclude=logits), job.schedule)
        of_logits = torch.optim.Adam(logits, lr=self.options.logit_travel / job.steps)

        def penalty() -> Tensor:
            return term(network.expected_cost(), network.actual_cost())

        return train_jointly(
            job,
            network,
            {"of_weights": of_weights, "of_logits": of_logits},
            penalty,
            draw=lambda _: network.draw(temperature=1.0, noise=None),
        )
