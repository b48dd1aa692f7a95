"""Chooses each scheme's best learning rate, and tabulates and draws its training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.batch_norm.training import SCHEMES, Curve
from nl_jax._core.numerics import mean_and_error

CHANCE = float(np.log(10))  # the loss of uniform guessing among ten classes


def best(curves: Sequence[Curve]) -> dict[tuple[str, str], Curve]:
    """Returns for each rule and scheme the curve of the learning rate with the lowest final mean training loss."""
    chosen: dict[tuple[str, str], Curve] = {}
    for curve in curves:
        rival = chosen.get((curve.rule, curve.scheme))
        if rival is None or not _final_loss(curve) >= _final_loss(rival):
            chosen[curve.rule, curve.scheme] = curve
    return chosen


def _final_loss(curve: Curve) -> float:
    loss = float(curve.train_loss[-1].mean())
    return loss if np.isfinite(loss) else np.inf


def table(curves: Sequence[Curve]) -> str:
    """Returns each rule and scheme at its best learning rate as text; ± is one standard error over seeds."""
    lines = [f"{'':60}{'rate':>6}{'evaluations':>13}{'training loss':>18}{'test accuracy %':>17}"]
    for (rule, scheme), curve in best(curves).items():
        (loss, its_error), (accuracy, error) = map(
            mean_and_error, (curve.train_loss[-1], 100 * curve.test_accuracy[-1])
        )
        lines.append(
            f"{f'{rule}, {scheme}':60}{curve.learning_rate:>6g}{curve.evaluations:>13,}{loss:>9.4f} ± {its_error:.4f}"
            f"{accuracy:>10.2f} ± {error:4.2f}"
        )
    lines += [
        "rate: the learning rate with the lowest training loss. evaluations: forward passes of the batch per seed, a",
        "reverse sweep counted as two. Losses and accuracies are at inference, with the population's statistics.",
    ]
    return "\n".join(lines)


def plot(curves: Sequence[Curve], title: str) -> Any:
    """Plots one row per rule: training loss and test accuracy against updates, and loss against learning rate."""
    from matplotlib import ticker

    from experiments.harness.plotting import band, figure, style

    rules = list(dict.fromkeys(curve.rule for curve in curves))
    canvas, axes = figure(len(rules), 3, size=(13, 1.2 + 3.4 * len(rules)))
    for rule, (by_update, accuracies, by_rate) in zip(rules, np.reshape(axes, (len(rules), 3)), strict=True):
        ours = [curve for curve in curves if curve.rule == rule]
        for (_, scheme), curve in best(ours).items():
            look = style(list(SCHEMES).index(scheme))
            band(by_update, np.asarray(curve.update), np.asarray(curve.train_loss), look, scheme)
            band(accuracies, np.asarray(curve.update), 100 * np.asarray(curve.test_accuracy), look, scheme)
            tried = [c for c in ours if c.scheme == scheme and np.isfinite(_final_loss(c))]
            rates, losses = np.array([c.learning_rate for c in tried]), np.array([c.train_loss[-1] for c in tried])
            if tried:
                band(by_rate, rates, losses, {**look, "markevery": None}, scheme)
        by_update.set(xlabel="updates", title=f"{rule}, each at its best learning rate")
        accuracies.set(xlabel="updates", ylabel="test accuracy (%)", ylim=(0, 100), title=f"{rule}, the same runs")
        by_rate.set(xlabel="learning rate", xscale="log", title=f"{rule}, after the last update")
        by_rate.set_xticks(sorted({curve.learning_rate for curve in ours}))
        by_rate.xaxis.set_major_formatter("{x:g}")
        by_rate.xaxis.set_minor_locator(ticker.NullLocator())
        for panel in (by_update, by_rate):
            panel.set(yscale="log", ylabel="training loss (nats)")
            panel.set_ylim(top=min(panel.get_ylim()[1], 10))  # larger losses are those of diverging runs
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(ticker.NullLocator())
            panel.axhline(CHANCE, color="#888888", linewidth=1, linestyle=":", label="chance", zorder=1)
    handles = {
        label: h for panel in np.ravel(axes) for h, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    shown = [label for label in (*SCHEMES, "chance") if label in handles]
    canvas.legend([handles[s] for s in shown], shown, loc="outside lower center", ncols=3, frameon=False)
    canvas.suptitle(f"{title}: a deep sigmoid network, without batch normalisation and with it")
    return canvas
