"""Compares the learning curves of the modes of deep linear networks with theory (Saxe et al. 2014).

python -m experiments.deep_linear --help
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.nn.initializers import lecun_uniform
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness import extrapolation
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least
from nl_jax.base import Params
from nl_jax.theory import deep_linear

LEARNED = 0.98  # fraction of the weakest mode's strength at which a run ends
MOMENTS = 200  # number of times at which a run is measured, equally spaced
REFINEMENTS = (1, 2, 4)  # steps of η, η/2 and η/4


@dataclass(frozen=True)
class Config:
    """Train linear networks of several depths on a linear map, by gradient descent from small balanced weights.

    Every mode of the map follows its own sigmoid curve, known in closed form, and the loss falls in steps. Results at
    step sizes η, η/2 and η/4 are extrapolated to η → 0, where theory must hold; exits with 1 if it does not. Prints a
    table and writes config.json, metrics.jsonl, deep_linear.json, deep_linear.npz and deep_linear.png to --out.
    """

    out: Path = Path("results/deep_linear")
    """Folder for the results; replaces files of an earlier run."""
    depths: tuple[int, ...] = (2, 3, 4)
    """Numbers of weight layers L, each at least 2."""
    strengths: tuple[float, ...] = (4.0, 2.5, 1.6, 1.0)
    """Strengths s of the modes of the map to learn; there are as many outputs."""
    start: float = 1e-3
    """Initial strength u₀ of each mode."""
    inputs: int = 8
    """Number of inputs, at least the number of modes."""
    hidden: int = 16
    """Units of each hidden layer, at least the number of modes."""
    steps: int = 20
    """Steps of the largest size η between two of the 200 moments; at the last the weakest mode is learned to 98 %."""
    seeds: int = 20
    """Additional networks of each depth that start from small random weights; they are shown, not judged."""
    quick: bool = False
    """Run a small version: the first two depths, at most 10 steps and 5 seeds, in about 15 seconds."""


@dataclass(frozen=True)
class Course:
    """Measurements at one depth; u is [modes, moments], times are in units of τ."""

    depth: int
    rates: np.ndarray
    """η, η/2 and η/4."""
    time: np.ndarray
    law: np.ndarray
    measured: extrapolation.Limit
    errors: np.ndarray
    """Largest |u − law| at each rate."""
    loss: np.ndarray
    """Loss at steps of η/4, [moments]."""
    random: np.ndarray
    """The same loss from random weights, [seeds, moments]."""

    @property
    def deviation(self) -> float:
        """Largest deviation of a mode's limit from theory, in error bars."""
        return extrapolation.deviation(self.measured, self.law)


def run(config: Config) -> list[Course]:
    """Measures at every depth in turn, saving as it goes.

    Raises:
      ExperimentError: if a setting or folder is invalid, or theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, depths=config.depths[:2], steps=min(config.steps, 10), seeds=min(config.seeds, 5)
        )
    _check(config)
    folder = Folder(config.out, config, outputs=["deep_linear.json", "deep_linear.npz", "deep_linear.png"])
    courses: list[Course] = []
    try:
        with jax.enable_x64(True):
            for depth in tqdm(config.depths, unit="depth"):
                courses.append(_measure(depth, config))
                folder.metric(depth=depth, deviation=courses[-1].deviation, errors=courses[-1].errors)
    finally:  # also after Ctrl-C: show the measurements so far
        if courses:
            folder.arrays("deep_linear", _arrays(courses))
            deviations = {str(course.depth): course.deviation for course in courses}
            folder.data("deep_linear", extrapolation.verdict(deviations)._asdict() | {"deviations": deviations})
            picture = folder.picture("deep_linear", plot(courses, config))
            print(table(courses, config))
            print(f"picture and data: {picture.parent} ({picture.name}, deep_linear.npz, metrics.jsonl, config.json)")
    extrapolation.judge({f"the law of {course.depth} layers": course.deviation for course in courses})
    return courses


def _check(config: Config) -> None:
    if not config.depths or min(config.depths) < 2 or len(set(config.depths)) < len(config.depths):
        raise ExperimentError(f"--depths must be different numbers of at least 2, got {config.depths}")
    if sorted(set(config.strengths), reverse=True) != list(config.strengths) or not config.strengths:
        raise ExperimentError(f"--strengths must be falling numbers, got {config.strengths}")
    if not np.isfinite(config.strengths[0]):
        raise ExperimentError(f"--strengths must be finite, got {config.strengths}")
    if not 0 < config.start < config.strengths[-1] / 2:
        raise ExperimentError(f"--start must be above 0 and below half the weakest strength, got {config.start}")
    modes = len(config.strengths)
    at_least(config, inputs=modes, hidden=modes, steps=1, seeds=1)


def _lesson(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Returns whitened inputs, Σ11 = I, and their outputs under a linear map with the given strengths."""
    rng = np.random.default_rng(0)
    N, inputs, outputs = 4 * config.inputs, config.inputs, len(config.strengths)
    x, V, U = (np.linalg.qr(rng.normal(size=size))[0] for size in ((N, inputs), (inputs, outputs), (outputs, outputs)))
    return N**0.5 * x, N**0.5 * x @ V @ np.diag(config.strengths) @ U.T


