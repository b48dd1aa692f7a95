"""Measures how a layer's input distribution shifts in training, with and without batch normalisation (seed 001 §5).

python -m experiments.covariate_shift --help
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments.covariate_shift.network import ACTIVATIONS, PLAIN, SCHEMES, Measured, Settings, trained
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict, with_error
from experiments.harness.settings import at_least, positive
from experiments.harness.sweep import lowest, with_validation

MOMENTS = 40  # number of times at which shifts are measured, equally spaced
ALLOWED = 1e-3  # allowed deviation due to ε and rounding, in standard deviations of a normalised unit


@dataclass(frozen=True)
class Config:
    """Measure how far an update moves the distribution of each layer's inputs, with and without batch normalisation.

    Every scheme learns digits at every rate, and validation chooses its rate. A third scheme is normalised, but random
    noise is added to its γ and β at every update: if shifts make learning slow, this scheme must be slow (Santurkar et
    al. 2018). The input of a normalised unit's activation has mean β and standard deviation |γ|, whatever lower layers
    do; exits with 1 if it has not. Prints a table and writes config.json, covariate_shift.json, covariate_shift.npz
    and covariate_shift.png to --out.
    """

    out: Path = Path("results/covariate_shift")
    """Folder for the results; replaces files of an earlier run."""
    hidden: tuple[int, ...] = (32, 32, 32)
    """Units of each hidden layer."""
    activation: str = "sigmoid"
    """Activation of the hidden layers: sigmoid or tanh."""
    jolt: float = 0.5
    """Largest absolute noise on γ and β in the third scheme, drawn anew at every update."""
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Learning rates tried."""
    updates: int = 1000
    """Parameter updates."""
    batch_size: int = 50
    """Examples per update."""
    seeds: int = 5
    """Independent runs of each scheme at each rate."""
    quick: bool = False
    """Run a small version: 200 updates of 2 seeds at two of the rates, in about 15 seconds."""


