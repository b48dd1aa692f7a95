"""Test error of the linear neuron across the peak at N = D, measured and in theory (seed 000, linear models).

python -m experiments.linear_neuron --help
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict
from experiments.harness.settings import at_least, rising
from nl_jax.theory import linear_neuron

# Closer to N = D the errors' fourth moment is infinite, and a standard error is meaningless.
JUDGED_FROM = 8
ALLOWED = 5.0  # standard errors: errors have heavy tails, and up to a few hundred values of N are compared


@dataclass(frozen=True)
class Config:
    """Fit a linear neuron to more and more random examples: by minimum norm and by gradient descent from zero.

    Inputs and noise are Gaussian, so the expected test error is known. Exits with 1 if the measured one differs.
    Prints a table and writes config.json, metrics.jsonl, linear_neuron.json, linear_neuron.npz and linear_neuron.png
    to --out.
    """

    out: Path = Path("results/linear_neuron")
    """Folder for the results; files of an earlier run there are replaced."""
    inputs: int = 30
    """D, the neuron's inputs."""
    examples: tuple[int, ...] = (
        3, 6, 9, 12, 15, 18, 20, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 34, 36, 38, 40, 45, 52, 60, 75, 90, 105, 120,
    )  # fmt: skip
    """N, one or more numbers of training examples, rising."""
    noise: float = 0.5
    """Standard deviation of the noise on the targets; the teacher's weights have norm 1."""
    datasets: int = 1000
    """Random datasets for each N."""
    steps: tuple[int, ...] = (30, 1000)
    """Numbers of gradient descent steps after which the error is measured."""
    quick: bool = False
    """A small version, 200 datasets for every third N and at most 300 steps, in under a minute."""


@dataclass(frozen=True)
class Point:
    """Measurements at one N: errors are [datasets], those of gradient descent [steps, datasets]."""

    examples: int
    law: float
    test_error: np.ndarray
    training_error: np.ndarray
    descent_test_error: np.ndarray
    descent_training_error: np.ndarray
    off_closed_form: float
    """Largest distance of descent's weights from their closed form, relative to the norm of descent's limit."""

    @property
    def deviation(self) -> float:
        """Mean test error minus the law, in standard errors."""
        standard_error = self.test_error.std(ddof=1) / len(self.test_error) ** 0.5
        return float((self.test_error.mean() - self.law) / standard_error)


def run(config: Config) -> list[Point]:
    """Measures at every N in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if law and measurement disagree.
    """
    if config.quick:
        steps = tuple(sorted({min(steps, 300) for steps in config.steps}))
        config = dataclasses.replace(
            config, examples=config.examples[::3], datasets=min(config.datasets, 200), steps=steps
        )
    _check(config)
    folder = Folder(config.out, config, outputs=["linear_neuron.json", "linear_neuron.npz", "linear_neuron.png"])
    points: list[Point] = []
    try:
        for N in tqdm(config.examples, unit="N"):
            points.append(_measure(N, config))
            means = {
                field.name: np.mean(value, axis=-1)
                for field in dataclasses.fields(Point)
                if np.ndim(value := getattr(points[-1], field.name))
            }
            folder.metric(examples=N, law=points[-1].law, off_closed_form=points[-1].off_closed_form, **means)
    finally:  # also after Ctrl-C: what was measured so far is shown
        if points:
            names = [field.name for field in dataclasses.fields(Point)]
            folder.arrays("linear_neuron", {name: [getattr(point, name) for point in points] for name in names})
            deviations = _judged(points, config)
            if deviations:
                folder.data("linear_neuron", verdict(deviations)._asdict() | {"deviations": deviations})
            picture = folder.picture("linear_neuron", plot(points, config))
            print(table(points, config))
            print(f"picture and data: {picture.parent} ({picture.name}, linear_neuron.npz, metrics.jsonl, config.json)")
    if deviations and not verdict(deviations).agrees:
        raise ExperimentError(
            f"law and measurement disagree: by {verdict(deviations).largest_deviation:.1f} standard errors, where "
            f"chance allows {ALLOWED:g}"
        )
    return points


