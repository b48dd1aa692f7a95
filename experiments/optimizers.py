"""Descending a narrow valley: steepest descent, conjugate gradients and Adam.

python -m experiments.optimizers --help
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from nl_jax import optimizers

Function = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Config:
    """Minimise two functions of two variables by every optimizer of seed 003 §3, and plot the paths.

    The functions are a straight valley, where conjugate gradients end after two line searches, and Rosenbrock's curved
    valley. Optimizers with a learning rate get the best of several. Prints a table and writes config.json,
    metrics.jsonl, arrays (.npz) and optimizers.png to --out.
    """

    condition: float = 20.0
    """Condition number of the straight valley: the ratio of its curvatures."""
    evaluations: int = 2000
    """Budget of each optimizer, in evaluations of value and gradient."""
    rates: int = 17
    """Learning rates tried, from 1 down to 1e-4, evenly on a logarithmic scale."""
    target: float = 1e-12
    """Value, relative to the one at the start, at which a path ends."""
    out: Path = Path("results/optimizers")
    """Folder for the results; files of an earlier run there are replaced."""
    quick: bool = False
    """A small version, 500 evaluations and nine rates."""


class Search(NamedTuple):
    """An optimizer as it is run here.

    Attributes:
      make: `make(rate) -> optimizer`; optimizers with a line search ignore the rate.
      searches: whether it has a line search, with `value_fn`.
    """

    make: Callable[[Any], optax.GradientTransformationExtraArgs]
    searches: bool


def _steepest(rate: Any) -> optax.GradientTransformationExtraArgs:
    del rate
    return optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(30, curv_rtol=0.05, stepsize_precision=1e-8))


OPTIMIZERS: dict[str, Search] = {
    "steepest descent": Search(_steepest, searches=True),
    "Fletcher–Reeves": Search(lambda _: optimizers.conjugate_gradient(optimizers.fletcher_reeves), searches=True),
    "Polak–Ribière": Search(lambda _: optimizers.conjugate_gradient(optimizers.polak_ribiere), searches=True),
    "Hestenes–Stiefel": Search(lambda _: optimizers.conjugate_gradient(optimizers.hestenes_stiefel), searches=True),
    "Dai–Yuan": Search(lambda _: optimizers.conjugate_gradient(optimizers.dai_yuan), searches=True),
    "one evaluation": Search(lambda rate: optimizers.one_evaluation_conjugate_gradient(rate), searches=False),
    "Adam": Search(lambda rate: optax.adam(rate), searches=False),
}


class Path2D(NamedTuple):
    """One optimizer's path; arrays are [steps + 1] and [steps + 1, 2].

    Attributes:
      points: x_n.
      values: f(x_n).
      evaluations: spent until x_n was known.
      rate: the best learning rate, or NaN with a line search.
    """

    points: np.ndarray
    values: np.ndarray
    evaluations: np.ndarray
    rate: float


def rosenbrock(x: jax.Array) -> jax.Array:
    """100 (y − x²)² + (1 − x)²."""
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def straight(condition: float) -> tuple[Function, tuple[float, float]]:
    """½ (u² + κ v²) with axes u and v rotated by 30°, and the start where steepest descent zigzags most, v = u/κ."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    u, v = -1.6, 1.6 / condition
    return (
        lambda x: 0.5 * ((c * x[0] + s * x[1]) ** 2 + condition * (c * x[1] - s * x[0]) ** 2),
        (c * u - s * v, s * u + c * v),
    )


def run(config: Config) -> dict[str, dict[str, Path2D]]:
    """Runs every optimizer on both functions, saving as it goes; returns paths by function and optimizer.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if an optimizer diverged at all its rates.
    """
    if config.quick:
        config = dataclasses.replace(config, evaluations=min(config.evaluations, 500), rates=min(config.rates, 9))
    if config.evaluations < 1 or config.rates < 1:
        raise ExperimentError("--evaluations and --rates must be at least 1")
    if not 1 <= config.condition < float("inf"):
        raise ExperimentError(f"--condition must be a finite number of at least 1, got {config.condition}")
    valleys: dict[str, tuple[Function, tuple[float, float]]] = {
        "straight valley": straight(config.condition),
        "Rosenbrock's valley": (rosenbrock, (-1.2, 1.0)),
    }
    folder = Folder(config.out, config, outputs=["optimizers.png", "straight.npz", "rosenbrock.npz"])
    paths: dict[str, dict[str, Path2D]] = {}
    with jax.enable_x64(True):
        for name, (function, start) in valleys.items():
            paths[name] = {}
            for of, search in OPTIMIZERS.items():
                path = descend(function, start, search, config)
                paths[name][of] = path
                folder.metric(
                    function=name, optimizer=of, rate=path.rate, final_value=path.values[-1],
                    evaluations_to_target=price(path, config.target), steps=len(path.values) - 1,
                )  # fmt: skip
            arrays = {f"{of} {part}": getattr(path, part) for of, path in paths[name].items() for part in path._fields}
            folder.arrays(name.removesuffix(" valley").removesuffix("'s").lower(), arrays)
        print(table(paths, config))
        picture = folder.picture("optimizers", plot(paths, {name: f for name, (f, _) in valleys.items()}, config))
    print(f"picture and data: {picture.parent} ({picture.name}, metrics.jsonl, *.npz, config.json)")
    lost = [f"{of} in {name}" for name, ways in paths.items() for of, path in ways.items() if diverged(path)]
    if lost:
        raise ExperimentError(f"diverged at all rates: {', '.join(lost)}: try more --rates")
    return paths


