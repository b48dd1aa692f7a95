"""Counts steps and evaluations of conjugate gradients, compared with scipy's and optimistix's.

python -m benchmarks.optimizers --help
"""

import functools
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
import tyro

from benchmarks import report
from benchmarks.functions import FUNCTIONS, Function
from experiments.harness.failure import exit_code
from experiments.harness.results import Folder
from nl_jax import optimizers

BETAS = {
    "Fletcher–Reeves": optimizers.fletcher_reeves,
    "Polak–Ribière": optimizers.polak_ribiere,
    "Hestenes–Stiefel": optimizers.hestenes_stiefel,
    "Dai–Yuan": optimizers.dai_yuan,
}


@dataclass(frozen=True)
class Config:
    """Count iterations (line searches) and evaluations (value and gradient) until the gradient is small, in float64.

    Peers that are not installed are left out: `pip install optimistix` installs them all. Writes optimizers.json and
    optimizers.png to --out.
    """

    gtol: float = 1e-6
    """The search ends when no component of the gradient is larger."""
    max_iterations: int = 3000
    """Largest number of iterations; a count that equals it means that the minimum was not reached."""
    out: Path = Path("results/benchmarks/optimizers")
    """Folder for the results."""


class Count(NamedTuple):
    """Cost of a search, and the value where it ended."""

    iterations: int
    evaluations: int
    value: float


def run(config: Config) -> dict[str, dict[str, Count]]:
    """Counts, prints a table and saves; returns counts by function and optimizer."""
    folder = Folder(config.out, config)
    peer = report.peer("optimistix")
    with jax.enable_x64(True):
        counts = {}
        for name, function in FUNCTIONS.items():
            of = dict(zip(BETAS, conjugate_gradients(function, config), strict=True))
            of["scipy CG"] = scipy_cg(function, config)
            if peer is not None:
                of["optimistix CG"] = optimistix_cg(peer, function, config)
            counts[name] = of
    contestants = list(next(iter(counts.values())))
    rows = [("iterations / evaluations", *contestants)]
    rows += [
        (name, *(f"{count.iterations:,} / {count.evaluations:,}" for count in of.values()))
        for name, of in counts.items()
    ]
    print("\n".join(report.aligned(rows)))
    print(
        f"Iterations are line searches, evaluations are of value and gradient, until no component of the gradient is "
        f"above {config.gtol:g}; {config.max_iterations:,} iterations: not reached."
    )
    saved = {name: {by: count._asdict() for by, count in of.items()} for name, of in counts.items()}
    report.save(folder, "optimizers", saved, plot(counts))
    return counts


def conjugate_gradients(function: Function, config: Config) -> list[Count]:
    """Our conjugate gradients with each β, vmapped over β."""

    def search(which: jax.Array) -> Any:
        beta = lambda *gradients_and_direction: jax.lax.switch(which, list(BETAS.values()), *gradients_and_direction)
        optimizer = optimizers.conjugate_gradient(beta)
        value_and_grad = optax.value_and_grad_from_state(function.value)
        start = jnp.array(function.start)

        def going_on(at: Any) -> jax.Array:
            _, _, gradient, iterations, _ = at
            return (jnp.max(jnp.abs(gradient)) > config.gtol) & (iterations < config.max_iterations)

        def step(at: Any) -> Any:
            x, state, _, iterations, evaluations = at
            value, gradient = value_and_grad(x, state=state)
            updates, state = optimizer.update(gradient, state, x, value=value, grad=gradient, value_fn=function.value)
            evaluations += optax.tree.get(state, "num_linesearch_steps")
            x = optax.apply_updates(x, updates)
            return x, state, optax.tree.get(state, "grad"), iterations + 1, evaluations

        begun = start, optimizer.init(start), jax.grad(function.value)(start), 0, 1
        x, _, _, iterations, evaluations = jax.lax.while_loop(going_on, step, begun)
        return iterations, evaluations, function.value(x)

    counts = jax.jit(jax.vmap(search))(jnp.arange(len(BETAS)))
    return [Count(int(i), int(e), float(v)) for i, e, v in zip(*counts, strict=True)]


def scipy_cg(function: Function, config: Config) -> Count:
    """`scipy.optimize.minimize(method="CG")`, Polak–Ribière."""
    value_and_grad = jax.jit(jax.value_and_grad(function.value))
    of_numpy = lambda x: tuple(np.asarray(part) for part in value_and_grad(x))
    options = {"gtol": config.gtol, "maxiter": config.max_iterations}
    found = scipy.optimize.minimize(of_numpy, np.array(function.start), method="CG", jac=True, options=options)
    return Count(found.nit, found.nfev, float(found.fun))


def optimistix_cg(ox: Any, function: Function, config: Config) -> Count:
    """`optimistix.NonlinearCG` with default settings: Polak–Ribière, halving the step until the function decreases.

    It ends by the same criterion as the others, not by optimistix's own. Each of its steps is an evaluation; some are
    accepted.
    """
    equinox = importlib.import_module("equinox")  # a dependency of optimistix
    solver = ox.NonlinearCG(rtol=0.0, atol=0.0)
    with_aux = lambda x, args: (function.value(x), None)
    x = jnp.array(function.start)
    about: dict[str, Any] = {"args": None, "options": {}, "tags": frozenset()}
    state = solver.init(with_aux, x, f_struct=jax.ShapeDtypeStruct((), x.dtype), aux_struct=None, **about)
    step = equinox.filter_jit(functools.partial(solver.step, with_aux, **about))
    gradient = jax.jit(jax.grad(function.value))
    iterations = evaluations = 0
    while np.max(np.abs(gradient(x))) > config.gtol and evaluations < 10 * config.max_iterations:
        before = x
        x, state, _ = step(x, state=state)
        evaluations += 1
        iterations += bool(np.any(x != before))
    return Count(iterations, evaluations, float(function.value(x)))


def plot(counts: dict[str, dict[str, Count]]) -> Any:
    """Plots iterations and evaluations: a row for each function, a marker for each optimizer."""
    from experiments.harness.plotting import figure, style

    canvas, panels = figure(1, 2, size=(11, 4.6))
    for axes, what in zip(panels, Count._fields[:2], strict=True):
        for index, by in enumerate(next(iter(counts.values()))):
            look = {**style(index), "linestyle": "", "markersize": 7, "markevery": 1}
            rows = np.arange(len(counts)) + 0.12 * (index - 2.5)  # offset, since many nearly coincide
            axes.plot([getattr(of[by], what) for of in counts.values()], rows, label=by, **look)
        axes.set_yticks(range(len(counts)), counts)
        axes.set(xscale="log", xlabel=f"{what} to the minimum", ylim=(len(counts) - 0.5, -0.5))
    panels[1].set_yticklabels([])
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    canvas.suptitle("Conjugate gradients: line searches, and evaluations of value and gradient")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.optimizers")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