def _check(config: Config) -> None:
    rising(config, "examples", "steps")
    at_least(config, inputs=1, datasets=2)
    if not 0 <= config.noise < float("inf"):
        raise ExperimentError(f"--noise must be a finite number of at least 0, got {config.noise}")


def _measure(N: int, config: Config) -> Point:
    D, noise = config.inputs, config.noise
    teacher = jnp.full(D, D**-0.5)
    # The Hessian's largest eigenvalue hardly exceeds 2/N (√N + √D)²; twice this rate would still be stable.
    rate = N / (2 * (N**0.5 + D**0.5) ** 2)

    def test_error(w: jax.Array) -> jax.Array:
        return jnp.sum((w - teacher) ** 2)  # E (wᵀx − w*ᵀx)² for x ~ N(0, I): no test set is needed

    @jax.jit
    @jax.vmap
    def measure(key: jax.Array) -> tuple[jax.Array, ...]:
        inputs_key, noise_key = jax.random.split(key)
        x = jax.random.normal(inputs_key, (N, D))
        y = x @ teacher + noise * jax.random.normal(noise_key, (N,))
        training_error = functools.partial(linear_neuron.training_error, x=x, y=y)
        w = linear_neuron.minimiser(x, y)
        reached = _descend(x, y, rate, config.steps)
        said = [linear_neuron.gradient_descent(x, y, jnp.zeros(D), rate, steps) for steps in config.steps]
        off = jnp.max(jnp.linalg.norm(reached - jnp.stack(said), axis=1)) / jnp.linalg.norm(w)
        return test_error(w), training_error(w), jax.vmap(test_error)(reached), jax.vmap(training_error)(reached), off

    law = linear_neuron.expected_excess_error(N, D, noise=noise, signal=1.0)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), N), config.datasets)
    test, training, descent_test, descent_training, off = map(np.asarray, measure(keys))
    return Point(N, law, test, training, descent_test.T, descent_training.T, float(off.max()))


def _descend(x: jax.Array, y: jax.Array, rate: float, steps: Sequence[int]) -> jax.Array:
    """Weights after each of `steps` gradient descent steps from zero, [steps, D], computed step by step."""
    objective = nl.supervised(lambda w, x: x @ w, lambda output, target: (output - target) ** 2)
    learner = nl.learner(nl.backprop(objective), optax.sgd(rate))
    key = jax.random.key(0)  # unused: backprop draws no random numbers

    def step(state: nl.LearnerState, _: None) -> tuple[nl.LearnerState, None]:
        return learner.step(key, state, (x, y))[0], None

    state, reached = learner.init(key, jnp.zeros(x.shape[1])), []
    for more in np.diff(steps, prepend=0):
        state, _ = jax.lax.scan(step, state, length=int(more))
        reached.append(state.params)
    return jnp.stack(reached)


def _judged(points: Sequence[Point], config: Config) -> dict[int, float]:
    """Deviations by N where errors can be judged: not near N = D, nor where the law is 0, which rounding misses."""
    return {
        point.examples: point.deviation
        for point in points
        if abs(point.examples - config.inputs) >= JUDGED_FROM and point.law > 0
    }


def verdict(deviations: Mapping[int, float]) -> Verdict:
    """The largest deviation, in standard errors."""
    return Verdict(float(np.max(np.abs(list(deviations.values())))), ALLOWED)


