"""Real-time recurrent learning (Williams & Zipser 1989), and its influence matrix."""

import itertools

import jax
import jax.numpy as jnp

from nl_jax.base import Array, GradientEstimator, Objective, Params
from nl_jax.estimators.online.forward_credit import Influence, Pull, Push, Run, by_influence, online_estimator
from nl_jax.propagation.loops import Leaves

Jacobian = list[Leaves]
"""J by parameter leaf: [components of the leaf, *state's shape] for each part of the state."""


def rtrl(objective: Objective, *, chunk: int | None = None, loop: str = "time") -> GradientEstimator:
    """Computes the exact gradient forward in time: real-time recurrent learning (Williams & Zipser 1989, eq. 6–8).

        J_t = ∂h_t/∂h_{t−1} J_{t−1} + ∂h_t/∂θ,    ∂L/∂θ = Σ_t ∂L_t/∂θ + ∂L_t/∂h_{t−1} J_{t−1}

    J is the influence of every parameter on everything that the loop carries. Backpropagation through time computes the
    same sum in the other order. Layers, and loops other than the one over time, keep their ordinary derivative.

    Args:
      objective: a per-example objective that takes `propagate`, whose program has an `nl.scan` of this name.
      chunk: examples whose influence is carried at once; None for all. The result does not depend on it. On a CPU a few
        at once are faster, because their influence stays in the cache.
      loop: the loop's name. Its inputs at each step should not depend on parameters: call an encoder in the loop.
        Otherwise each of the encoder's outputs is one more parameter, and memory grows with the number of steps.

    Returns:
      An estimator without state or randomness, equal to `backprop` up to rounding. For P parameters in the loop and
      states of S components, it stores P S numbers for each example of a chunk, whatever the number of steps. Each
      example is run separately, except where a layer mixes examples or a part of the batch is not per example; outside
      layers, no example may act on another. Its evaluations are counted as one for each parameter, plus four.

    Raises:
      ValueError: if the objective takes no `propagate` or `chunk` is not as described; when run, if the program has no
        loop of this name, or if `chunk` is given and examples cannot be run separately.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> def forward(w, xs, propagate=nl.propagation.feedforward):  # xs [batch, time]
    ...     step = lambda h, x, propagate: (propagate("cell", lambda w, x, h: w * h + x, jnp.tanh, w, x, h), None)
    ...     return nl.scan("time", step, jnp.zeros(len(xs)), xs.T, propagate)[0]
    >>> objective = lambda w, xs, propagate=nl.propagation.feedforward: forward(w, xs, propagate) ** 2
    >>> at = jax.random.key(0), (), jnp.array(0.5), jnp.ones((4, 10))
    >>> ours, _, _ = rtrl(objective).estimate(*at)
    >>> exact, _, _ = nl.backprop(objective).estimate(*at)
    >>> bool(jnp.allclose(ours, exact))
    True
    """
    return online_estimator("rtrl", objective, loop, lambda key: by_influence(exact), cost, chunk=chunk)


def cost(params: Params) -> int:
    """Counts a run, its repetition with credit within the step (three), and a tangent for each parameter."""
    return 4 + sum(leaf.size for leaf in jax.tree.leaves(params))


def exact(run: Run) -> Influence:
    """Carries the whole influence matrix."""
    return Influence(nothing(run), lambda J, t, push, pull: moved(J, run, push, pull), lambda J, c: spent(J, c, run))


def nothing(run: Run) -> Jacobian:
    """Returns J_0 = 0."""
    return [[jnp.zeros((leaf.size, *h.shape), h.dtype) for h in run.start] for leaf in run.theta]


def moved(J: Jacobian, run: Run, push: Push, pull: Pull) -> Jacobian:
    """Computes A J + D."""
    return jax.tree.map(jnp.add, [jax.vmap(push)(of_leaf) for of_leaf in J], direct(run, pull))


def direct(run: Run, pull: Pull) -> Jacobian:
    """Computes D = ∂h_t/∂θ within the step, row by row."""
    sizes = [h.size for h in run.start]
    splits = list(itertools.accumulate(sizes))[:-1]

    def as_state(flat: Array, lead: tuple[int, ...] = ()) -> Leaves:
        parts = jnp.split(flat, splits, axis=-1)
        return [part.reshape(*lead, *h.shape).astype(h.dtype) for part, h in zip(parts, run.start, strict=True)]

    rows = jax.vmap(lambda unit: pull(as_state(unit))[0])(jnp.eye(sum(sizes)))  # by leaf [S, *leaf's shape]
    columns = [of_leaf.reshape(sum(sizes), -1).T for of_leaf in rows]
    return [as_state(by_component, by_component.shape[:1]) for by_component in columns]


def spent(J: Jacobian, c: Leaves, run: Run) -> Leaves:
    """Computes c J."""
    found = []
    for of_leaf, leaf in zip(J, run.theta, strict=True):
        shares = [jnp.tensordot(j, own, axes=own.ndim) for j, own in zip(of_leaf, c, strict=True)]
        found.append(sum(shares, start=jnp.zeros(leaf.size, leaf.dtype)).reshape(leaf.shape).astype(leaf.dtype))
    return found
