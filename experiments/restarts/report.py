"""Judges counts by the law, tabulates and draws them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import norm

from experiments.harness.results import Verdict
from experiments.restarts.theory import Settings, landscape, law, loss, losses_of_levels, needed
from experiments.restarts.training import Runs

ALLOWED = 4.5  # standard errors, for at most a hundred comparisons
COUNTED_FROM = 10.0  # counts of smaller variance are not Gaussian and are not judged


def judge(runs: Mapping[str, Runs], settings: Settings) -> dict[str, Any]:
    """Compares descent's counts with the law, by loss and by minimum, and each optimizer's halves with each other."""
    D, R = settings.inputs, settings.restarts
    levels = law(settings)
    minima = np.array([levels[k] / math.comb(D, k) for k in np.bitwise_count(np.arange(2**D))])
    descent = runs["gradient descent"]
    deviations = []
    for expected, counts in (
        (levels, np.bincount(descent.misses, minlength=D + 1)),
        (minima, np.bincount(descent.minimum, minlength=2**D)),
    ):
        variance = R * expected * (1 - expected)
        judged = variance >= COUNTED_FROM
        deviations += list((counts - R * expected)[judged] / np.sqrt(variance[judged]))
    halves = []
    for found in runs.values():
        first, second = (np.mean(half == 0) for half in np.array_split(found.misses, 2))
        pooled = np.mean(found.misses == 0)
        halves.append((first - second) / math.sqrt(max(4 * pooled * (1 - pooled) / R, 1e-300)))
    return {
        **Verdict(float(np.abs(deviations + halves).max()), ALLOWED)._asdict(),
        "law": levels, "deviations": deviations, "halves": halves, "comparisons": len(deviations + halves),
        "astray": int(np.sum(~descent.converged)),
        "restarts_needed": {name: needed(np.mean(found.misses == 0)) for name, found in runs.items()},
        "restarts_needed_by_law": needed(levels[0]),
    }  # fmt: skip


def table(runs: Mapping[str, Runs], judged: Mapping[str, Any], settings: Settings) -> str:
    """The counts as text; ± is one binomial standard error."""
    D, R = settings.inputs, settings.restarts
    lines = [f"{'k':>2}{'minima':>8}{'loss':>9}{'law':>9}" + "".join(f"{name:>26}" for name in runs)]
    for k, (at, expected) in enumerate(zip(losses_of_levels(settings), judged["law"], strict=True)):
        line = f"{k:>2}{math.comb(D, k):>8}{at:>9.4f}{expected:>9.4f}"
        for found in runs.values():
            fraction = np.mean(found.misses == k)
            line += f"{fraction:>17.4f} ±{np.sqrt(fraction * (1 - fraction) / R):7.4f}"
        lines.append(line)
    lines.append(
        f"k: weights in the worse of their two minima; fractions of {R:,} restarts. The law is gradient descent's."
    )
    for name, found in runs.items():
        there = found.converged
        lines += [
            f"{name}: {np.mean(there):.1%} at a minimum; gradient there at most "
            f"{found.gradient[there].max(initial=0):.0e}, curvature at least "
            f"{found.curvature[there].min(initial=np.inf):.3f};",
            f"    {len(np.unique(found.minimum))} of {2**D} minima found; the best would be found with 99 % by "
            f"{judged['restarts_needed'][name]:.0f} restarts",
        ]
    lines += [
        f"by law it takes gradient descent {judged['restarts_needed_by_law']:.0f} restarts",
        f"largest deviation from the law, and of one half of the restarts from the other: "
        f"{judged['largest_deviation']:.1f} standard errors in {judged['comparisons']} comparisons",
    ]
    return "\n".join(lines)


def plot(runs: Mapping[str, Runs], settings: Settings) -> Any:
    """Plots the loss of one weight, the distribution of final losses, and the probability of missing the best one."""
    from experiments.harness.plotting import figure, style

    canvas, (along, distribution, chance) = figure(1, 3, size=(16, 4.8))
    R, here, levels = settings.restarts, landscape(), losses_of_levels(settings)
    w = np.linspace(-2.5, 4, 500)
    along.plot(w, loss(w), color="black", linewidth=1.6)
    begin = along.twinx()
    begin.fill_between(w, norm.pdf(w, scale=settings.spread), color="grey", alpha=0.2, linewidth=0)
    begin.set(yticks=[], ylim=(0, 1.5 / settings.spread))
    begin.spines[:].set_visible(False)
    for at, look in ((here.best, style(6)), (here.worse, style(3))):
        along.plot(at, loss(at), color=look["color"], marker="o", markersize=9)
    along.axvline(here.barrier, color="grey", linestyle=":", linewidth=1.4)
    along.set(xlabel="one weight", ylabel="its part of the loss", title="two minima; grey: initial weights")
    tries = np.arange(1, 4 * math.ceil(needed(law(settings)[0])) // 2)
    for offset, (index, (name, found)) in zip((-0.2, 0.2), zip((2, 3), runs.items(), strict=True), strict=True):
        look = style(index)
        fractions = np.bincount(found.misses, minlength=len(levels)) / R
        error = np.sqrt(fractions * (1 - fractions) / R)
        k = np.arange(len(levels))
        distribution.bar(k + offset, fractions, 0.4, yerr=error, color=look["color"], alpha=0.75, label=name)
        chance.plot(tries, (1 - fractions[0]) ** tries, color=look["color"], linewidth=1.8, label=name)
    expected = law(settings)
    distribution.plot(
        np.arange(len(levels)) - 0.2, expected, "k_", markersize=24, markeredgewidth=2, label="law of gradient descent"
    )
    distribution.set_xticks(
        np.arange(len(levels)), [f"{at:.2f}\n({math.comb(settings.inputs, k)})" for k, at in enumerate(levels)]
    )
    distribution.set(xlabel="final loss (and how many minima have it)", ylabel="fraction of restarts",
                     title=f"{2**settings.inputs} minima, {R:,} restarts")  # fmt: skip
    distribution.legend(frameon=False)
    chance.plot(tries, (1 - expected[0]) ** tries, "k--", linewidth=1.2, label="law of gradient descent")
    chance.axhline(0.01, color="grey", linestyle=":", linewidth=1.4, label="1 %")
    chance.set(xlabel="restarts", yscale="log", ylabel="P(best minimum not found)", title="restarts needed")
    chance.legend(frameon=False)
    canvas.suptitle(f"One sigmoid unit of {settings.inputs} inputs, {2 * settings.inputs} examples")
    return canvas
