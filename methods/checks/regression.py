"""Check Proposition 1 of the SBS paper on its toy regression (Section 3.4, Fig. 3).

y = w*·x + noise with x and noise from N(0, I) and w* from [0, 1]^10. The regression weight is quantized by one shared
weight with bit sharing (SBS) or by a mixture of separate weights (DNAS). Both are trained by SGD on the same
mini-batches. The paper states no learning rates. Here weights and clip values have one rate; thresholds and logits have
the rate of the paper's searches (Section 4.2). The rates of both methods are the same. All weights, thresholds and
logits start at zero.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.api import Figure, generator
from bench.compression.quantizer import positive, quantize
from bench.diagnostics.verify import CheckLine
from methods.shared.bit_sharing.quantization import bit_sharing

if TYPE_CHECKING:
    import altair

BITS = (2, 4, 8)
_SAMPLES = 10_000
_FEATURES = 10
_ITERATIONS = 500
_BATCH_SIZE = 64
_RATE = 0.05
_CHOICE_RATE = 1e-3

_SEEDS = 10
_FIRST = 60
"""Number of iterations in the figure's second panel, where the methods differ."""
_FINAL = 50
"""Number of iterations at the end whose mean loss is the final loss."""
_EQUAL = 0.02
_NEAR_FLOOR = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionCurves:
    """One run of the toy regression.

    Attributes:
        sbs: Loss over all samples before each update of SBS.
        dnas: Loss over all samples before each update of DNAS.
        floor: Least loss of any weight on these samples, about the noise variance 1.
    """

    sbs: tuple[float, ...]
    dnas: tuple[float, ...]
    floor: float


class SharedWeight(nn.Module):
    """SBS: one weight, one clip value and the thresholds of the gates (Eq. 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(_FEATURES, dtype=torch.float64))
        self.clip = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.choice = nn.Parameter(torch.zeros(len(BITS) - 1, dtype=torch.float64))

    def forward(self) -> Tensor:
        """Quantize the regression weight, shape (features,)."""
        return bit_sharing(self.weight, positive(self.clip), self.choice, BITS, "weight")[0]


class SeparateWeights(nn.Module):
    """DNAS: a weight and a clip value for each candidate, mixed by the softmax of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(len(BITS), _FEATURES, dtype=torch.float64))
        self.clips = nn.Parameter(torch.ones(len(BITS), dtype=torch.float64))
        self.choice = nn.Parameter(torch.zeros(len(BITS), dtype=torch.float64))

    def forward(self) -> Tensor:
        """Mix the quantized weights, shape (features,)."""
        paths = [
            quantize(weight, positive(clip), bits, "weight")
            for weight, clip, bits in zip(self.weights, self.clips, BITS, strict=True)
        ]
        return self.choice.softmax(0) @ torch.stack(paths)


class _Problem:
    """The samples of one seed. The loss over all samples is kept as a quadratic form, which is cheap to compute."""

    def __init__(self, seed: int, iterations: int, batch_size: int) -> None:
        source = generator("toy regression", seed)
        normal = partial(torch.randn, generator=source, dtype=torch.float64)
        self.inputs = normal(_SAMPLES, _FEATURES)
        optimum = torch.rand(_FEATURES, generator=source, dtype=torch.float64)
        self.targets = self.inputs @ optimum + normal(_SAMPLES)
        self.batches = torch.randint(_SAMPLES, (iterations, batch_size), generator=source)
        self._gram = self.inputs.T @ self.inputs / _SAMPLES
        self._cross = self.inputs.T @ self.targets / _SAMPLES
        self._energy = self.targets.square().mean()
        self.floor = self.loss(torch.linalg.solve(self._gram, self._cross))

    def loss(self, weight: Tensor) -> float:
        """Compute the mean squared error over all samples."""
        return float(self._energy - 2 * self._cross @ weight + weight @ self._gram @ weight)

    def gradient(self, weight: Tensor, batch: Tensor) -> Tensor:
        """Compute the gradient of the mean squared error over one mini-batch."""
        inputs = self.inputs[batch]
        return 2 / len(batch) * (inputs @ weight - self.targets[batch]) @ inputs


def _train(model: nn.Module, problem: _Problem, rate: float, choice_rate: float) -> tuple[float, ...]:
    """Train by plain SGD, and return the loss over all samples before each update."""
    rates = {name: choice_rate if name == "choice" else rate for name, _ in model.named_parameters()}
    losses = []
    for batch in problem.batches:
        weight = model()
        losses.append(problem.loss(weight.detach()))
        weight.backward(problem.gradient(weight.detach(), batch))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=rates[name])
                parameter.grad = None
    return tuple(losses)


def regression_curves(
    seed: int,
    iterations: int = _ITERATIONS,
    *,
    batch_size: int = _BATCH_SIZE,
    rate: float = _RATE,
    choice_rate: float = _CHOICE_RATE,
    dnas_factor: float = 1.0,
) -> RegressionCurves:
    """Train the toy regression with both methods on the same samples in the same order.

    Args:
        seed: Seed of samples and order.
        iterations: Number of updates.
        batch_size: Number of samples of an update.
        rate: Learning rate of weights and clip values.
        choice_rate: Learning rate of thresholds (SBS) and logits (DNAS).
        dnas_factor: Factor of `rate` for DNAS. Each of its K weights gets its share of the gradient and counts by its
            share in the mixture. At equal shares the mixture therefore moves K times slower than a shared weight; the
            factor K compensates for this.
    """
    problem = _Problem(seed, iterations, batch_size)
    return RegressionCurves(
        sbs=_train(SharedWeight(), problem, rate, choice_rate),
        dnas=_train(SeparateWeights(), problem, rate * dnas_factor, choice_rate),
        floor=problem.floor,
    )


