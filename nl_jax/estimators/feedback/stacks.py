"""Finds the loops over depth, whose steps have their own, stacked parameters."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.propagation import Site, interpret, loops_around


def steps_of_their_own(objective: Objective, params: Params, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Finds, for each layer, the loops around it, counted from the outermost, over which its parameters are stacked.

    This is inferred from shapes: a layer's parameters are stacked over those loops whose numbers of steps, put before
    the shapes that the layer receives, give shapes among the program's parameters. Nothing is run.
    """
    used: dict[str, list[tuple[int, ...]]] = {}

    def layer(site: Site, given: None) -> tuple[Array, Array]:
        used[site.name] = [jnp.shape(leaf) for leaf in jax.tree.leaves(site.params)]
        nu = site.preactivation()
        return site.activation(nu), nu

    nus = jax.eval_shape(interpret(objective, layer), params, batch)[1]
    there = {jnp.shape(leaf) for leaf in jax.tree.leaves(params)}

    def stacked(name: str) -> tuple[int, ...]:
        loops = range(loops_around(name))
        several = (some for n in reversed(range(len(loops) + 1)) for some in itertools.combinations(loops, n))
        whole = lambda some: all((*chosen(nus[name].shape, some), *shape) in there for shape in used[name])
        return next((some for some in several if whole(some)), ())

    return {name: stacked(name) for name in nus}


def chosen(of_axes: tuple[Any, ...], axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Returns the entries at some axes, such as their sizes in a shape."""
    return tuple(of_axes[axis] for axis in axes)
