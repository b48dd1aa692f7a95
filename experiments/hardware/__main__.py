"""Hardware in the loop: a faulty analogue circuit learns images.

python -m experiments.hardware --help
"""

import dataclasses
import functools
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.hardware.circuit import Circuit, Faults, circuit
from experiments.harness.data import mnist_5000
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder, judge, verdict
from experiments.harness.sweep import Sets, with_validation
from nl_jax._core.numerics import mean_and_error

ALLOWED = 0.01
"""Allowed loss of accuracy (a fraction) of node perturbation by measured activity, relative to backprop in software."""

WAYS: dict[str, str] = {
    "software": "backprop, no circuit at all",
    "transferred": "backprop in the model, the weights written to the circuit",
    "physics_aware": "backprop through a model, with the circuit's answers",
    "activity": "node perturbation by measured activity; noise is the circuit's own",
}


FAULTS = Faults(mismatch=0.5, drift=0.2, bits=4, noise=0.05)


@dataclass(frozen=True)
class Config:
    """Train an analogue circuit with mismatch, drift, coarse weights and noise on 5,000 MNIST images.

    Every training method tries the same learning rates of Adam. Validation images choose the rate; the accuracy is that
    of the circuit's answers on test images. Exits with 1 if node perturbation by measured activity, on the circuit,
    is more than a point below backprop in software. Prints a table and writes hardware.json and hardware.png to --out.
    """

    faults: Faults = FAULTS
    """Faults of the circuit."""
    hidden: int = 100
    """Hidden units (tanh)."""
    updates: int = 20_000
    """Parameter updates per run."""
    batch_size: int = 100
    """Images per update."""
    samples: int = 10
    """Noisy passes per update, at least 2, for node perturbation by measured activity."""
    rates: tuple[float, ...] = (1e-3, 3e-3)
    """Adam's learning rates to try; each decays to zero along a cosine."""
    seeds: int = 3
    """Circuits, each with its own initial parameters."""
    out: Path = Path("results/hardware")
    """Folder for the results."""
    resume: bool = False
    """Continue an interrupted run: reuse what a run with the same settings finished in --out."""
    quick: bool = False
    """A smoke test: 40 updates of two circuits at one rate, without a verdict."""


def run(config: Config) -> dict[str, dict[str, Any]]:
    """Trains by every method; returns by method `rate`, `test` accuracies and `validation` accuracies by rate.

    Raises:
      ExperimentError: for an invalid setting, or if training by measured activity falls too far behind.
    """
    if config.quick:
        config = dataclasses.replace(config, updates=min(config.updates, 40), seeds=2, rates=config.rates[:1])
    if min(config.hidden, config.updates, config.batch_size) < 1 or min(config.seeds, config.samples) < 2:
        raise ExperimentError("all numbers must be at least 1, --seeds and --samples at least 2")
    if not config.rates:
        raise ExperimentError("--rates must name at least one")
    folder = Folder(config.out, config, outputs=("hardware.json", "hardware.png"))
    finished = Finished(config.out, config, resume=config.resume)
    sets = with_validation(mnist_5000())
    found: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(WAYS) * len(config.rates) * config.seeds, unit="run") as bar:
        for way in WAYS:
            accuracies = np.empty((2, len(config.rates), config.seeds))
            for i, rate in enumerate(config.rates):
                for seed in range(config.seeds):
                    bar.set_postfix_str(f"{way}, rate {rate:g}")
                    one = functools.partial(trained, config, sets, way, rate, seed)
                    accuracies[:, i, seed] = finished(f"{way}/{rate}/{seed}", one)
                    bar.update()
            validation, test = accuracies
            best = int(validation.mean(axis=1).argmax())
            found[way] = {"rate": config.rates[best], "validation": validation, "test": test[best]}
    behind = {way: found["software"]["test"] - found[way]["test"] for way in WAYS}
    deviations = {"activity, behind backprop in software": max(0.0, float(behind["activity"].mean())) / ALLOWED}
    judged = {} if config.quick else verdict(deviations)._asdict()
    folder.data("hardware", {**judged, "ways": found, "behind": behind})
    folder.picture("hardware", plot(found))
    print(table(found, behind))
    print(f"picture and data: {folder.path} (hardware.png, hardware.json, config.json)")
    if judged:
        judge(deviations)
    return found


def trained(config: Config, sets: Sets, way: str, rate: float, seed: int) -> tuple[float, float]:
    """One run's accuracies on validation and test images, by the circuit's answers ("software": by the model's)."""
    pixels = sets.train[0].shape[1]
    made = circuit((pixels, config.hidden, 10), config.faults, seed)
    learner = nl.learner(
        _estimator(way, made, config.samples), optax.adam(optax.cosine_decay_schedule(rate, config.updates))
    )
    key = jax.random.key(seed)
    state = learner.init(key, made.init(jax.random.fold_in(key, 1)))
    try:
        with threadpool_limits(1):  # in a callback, threads of NumPy's products wait for those of XLA, 8 times longer
            state, _ = nl.fit(
                learner, key, state, sets.train, num_steps=config.updates, batch_size=config.batch_size, progress=False
            )
    except nl.Diverged:
        return 0.0, 0.0
    params = jax.device_get(state.params)
    answer: Callable[[Any, np.ndarray], Any] = made.model if way == "software" else made.answer
    right = lambda images, labels: float(np.mean(np.argmax(answer(params, images), axis=-1) == labels))
    return right(*sets.validation), right(*sets.test)


def _estimator(way: str, made: Circuit, samples: int) -> nl.GradientEstimator:
    model, hardware = (nl.supervised(forward, nl.losses.cross_entropy) for forward in (made.model, made.hardware))
    if way in ("software", "transferred"):
        return nl.backprop(model)
    if way == "physics_aware":
        return nl.backprop(hardware)

    def noisy(key: Any, params: Any, batch: Any, propagate: Any) -> Any:
        del key  # the circuit makes its own noise
        return hardware(params, batch, propagate=propagate)

    return nl.activity_node_perturbation(hardware, noisy=noisy, num_samples=samples, reference="mean")


def table(found: Mapping[str, Mapping[str, Any]], behind: Mapping[str, np.ndarray]) -> str:
    """A row for each method; ± is one standard error over circuits."""
    lines = [f"{'way to train':16}{'test accuracy %':>18}{'points behind':>18}{'rate':>8}"]
    for way, of in found.items():
        accuracy = "{:.1f} ± {:.1f}".format(*mean_and_error(100 * of["test"]))
        less = "{:.1f} ± {:.1f}".format(*mean_and_error(100 * behind[way]))
        lines.append(f"{way:16}{accuracy:>18}{less:>18}{of['rate']:>8g}  {WAYS[way]}")
    return "\n".join(lines)


def plot(found: Mapping[str, Mapping[str, Any]]) -> Any:
    """Test accuracy by method; dots are circuits."""
    from experiments.harness.plotting import figure, style

    canvas, axes = figure(1, 1, size=(9.0, 4.0))
    for i, of in enumerate(found.values()):
        mean, error = mean_and_error(100 * of["test"])
        colour = style(i)["color"]
        axes.errorbar(mean, i, xerr=error, fmt="o", color=colour, markersize=8, capsize=4)
        axes.plot(100 * of["test"], np.full(len(of["test"]), i + 0.2), ".", color=colour, alpha=0.6)
    axes.set_yticks(range(len(found)), [textwrap.fill(WAYS[way], 34) for way in found])
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy, % (± standard error; dots are circuits)")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.hardware")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
