"""Judges, tabulates and draws the linear units and the network."""

import functools
from typing import Any, NamedTuple

import numpy as np

from experiments.conditioning.linear_descent import Descent
from experiments.harness.results import Verdict, with_error
from experiments.harness.sweep import Scores, fastest, first_at_most
from nl_jax.theory import conditioning

ALLOWED = 1e-8  # allowed deviation from theory, as a fraction of the initial excess loss, in float64


class Settings(NamedTuple):
    """The settings of `Config` that tables and figures need."""

    reduction: float
    target: float
    rates: tuple[float, ...]
    batch_size: int


class Results(NamedTuple):
    """The results of all learners.

    Attributes:
      linear: descents of linear units, by preprocessing.
      given: descents on whitened images with another mean and standard deviation, by these two.
      moments: numbers of updates after which the network was scored.
      network: the network's scores, by preprocessing.
    """

    linear: dict[str, Descent]
    given: dict[tuple[float, float], Descent]
    moments: list[int]
    network: dict[str, Scores]

    @property
    def deviations(self) -> dict[str, float]:
        """Deviation of each descent from theory."""
        others = {f"mean {mean:g}, deviation {deviation:g}": of for (mean, deviation), of in self.given.items()}
        return {name: found.deviation for name, found in {**self.linear, **others}.items()}


def verdict(results: Results) -> Verdict:
    """Judges the largest deviation of a linear unit's loss from theory."""
    return Verdict(float(np.max(list(results.deviations.values()))), ALLOWED, "of the initial excess loss")


def rows(results: Results, settings: Settings) -> dict[str, dict[str, Any]]:
    """Returns both learners' results for each kind of inputs; the network's are [seeds], at its chosen rate."""
    found = {}
    for name, of_network in results.network.items():
        line, loss = results.linear[name], of_network.loss
        best = fastest(loss["validation"], settings.target, results.moments)
        found[name] = {
            "condition": line.condition, "steps allowed": line.allowed, "steps from worst start": line.taken[0],
            "steps from zero": line.taken[1], "rate": settings.rates[best],
            "updates, training": first_at_most(settings.target, loss["train"][best], results.moments),
            "updates, test": first_at_most(settings.target, loss["test"][best], results.moments),
            "test loss": _where_least(loss["validation"][best], loss["test"][best]),
        }  # fmt: skip
    return found


