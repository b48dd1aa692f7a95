"""Principal components of digits by Hebbian rules: Hebb's diverges, Oja's and Sanger's converge (seed 000).

python -m experiments.hebbian_pca --help
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness import data, extrapolation
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from nl_jax.theory import hebbian

MOMENTS = 200  # measurements of a run, evenly spaced in time
REFINEMENTS = (1, 2, 4)  # steps of η, η/2 and η/4
GROWN = 8.0  # Hebb's rule runs until the first component has grown by a factor e^8
TURNED = 5.0  # Oja's rule runs until the ratio of second to first component has fallen by e^-5
SETTLED = 16.0  # Sanger's rule runs until the slowest distance, at the smallest eigenvalue gap, has fallen by e^-16


@dataclass(frozen=True)
class Config:
    """Teach linear units the digits without labels, by three local rules in full-batch steps, from random weights.

    Hebb's and Oja's flows are known in closed form. Runs with steps of η, η/2 and η/4 are extrapolated to η → 0 and
    compared with them. Sanger's units must converge to the eigenvectors of the covariance, in order. Exits with 1 if
    one of the rules disagrees with its theory. Prints a table and writes config.json, metrics.jsonl, hebbian_pca.json,
    hebbian_pca.npz and hebbian_pca.png to --out.
    """

    out: Path = Path("results/hebbian_pca")
    """Folder for the results; files of an earlier run there are replaced."""
    components: int = 5
    """Number of eigenvectors along which Hebb's and Oja's weights are measured."""
    units: int = 4
    """Units of Sanger's rule."""
    start: float = 0.1
    """Initial norm of each unit's weights."""
    steps: int = 5
    """Steps of the largest size η between two of the 200 measurements; Sanger's rule may take more."""
    quick: bool = False
    """A small version, at most 2 steps, in a few seconds."""


class Digits:
    """Centred images, and the eigenvectors of their covariance C, the largest eigenvalue first."""

    def __init__(self) -> None:
        images = data.digits().train.images.astype(np.float64)
        self.x = images - images.mean(axis=0)
        self.C = self.x.T @ self.x / len(self.x)
        values, vectors = np.linalg.eigh(self.C)
        self.values: np.ndarray = values[::-1]
        self.vectors: np.ndarray = vectors[:, ::-1]


@dataclass(frozen=True)
class Followed:
    """Result of a rule that follows a flow; curves are [components, moments]."""

    time: np.ndarray
    rates: np.ndarray
    law: np.ndarray
    measured: extrapolation.Limit
    errors: np.ndarray
    """Largest distance from the flow, at each rate."""

    @property
    def deviation(self) -> float:
        """Largest distance of a curve's extrapolated limit from the flow, in error bars."""
        return extrapolation.deviation(self.measured, self.law)

    @property
    def slopes(self) -> np.ndarray:
        """Mean slope of each curve at η → 0, from start to end."""
        return (self.measured.values[:, -1] - self.measured.values[:, 0]) / (self.time[-1] - self.time[0])


@dataclass(frozen=True)
class Settled:
    """Result of a rule that converges, at one rate."""

    time: np.ndarray
    rate: float
    weights: np.ndarray
    """Final weights, [inputs, units]; each unit has its eigenvector's sign."""
    distance: np.ndarray
    """‖w_j ∓ v_j‖, [units, moments]."""
    left: float
    """Error bar: the largest remaining movement of a unit, estimated from its most recent movement."""

    @property
    def deviation(self) -> float:
        """The largest distance from an eigenvector, in error bars."""
        return float(self.distance[:, -1].max() / self.left)


class Found(NamedTuple):
    """Results by rule."""

    hebb: Followed
    oja: Followed
    sanger: Settled


