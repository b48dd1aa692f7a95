"""Minimisation over one layer's axons while all others are held, for `nl.admm`."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from nl_jax.base import Array
from nl_jax.checks import positive_integer, positive_number

Loss = Callable[[Array], Array]
Residuals = Callable[[Array], Any]


class Minimise(Protocol):
    """`minimise(loss, residuals, penalty, x) -> x`: from x towards argmin_x C(x) + μ/2 ‖ρ(x)‖², of one example.

    `loss(x)` is the scalar C, `residuals(x)` a tree of arrays ρ, `penalty` μ.
    """

    def __call__(self, loss: Loss, residuals: Residuals, penalty: float, x: Array, /) -> Array: ...


class LayerSolve(NamedTuple):
    """A way to minimise over one layer.

    Attributes:
      minimise: see `Minimise`.
      evaluations: what it costs at most to solve every layer once, in evaluations of the objective.
    """

    minimise: Minimise
    evaluations: int


def gauss_newton(num_steps: int = 10) -> LayerSolve:
    """The minimum of the linearised problem: (C'' + μ JᵀJ) Δx = −(C' + μ Jᵀρ), J = ∂ρ/∂x.

    By conjugate gradients, whose matrix is never formed. Exact where the layers above are linear and the loss is
    quadratic, given as many steps as there are units; JᵀJ is I plus what the layers above add, so that few will do.

    Args:
      num_steps: of conjugate gradients, at least 1; fewer are taken where all is solved to rounding.
    """
    positive_integer("num_steps", num_steps)

    def minimise(loss: Loss, residuals: Residuals, penalty: float, x: Array) -> Array:
        slope, curvature = jax.linearize(jax.grad(loss), x)
        rho, J = jax.linearize(residuals, x)
        transpose = jax.linear_transpose(J, x)

        def product(v: Array) -> Array:
            return curvature(v) / penalty + transpose(J(v))[0]

        # Past the rounding, or the root of the smallest number, conjugate gradients would come to divide 0 by 0.
        limits = jnp.finfo(x.dtype)
        rounding, smallest = float(limits.eps), float(limits.tiny) ** 0.5
        step, _ = cg(product, -(slope / penalty + transpose(rho)[0]), tol=rounding, atol=smallest, maxiter=num_steps)
        return x + step

    return LayerSolve(minimise, 2 * num_steps + 3)


def gradient_descent(step_size: float = 0.1, num_steps: int = 10) -> LayerSolve:
    """A few steps of gradient descent.

    Args:
      step_size: η, above 0.
      num_steps: at least 1.
    """
    step_size = positive_number("step_size", step_size)
    positive_integer("num_steps", num_steps)

    def minimise(loss: Loss, residuals: Residuals, penalty: float, x: Array) -> Array:
        def total(x: Array) -> Array:
            return loss(x) + 0.5 * penalty * optax.tree.norm(residuals(x), squared=True)

        return jax.lax.fori_loop(0, num_steps, lambda _, x: x - step_size * jax.grad(total)(x), x)

    return LayerSolve(minimise, 2 * num_steps + 1)
