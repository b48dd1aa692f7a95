"""Continuous functions fitted by one hidden layer of more and more sigmoid units (seed 001; Hornik 1991).

python -m experiments.universal_approximation --help
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg  # noqa: F401 - JAX's LAPACK: there before its threads are limited
import tyro
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder


class Target(NamedTuple):
    """A continuous function g on [0, 1]^p."""

    formula: str
    dimensions: int
    function: Callable[[jax.Array], jax.Array]
    """`function(points [points, p]) -> [points]`."""


TARGETS = {
    "smooth": Target("$1 / (1 + 25 (2x - 1)^2)$", 1, lambda x: 1 / (1 + 25 * (2 * x[:, 0] - 1) ** 2)),
    "kink": Target("$|x - 1/2|$", 1, lambda x: jnp.abs(x[:, 0] - 0.5)),
    "oscillating": Target(r"$\sin 6\pi x$", 1, lambda x: jnp.sin(6 * jnp.pi * x[:, 0])),
    "surface": Target(
        r"$\sin \pi x_1 \, \cos \pi x_2$", 2, lambda x: jnp.sin(jnp.pi * x[:, 0]) * jnp.cos(jnp.pi * x[:, 1])
    ),
}

TRAINING_POINTS = {1: 201, 2: 17}  # along each dimension
TEST_POINTS = {1: 2001, 2: 101}
STEEPNESS = 2.0, 60.0  # |w| of the initial units: from nearly linear to a step within a tenth of the cube
RIDGE = 1e-8  # of read-outs: far below the fitted values, far above rounding


@dataclass(frozen=True)
class Config:
    """Fit G(x) = Σ v_m σ(Σ w_jm x_j), one hidden layer of M sigmoid units, to given functions on [0, 1]^p.

    Hidden units learn by backprop and Adam. At every update the read-out v is the least-squares solution for the
    current hidden units. Prints a table and writes config.json, metrics.jsonl, an array file for each function and
    universal_approximation.png to --out.
    """

    out: Path = Path("results/universal_approximation")
    """Folder for the results; files of an earlier run there are replaced."""
    units: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """M, one or more numbers of hidden units, rising."""
    restarts: int = 8
    """Random initialisations of each fit; the best is kept and the spread shown."""
    updates: int = 3000
    """Full-batch updates of each run."""
    learning_rate: float = 0.1
    """Adam's initial learning rate; it decays to zero along a cosine."""
    quick: bool = False
    """A small version, at most 16 units, 4 restarts and 500 updates, in under a minute."""


class Fit(NamedTuple):
    """One function fitted with M units, from all initialisations; errors are on the fine grid."""

    sup: np.ndarray
    """max |G − g|, [restarts]."""
    rms: np.ndarray
    """√mean (G − g)², [restarts]."""
    best: np.ndarray
    """G of the run with the best fit to the training points, [points of the fine grid]."""
    best_index: int
    largest_weight: float
    """max |v_m| of that run."""


def grid(dimensions: int, points: int) -> jax.Array:
    """All points of [0, 1]^p with coordinates k / (points − 1), [points^p, p]."""
    axis = jnp.linspace(0, 1, points)
    return jnp.stack([x.ravel() for x in jnp.meshgrid(*[axis] * dimensions, indexing="ij")], axis=1)


def run(config: Config) -> dict[str, dict[int, Fit]]:
    """Fits every function with every number of units in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if all runs diverge.
    """
    if config.quick:
        config = dataclasses.replace(
            config,
            units=tuple(M for M in config.units if M <= 16) or config.units[:1],
            restarts=min(config.restarts, 4),
            updates=min(config.updates, 500),
        )
    _check(config)
    outputs = ["universal_approximation.png", *(f"{name}.npz" for name in TARGETS)]
    folder = Folder(config.out, config, outputs)
    fits: dict[str, dict[int, Fit]] = {}
    # LAPACK threads inside JAX's threads are hundreds of times slower.
    with threadpool_limits(1), jax.enable_x64(True):
        try:
            for name, M in tqdm(list(itertools.product(TARGETS, config.units)), unit="fit"):
                fit = _fit(TARGETS[name], M, config)
                fits.setdefault(name, {})[M] = fit
                figures = {field: value for field, value in fit._asdict().items() if field != "best"}
                folder.metric(target=name, units=M, **figures)
        finally:  # also after an error or Ctrl-C: the results so far are shown
            for name, found in fits.items():
                _save(folder, name, found)
            if fits:
                picture = folder.picture("universal_approximation", plot(fits))
                print(table(fits))
                print(f"picture and data: {picture.parent} ({picture.name}, metrics.jsonl, *.npz, config.json)")
    return fits


def _check(config: Config) -> None:
    if not config.units or min(config.units) < 1 or sorted(set(config.units)) != list(config.units):
        raise ExperimentError(f"--units must be rising numbers of at least 1, got {config.units}")
    for name in ("restarts", "updates"):
        if getattr(config, name) < 1:
            raise ExperimentError(f"--{name} must be at least 1, got {getattr(config, name)}")
    if not 0 < config.learning_rate < float("inf"):
        raise ExperimentError(f"--learning-rate must be a finite number above 0, got {config.learning_rate}")