def run(config: Config) -> Found:
    """Trains by each rule in turn, saving as it goes; returns the results.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(config, steps=min(config.steps, 2))
    for name, least, most in (("components", 2, 20), ("units", 1, 8), ("steps", 1, 10**6)):
        if not least <= getattr(config, name) <= most:
            raise ExperimentError(f"--{name} must be from {least} to {most}, got {getattr(config, name)}")
    if not 0 < config.start < 1:
        raise ExperimentError(f"--start must be above 0 and below 1, got {config.start}")
    folder = Folder(config.out, config, outputs=["hebbian_pca.json", "hebbian_pca.npz", "hebbian_pca.png"])
    digits = Digits()
    measured: dict[str, Any] = {}
    with jax.enable_x64(True):
        for rule, measure in tqdm({"hebb": _hebb, "oja": _oja, "sanger": _sanger}.items(), unit="rule"):
            measured[rule] = measure(digits, config)
            folder.metric(rule=rule, deviation=measured[rule].deviation)
    found = Found(**measured)
    deviations = {rule: result.deviation for rule, result in found._asdict().items()}
    folder.arrays("hebbian_pca", _arrays(found))
    folder.data(
        "hebbian_pca",
        {
            **extrapolation.verdict(deviations)._asdict(),
            "deviations": deviations,
            "hebb_growth": found.hebb.slopes,
            "eigenvalues": digits.values,
        },
    )
    picture = folder.picture("hebbian_pca", plot(found, digits))
    print(table(found, digits))
    print(f"picture and data: {picture.parent} ({picture.name}, hebbian_pca.npz, metrics.jsonl, config.json)")
    extrapolation.judge(deviations)
    return found


def _start(digits: Digits, units: int, config: Config) -> np.ndarray:
    W = np.random.default_rng(0).normal(size=(digits.x.shape[1], units))
    return config.start * W / np.linalg.norm(W, axis=0)


def _teach(
    rule: nl.rules.Rule, digits: Digits, start: np.ndarray, end: float, steps: Sequence[int]
) -> list[np.ndarray]:
    """Weights at every moment until `end`, [moments, inputs, units], for each number of steps between moments."""
    network = nl.mlp(start.shape, activation=nl.activations.identity(), bias=False)
    estimator = nl.local_learning(network.apply, rule)
    x, key = jnp.asarray(digits.x), jax.random.key(0)  # the key is unused: the rules are deterministic

    @jax.jit
    def walk(stride: int, W: jax.Array) -> jax.Array:
        learner = nl.learner(estimator, optax.sgd(end / (MOMENTS * stride)))

        def look(state: nl.LearnerState, _: None) -> tuple[nl.LearnerState, jax.Array]:
            state = jax.lax.fori_loop(0, stride, lambda _, state: learner.step(key, state, x)[0], state)
            return state, state.params["output"]["weight"]

        return jax.lax.scan(look, learner.init(key, {"output": {"weight": W}}), length=MOMENTS)[1]

    return [np.asarray(walk(stride, jnp.asarray(start))) for stride in steps]


def _times(end: float) -> np.ndarray:
    return end * np.arange(1, MOMENTS + 1) / MOMENTS


def _follow(
    rule: nl.rules.Rule,
    flow: Callable[..., jax.Array],
    view: Callable[[np.ndarray], np.ndarray],
    digits: Digits,
    end: float,
    config: Config,
) -> Followed:
    """Compares one unit with its flow; `view` maps weights [moments, inputs] to curves [components, moments]."""
    start, steps = _start(digits, 1, config), [config.steps * refinement for refinement in REFINEMENTS]
    walks = [view(W[..., 0]) for W in _teach(rule, digits, start, end, steps)]
    time = _times(end)
    law = view(np.asarray(jax.jit(jax.vmap(functools.partial(flow, digits.C, start[:, 0])))(time)))
    return Followed(
        time=time,
        rates=end / (MOMENTS * np.array(steps)),
        law=law,
        measured=extrapolation.limit(*walks),
        errors=np.array([np.abs(curves - law).max() for curves in walks]),
    )


def _hebb(digits: Digits, config: Config) -> Followed:
    """Curves ln |w_i| of each eigen-component w_i: straight lines of slope λ_i."""

    def flow(C: jax.Array, w: jax.Array, t: jax.Array) -> jax.Array:
        return hebbian.hebb_flow(C, w[:, None], t)[:, 0]

    def view(w: np.ndarray) -> np.ndarray:
        return np.log(np.abs(w @ digits.vectors[:, : config.components])).T

    return _follow(nl.rules.hebb(), flow, view, digits, GROWN / digits.values[0], config)


def _oja(digits: Digits, config: Config) -> Followed:
    """Curves of the eigen-components; all but the first decay."""

    def view(w: np.ndarray) -> np.ndarray:
        return (w @ digits.vectors[:, : config.components]).T

    gap = digits.values[0] - digits.values[1]
    return _follow(nl.rules.oja(), hebbian.oja_flow, view, digits, TURNED / gap, config)


def _sanger(digits: Digits, config: Config) -> Settled:
    gap = np.min(-np.diff(digits.values[: config.units + 1]))
    end = SETTLED / gap
    # Steps of η λ_1 ≥ 1 make norms oscillate. The path is not judged, so η λ_1 = 1/2 is small enough.
    steps = max(config.steps, math.ceil(2 * digits.values[0] * end / MOMENTS))
    (W,) = _teach(nl.rules.sanger(), digits, _start(digits, config.units, config), end, [steps])
    V = digits.vectors[:, : config.units]
    W = W * np.sign(np.sum(W[-1] * V, axis=0))
    # While a distance falls to a third, it loses twice what is left.
    before = math.ceil(MOMENTS * math.log(3) / SETTLED)
    return Settled(
        time=_times(end),
        rate=end / (MOMENTS * steps),
        weights=W[-1],
        distance=np.linalg.norm(W - V, axis=1).T,
        left=float(np.linalg.norm(W[-1] - W[-1 - before], axis=0).max()),
    )


def _arrays(found: Found) -> dict[str, np.ndarray]:
    """Arrays of all rules; each name is prefixed by the rule."""
    arrays = {
        f"{rule} {name}": value for rule, result in found._asdict().items() for name, value in vars(result).items()
    }
    for rule in ("hebb", "oja"):
        measured = arrays.pop(f"{rule} measured")
        arrays |= {f"{rule} measured": measured.raw, f"{rule} limit": measured.values}
    return arrays


def table(found: Found, digits: Digits) -> str:
    """The measurements as text, a row for each rule."""
    lines = [
        f"{'':24}{'largest distance from the flow at':^44}",
        f"{'rule':6}{'η':>10}{'end':>8}{'η':>11}{'η/2':>11}{'η/4':>11}{'η → 0':>11}{'±':>10}{'off':>7}",
    ]
    for rule, flow in (("hebb", found.hebb), ("oja", found.oja)):
        errors = (*flow.errors, np.abs(flow.measured.values - flow.law).max())
        lines.append(
            f"{rule:6}{flow.rates[0]:>10.1e}{flow.time[-1]:>8.1f}"
            + "".join(f"{error:>11.1e}" for error in errors)
            + f"{np.abs(flow.measured.correction).max():>10.1e}{flow.deviation:>7.2f}"
        )
    sanger = found.sanger
    lines += [
        f"{'sanger':6}{sanger.rate:>10.1e}{sanger.time[-1]:>8.1f}{sanger.distance[:, -1].max():>11.1e}{'':33}"
        f"{sanger.left:>10.1e}{sanger.deviation:>7.2f}",
        extrapolation.NOTE,
        "sanger: largest distance of a unit from its eigenvector, by eigh; ±: how far one went in the last while, in",
        "which distances fall to a third at the slowest rate of theory, the smallest gap between eigenvalues.",
        "ln|w_i| grew by Hebb's rule at " + ", ".join(f"{rate:.5f}" for rate in found.hebb.slopes),
        "where eigenvalues are          " + ", ".join(f"{rate:.5f}" for rate in digits.values[: len(found.hebb.law)]),
        f"largest deviation from theory: {max(result.deviation for result in found):.2f} error bars",
    ]
    return "\n".join(lines)


def plot(found: Found, digits: Digits) -> Any:
    """Plots Hebb's growth and Oja's components beside their flows, Sanger's distances and the weights of his units."""
    from experiments.harness.plotting import figure, style

    canvas, ((growth, turning), (settling, pictures)) = figure(2, 2, size=(12, 8.4))
    law: dict[str, Any] = {"color": "black", "linewidth": 1.1, "zorder": 4}
    for axes, result, shown in ((growth, found.hebb, np.exp), (turning, found.oja, np.array)):
        for i, (measured, said) in enumerate(zip(shown(result.measured.raw), shown(result.law), strict=True)):
            look = style(1 + i % 6)
            label = rf"$\lambda_{{{i + 1}}}$ = {digits.values[i]:.3f}"
            axes.plot(result.time, measured, color=look["color"], linewidth=5, alpha=0.55, label=label)
            axes.plot(result.time, said, **law)
    growth.set(yscale="log", title="Hebb: every eigen-component grows, as $e^{λ_i t}$", ylabel="$|w_i|$")
    turning.set(xscale="log", title="Oja: all but the first fade away", ylabel="$w_i$")
    growth.legend(frameon=False, title="wide: measured; black: flow", alignment="left")

    sanger = found.sanger
    for j, distance in enumerate(sanger.distance):
        settling.plot(sanger.time, distance, **{**style(1 + j % 6), "marker": None}, label=f"unit {j + 1}")
    gap = np.min(-np.diff(digits.values[: len(sanger.distance) + 1]))
    settling.plot(
        sanger.time, np.exp(-gap * sanger.time), label="slope of the smallest gap", **{**law, "linestyle": ":"}
    )
    settling.set(yscale="log", title="Sanger: unit $j$ comes to eigenvector $j$", ylabel="$\\|w_j ∓ v_j\\|$")
    settling.legend(frameon=False)
    for axes in (growth, turning, settling):
        axes.set(xlabel="time, steps × η")

    side = math.isqrt(len(sanger.weights))
    rows = []
    for weights in (sanger.weights, digits.vectors[:, : len(sanger.distance)]):
        images = np.pad(weights.T.reshape(-1, side, side), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        rows.append(np.concatenate(list(images), axis=1))
    size = np.abs(digits.vectors[:, : len(sanger.distance)]).max()
    pictures.imshow(np.concatenate(rows), cmap="RdBu_r", vmin=-size, vmax=size)
    pictures.grid(visible=False)
    pictures.spines[:].set_visible(False)
    units = np.arange(len(sanger.distance))
    pictures.set_xticks((side + 2) * (units + 0.5) - 0.5, [f"{j + 1}" for j in units])
    pictures.set_yticks([side / 2 + 0.5, 1.5 * side + 2.5], ["learned", "eigh"])
    pictures.tick_params(length=0)
    pictures.set(title="Sanger's units and the eigenvectors", xlabel="unit, eigenvector")
    canvas.suptitle("Principal components of digits by local rules, without labels")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.hebbian_pca")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
