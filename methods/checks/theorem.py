"""Check Theorem 1, Corollary 1 and Lemma 2 of the SBS paper, in exact arithmetic where that is possible.

The exact part counts in whole units. With T = 2^b_K − 1 steps on the finest grid and a resolution m, the unit is
1/(2mT). Every level of every grid of the chain, and every tie between two levels, is then a whole number, since the
number of steps of each grid divides that of the next.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.api import Figure, generator
from bench.compression import quantizer as quantization
from bench.compression.kernels import steps
from bench.diagnostics.verify import CheckLine
from methods.shared.bit_sharing import quantization as quantizers

if TYPE_CHECKING:
    import altair

Whole = npt.NDArray[np.int64]
Rounding = Callable[[Whole, int], Whole]

_CHAINS = ((2, 4, 8), (3, 6, 12))
_CASES: dict[tuple[int, ...], int] = {(2, 4, 8): 1292, (3, 6, 12): 20540}
_HALF_EVEN_FAILURES: dict[tuple[int, ...], int] = {(2, 4, 8): 264, (3, 6, 12): 4144}
_FINE = 100_003
"""Resolution m of random points. Any odd factor keeps ties on the lattice; a large one puts random points at many
distances from them."""
_RANDOM_POINTS = 200_000
_FIGURE_BITS = (1, 2, 4, 8, 16)
_FIGURE_SIZE = 100
_FIGURE_DRAWS = 200


def half_down(numerator: Whole, denominator: int) -> Whole:
    """Compute ⌈n/d − 1/2⌉, the paper's rounding, exactly; the denominator is even."""
    return -((denominator // 2 - numerator) // denominator)


def half_even(numerator: Whole, denominator: int) -> Whole:
    """Round n/d to the nearest whole number, of two the even one, as `torch.round` does; the denominator is even."""
    up = (numerator + denominator // 2) // denominator
    tie = (numerator + denominator // 2) % denominator == 0
    nearest: Whole = up - (tie & (up % 2 == 1))
    return nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactGrids:
    """The grids of a chain of bits, in whole units of 1/(2mT).

    Attributes:
        bits: Chain of bits.
        fine: m, odd; 1 where only levels and ties are checked.
    """

    bits: tuple[int, ...]
    fine: int = 1

    @property
    def one(self) -> int:
        """Number of units of z = 1."""
        return 2 * self.fine * steps(self.bits[-1])

    def step(self, bits: int) -> int:
        """Compute the step s_b in units, an even number."""
        return self.one // steps(bits)

    def discretize(self, z: Whole, bits: int, rounding: Rounding) -> Whole:
        """Compute D(z, s_b) in units."""
        return rounding(z, self.step(bits)) * self.step(bits)

    def decompose(self, z: Whole, rounding: Rounding) -> list[Whole]:
        """Compute z_b1, r_b2, …, r_bK in units, by the definitions in Eq. 8."""
        parts = [self.discretize(z, self.bits[0], rounding)]
        for low, high in pairwise(self.bits):
            parts.append(self.discretize(z - self.discretize(z, low, rounding), high, rounding))
        return parts

    def points(self) -> Whole:
        """List every level and half-level of the finest grid: all points where the rounding of any grid can change."""
        return np.arange(0, self.one + 1, self.fine, dtype=np.int64)

    def ties(self, bits: int) -> Whole:
        """List the points half-way between two levels of one grid."""
        step = self.step(bits)
        return np.arange(step // 2, self.one, step, dtype=np.int64)


def checks() -> Iterator[CheckLine | Figure]:
    """Check Theorem 1 exactly and in floating point, Corollary 1 with Fig. 2, and Lemma 2."""
    for bits in _CHAINS:
        yield _theorem_line(bits)
    for bits in _CHAINS:
        yield _half_even_line(bits)
    yield _rounding_line()
    for bits in _CHAINS:
        yield _double_line(bits)
    yield _single_line()
    yield _corollary_exact_line()
    curves = [error_bound(seed) for seed in range(_FIGURE_DRAWS)]
    yield _corollary_random_line(curves)
    yield _figure(curves)
    for bits in _CHAINS:
        yield _lemma_line(bits)


def theorem_failures(bits: tuple[int, ...], rounding: Rounding) -> tuple[int, int]:
    """Count the points where z_bj ≠ z_b1 + r_b2 + … + r_bj, in exact arithmetic.

    The cases of each step j of the chain are every level and half-level of the finest grid, and every tie of the grid
    of b_j itself.

    Returns:
        The number of failures and the number of cases.
    """
    grids = ExactGrids(bits=bits)
    failures = cases = 0
    for index in range(1, len(bits)):
        z = np.concatenate([grids.points(), grids.ties(bits[index])])
        total = sum(grids.decompose(z, rounding)[: index + 1])
        failures += int(np.count_nonzero(total != grids.discretize(z, bits[index], rounding)))
        cases += len(z)
    return failures, cases


def _set(bits: Sequence[int]) -> str:
    return "{" + ", ".join(map(str, bits)) + "}"


def _theorem_line(bits: tuple[int, ...]) -> CheckLine:
    failures, cases = theorem_failures(bits, half_down)
    return CheckLine(
        what=f"Theorem 1 for {_set(bits)}, exact arithmetic, every level and every tie",
        figure=f"holds in {cases - failures} of {cases} cases",
        passed=failures == 0 and cases == _CASES[bits],
    )


def _half_even_line(bits: tuple[int, ...]) -> CheckLine:
    failures, cases = theorem_failures(bits, half_even)
    return CheckLine(
        what=f"By contrast, rounding half to even (torch.round) breaks Theorem 1 for {_set(bits)}",
        figure=f"fails in {failures} of {cases} cases",
        passed=failures == _HALF_EVEN_FAILURES[bits],
    )


def _rounding_line() -> CheckLine:
    """Check ties that floating point represents exactly: x + 1/2 on the grid of step 1, and z = 1/2 on every grid."""
    whole = torch.arange(-4096, 4096, dtype=torch.float64)
    wrong = int((quantization.discretize(whole + 0.5, 1) != whole).sum())
    every = range(1, 13)
    for bits in every:
        level = quantization.discretize(torch.tensor(0.5, dtype=torch.float64), bits) * steps(bits)
        wrong += round(float(level)) != (steps(bits) - 1) // 2
    cases = len(whole) + len(every)
    return CheckLine(
        what="The quantizer rounds ties down, as ⌈x − 1/2⌉ does, wherever a float represents the tie exactly",
        figure=f"{cases - wrong} of {cases} ties",
        passed=wrong == 0,
    )


def _off_tie_points(grids: ExactGrids) -> Whole:
    """Draw random points of [0, 1] in units, none of them a tie of any grid."""
    drawn = torch.randint(grids.one + 1, (_RANDOM_POINTS,), generator=generator("check theorem", *grids.bits))
    z: Whole = drawn.numpy()
    # A tie of any grid of the chain is a tie of the finest, since the ratio of their steps is odd.
    step = grids.step(grids.bits[-1])
    kept: Whole = z[z % step != step // 2]
    return kept


def _level_errors(values: Tensor, exact: Whole, grids: ExactGrids) -> int:
    """Count values that differ from the exact ones by more than 1e-9."""
    expected = torch.from_numpy(exact).to(torch.float64) / grids.one
    return int(((values - expected).abs() > 1e-9).sum())


def _double_line(bits: tuple[int, ...]) -> CheckLine:
    """Compare D and the decomposition in float64 with exact arithmetic, at levels and at random points."""
    grids = ExactGrids(bits=bits, fine=_FINE)
    levels = np.arange(0, grids.one + 1, grids.step(bits[-1]), dtype=np.int64)
    units = np.concatenate([levels, _off_tie_points(grids)])
    z = torch.from_numpy(units).to(torch.float64) / grids.one
    wrong = cases = 0
    for b in bits:
        exact = grids.discretize(units, b, half_down)
        wrong += _level_errors(quantization.discretize(z, b), exact, grids)
        cases += len(units)
    parts = quantizers.decompose(z, bits)
    expected = grids.decompose(units, half_down)
    wrong += abs(len(parts) - len(expected)) * len(units)
    for part, exact in zip(parts, expected, strict=False):
        wrong += _level_errors(part, exact, grids)
        cases += len(units)
    return CheckLine(
        what=f"The code's D(z, s) and decomposition for {_set(bits)}, float64: exact off ties",
        figure=f"{cases - wrong:,} of {cases:,} values",
        passed=wrong == 0,
    )


def _single_line() -> CheckLine:
    """Check float32, in which searches run, and in which a rounding error can move a point across a tie."""
    bits = (2, 4, 8)
    z = torch.rand(10 * _RANDOM_POINTS, generator=generator("check theorem", "float32"))
    total = torch.stack(quantizers.decompose(z, bits)).sum(0)
    levels_apart = ((total - quantization.discretize(z, bits[-1])) * steps(bits[-1])).abs()
    different = int((levels_apart > 0.5).sum())
    return CheckLine(
        what=f"Theorem 1 for {_set(bits)} in float32 on random z: at most 1 in 10,000 is off, by one level",
        figure=f"{different} of {len(z):,} off, largest difference {float(levels_apart.max()):.3f} levels",
        passed=different <= len(z) * 1e-4 and bool((levels_apart < 1.5).all()),
    )


def _corollary_exact_line() -> CheckLine:
    """Check |ε_K − ε_(K+1)| · (2^b_K − 1)/C for one z, the worst of all points; that of a vector is a mean over z."""
    bits = (1, 2, 4, 8, 16)
    grids = ExactGrids(bits=bits)
    z = grids.points()
    ratios = []
    for low, high in pairwise(bits):
        error_low, error_high = (np.abs(z - grids.discretize(z, b, half_down)) for b in (low, high))
        ratios.append(int(np.abs(error_low - error_high).max()) / grids.step(low))
    return CheckLine(
        what=f"Corollary 1 for {_set(bits)}, every level and half-level: largest share of C/(2^b − 1)",
        figure=", ".join(f"{low}→{high}: {r:.3f}" for (low, high), r in zip(pairwise(bits), ratios, strict=True)),
        passed=max(ratios) <= 1,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorBound:
    """The curves of the paper's Fig. 2.

    Attributes:
        bits: b_K of each point.
        change: |ε_K − ε_(K+1)|, the change of the normalised error from b_K to 2·b_K.
        bound: C/(2^b_K − 1) with C = d/‖z‖₁.
        error: ε_K itself.
    """

    bits: tuple[int, ...]
    change: tuple[float, ...]
    bound: tuple[float, ...]
    error: tuple[float, ...]


def error_bound(seed: int, bits: Sequence[int] = _FIGURE_BITS, size: int = _FIGURE_SIZE) -> ErrorBound:
    """Compute normalised quantization errors of a random z in [0, 1]^size (Corollary 1, Fig. 2).

    Args:
        seed: Seed of the draw.
        bits: b_K of each point, compared with 2·b_K.
        size: d, number of elements of z.
    """
    z = torch.rand(size, generator=generator("error bound", seed), dtype=torch.float64)
    norm = float(z.sum())

    def error(b: int) -> float:
        return float((z - quantization.discretize(z, b)).abs().sum()) / norm

    return ErrorBound(
        bits=tuple(bits),
        change=tuple(abs(error(b) - error(2 * b)) for b in bits),
        bound=tuple(size / norm / steps(b) for b in bits),
        error=tuple(error(b) for b in bits),
    )


def _corollary_random_line(curves: Sequence[ErrorBound]) -> CheckLine:
    largest = max(change / bound for curve in curves for change, bound in zip(curve.change, curve.bound, strict=True))
    return CheckLine(
        what=f"Corollary 1, Fig. 2: {len(curves)} random z, d = {_FIGURE_SIZE}, b in {_set(_FIGURE_BITS)}",
        figure=f"largest error change is {largest:.3f} of its bound",
        passed=largest <= 1,
    )


def _figure(curves: Sequence[ErrorBound]) -> Figure:
    return Figure(
        name="fig2_error_bound",
        title="Change of the normalised quantization error, and its bound (paper, Fig. 2)",
        draw=lambda: error_bound_chart(curves),
        notes=(
            f"Means of {len(curves)} random z in [0, 1]^{_FIGURE_SIZE}; bands reach from the least to the greatest. "
            "Left the paper's linear scale, right a logarithmic one",
        ),
    )


def error_bound_chart(curves: Sequence[ErrorBound]) -> "altair.TopLevelMixin":
    """Draw error change and bound over the bits, on a linear and on a logarithmic scale, with the range over draws."""
    import altair as alt

    legend = alt.Legend(orient="top", symbolOpacity=1)
    base = alt.Chart(alt.InlineData(values=_chart_rows(curves))).encode(
        alt.X("bits:O", title="bits b, compared with 2b", axis=alt.Axis(labelAngle=0)),
        alt.Color("curve:N", title=None, legend=legend),
    )

    def panel(up: "altair.Y") -> "altair.LayerChart | altair.FacetChart":
        band = base.mark_area(opacity=0.2).encode(up, alt.Y2("high:Q"))
        line = base.mark_line(point=True).encode(alt.Y("mean:Q"))
        return alt.layer(band, line).properties(width=240, height=220)

    powers = [10.0**power for power in range(-5, 2)]
    logarithmic = alt.Y(
        "low:Q", title=None, scale=alt.Scale(type="log", domain=[5e-6, 3]), axis=alt.Axis(values=powers, format=".0e")
    )
    return alt.hconcat(panel(alt.Y("low:Q", title="normalised error")), panel(logarithmic))


def _chart_rows(curves: Sequence[ErrorBound]) -> list[dict[str, Any]]:
    """Return the mean, least and greatest value over draws for each curve and number of bits."""
    rows = []
    for name, label in (("change", "change |ε(b) − ε(2b)|"), ("bound", "bound C / (2^b − 1)")):
        for index, bits in enumerate(curves[0].bits):
            values = [getattr(curve, name)[index] for curve in curves]
            summary = {"mean": fmean(values), "low": min(values), "high": max(values)}
            rows.append({"curve": label, "bits": bits, **summary})
    return rows


def _lemma_line(bits: tuple[int, ...]) -> CheckLine:
    """Check that ε_K falls with K: exactly at every point, and in the mean."""
    grids = ExactGrids(bits=bits)
    z = grids.points()
    errors = [np.abs(z - grids.discretize(z, b, half_down)) for b in bits]
    pairs = list(pairwise(errors))
    grows = sum(int(np.count_nonzero(high > low)) for low, high in pairs)
    falls = all(int(high.sum()) < int(low.sum()) for low, high in pairs)
    means = " > ".join(f"{error.mean() / grids.one:.5f}" for error in errors)
    return CheckLine(
        what=f"Lemma 2 for {_set(bits)}, exact arithmetic: the mean error falls, and no point's error grows",
        figure=f"mean {means}; grows at {grows} of {len(z)} points",
        passed=grows == 0 and falls,
    )
