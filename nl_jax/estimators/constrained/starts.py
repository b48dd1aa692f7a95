"""Initial axons of inner iterations: `start(feedforward) -> axons`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax.estimators.constrained.lagrangian import Axons

Start = Callable[[Axons], Axons]


def feedforward(axons: Axons) -> Axons:
    """The network's own axons: the constraints hold, and what is left to find are the multipliers."""
    return axons


def zeros(axons: Axons) -> Axons:
    """Silence: the forward pass is found on the way as well."""
    return jax.tree.map(jnp.zeros_like, axons)


def begun(start: Start, axons: Axons) -> Axons:
    """`start(axons)`, or ValueError if it has other layers, shapes or dtypes: a layer left out would not be free."""
    found = dict(start(axons))
    given, got = ({name: f"{x.dtype}{list(x.shape)}" for name, x in tree.items()} for tree in (axons, found))
    if given != got:
        raise ValueError(f"start must return axons of the layers, shapes and dtypes it is given, {given}; got {got}")
    return {name: found[name] for name in axons}
