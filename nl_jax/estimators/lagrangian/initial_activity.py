"""Initial axons of inner iterations: `start(feedforward) -> axons`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax.base import Axons

Start = Callable[[Axons], Axons]


def feedforward(axons: Axons) -> Axons:
    """Returns the network's own axons: the constraints hold, and only the multipliers remain to be found."""
    return axons


def zeros(axons: Axons) -> Axons:
    """Returns zeros: the iterations have to find the forward pass as well."""
    return jax.tree.map(jnp.zeros_like, axons)


def begun(start: Start, axons: Axons) -> Axons:
    """Returns `start(axons)`; ValueError if layers, shapes or dtypes differ: a missing layer would not be free."""
    found = dict(start(axons))
    given, got = ({name: f"{x.dtype}{list(x.shape)}" for name, x in tree.items()} for tree in (axons, found))
    if given != got:
        raise ValueError(f"start must return axons of the layers, shapes and dtypes it is given, {given}; got {got}")
    return {name: found[name] for name in axons}