def descend(function: Function, start: Sequence[float], search: Search, config: Config) -> Path2D:
    """One optimizer's path, with the best of all learning rates if it takes one."""

    @jax.jit
    @jax.vmap
    def along(rate: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        optimizer = search.make(rate)

        def step(at: Any, _: None) -> Any:
            x, state, spent = at
            if search.searches:  # the search's last trial gives the next step's value and gradient
                value, gradient = optax.value_and_grad_from_state(function)(x, state=state)
                updates, state = optimizer.update(gradient, state, x, value=value, grad=gradient, value_fn=function)
                spent += optax.tree.get(state, "num_linesearch_steps")
            else:
                updates, state = optimizer.update(jax.grad(function)(x), state, x)
                spent += 1
            x = optax.apply_updates(x, updates)
            return (x, state, spent), (x, function(x), spent)

        x = jnp.array(start)
        # A search takes at least one evaluation per step; steps beyond the budget are cut off below.
        _, path = jax.lax.scan(step, (x, optimizer.init(x), 1), length=config.evaluations)
        begun = x, function(x), jnp.ones((), int)
        return jax.tree.map(lambda first, rest: jnp.concatenate([jnp.expand_dims(first, 0), rest]), begun, path)

    rates = [float("nan")] if search.searches else list(np.logspace(0, -4, config.rates))
    points, values, spent = map(np.asarray, along(jnp.array(rates)))
    there = np.logical_or.accumulate(values <= config.target * values[:, :1], axis=1)
    before = np.pad(~there, ((0, 0), (1, 0)), constant_values=True)[:, :-1] & (spent <= config.evaluations)
    paths = [
        Path2D(points[i, kept], values[i, kept], spent[i, kept], rate)
        for i, (rate, kept) in enumerate(zip(rates, before, strict=True))
    ]
    return min(paths, key=lambda path: (price(path, config.target), np.nan_to_num(path.values[-1], nan=np.inf)))


def diverged(path: Path2D) -> bool:
    """Whether the last value is above the first, or NaN."""
    return not path.values[-1] <= path.values[0]


def price(path: Path2D, target: float) -> float:
    """Evaluations until the value fell to `target` times the initial value; infinite if it never did."""
    return float(path.evaluations[-1]) if path.values[-1] <= target * path.values[0] else float("inf")


def table(paths: Mapping[str, Mapping[str, Path2D]], config: Config) -> str:
    """The comparison as text."""
    lines = [" " * 18 + "".join(f"{name:>30}" for name in paths)]
    lines.append(f"{'optimizer':18}" + f"{'steps':>10}{'evaluations':>12}{'rate':>8}" * len(paths))
    for of in OPTIMIZERS:
        line = f"{of:18}"
        for by_optimizer in paths.values():
            path = by_optimizer[of]
            reached = np.isfinite(price(path, config.target))
            spent = f"{len(path.values) - 1:,}", f"{path.evaluations[-1]:,}"
            steps, evaluations = (
                spent if reached else ("never", "diverged" if diverged(path) else f"f = {path.values[-1]:.0e}")
            )
            line += f"{steps:>10}{evaluations:>12}{'search' if np.isnan(path.rate) else f'{path.rate:.2g}':>8}"
        lines.append(line)
    lines += [
        f"steps, and evaluations of value and gradient, until f is {config.target:g} of what it was at the start;",
        f"never: what f is after {config.evaluations:,} evaluations. rate: the best of those tried, or a line search.",
    ]
    return "\n".join(lines)


def plot(paths: Mapping[str, Mapping[str, Path2D]], functions: Mapping[str, Function], config: Config) -> Any:
    """Above, the paths over contours of f; below, f against evaluations."""
    from experiments.harness.plotting import figure, style

    canvas, panels = figure(2, len(paths), size=(13, 9))
    for column, (name, by_optimizer) in enumerate(paths.items()):
        over, against = panels[0, column], panels[1, column]
        horizontal, vertical = np.meshgrid(np.linspace(-1.8, 1.5, 300), np.linspace(-1.1, 1.6, 300))
        heights = jax.vmap(jax.vmap(functions[name]))(jnp.stack([horizontal, vertical], axis=-1))
        levels = np.logspace(-2, 3, 11)
        over.contour(horizontal, vertical, heights, levels=levels, colors="#999999", linewidths=0.6, zorder=1)
        for index, (of, path) in enumerate(by_optimizer.items()):
            look = style(index)
            if of in SHOWN:  # the four conjugate gradients nearly coincide on the map
                over.plot(
                    *path.points.T,
                    label=of,
                    **{**look, "markevery": len(path.points) // 60 + 1, "markersize": 4, "linewidth": 1.2},
                )
            against.plot(path.evaluations, path.values, label=of, **{**look, "markevery": 0.1})
        over.set(title=name, xlabel="x", ylabel="y", xlim=(-1.8, 1.5), ylim=(-1.1, 1.6), aspect="equal")
        over.plot(*by_optimizer[SHOWN[0]].points[0], "k*", markersize=12, zorder=5)
        against.set(xlabel="evaluations of value and gradient", ylabel="f", yscale="log", xscale="log")
    handles, labels = panels[1, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle("Down a narrow valley from the star; contours of f are half a decade apart")
    return canvas


SHOWN = ("steepest descent", "Polak–Ribière", "one evaluation", "Adam")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.optimizers")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