def _measure(depth: int, config: Config) -> Course:
    x, y = map(jnp.asarray, _lesson(config))
    hidden = [config.hidden] * (depth - 1)
    network = nl.mlp(
        [x.shape[1], *hidden, y.shape[1]], activation=nl.activations.identity(), weight_init=lecun_uniform(), bias=False
    )
    objective = nl.supervised(network.apply, lambda output, target: jnp.sum((target - output) ** 2, axis=1))
    layers = list(network.shapes)[1:]
    fractions = np.arange(1, MOMENTS + 1) / MOMENTS

    def small(key: jax.Array) -> Params:
        return jax.tree.map(lambda W: config.start ** (1 / depth) * W, network.init(key, x.dtype))

    @jax.jit
    def begin(x: jax.Array, y: jax.Array) -> tuple[Any, ...]:
        _, Sigma31 = deep_linear.correlations(x, y)
        U, s, V = deep_linear.modes(Sigma31)
        balanced = deep_linear.balanced_weights(jax.random.key(1), Sigma31, config.start, hidden)
        random = jax.vmap(small)(jax.random.split(jax.random.key(2), config.seeds))
        starts = {
            layer: {"weight": jnp.concatenate([W.T[None], random[layer]["weight"]])}
            for layer, W in zip(layers, balanced, strict=True)
        }
        end = deep_linear.learning_time(LEARNED * s[-1], s[-1], config.start, 1.0, depth)
        law = jax.vmap(lambda s: deep_linear.mode(end * fractions, s, config.start, 1.0, depth))(s)
        return (U, V), starts, end, law

    directions, starts, end, law = begin(x, y)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def walk(refinement: int, params: Params) -> tuple[jax.Array, jax.Array]:
        """Returns strengths and loss at every moment, from every start."""
        stride = config.steps * refinement
        rate = end / (2 * MOMENTS * stride)  # τ = 1/(2η) steps, so all runs end at the same time
        learner = nl.learner(nl.backprop(objective), optax.sgd(rate))
        key = jax.random.key(0)  # backprop draws no random numbers

        def look(state: nl.LearnerState, _: None) -> tuple[nl.LearnerState, tuple[jax.Array, jax.Array]]:
            state = jax.lax.fori_loop(0, stride, lambda _, state: learner.step(key, state, (x, y))[0], state)
            weights = [state.params[layer]["weight"].T for layer in layers]
            return state, (deep_linear.strengths(weights, *directions), jnp.mean(objective(state.params, (x, y))))

        return jax.lax.scan(look, learner.init(key, params), length=MOMENTS)[1]

    walks = [jax.tree.map(np.asarray, walk(refinement, starts)) for refinement in REFINEMENTS]
    strengths, end, law = [u[0].T for u, _ in walks], float(end), np.asarray(law)
    return Course(
        depth=depth,
        rates=end / (2 * MOMENTS * config.steps * np.array(REFINEMENTS)),
        time=end * fractions,
        law=law,
        measured=extrapolation.limit(*strengths),
        errors=np.array([np.abs(u - law).max() for u in strengths]),
        loss=walks[-1][1][0],
        random=walks[-1][1][1:],
    )


