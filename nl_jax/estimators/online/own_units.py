"""Tests whether each parameter of a layer acts on one unit alone, as a trace for each parameter supposes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from nl_jax.propagation.loops import Leaves, chosen, differentiable, replaced
from nl_jax.propagation.trial import Recorded, drawn

MIXES = "mixes examples"
OTHERS = "has parameters that act on other units than that of their place on the last axis"

_TOLERANCE = 0.02
"""Allowed relative difference in float32 and above; matrix products of GPUs may keep ten bits."""


def fault(layer: Recorded | None) -> str | None:
    """Says why traces of the layer would be wrong; None if nothing was found.

    The program is run once with random numbers. Credit that is scaled unit by unit must scale the gradient of every
    parameter in its place, and credit for the first example must not reach the inputs of others. A connection is not
    tested if it holds values of a trace, calls the host, or gives no finite number for positive inputs.
    """
    if layer is None:
        return None
    (nu,) = layer.program.out_avals
    for path, leaf in layer.parameters.items():
        if differentiable(leaf) and leaf.shape[-1:] != nu.shape[-1:]:
            return (
                f"has a parameter {path!r} of shape {leaf.shape}, in which the last axis is not that of the "
                f"{nu.shape[-1]} units"
            )
    if layer.calls_host:
        return None
    found: str | None = None
    try:
        with jax.ensure_compile_time_eval():
            for whole in (1, 0):  # integers and Booleans: masks let pass, then indices into the shortest of tables
                found, tested = _judged(layer, nu.shape, whole)
                if found or tested:
                    break
    except Exception:  # it holds values of a trace, or runs only in its place
        return None
    return found


def _judged(layer: Recorded, shape: tuple[int, ...], whole: int) -> tuple[str | None, bool]:
    """Returns what is wrong, and whether all parameters and inputs had an effect, without which nothing is shown."""
    generator = np.random.default_rng(0)
    leaves = drawn(layer, generator, whole)
    moving, count = [differentiable(x) for x in leaves], len(layer.parameters)
    run = jaxpr_as_fun(layer.program)
    nu, pull = jax.vjp(lambda some: run(*replaced(leaves, moving, some))[0], chosen(leaves, moving))

    def gradients(credit: np.ndarray) -> tuple[Leaves, Leaves]:
        (found,) = pull(jnp.asarray(credit, nu.dtype))
        every = [np.asarray(leaf, float) for leaf in found]
        learned = sum(moving[:count])
        return every[:learned], every[learned:]

    credit, factors = generator.normal(size=shape), generator.uniform(0.5, 2, shape[-1])
    plain, _ = gradients(credit)
    scaled, _ = gradients(credit * factors)
    _, to_inputs = gradients(credit * (np.arange(shape[0]) == 0).reshape(-1, *[1] * (len(shape) - 1)))
    tolerance = max(_TOLERANCE, float(jnp.finfo(nu.dtype).eps) ** 0.5)
    if any(np.max(np.abs(x[1:]), initial=0) > tolerance * np.max(np.abs(x), initial=0) for x in to_inputs):
        return MIXES, True
    for one, other in zip(plain, scaled, strict=True):
        if np.max(np.abs(other - one * factors), initial=0) > tolerance * np.max(np.abs(one), initial=0):
            return OTHERS, True
    return None, all(np.any(leaf) and np.isfinite(leaf).all() for leaf in (*plain, *to_inputs))