def _save(folder: Folder, name: str, found: Mapping[int, Fit]) -> None:
    x = _fine_grid(TARGETS[name])
    columns = {field: [getattr(fit, field) for fit in found.values()] for field in Fit._fields}
    folder.arrays(name, {"units": list(found), "x": x, "target": TARGETS[name].function(x), **columns})


def _fine_grid(target: Target) -> jax.Array:
    return grid(target.dimensions, TEST_POINTS[target.dimensions])


class Approximation(NamedTuple):
    """G with M units on [0, 1]^p, and its learner; shared by all functions, so that it is compiled once."""

    init: Callable[[jax.Array], Any]
    objective: Callable[..., jax.Array]
    learner: nl.Learner
    outputs: Callable[[Any, nl.base.Batch, jax.Array], tuple[Any, jax.Array]]
    """`outputs(params, batch, x) -> (params with the best read-out, G(x))`, for many params at once."""


@functools.cache
def _approximation(p: int, M: int, updates: int, learning_rate: float) -> Approximation:
    network = nl.mlp([p, M, 1], activation=nl.activations.sigmoid())
    fit = nl.supervised(network.apply, nl.losses.half_squared_error)

    def init(key: jax.Array) -> Any:
        """Initialises units that rise through a random point of the cube, in a random direction."""
        params_key, direction_key, point_key, steepness_key = jax.random.split(key, 4)
        direction = jax.random.normal(direction_key, (p, M))
        low, high = np.log(STEEPNESS)
        steepness = jnp.exp(jax.random.uniform(steepness_key, (M,), minval=low, maxval=high))
        weight = steepness * direction / jnp.linalg.norm(direction, axis=0)
        bias = -jnp.sum(weight * jax.random.uniform(point_key, (p, M)), axis=0)
        return network.init(params_key, weight.dtype) | {"hidden1": {"weight": weight, "bias": bias}}

    def solved(params: Any, batch: nl.base.Batch) -> Any:
        """Solves for the best read-out of the current hidden units; the constant unit's weight is the bias."""
        x, y = batch
        hidden = network.axons(params, x)["hidden1"]
        design = jnp.concatenate([jnp.ones_like(hidden[:, :1]), hidden], axis=1)
        # A small ridge, since similar units would get huge weights of opposite signs.
        q, r = jnp.linalg.qr(jnp.concatenate([design, RIDGE * jnp.eye(M + 1)]))
        v = jax.scipy.linalg.solve_triangular(r, q[: len(x)].T @ y)
        return params | {"output": {"weight": v[1:], "bias": v[0]}}

    def objective(params: Any, batch: nl.base.Batch, propagate: Any = nl.propagation.feedforward) -> jax.Array:
        # At its minimum over v the loss has zero gradient in v, so v is held constant while the hidden units' gradient
        # is taken (variable projection, Golub & Pereyra 1973).
        readout = jax.lax.stop_gradient(solved(params, batch))["output"]
        return fit(params | {"output": readout}, batch, propagate)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def outputs(params: Any, batch: nl.base.Batch, x: jax.Array) -> tuple[Any, jax.Array]:
        params = solved(params, batch)
        return params, network.apply(params, x)[:, 0]

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, updates))
    return Approximation(jax.jit(init), jax.jit(objective), nl.learner(nl.backprop(objective), optimizer), outputs)


def _fit(target: Target, M: int, config: Config) -> Fit:
    p = target.dimensions
    approximation = _approximation(p, M, config.updates, config.learning_rate)
    x = grid(p, TRAINING_POINTS[p])
    batch = x, target.function(x)[:, None]
    try:
        found = nl.restarts(
            approximation.learner, jax.random.key(0), approximation.init, batch,
            score=lambda params: jnp.mean(approximation.objective(params, batch)),
            num_restarts=config.restarts, num_steps=config.updates, steps_per_dispatch=config.updates, progress=False,
        )  # fmt: skip
    except nl.Diverged as stopped:
        raise ExperimentError(f"{M} units: {stopped} (--learning-rate)") from stopped
    fine = _fine_grid(target)
    params, outputs = jax.tree.map(np.asarray, approximation.outputs(found.states.params, batch, fine))
    errors = outputs - np.asarray(target.function(fine))
    return Fit(
        sup=np.max(np.abs(errors), axis=1),
        rms=np.sqrt(np.mean(errors**2, axis=1)),
        best=outputs[found.best_index],
        best_index=found.best_index,
        largest_weight=float(np.max(np.abs(params["output"]["weight"][found.best_index]))),
    )