def _arrays(courses: Sequence[Course]) -> dict[str, np.ndarray]:
    """Returns the arrays of all courses; each name starts with the depth."""
    return {
        f"{course.depth} {name}": value
        for course in courses
        for name, value in {
            "time": course.time,
            "strengths": course.measured.raw,
            "limit": course.measured.values,
            "law": course.law,
            "loss": course.loss,
            "random": course.random,
        }.items()
    }


def table(courses: Sequence[Course], config: Config) -> str:
    """Returns the measurements as text, one row per depth."""
    lines = [
        f"{'':24}{'largest |u − law| at steps of':^44}",
        f"{'layers':>6}{'η':>10}{'end/τ':>8}{'η':>11}{'η/2':>11}{'η/4':>11}{'η → 0':>11}{'±':>10}{'off':>7}",
    ]
    for course in courses:
        errors = "".join(
            f"{error:>11.1e}" for error in (*course.errors, np.abs(course.measured.values - course.law).max())
        )
        lines.append(
            f"{course.depth:>6}{course.rates[0]:>10.1e}{course.time[-1]:>8.1f}{errors}"
            f"{np.abs(course.measured.correction).max():>10.1e}{course.deviation:>7.2f}"
        )
    return "\n".join(
        [
            *lines,
            f"the largest of {len(config.strengths)} modes at {MOMENTS} moments; τ = 1/(2η) steps.",
            extrapolation.NOTE,
            f"largest deviation from the law: {max(course.deviation for course in courses):.2f} error bars",
        ]
    )


def plot(courses: Sequence[Course], config: Config) -> Any:
    """Plots strengths and losses of every depth against time with their theory, and the remaining differences."""
    from experiments.harness.plotting import figure, style

    canvas, axes = figure(2, len(courses) + 1, size=(4.2 * (len(courses) + 1), 7.4))
    law: dict[str, Any] = {"color": "black", "linewidth": 1.1, "zorder": 4}
    for (strengths, losses), course in zip(axes.T, courses, strict=False):
        for i, s in enumerate(config.strengths):
            wide = {"color": style(1 + i)["color"], "linewidth": 5, "alpha": 0.55}
            strengths.plot(course.time, course.measured.raw[i], label=f"measured, s = {s:g}", **wide)
            strengths.plot(course.time, course.law[i], label=None if i else "law", **law)
        missing = np.sum((np.array(config.strengths)[:, None] - course.law) ** 2, axis=0)
        losses.plot(course.time, course.random.T, color="grey", linewidth=0.6, alpha=0.6)
        losses.plot([], color="grey", label=f"from {config.seeds} random starts as small, not judged")
        losses.plot(course.time, course.loss, label="from balanced weights", color="#0072B2", linewidth=5, alpha=0.55)
        losses.plot(course.time, missing, label=r"law, $\Sigma_\alpha (s_\alpha - u_\alpha)^2$", **law)
        strengths.set(title=f"{course.depth} layers")
        losses.set(xlabel="time $t/τ$")
    axes[0, 0].set(ylabel="strength $u$ of each mode")
    axes[1, 0].set(ylabel="loss $L$")

    by_rate, by_time = axes[:, -1]
    for i, course in enumerate(courses):
        look = {**style((0, 2, 3, 5)[i % 4]), "markevery": None}
        by_rate.plot(course.rates, course.errors, label=f"{course.depth} layers", **look)
        left = np.abs(course.measured.values - course.law).max(axis=0)
        bar = np.abs(course.measured.correction).max()
        fraction = course.time / course.time[-1]
        by_time.plot(fraction, left, **{**look, "marker": None})
        by_time.axhline(bar, **{**look, "marker": None, "linestyle": ":"})
    by_rate.set(xscale="log", yscale="log", xlabel="rate η", title="largest |u − law|: half the step, half the error")
    by_rate.xaxis.set_minor_formatter("")
    by_rate.legend(frameon=False)
    by_time.set(yscale="log", xlabel="fraction of the run", title="|u − law| at η → 0; dotted: its error bar")
    handles = [handle for axis in axes[:, 0] for handle in axis.get_legend_handles_labels()[0]]
    canvas.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle(f"Deep linear networks learn mode by mode: $u_0$ = {config.start:g}, {config.hidden} units a layer")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.deep_linear")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