def _where_least(of: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns `values` at the moment where `of` is least, both [seeds, moments]."""
    return np.take_along_axis(values, of.argmin(axis=-1, keepdims=True), axis=-1)[:, 0]


def table(results: Results, settings: Settings) -> str:
    """Returns the measurements as text; ± is one standard error over seeds."""
    lines = [
        f"{'':20}{f'linear units, steps to 1/{settings.reduction:g}':>38}{'network,':>10}"
        f"{f'updates to {settings.target:g} nats':>34}",
        f"{'inputs':12}{'κ':>8}{'law':>13}{'worst start':>14}{'from zero':>11}{'rate':>10}{'training':>17}{'test':>17}"
        f"{'test loss':>19}",
    ]
    for name, row in rows(results, settings).items():
        lines.append(
            f"{name:12}{row['condition']:>8,.0f}{row['steps allowed']:>13,}{row['steps from worst start']:>14,.0f}"
            f"{row['steps from zero']:>11,.0f}{row['rate']:>10g}{with_error(row['updates, training'], 1):>17}"
            f"{with_error(row['updates, test'], 1):>17}{with_error(row['test loss'], 4):>19}"
        )
    lines += [
        "κ: condition number of the inputs with a bias. law: steps that theory allows at the rate 2/(λmin + λmax).",
        "rate: the network's, by validation. test loss: where the validation loss is least.",
        f"largest deviation of a linear unit's loss from its law: {verdict(results).largest_deviation:.1e} of the "
        "excess loss at the start",
    ]
    return "\n".join(lines)


def arrays_of(results: Results) -> dict[str, Any]:
    """Returns the losses and descents as they are saved."""
    arrays: dict[str, Any] = {"moments": results.moments}
    for name, of_network in results.network.items():
        arrays |= {f"network, {name}, {part} loss": loss for part, loss in of_network.loss.items()}
    for what, found in (*results.linear.items(), *results.given.items()):
        arrays |= {f"linear, {what}, {field}": value for field, value in found._asdict().items()}
    return arrays


def plot(results: Results, settings: Settings) -> Any:
    """Plots the linear units against theory (top) and the network (bottom)."""
    from matplotlib import ticker

    from experiments.harness.plotting import band, figure, style

    canvas, ((curves, by_condition, by_moment), (training, test, by_rate)) = figure(2, 3, size=(15, 9))
    points = {"linestyle": "none", "markevery": None, "fillstyle": "none"}
    law = {"color": "black", "linewidth": 1.2, "zorder": 1}
    wanted = f"steps to 1/{settings.reduction:g} of the excess loss"
    allowed = functools.partial(conditioning.steps, reduction=settings.reduction)

    for i, (name, found) in enumerate(results.linear.items()):
        look = style(i)
        curves.plot(found.moments[1:], found.law[1, 1:], color=look["color"], linewidth=1.2)
        curves.plot(found.moments[1:], found.measured[1, 1:], **{**look, **points, "markersize": 4}, label=name)
    curves.set(xlabel="steps of gradient descent", ylabel="excess loss / initial excess loss")
    curves.set(title="linear units from zero (whitened: one step)", ylim=(0.3 / settings.reduction, 1.5))

    descents = [*results.linear.values(), *results.given.values()]
    for i, start in enumerate(("worst start", "zero")):
        taken = [found.taken[i] for found in descents]
        look = {**style((2, 1)[i]), **points}
        by_condition.plot([found.condition for found in descents], taken, **look, label=f"measured, from {start}")
    conditions = np.geomspace(1, max(found.condition for found in descents), 200)
    by_condition.plot(conditions, [allowed(kappa) for kappa in conditions], **law, label="law, from the worst start")
    by_condition.set(xlabel="condition number κ of inputs and bias", ylabel=wanted, title="linear units, all images")
    by_condition.legend(frameon=False)

    means = {mean: found for (mean, _), found in results.given.items() if mean}
    deviations = {deviation: found for (mean, deviation), found in results.given.items() if not mean}
    for i, (label, some) in enumerate((("mean, variance 1", means), ("standard deviation, mean 0", deviations))):
        by_moment.plot(
            list(some), [found.taken[0] for found in some.values()], **{**style((3, 6)[i]), **points}, label=label
        )
    of = functools.partial(conditioning.uncorrelated, descents[0].inputs)
    for values, spectrum in (
        (np.geomspace(min(means), max(means), 100), lambda mean: of(mean=mean, deviation=1.0)),
        (np.geomspace(min(deviations), max(deviations), 100), lambda deviation: of(mean=0.0, deviation=deviation)),
    ):
        by_moment.plot(values, [allowed(conditioning.condition_number(spectrum(value))) for value in values], **law)
    by_moment.set(
        xlabel="mean or deviation of the whitened images", ylabel=wanted, title="linear units from the worst start"
    )
    by_moment.legend(frameon=False)
    for panel in (curves, by_condition, by_moment):
        panel.set(xscale="log", yscale="log")

    for i, (name, row) in enumerate(rows(results, settings).items()):
        losses, best, look = results.network[name].loss, settings.rates.index(row["rate"]), style(i)
        label = f"{name} (network: rate {row['rate']:g})"
        band(training, np.array(results.moments), losses["train"][best].T, look, label)
        band(test, np.array(results.moments), losses["test"][best].T, look, label)
        updates = first_at_most(settings.target, losses["validation"], results.moments)
        reached = np.flatnonzero(np.isfinite(updates).all(axis=1))
        band(by_rate, np.array(settings.rates)[reached], updates[reached], {**look, "markevery": None}, name)
    for panel, part in ((training, "training"), (test, "test")):
        panel.axhline(settings.target, color="#888888", linewidth=1, linestyle=":", zorder=1)
        panel.set(xscale="log", yscale="log", xlabel=f"updates of {settings.batch_size} images")
        panel.set(ylabel=f"{part} loss (nats)", title="network, at the rate chosen on validation data")
    by_rate.set(xscale="log", yscale="log", xlabel="learning rate", title="network, at all rates that reach the goal")
    by_rate.set(ylabel=f"updates to a validation loss of {settings.target:g}")
    by_rate.set_xticks(settings.rates)
    by_rate.xaxis.set_major_formatter("{x:g}")
    by_rate.xaxis.set_minor_locator(ticker.NullLocator())
    canvas.legend(*training.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle("Inputs of zero mean and unit variance: linear units on their laws, and a network")
    return canvas