def table(fits: Mapping[str, Mapping[int, Fit]]) -> str:
    """The errors as text, a row for each function and number of units."""
    lines = [
        f"{'function':13}{'M':>4}{'rms error':>12}{'sup error':>12}{'median run':>12}{'worst run':>12}{'max |v|':>10}"
    ]
    for name, found in fits.items():
        for M, fit in found.items():
            best = fit.best_index
            lines.append(
                f"{name:13}{M:>4}{fit.rms[best]:>12.1e}{fit.sup[best]:>12.1e}{np.median(fit.sup):>12.1e}"
                f"{fit.sup.max():>12.1e}{fit.largest_weight:>10.1e}"
            )
    lines += [
        "errors between the training points as well as on them, of the run that fits the training points best; median",
        "and worst: sup error over all runs.",
    ]
    return "\n".join(lines)


def plot(fits: Mapping[str, Mapping[int, Fit]]) -> Any:
    """Above, the functions and their fits. Below, the errors against M."""
    from experiments.harness.plotting import figure

    canvas, axes = figure(2, len(fits), size=(4 * len(fits), 7.8))
    upper, lower = np.reshape(axes, (2, len(fits)))
    curves: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for above, below, (name, found) in zip(upper, lower, fits.items(), strict=True):
        target = TARGETS[name]
        above.set_title(f"{name}: {target.formula}")
        curves |= (_curves if target.dimensions == 1 else _contours)(above, target, _shown(found))
        errors |= _errors(below, found)
    least = min(fit.rms.min() for found in fits.values() for fit in found.values())
    for below in lower:
        below.set(ylim=(least / 2, 2))
    upper[0].set_ylabel("g(x), G(x)")
    lower[0].set_ylabel("error on a fine grid")
    # A legend is filled column by column; this order puts curves in its first row and errors in its second.
    pairs = [pair for row in itertools.zip_longest(curves.items(), errors.items()) for pair in row if pair]
    names, drawn = zip(*pairs, strict=True)
    canvas.legend(drawn, names, loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle("One hidden layer of M sigmoid units, fitted to continuous functions on $[0, 1]^p$")
    return canvas


def _shown(found: Mapping[int, Fit]) -> dict[int, Fit]:
    """The fits to plot: few enough to tell apart, and coarse enough for visible errors."""
    return {M: fit for M, fit in found.items() if M in (1, 2, 4)} or dict(list(found.items())[-1:])


_TARGET = {"color": "black", "alpha": 0.25, "linewidth": 7}
_LOOKS = 1, 6, 0  # different from the styles of the errors


def _curves(axes: Any, target: Target, found: Mapping[int, Fit]) -> dict[str, Any]:
    """Plots g and G of one argument; returns the lines by legend entry."""
    from experiments.harness.plotting import style

    x = _fine_grid(target)
    lines = {"g": axes.plot(x[:, 0], target.function(x), **_TARGET)[0]}
    for look, (M, fit) in zip(map(style, _LOOKS), found.items(), strict=False):
        (lines[f"G, M = {M}"],) = axes.plot(x[:, 0], fit.best, **{**look, "marker": None})
    axes.set(xlabel="x", xlim=(0, 1))
    return lines


def _contours(axes: Any, target: Target, found: Mapping[int, Fit]) -> dict[str, Any]:
    """Plots g and G of two arguments as contours; a legend cannot name these, so the result is empty."""
    from experiments.harness.plotting import style

    x = _fine_grid(target)
    square = (TEST_POINTS[2], TEST_POINTS[2])
    x1, x2, g = (np.reshape(values, square) for values in (x[:, 0], x[:, 1], target.function(x)))
    levels = [-0.75, -0.5, -0.25, 0.25, 0.5, 0.75]
    axes.contour(x1, x2, g, levels, colors="black", alpha=0.25, linewidths=7, linestyles="-")
    for look, fit in zip(map(style, _LOOKS), found.values(), strict=False):
        axes.contour(x1, x2, fit.best.reshape(square), levels, colors=look["color"], linestyles=look["linestyle"])
    axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    return {}


def _errors(axes: Any, found: Mapping[int, Fit]) -> dict[str, Any]:
    """Plots both errors against M; returns lines and bands by legend entry."""
    from experiments.harness.plotting import joined, style

    M, drawn = np.array(list(found)), {}
    for index, norm, label in ((3, "sup", "max |G − g|"), (2, "rms", "rms of G − g")):
        look = style(index)
        runs = np.stack([getattr(fit, norm) for fit in found.values()])
        best = [getattr(fit, norm)[fit.best_index] for fit in found.values()]
        (drawn[f"{label}, best run"],) = axes.plot(M, best, **joined(M, {**look, "markevery": 1}))
        drawn[f"{label}, all runs"] = axes.fill_between(
            M, runs.min(axis=1), runs.max(axis=1), color=look["color"], alpha=0.15, linewidth=0
        )
    axes.set(xscale="log", yscale="log", xlabel="hidden units M")
    axes.set_xticks(M, [str(m) for m in M])
    axes.minorticks_off()
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.universal_approximation")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
