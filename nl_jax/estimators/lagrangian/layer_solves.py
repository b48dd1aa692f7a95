"""Minimisation over one layer's axons while all others are held, for `nl.admm`."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from nl_jax._core.require import positive_integer, positive_number
from nl_jax.base import Array

Loss = Callable[[Array], Array]
Residuals = Callable[[Array], Any]


class Minimise(Protocol):
    """`minimise(loss, residuals, penalty, x) -> x`: moves x towards argmin_x C(x) + μ/2 ‖ρ(x)‖², for one example.

    `loss(x)` is the scalar C, `residuals(x)` a tree of arrays ρ, `penalty` μ.
    """

    def __call__(self, loss: Loss, residuals: Residuals, penalty: float, x: Array, /) -> Array: ...


class LayerSolve(NamedTuple):
    """A minimiser over one layer.

    Attributes:
      minimise: see `Minimise`.
      evaluations: the maximum cost of solving every layer once, in evaluations of the objective.
    """

    minimise: Minimise
    evaluations: int


def gauss_newton(num_steps: int = 10) -> LayerSolve:
    """Solves the linearised problem: (C'' + μ JᵀJ) Δx = −(C' + μ Jᵀρ), J = ∂ρ/∂x.

    It uses conjugate gradients and never forms the matrix. It is exact if the layers above are linear, the loss is
    quadratic and there are as many steps as units. JᵀJ is I plus a contribution of the layers above, so that few steps
    suffice.

    Args:
      num_steps: the number of conjugate gradient steps, at least 1; fewer are taken once the problem is solved to
        rounding.
    """
    positive_integer("num_steps", num_steps)

    def minimise(loss: Loss, residuals: Residuals, penalty: float, x: Array) -> Array:
        slope, curvature = jax.linearize(jax.grad(loss), x)
        rho, J = jax.linearize(residuals, x)
        transpose = jax.linear_transpose(J, x)

        def product(v: Array) -> Array:
            return curvature(v) / penalty + transpose(J(v))[0]

        # Below rounding, or below the root of the smallest number, conjugate gradients would divide 0 by 0.
        limits = jnp.finfo(x.dtype)
        rounding, smallest = float(limits.eps), float(limits.tiny) ** 0.5
        step, _ = cg(product, -(slope / penalty + transpose(rho)[0]), tol=rounding, atol=smallest, maxiter=num_steps)
        return x + step

    return LayerSolve(minimise, 2 * num_steps + 3)


def gradient_descent(step_size: float = 0.1, num_steps: int = 10) -> LayerSolve:
    """Takes a few steps of gradient descent.

    Args:
      step_size: η, above 0.
      num_steps: the number of steps, at least 1.
    """
    step_size = positive_number("step_size", step_size)
    positive_integer("num_steps", num_steps)

    def minimise(loss: Loss, residuals: Residuals, penalty: float, x: Array) -> Array:
        def total(x: Array) -> Array:
            return loss(x) + 0.5 * penalty * optax.tree.norm(residuals(x), squared=True)

        return jax.lax.fori_loop(0, num_steps, lambda _, x: x - step_size * jax.grad(total)(x), x)

    return LayerSolve(minimise, 2 * num_steps + 1)