def table(points: Sequence[Point], config: Config) -> str:
    """The measurements as text, a row for each N; ± is one standard error over datasets."""
    walks = [f"{steps:,} steps" for steps in config.steps]
    lines = [
        f"{'N':>5}{'N/D':>7}{'training':>10}{'test':>11}{'':8}{'law':>10}{'off':>7}"
        + "".join(f"{walk:>13}" for walk in walks)
    ]
    for point in points:
        mean, error = point.test_error.mean(), point.test_error.std(ddof=1) / len(point.test_error) ** 0.5
        judged = abs(point.examples - config.inputs) >= JUDGED_FROM
        walked = "".join(f"{test:>13.4f}" for test in point.descent_test_error.mean(axis=1))
        lines.append(
            f"{point.examples:>5}{point.examples / config.inputs:>7.2f}{point.training_error.mean():>10.4f}"
            f"{mean:>11.4f}" + (f" ±{error:6.4f}" if judged else f"{'':8}") + f"{point.law:>10.4f}"
            f"{f'{point.deviation:+.1f}' if judged else '–':>7}{walked}"
        )
    lines += [
        f"means over {config.datasets} datasets of D = {config.inputs} inputs; test: excess over the noise. off: test",
        f"minus law in standard errors, where |N − D| ≥ {JUDGED_FROM} (nearer, the standard error has no finite error",
        "itself). steps: test error of gradient descent from zero after so many.",
    ]
    deviations = _judged(points, config)
    if deviations:
        largest = verdict(deviations).largest_deviation
        lines.append(f"largest deviation from the law: {largest:.1f} standard errors at {len(deviations)} values of N")
    off = max(point.off_closed_form for point in points)
    lines.append(f"largest relative distance of descent's weights from their closed form: {off:.1e}")
    return "\n".join(lines)


def plot(points: Sequence[Point], config: Config) -> Any:
    """Plots test and training error against N/D, with theory as lines."""
    from experiments.harness.plotting import figure, style

    D = config.inputs
    N = np.array([point.examples for point in points])
    everywhere = np.arange(N[0], N[-1] + 1)
    canvas, (test, training) = figure(1, 2, size=(12, 5))

    law = [linear_neuron.expected_excess_error(int(n), D, noise=config.noise, signal=1.0) for n in everywhere]
    test.plot(everywhere / D, law, color="black", linewidth=1.4, label="law, exact for these N and D")
    test.axvspan((D - 1.5) / D, (D + 1.5) / D, color="grey", alpha=0.3, linewidth=0, label="law infinite, |N − D| ≤ 1")
    law = [linear_neuron.expected_training_error(int(n), D, noise=config.noise) for n in everywhere]
    training.plot(everywhere / D, law, color="black", linewidth=1.4)

    def dots(
        axes: Any, index: int, errors: list[np.ndarray], label: str, size: float, heavy_tailed: bool = False
    ) -> None:
        look = style(index)
        means = np.array([np.mean(error) for error in errors])
        standard_errors = np.array([np.std(error, ddof=1) / len(error) ** 0.5 for error in errors])
        if heavy_tailed:
            means = np.where(abs(N - D) > 1, means, np.nan)
            standard_errors = np.where(abs(N - D) >= JUDGED_FROM, standard_errors, np.nan)
        axes.errorbar(
            N / D, means, standard_errors, label=label, color=look["color"], marker=look["marker"], markersize=size,
            fillstyle="none", linestyle="none", zorder=2 + index,
        )  # fmt: skip

    label = "minimum norm: mean and standard error"
    dots(test, 2, [point.test_error for point in points], label, 8, heavy_tailed=True)
    dots(training, 2, [point.training_error for point in points], label, 8)
    for i, steps in enumerate(config.steps):
        label = f"gradient descent from zero, {steps:,} steps"
        dots(test, (1, 3, 5)[i % 3], [point.descent_test_error[i] for point in points], label, 4.5)
        dots(training, (1, 3, 5)[i % 3], [point.descent_training_error[i] for point in points], label, 4.5)

    test.set(yscale="log", ylabel="test error − σ²", title="test error")
    training.set(ylabel="training error $L^{tr}$", title="training error")
    for axes in (test, training):
        axes.set(xlabel="training examples per input, N/D")
    handles, labels = test.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    setting = f"D = {D} inputs, |w| = 1, noise σ = {config.noise:g}, {config.datasets:,} datasets for each N"
    canvas.suptitle(f"Linear neuron: {setting}")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.linear_neuron")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
