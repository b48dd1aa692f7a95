"""The perceptron: a sign unit that learns from its mistakes (seed 000, nonlinear models; seed 001 §1).

Labels y are −1.0 or 1.0. Except for ties, the rule is stochastic gradient descent at rate ½ on ½(sign(wᵀx) − y)² with
the derivative of sign replaced by 1 (`nl.activations.sign(surrogate=jnp.ones_like)`). At wᵀx = 0, for example at the
start w = 0, sign is 0 and descent takes half the perceptron's step.
"""

import jax
import jax.numpy as jnp


def update(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """One step of the perceptron rule, w ← w + y x if y wᵀx ≤ 0, else w (Rosenblatt 1958).

    Args:
      w: weights, [D].
      x: one input, [D].
      y: its label, a scalar.
    """
    return jnp.where(_mistaken(w, x, y), w + y * x, w)


def learn(x: jax.Array, y: jax.Array, passes: int) -> tuple[jax.Array, jax.Array]:
    """Trains on the examples in order, `passes` times, from w = 0.

    Args:
      x: inputs, [N, D].
      y: labels, [N].
      passes: at least 1.

    Returns:
      (w, mistakes): weights, [D], and the number of mistakes in each pass, int32 [passes]; after a pass without
      mistakes w does not change.

    Raises:
      ValueError: if the shapes are not as described.

    >>> import jax.numpy as jnp
    >>> learn(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([1.0, -1.0]), passes=2)
    (Array([ 1., -1.], dtype=float32), Array([2, 0], dtype=int32))
    """
    _check(x, y)

    def one(w: jax.Array, example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return update(w, *example), _mistaken(w, *example)

    def one_pass(w: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        w, mistaken = jax.lax.scan(one, w, (x, y))
        return w, jnp.sum(mistaken, dtype=jnp.int32)

    return jax.lax.scan(one_pass, jnp.zeros_like(x[0]), length=passes)


def mistake_bound(x: jax.Array, y: jax.Array, teacher: jax.Array) -> jax.Array:
    """The upper bound (R/γ)² on the mistakes of `learn` in any number of passes (Novikoff 1962).

    R = max |x_n|, and the teacher's margin is γ = min y_n uᵀx_n / |u|. The bound is infinite if the teacher does not
    classify all examples correctly, γ ≤ 0.

    Args:
      x: inputs, [N, D].
      y: labels, [N].
      teacher: u, [D], of any nonzero length.

    Raises:
      ValueError: if the shapes are not as described.
    """
    _check(x, y)
    radius = jnp.max(jnp.linalg.norm(x, axis=1))
    margin = jnp.min(y * (x @ teacher)) / jnp.linalg.norm(teacher)
    return jnp.where(margin > 0, (radius / margin) ** 2, jnp.inf)


def _mistaken(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return y * (w @ x) <= 0


def _check(x: jax.Array, y: jax.Array) -> None:
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x must be of shape [N, D] and y of shape [N], got {list(x.shape)} and {list(y.shape)}")
