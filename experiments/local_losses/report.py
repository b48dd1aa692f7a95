"""Judges, tabulates and draws what each placement of losses reached."""

from typing import Any

import numpy as np

from experiments.harness.results import Verdict, by_chance, with_error
from experiments.local_losses.learning import RULES, Result, Settings
from nl_jax._core.numerics import mean_and_error


def judge(found: dict[str, Result]) -> Verdict:
    """The largest deviation of the credit's error from its law, and the largest that chance allows."""
    return by_chance(np.array([result.noise.deviation for result in found.values()]))


def plain(result: Result) -> dict[str, Any]:
    """Returns a placement's results as they are saved."""
    mean, error = mean_and_error(result.noise.squares)
    return {
        "variance": mean, "variance_error": error, "law": result.noise.law, "deviation": result.noise.deviation,
        "cosine": mean_and_error(result.noise.cosines), "rate": result.rate, "accuracy": result.accuracy,
    }  # fmt: skip


def table(found: dict[str, Result]) -> str:
    """A row for each placement of losses; ± is one standard error."""
    lines = [
        f"{'losses':26}{'variance of credit':>22}{'law':>9}{'off':>6}{'cosine of gradient':>20}"
        + "".join(f"{rule + ', test %':>26}" for rule in RULES)
    ]
    for way, result in found.items():
        noise = result.noise
        lines.append(
            f"{way:26}{with_error(noise.squares, 1):>22}{noise.law:>9.1f}{noise.deviation:>6.1f}"
            f"{with_error(noise.cosines, 4):>20}"
            + "".join(f"{with_error(100 * result.accuracy[rule], 2):>26}" for rule in RULES)
        )
    largest, allowed, unit = judge(found)
    lines += [
        "variance of credit: E‖δ̂ − δ‖²/‖δ‖² of one estimate at the first parameters, over all units; law: the units",
        "that feed a loss, less 1, over K; cosine: of an estimate of the weights’ gradient and the gradient of the",
        "same losses, which is not that of one loss: backprop’s accuracies show what it is worth.",
        f"largest deviation of {len(found)} compared: {largest:.1f} {unit}; chance allows {allowed:.1f}",
    ]
    return "\n".join(lines)


def plot(found: dict[str, Result], title: str, settings: Settings) -> Any:
    """Plots variance and law, cosine, and test accuracies by placement of losses."""
    from experiments.harness.plotting import figure, style

    canvas, (variance, cosine, accuracy) = figure(1, 3, size=(14, 5.2))
    rows = np.arange(len(found))
    dot = lambda index: {**style(index), "linestyle": "none", "markevery": None, "capsize": 3}
    noise = [result.noise for result in found.values()]
    means, errors = np.transpose([mean_and_error(one.squares) for one in noise])
    variance.errorbar(rows, means, errors, **dot(2), label="measured")
    variance.plot(rows, [one.law for one in noise], "_", color="black", markersize=22, label="law: units per loss")
    means, errors = np.transpose([mean_and_error(one.cosines) for one in noise])
    cosine.errorbar(rows, means, errors, **dot(2))
    for index, rule in zip((2, 3), RULES, strict=True):
        means, errors = np.transpose([mean_and_error(100 * result.accuracy[rule]) for result in found.values()])
        shift = 0.08 if rule == RULES[0] else -0.08
        accuracy.errorbar(rows + shift, means, np.where(np.isfinite(errors), errors, 0), **dot(index), label=rule)
    variance.set(yscale="log", ylabel="E‖δ̂ − δ‖² / ‖δ‖²", title="noise of the credit")
    cosine.set(yscale="log", ylabel="cosine", title="one estimate and the gradient of the same losses")
    accuracy.set(
        ylabel="test accuracy (%)", title=f"after {settings.updates} updates, best of {len(settings.rates)} rates"
    )
    for axes in (variance, cosine, accuracy):
        axes.set_xticks(rows, [way.replace(", ", "\n") for way in found])
        axes.set_xlim(-0.5, len(found) - 0.5)
        axes.set_xlabel("position of the losses")
        axes.grid(visible=False, axis="x")
    for axes, where in ((variance, "upper right"), (accuracy, "center left")):
        axes.legend(loc=where, frameon=False)
    canvas.suptitle(f"{title}: {settings.convolutions} convolutions, {settings.seeds} seeds; mean and standard error")
    return canvas
