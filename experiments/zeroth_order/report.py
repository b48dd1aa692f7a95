"""Tables and figures of zeroth-order runs: evaluations to a loss, and claims beside results."""

from typing import Any, NamedTuple

import numpy as np

from experiments.harness.results import with_error
from experiments.zeroth_order.claims import Times, reached, sentences, times_fewer
from experiments.zeroth_order.training import Curve
from nl_jax._core.numerics import mean_and_error


class Results(NamedTuple):
    """By method: the chosen rate, mean validation losses by rate tried, and a curve for every seed. Also cosines to the
    gradient, [draws], of isotropic noise and of noise in the span of the inputs; empty if not measured."""

    rates: dict[str, float]
    tried: dict[str, dict[float, float]]
    curves: dict[str, list[Curve]]
    cosines: dict[str, np.ndarray]


def compared(results: Results, target: float) -> tuple[dict[str, np.ndarray], dict[str, Times]]:
    """Evaluations of every method until a loss is reached, [seeds], and the factors by which MeZO takes more."""
    queries = {
        method: np.array([reached(own.evaluations, own.held_out, target) for own in curves])
        for method, curves in results.curves.items()
    }
    budgets = {method: float(np.mean([own.evaluations[-1] for own in of])) for method, of in results.curves.items()}
    times = {
        method: times_fewer(queries["MeZO"], own, (budgets["MeZO"], budgets[method]))
        for method, own in queries.items()
        if method != "MeZO" and "MeZO" in queries
    }
    return queries, times


def report(results: Results, target: float, model: str) -> list[str]:
    """The measurements as text; ± is one standard error over seeds."""
    queries, times = compared(results, target)
    lines = [f"{model}, to a held-out loss of {target:.3f} nats from {_first(results):.3f}:"]
    for method, curves in results.curves.items():
        last = np.array([own.held_out[-1] for own in curves])
        tried = results.tried[method]
        edge = len(tried) > 1 and results.rates[method] in (min(tried), max(tried))
        lines.append(
            f"  {method:8} rate {results.rates[method]:.2g}{', at the edge of those tried' * edge}: evaluations "
            f"{with_error(queries[method], 0)}; loss after {curves[0].evaluations[-1]:,.0f} {with_error(last, 3)}; "
            f"{np.median([own.seconds for own in curves]):.3g} s a step"
        )
    lines += sentences(times)
    if results.cosines:
        isotropic, inputs = (mean_and_error(results.cosines[of]) for of in ("isotropic", "inputs"))
        ratio = inputs[0] / isotropic[0]
        error = ratio * np.hypot(isotropic[1] / isotropic[0], inputs[1] / inputs[0])
        lines.append(
            f"cosine to the gradient by 6 evaluations: isotropic {isotropic[0]:.2g} ± {isotropic[1]:.1g}, AGZO "
            f"{inputs[0]:.2g} ± {inputs[1]:.1g}, {ratio:.3g} ± {error:.2g} times as much"
        )
    return lines


def _first(results: Results) -> float:
    """The initial held-out loss, the same for all runs."""
    return float(next(iter(results.curves.values()))[0].held_out[0])


def plot(results: Results, target: float, model: str) -> Any:
    """Plots held-out loss against evaluations, with the target loss, and the evaluations until it is reached."""
    from experiments.harness.plotting import figure, style

    queries, _ = compared(results, target)
    canvas, (losses, bars) = figure(1, 2, size=(11, 4.5))
    for i, (method, curves) in enumerate(results.curves.items()):
        look, length = style(i), min(len(own.held_out) for own in curves)
        values = np.array([own.held_out[:length] for own in curves])
        mean, error = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1)) / len(values) ** 0.5
        losses.plot(curves[0].evaluations[:length], mean, label=method, **{**look, "markevery": max(1, length // 8)})
        losses.fill_between(
            curves[0].evaluations[:length], mean - error, mean + error, color=look["color"], alpha=0.2, linewidth=0
        )
        end = float(np.mean([own.evaluations[-1] for own in curves]))
        reached_by = np.where(np.isfinite(queries[method]), queries[method], end)
        bars.barh(i, reached_by.mean(), color=look["color"], alpha=0.35)
        bars.plot(reached_by, np.full(len(reached_by), i), "o", color=look["color"], markersize=5)
        if not np.isfinite(queries[method]).all():
            bars.text(reached_by.mean(), i, "  or more", va="center", fontsize=9)
    losses.axhline(target, color="0.5", linewidth=1, linestyle=":")
    losses.set(xlabel="evaluations of the objective", ylabel="held-out loss (nats)", title=model)
    losses.annotate(
        "target loss",
        (1, target),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color="0.4",
        fontsize=9,
    )
    losses.legend(frameon=False)
    bars.set_yticks(range(len(results.curves)), list(results.curves))
    bars.invert_yaxis()
    bars.margins(x=0.15)  # room for the text beside the longest bar
    bars.set(xlabel=f"evaluations to a loss of {target:.2f}", title="mean over seeds, and each seed")
    return canvas
