"""EdMIPS (Cai and Vasconcelos 2020, arXiv 2004.05795): shared weights under a mixture of widths.

Each searched layer has one weight. Its quantized forms, and those of its input, are averaged with softmax weights of
learned logits, and convolved once (the paper's composite convolution). Weights and logits learn in the same step on
the training data, without noise; the cost is the product of expected widths; the final width is the argmax.
"""

import torch
import torch.nn.functional as F

from bench.api import Meter, SearchJob, Stateful, UniformQuantizer, replicas, sgd, weight_groups
from methods.multi_path import PathMethod, PathNetwork, PathOptions
from methods.shared.history import History

_FIRST_LOGIT = 0.01
"""Where all logits start (the authors' code)."""


class Edmips(PathMethod):
    """EdMIPS with the common quantizer."""

    summary = "EdMIPS: one weight under a softmax mixture of widths, weights and logits trained together"
    source = (
        "Cai and Vasconcelos 2020, Rethinking Differentiable Search for Mixed-Precision Neural Networks, "
        "arXiv 2004.05795"
    )
    deviations = (
        "The common quantizer stands in the place of the paper's fixed Gaussian steps.",
        "First and last layer have 8 bits and are counted.",
        "The search starts from pretrained weights.",
        "The cost term is the harness's.",
        "Logits learn by Adam with a rate that follows from the length of the search; the paper has 25 epochs of SGD.",
    )

    def network(self, job: SearchJob) -> PathNetwork:
        """With one weight for all paths of a layer."""
        network = PathNetwork(job, self.options.bits, UniformQuantizer, shared=True)
        with torch.no_grad():
            for logits in network.logits():
                logits.fill_(_FIRST_LOGIT)
        return network

    def train(self, job: SearchJob, network: PathNetwork) -> History:
        """Weights and logits together."""
        return _train(job, network, self.options)


def _train(job: SearchJob, network: PathNetwork, options: PathOptions) -> History:
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
        history.end_epoch(job, network, epoch, meter.figures())
    return history
