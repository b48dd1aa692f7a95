"""Descends two narrow valleys by every optimizer, at the best of several learning rates."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax import optimizers

Function = Callable[[jax.Array], jax.Array]


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    evaluations: int
    rates: int
    target: float


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


def descend(function: Function, start: Sequence[float], search: Search, settings: Settings) -> Path2D:
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
        _, path = jax.lax.scan(step, (x, optimizer.init(x), 1), length=settings.evaluations)
        begun = x, function(x), jnp.ones((), int)
        return jax.tree.map(lambda first, rest: jnp.concatenate([jnp.expand_dims(first, 0), rest]), begun, path)

    rates = [float("nan")] if search.searches else list(np.logspace(0, -4, settings.rates))
    points, values, spent = map(np.asarray, along(jnp.array(rates)))
    there = np.logical_or.accumulate(values <= settings.target * values[:, :1], axis=1)
    before = np.pad(~there, ((0, 0), (1, 0)), constant_values=True)[:, :-1] & (spent <= settings.evaluations)
    paths = [
        Path2D(points[i, kept], values[i, kept], spent[i, kept], rate)
        for i, (rate, kept) in enumerate(zip(rates, before, strict=True))
    ]
    return min(paths, key=lambda path: (price(path, settings.target), np.nan_to_num(path.values[-1], nan=np.inf)))


def diverged(path: Path2D) -> bool:
    """Whether the last value is above the first, or NaN."""
    return not path.values[-1] <= path.values[0]


def price(path: Path2D, target: float) -> float:
    """Evaluations until the value fell to `target` times the initial value; infinite if it never did."""
    return float(path.evaluations[-1]) if path.values[-1] <= target * path.values[0] else float("inf")
