"""Failures of compiled code: values inside it, exceptions outside it."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from nl_jax.base import Failure


def raise_if_failed(failures: Iterable[Failure]) -> None:
    """Raises the first failure that occurred, if any did.

    Call it on the result of a jitted function. It waits for the result.

    Args:
      failures: as in `nl.Info.failures`, with any leading axes (steps, runs or devices).

    Raises:
      FloatingPointError: with the failure's message.
      jax.errors.ConcretizationTypeError: inside `jax.jit`, where no value is known yet.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> network = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    >>> estimate = jax.jit(nl.primal_dual(objective, step_size=9.0).estimate)
    >>> at = jax.random.key(0), (), network.init(jax.random.key(1)), (jnp.ones([5, 3]), jnp.ones([5, 2]))
    >>> grads, state, info = estimate(*at)
    >>> raise_if_failed(info.failures)
    Traceback (most recent call last):
    FloatingPointError: the inner iterations diverged at step_size=9.0: choose a smaller one
    """
    for failure in failures:
        if jnp.any(failure.occurred):
            raise FloatingPointError(failure.message)


def raise_if_known(failures: Iterable[Failure]) -> None:
    """Calls `raise_if_failed`, but does nothing in traced code, where the caller must check the returned value."""
    try:
        raise_if_failed(failures)
    except jax.errors.ConcretizationTypeError:
        return


def ever(failures: tuple[Failure, ...]) -> tuple[Failure, ...]:
    """Reduces the first axis of the failures: whether each occurred anywhere along it."""
    return jax.tree.map(lambda occurred: jnp.any(occurred, axis=0), failures)
