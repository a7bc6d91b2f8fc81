"""Draws the documentation's figures with the project's own code: `.venv/bin/python docs/make_figures.py`."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from methods.checks.regression import BITS, regression_curves
from methods.checks.theorem import error_bound

_FOLDER = Path(__file__).resolve().parent / "figures"
_RED, _BLUE, _GREY = "#c1272d", "#0071bc", "#777777"
_SEED = 0


def fig2_error_bound() -> Figure:
    """Corollary 1 (paper, Fig. 2): the change of the normalised quantization error against its bound."""
    curves = error_bound(_SEED, bits=(2, 4, 8, 16))
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    positions = range(len(curves.bits))
    axes.plot(positions, curves.bound, color=_BLUE, marker="s", label=r"bound $C\,/\,(2^{b_K}-1)$")
    axes.plot(positions, curves.change, color=_RED, marker="o", label=r"change $|\epsilon_K-\epsilon_{K+1}|$")
    axes.set_xticks(positions, [str(bits) for bits in curves.bits])
    axes.set_xlabel(r"bitwidth $b_K$, compared with $b_{K+1}=2\,b_K$")
    axes.set_ylabel("normalised error")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def fig3_toy_regression() -> Figure:
    """Proposition 1 (paper, Fig. 3): the loss of the toy regression under SBS and DNAS."""
    same, faster = regression_curves(_SEED), regression_curves(_SEED, dnas_factor=len(BITS))
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    dashed = f"DNAS, {len(BITS)} times the rate"
    axes.plot(faster.dnas, color=_BLUE, linewidth=0.9, linestyle=":", label=dashed)
    axes.plot(same.dnas, color=_BLUE, linewidth=0.9, label="DNAS (multi-path)")
    axes.plot(same.sbs, color=_RED, linewidth=0.9, label="SBS (single-path)")
    axes.axhline(same.floor, color=_GREY, linewidth=0.9, linestyle="--", label="least squares")
    axes.set_xlabel("iteration")
    axes.set_ylabel("mean squared error, all samples")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Draw every figure into `docs/figures`, the same bytes every time."""
    mpl.rcParams["svg.hashsalt"] = "sbs-bench"
    _FOLDER.mkdir(exist_ok=True)
    for draw in (fig2_error_bound, fig3_toy_regression):
        path = _FOLDER / f"{draw.__name__}.svg"
        draw().savefig(path, metadata={"Date": None})
        print(f"{path.name}: {path.stat().st_size // 1024} KB")  # noqa: T201


if __name__ == "__main__":
    main()