class Results(NamedTuple):
    """Measurements by scheme, at moments t, t + 1, t′, t′ + 1 …; `updates` holds t, t′ …"""

    updates: np.ndarray
    measured: dict[str, Measured]

    def best(self, scheme: str) -> int:
        """Returns the index of the rate that validation chooses."""
        return lowest(self.measured[scheme].scores.loss["validation"][..., -1])

    def shifts(self, scheme: str) -> np.ndarray:
        """Returns the shift of every hidden layer's axons (activity) in one update, [layers, rates, seeds, moments]."""
        return np.stack([shift(*_pairs(axons)) for axons in self.measured[scheme].axons.values()])

    def received(self, scheme: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the same shift of the inputs to normalised layers' activations, measured and by theory."""
        found = self.measured[scheme]
        laws = {layer: np.stack([own["beta"], np.abs(own["gamma"])], axis=-2) for layer, own in found.own.items()}
        measured, law = ([shift(*_pairs(of[layer])) for layer in laws] for of in (found.received, laws))
        return np.stack(measured), np.stack(law)


def shift(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the shift of a layer's values, in standard deviations: √(Σ_u W₂²(u) / Σ_u σ_u²).

    W₂ is the Wasserstein distance between the Gaussians with a unit's mean and standard deviation before and after:
    W₂² = (μ′ − μ)² + (σ′ − σ)² (Dowson & Landau 1982). σ is the standard deviation before.

    Args:
      before, after: means and standard deviations, […, 2, units].

    Returns:
      The shift, of shape […].
    """
    moved = np.sum((after - before) ** 2, axis=(-2, -1))
    return np.sqrt(moved / np.sum(before[..., 1, :] ** 2, axis=-1))


def _pairs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits [rates, seeds, moments, …] into values before and after an update."""
    return values[:, :, ::2], values[:, :, 1::2]


def run(config: Config) -> Results:
    """Trains with every scheme and saves the results.

    Raises:
      ExperimentError: if a setting or folder is invalid, or theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, updates=min(config.updates, 200), seeds=min(config.seeds, 2), rates=config.rates[2:4]
        )
    _check(config)
    folder = Folder(config.out, config, outputs=[f"covariate_shift.{kind}" for kind in ("json", "npz", "png")])
    sets = with_validation(data.digits())
    updates = np.unique(np.linspace(0, config.updates - 1, MOMENTS).round().astype(int))
    results = Results(updates, {})
    moments = np.stack([updates, updates + 1], axis=1).ravel().tolist()
    settings = Settings(config.hidden, config.activation, config.jolt, config.rates, config.batch_size, config.seeds)
    for name, measured in itertools.chain(
        *(trained(normalised, sets, moments, settings) for normalised in (False, True))
    ):
        print(name)
        results.measured[name] = measured
        folder.metric(scheme=name, **row(name, results, config))
    found = verdict(results)
    folder.data("covariate_shift", {**found._asdict(), "rows": {name: row(name, results, config) for name in SCHEMES}})
    folder.arrays("covariate_shift", _arrays(results))
    folder.picture("covariate_shift", plot(results, config))
    print(table(results, config))
    print(f"picture and data: {folder.path} (covariate_shift.png, .npz and .json, metrics.jsonl, config.json)")
    if not found.agrees:
        raise ExperimentError(
            f"law and measurement disagree: normalised units moved by {found.largest_deviation:.1e} standard "
            f"deviations more or less than γ and β, where {ALLOWED:g} are allowed"
        )
    return results


def _check(config: Config) -> None:
    if config.activation not in ACTIVATIONS:
        raise ExperimentError(f"unknown activation {config.activation}; there are {', '.join(ACTIVATIONS)}")
    at_least(config, updates=2, batch_size=2, seeds=1, hidden=1)
    positive(config, "rates")
    if not 0 <= config.jolt < np.inf:
        raise ExperimentError(f"--jolt must be a finite number of at least 0, got {config.jolt}")


def row(scheme: str, results: Results, config: Config) -> dict[str, Any]:
    """Returns a scheme's results at its chosen rate, [seeds]; shifts, averaged over updates, are [layers, seeds]."""
    best, loss = results.best(scheme), results.measured[scheme].scores.loss
    return {
        "rate": config.rates[best], "shift": results.shifts(scheme)[:, best].mean(axis=-1),
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


def table(results: Results, config: Config) -> str:
    """Returns each scheme at its chosen rate as text; ± is one standard error over seeds."""
    names = [f"hidden{l}" for l in range(1, len(config.hidden) + 1)]
    lines = [
        f"{'':28}{'':>6}  shift in one update, in standard deviations, of",
        f"{'':28}{'rate':>6}" + "".join(f"{name:>20}" for name in names) + f"{'training loss':>20}{'test loss':>18}",
    ]
    for scheme in SCHEMES:
        found = row(scheme, results, config)
        shifts = "".join(f"{with_error(of_layer, 4):>20}" for of_layer in found["shift"])
        lines.append(
            f"{scheme:28}{found['rate']:>6g}{shifts}{with_error(found['training loss'], 4):>20}"
            f"{with_error(found['test loss'], 4):>18}"
        )
    lines += [
        "shift: W₂ of the Gaussians with each unit's mean and deviation before and after an update, mean over the",
        f"{config.updates:,} updates. rate: by validation. Losses: after the last update.",
        f"What normalised units receive moves as γ and β do, to within {verdict(results).largest_deviation:.1e}.",
    ]
    return "\n".join(lines)


def _arrays(results: Results) -> dict[str, Any]:
    arrays: dict[str, Any] = {"updates": results.updates}
    for name, measured in results.measured.items():
        arrays[f"{name}, shift"] = results.shifts(name)
        arrays |= {f"{name}, {part} loss": loss for part, loss in measured.scores.loss.items()}
    return arrays


def plot(results: Results, config: Config) -> Any:
    """Plots shifts over training, by layer and by rate; losses; and measured against theoretical shifts."""
    from matplotlib import ticker

    from experiments.harness.plotting import band, figure, style

    canvas, ((through, by_layer, by_rate), (losses, tests, laws)) = figure(2, 3, size=(15, 9))
    layers = np.arange(1, len(config.hidden) + 1)
    rates, same = np.array(config.rates), results.best(PLAIN)
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
        f"digits, {len(layers)} hidden layers ({config.activation}): shift of the layers' inputs by an update"
    )
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.covariate_shift")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