def final_loss(curve: Sequence[float]) -> float:
    """Average a curve over its last iterations."""
    return fmean(curve[-_FINAL:])


def iterations_to_converge(curve: Sequence[float]) -> int:
    """Find the first iteration at which the loss is within 5 % of its final value."""
    limit = 1.05 * final_loss(curve)
    return next((index for index, loss in enumerate(curve) if loss <= limit), len(curve))


def roughness(curve: Sequence[float]) -> float:
    """Average the absolute change of the loss from one iteration to the next."""
    return fmean(abs(after - before) for before, after in pairwise(curve))


def checks() -> Iterator[CheckLine | Figure]:
    """Check Proposition 1, compare speed and smoothness in three settings, and draw Fig. 3."""
    runs = [regression_curves(seed) for seed in range(_SEEDS)]
    yield _equivalence_line(runs)
    yield _comparison_line("one rate for both methods", runs)
    faster = [regression_curves(seed, dnas_factor=len(BITS)) for seed in range(_SEEDS)]
    yield _comparison_line(f"DNAS's weights at {len(BITS)} times the rate", faster)
    yield _figure(runs, faster)
    runs = [regression_curves(seed, choice_rate=_RATE) for seed in range(_SEEDS)]
    yield _comparison_line("thresholds and logits at the weights' rate", runs)


def _equivalence_line(runs: Sequence[RegressionCurves]) -> CheckLine:
    sbs = fmean(final_loss(run.sbs) for run in runs)
    dnas = fmean(final_loss(run.dnas) for run in runs)
    floor = fmean(run.floor for run in runs)
    return CheckLine(
        what=(
            f"Proposition 1, toy regression of Fig. 3: SBS and DNAS end within {_EQUAL} of each other "
            f"and {_NEAR_FLOOR} of least squares"
        ),
        figure=f"SBS {sbs:.4f}, DNAS {dnas:.4f}, least squares {floor:.4f} (means of {len(runs)} seeds)",
        passed=abs(sbs - dnas) <= _EQUAL and max(sbs, dnas) - floor <= _NEAR_FLOOR,
    )


def _comparison_line(setting: str, runs: Sequence[RegressionCurves]) -> CheckLine:
    """Measure without judging: the paper says that SBS converges faster and smoother (Section 3.4)."""

    def both(measure: Callable[[Sequence[float]], float], form: str) -> str:
        sbs, dnas = fmean(measure(run.sbs) for run in runs), fmean(measure(run.dnas) for run in runs)
        return f"{sbs:{form}} and {dnas:{form}}"

    return CheckLine(
        what=f"Fig. 3, measured and not judged, {setting}: SBS and DNAS",
        figure=(
            f"{both(iterations_to_converge, '.0f')} iterations to 5 % of the final loss, "
            f"mean change a step {both(roughness, '.4f')}, final loss {both(final_loss, '.3f')}"
        ),
        passed=True,
    )


def _figure(runs: Sequence[RegressionCurves], faster: Sequence[RegressionCurves]) -> Figure:
    return Figure(
        name="fig3_toy_regression",
        title="Loss of the toy regression, SBS against DNAS (paper, Fig. 3)",
        draw=lambda: regression_chart(runs, faster),
        notes=(
            f"Means and sample standard deviations over {len(runs)} seeds, right the first {_FIRST} iterations. "
            "Dashed: least squares. At one rate DNAS's mixture of several weights moves slower: hence a third line",
        ),
    )


def regression_chart(runs: Sequence[RegressionCurves], faster: Sequence[RegressionCurves]) -> "altair.TopLevelMixin":
    """Draw the mean loss over all iterations and over the first ones, with a band of one standard deviation over seeds.

    Args:
        runs: Curves of both methods at one rate.
        faster: Curves with DNAS's weights at K times the rate.
    """
    import altair as alt

    curves = {
        "SBS (single-path)": [run.sbs for run in runs],
        "DNAS (multi-path)": [run.dnas for run in runs],
        f"DNAS, {len(BITS)} times the rate": [run.dnas for run in faster],
    }
    rows = [row for name, losses in curves.items() for row in _chart_rows(name, losses)]
    legend = alt.Legend(orient="top", symbolOpacity=1)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        alt.X("iteration:Q"), alt.Color("curve:N", title=None, sort=list(curves), legend=legend)
    )
    floor = alt.Chart(alt.InlineData(values=[{"floor": fmean(run.floor for run in runs)}]))
    rule = floor.mark_rule(strokeDash=[4, 4], color="#777777").encode(alt.Y("floor:Q"))

    def panel(title: str | None, iterations: int) -> "altair.LayerChart | altair.FacetChart":
        shown = base.transform_filter(alt.datum.iteration < iterations)
        band = shown.mark_area(opacity=0.2).encode(alt.Y("low:Q", title=title), alt.Y2("high:Q"))
        line = shown.mark_line(strokeWidth=1).encode(alt.Y("mean:Q"))
        return alt.layer(band, line, rule).properties(width=260, height=220)

    return alt.hconcat(panel("mean squared error, all samples", _ITERATIONS), panel(None, _FIRST))


def _chart_rows(name: str, losses: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Return the mean over seeds for each iteration, and one standard deviation to both sides."""
    rows = []
    for iteration, values in enumerate(zip(*losses, strict=True)):
        mean, spread = fmean(values), stdev(values)
        rows.append({"curve": name, "iteration": iteration, "mean": mean, "low": mean - spread, "high": mean + spread})
    return rows
