"""Linear conjugate gradients: minimises a quadratic function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from nl_jax._core.numerics import in_one_dtype
from nl_jax._core.require import floating, positive_integer
from nl_jax.base import Array, Params


def minimum_of_quadratic(
    function: Callable[[Params], Array], start: Params, *, tol: float = 1e-6, max_steps: int | None = None
) -> Params:
    """Minimises f(x) = f₀ − f⁽¹⁾x + ½ x f⁽²⁾x by conjugate gradients (seed 003 eq. 22–34; `jax.scipy`'s).

    With r_0 = −∇f(x_0) it solves f⁽²⁾(x − x_0) = r_0, in at most as many steps as there are parameters. The matrix
    f⁽²⁾ is never formed: its products with vectors are Hessian-vector products, one forward and one reverse pass each.
    For a function that is not quadratic, this is Newton's step.

    It solves in one dtype, the widest of the leaves and float32 at least: ‖r‖² overflows in half precision.

    Args:
      function: `function(params) -> scalar`, convex and quadratic, called with leaves in that dtype; for example the
        mean half squared error of a linear network.
      start: x_0, any tree of floating-point arrays.
      tol: the solver stops when ‖r‖ ≤ tol ‖r_0‖; 0 for all steps.
      max_steps: maximum number of steps, at least 1; by default ten times the number of parameters, for rounding.

    Returns:
      x, with the tree, shapes and dtypes of `start`; NaN if the gradient at `start` is not finite.

    Raises:
      ValueError: if `tol` is negative, `max_steps` below 1, or a leaf of `start` is not floating-point.

    >>> import jax.numpy as jnp
    >>> minimum_of_quadratic(lambda x: 0.5 * jnp.sum(jnp.array([1.0, 2.0]) * x**2) - jnp.sum(x), jnp.zeros(2))
    Array([1. , 0.5], dtype=float32)
    """
    if not tol >= 0:
        raise ValueError(f"tol must be a number of at least 0, got {tol!r}")
    floating(start)
    maxiter = None if max_steps is None else positive_integer("max_steps", max_steps)
    wide = in_one_dtype(start)
    gradient, product = jax.linearize(jax.grad(function), wide)
    step, _ = cg(product, optax.tree.scale(-1, gradient), tol=tol, maxiter=maxiter)
    # cg treats a residual of NaN as converged, and returns its start as the solution.
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)]))
    return jax.tree.map(lambda x, s, x0: jnp.where(finite, x + s, jnp.nan).astype(x0.dtype), wide, step, start)
