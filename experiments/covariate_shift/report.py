"""Judges, tabulates and draws the shifts and losses of every scheme."""

from typing import Any

import numpy as np

from experiments.covariate_shift.network import PLAIN, SCHEMES, Settings
from experiments.covariate_shift.shift import Results
from experiments.harness.results import Verdict, with_error

ALLOWED = 1e-3  # allowed deviation due to ε and rounding, in standard deviations of a normalised unit


def row(scheme: str, results: Results, settings: Settings) -> dict[str, Any]:
    """Returns a scheme's results at its chosen rate, [seeds]; shifts, averaged over updates, are [layers, seeds]."""
    best, loss = results.best(scheme), results.measured[scheme].scores.loss
    return {
        "rate": settings.rates[best], "shift": results.shifts(scheme)[:, best].mean(axis=-1),
        "training loss": loss["train"][best, :, -1], "test loss": loss["test"][best, :, -1],
    }  # fmt: skip


def verdict(results: Results) -> Verdict:
    """Judges the largest difference between the measured and the theoretical shift, in runs with a finite loss."""
    largest = [0.0]
    for name in (name for name, scheme in SCHEMES.items() if scheme.normalised):
        kept = np.isfinite(results.measured[name].scores.loss["train"][..., -1])
        measured, law = results.received(name)
        largest.append(float(np.max(np.abs(measured - law)[:, kept])))
    return Verdict(max(largest), ALLOWED, "standard deviations")


def table(results: Results, settings: Settings) -> str:
    """Returns each scheme at its chosen rate as text; ± is one standard error over seeds."""
    names = [f"hidden{l}" for l in range(1, len(settings.hidden) + 1)]
    lines = [
        f"{'':28}{'':>6}  shift in one update, in standard deviations, of",
        f"{'':28}{'rate':>6}" + "".join(f"{name:>20}" for name in names) + f"{'training loss':>20}{'test loss':>18}",
    ]
    for scheme in SCHEMES:
        found = row(scheme, results, settings)
        shifts = "".join(f"{with_error(of_layer, 4):>20}" for of_layer in found["shift"])
        lines.append(
            f"{scheme:28}{found['rate']:>6g}{shifts}{with_error(found['training loss'], 4):>20}"
            f"{with_error(found['test loss'], 4):>18}"
        )
    lines += [
        "shift: W₂ of the Gaussians with each unit's mean and deviation before and after an update, mean over the",
        f"{settings.updates:,} updates. rate: by validation. Losses: after the last update.",
        f"What normalised units receive moves as γ and β do, to within {verdict(results).largest_deviation:.1e}.",
    ]
    return "\n".join(lines)


def arrays_of(results: Results) -> dict[str, Any]:
    """Returns the shifts and losses of all schemes, by name."""
    arrays: dict[str, Any] = {"updates": results.updates}
    for name, measured in results.measured.items():
        arrays[f"{name}, shift"] = results.shifts(name)
        arrays |= {f"{name}, {part} loss": loss for part, loss in measured.scores.loss.items()}
    return arrays


def plot(results: Results, settings: Settings) -> Any:
    """Plots shifts over training, by layer and by rate; losses; and measured against theoretical shifts."""
    from matplotlib import ticker

    from experiments.harness.plotting import band, figure, style

    canvas, ((through, by_layer, by_rate), (losses, tests, laws)) = figure(2, 3, size=(15, 9))
    layers = np.arange(1, len(settings.hidden) + 1)
    rates, same = np.array(settings.rates), results.best(PLAIN)
    for i, (name, measured) in enumerate(results.measured.items()):
        look, best, shifts = {**style((0, 2, 3)[i]), "markevery": None}, results.best(name), results.shifts(name)
        label = f"{name}, rate {rates[best]:g}"
        band(through, results.updates, shifts[-1, best].T, {**look, "markersize": 4}, label)
        band(by_layer, layers, shifts[:, same].mean(axis=-1), look, name)
        loss = measured.scores.loss
        kept = np.flatnonzero(np.isfinite(loss["train"][..., -1]).all(axis=1))
        band(by_rate, rates[kept], shifts[-1, kept].mean(axis=-1), look, name)
        for panel, part in ((losses, "train"), (tests, "test")):
            band(panel, results.updates, loss[part][best, :, ::2].T, {**look, "markersize": 4}, label)
        if SCHEMES[name].normalised:
            received, law = (of[:, best].ravel() for of in results.received(name))
            laws.plot(law, received, **{**look, "linestyle": "none", "markersize": 4, "fillstyle": "none"})
    unit = "shift in one update (standard deviations)"
    through.set(xlabel="updates", ylabel=unit, title="outputs of the highest hidden layer")
    by_layer.set(
        xlabel="hidden layer", ylabel=unit, title=f"outputs of every hidden layer, rate {rates[same]:g} for all"
    )
    by_layer.set_xticks(layers)
    by_rate.set(
        xscale="log", xlabel="learning rate", ylabel=unit, title="outputs of the highest hidden layer, all rates"
    )
    by_rate.set_xticks(rates)
    by_rate.xaxis.set_major_formatter("{x:g}")
    by_rate.xaxis.set_minor_locator(ticker.NullLocator())
    for panel in (through, by_layer, by_rate, losses, tests):
        panel.set(yscale="log")
    losses.set(xlabel="updates", ylabel="training loss (nats)", title="at the rate chosen on validation data")
    tests.set(xlabel="updates", ylabel="test loss (nats)", title="the same runs")
    laws.axline((0, 0), slope=1, color="black", linewidth=1.2, zorder=1)
    laws.set(xlabel="by law, from γ and β", ylabel="measured", xscale="log", yscale="log")
    laws.set(title="shift of the inputs of normalised units")
    canvas.legend(*through.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    canvas.suptitle(
        f"digits, {len(layers)} hidden layers ({settings.activation}): shift of the layers' inputs by an update"
    )
    return canvas
