"""Judges, tabulates and draws posteriors: confusion and calibration."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.results import Verdict, by_chance
from experiments.identify.simulation import Settings
from nl_jax._core.numerics import mean_and_error

BINS = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)
"""Edges of the bins of stated probabilities."""


class Cases(NamedTuple):
    """Posterior and truth for each network.

    Attributes:
      posterior: [cases, candidates].
      which: index of the rule that trained it, [cases].
      strength: size of its learning relative to the noise, [cases].
    """

    posterior: np.ndarray
    which: np.ndarray
    strength: np.ndarray


class Bin(NamedTuple):
    """Stated probabilities in an interval: their mean, the fraction that came true, and its binomial standard error."""

    stated: float
    right: float
    error: float
    times: int

    @property
    def deviation(self) -> float:
        """Fraction that came true minus mean stated probability, in standard errors."""
        return (self.right - self.stated) / self.error


def confusion(found: Cases) -> np.ndarray:
    """The mean posterior of each candidate (columns) for each true rule (rows)."""
    names = range(found.posterior.shape[1])
    return np.array([found.posterior[found.which == i].mean(axis=0) for i in names])


def calibration(found: Cases) -> list[Bin]:
    """All stated probabilities by interval; intervals with fewer than ten are left out."""
    right = np.arange(found.posterior.shape[1])[None] == found.which[:, None]
    bins = []
    for low, high in itertools.pairwise(BINS):
        inside = (found.posterior >= low) & ((found.posterior < high) | (high == 1))
        if inside.sum() >= 10:
            p = np.clip(found.posterior[inside], 1e-12, 1 - 1e-12)
            error = np.sqrt(np.sum(p * (1 - p))) / len(p)
            bins.append(Bin(float(p.mean()), float(right[inside].mean()), float(error), len(p)))
    return bins


def judge(found: Cases) -> Verdict:
    """The largest deviation of what came true from what was stated, and the largest that chance allows.

    In the outermost intervals nearly all stated probabilities may be close to 0 or 1, so that one surprise is far from
    normal. Their error is therefore at least that of one case.
    """
    bins = calibration(found)
    off = [(one.right - one.stated) / max(one.error, 1 / one.times) for one in bins]
    return by_chance(np.array(off))


def table(found: Cases, settings: Settings) -> str:
    """The confusion matrix and the calibration as text."""
    names = settings.candidates
    lines = [f"{'mean posterior, where true':28}" + "".join(f"{name:>21}" for name in names) + f"{'cases':>8}"]
    for name, row, count in zip(names, confusion(found), np.bincount(found.which, minlength=len(names)), strict=True):
        lines.append(f"{name:28}" + "".join(f"{p:>21.3f}" for p in row) + f"{count:>8}")
    best = np.mean(found.posterior.argmax(axis=1) == found.which)
    lines.append(f"the most probable rule is the true one in {100 * best:.1f} % of {len(found.which)} networks")
    lines.append(f"{'stated probability':>20}{'came true':>12}{'± error':>10}{'stated so often':>17}")
    for one in calibration(found):
        lines.append(f"{one.stated:>20.4f}{one.right:>12.4f}{one.error:>10.4f}{one.times:>17}")
    largest, allowed, unit = judge(found)
    lines.append(f"largest deviation: {largest:.1f} {unit}; chance allows {allowed:.1f}")
    return "\n".join(lines)


def plot(found: Cases, settings: Settings) -> Any:
    """The confusion matrix, the calibration curve, and the posterior against the strength."""
    from experiments.harness.plotting import figure, style

    canvas, (matrix, curve, strength) = figure(1, 3, size=(15.5, 5.2))
    names, mean = settings.candidates, confusion(found)
    matrix.imshow(mean, cmap="Blues", vmin=0, vmax=1)
    for (row, column), p in np.ndenumerate(mean):
        matrix.text(column, row, f"{p:.2f}", ha="center", va="center", color="white" if p > 0.6 else "black")
    matrix.set_xticks(range(len(names)), names, rotation=30, ha="right")
    matrix.set_yticks(range(len(names)), names)
    matrix.grid(visible=False)
    matrix.set(title="mean posterior", xlabel="candidate", ylabel="rule that trained the network")
    bins = calibration(found)
    curve.plot([0, 1], [0, 1], color="grey", linewidth=1.2, label="perfect calibration")
    curve.errorbar(
        [one.stated for one in bins], [one.right for one in bins], [one.error for one in bins],
        **{**style(2), "linestyle": "none", "markevery": None}, capsize=3, label="came true, ± binomial error",
    )  # fmt: skip
    curve.set(xlabel="stated probability", ylabel="fraction that came true", title="calibration", aspect="equal")
    curve.legend(loc="upper left", frameon=False)
    edges = np.linspace(0, settings.strongest, 7)
    own = found.posterior[np.arange(len(found.which)), found.which]
    for index, name in enumerate(names):
        mine = [own[(found.which == index) & (found.strength >= a) & (found.strength < b)] for a, b in
                itertools.pairwise(edges)]  # fmt: skip
        centres = [(a + b) / 2 for (a, b), values in zip(itertools.pairwise(edges), mine, strict=True) if len(values)]
        means, errors = np.transpose([mean_and_error(values) for values in mine if len(values)])
        strength.errorbar(
            centres, means, np.where(np.isfinite(errors), errors, 0), **{**style(index), "markevery": None}, capsize=2,
            label=name,
        )  # fmt: skip
    strength.set(
        xlabel="size of all changes / noise of one reading", ylabel="mean posterior of the true rule", ylim=(0, 1.03),
        title="posterior of the true rule",
    )  # fmt: skip
    strength.legend(loc="lower right", frameon=False)
    canvas.suptitle(
        f"{len(found.which)} networks, {settings.steps} updates each; {100 * settings.unobserved:.0f} % of hidden "
        f"units are not observed, noise is {'known' if settings.noise_known else 'not known'}"
    )
    return canvas
