"""The mean loss and its exact gradient, with which estimates are compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.evaluation.conformance.problem import Problem
from nl_jax.evaluation.conformance.subject import by_leaf


def mean_loss(problem: Problem) -> float:
    """Computes the mean loss at the problem's parameters."""
    return float(_loss_and_gradient(problem.objective, *_widened((problem.params, problem.batch)))[0])


def gradient(problem: Problem, params: Params) -> dict[str, np.ndarray]:
    """Computes g, the gradient of the mean loss by leaf, at least in single precision."""
    return by_leaf(_loss_and_gradient(problem.objective, *_widened((params, problem.batch)))[1])


def _widened(tree: tuple[Params, Batch]) -> tuple[Params, Batch]:
    default = jnp.result_type(float)
    floating = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return jax.tree.map(lambda x: np.asarray(x, default) if floating(x) else x, tree)


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all checks and all estimators on one problem
def _loss_and_gradient(objective: Objective, params: Params, batch: Batch) -> tuple[Array, Params]:
    return jax.value_and_grad(lambda p: jnp.mean(objective(p, batch)))(params)
