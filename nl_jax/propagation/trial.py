"""Runs a layer's connection once with random numbers, while the program is traced."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from nl_jax._core.dependence import equations
from nl_jax._core.paths import path_name
from nl_jax.propagation.interpretation import Site
from nl_jax.propagation.loops import Leaves, chosen, differentiable, replaced


class Recorded(NamedTuple):
    """A layer's connection as a program.

    Attributes:
      program: takes the leaves of parameters and inputs, returns ν.
      parameters: the parameters by path, as shapes and dtypes.
      inputs: shapes and dtypes of the inputs.
    """

    program: ClosedJaxpr
    parameters: dict[str, jax.ShapeDtypeStruct]
    inputs: list[jax.ShapeDtypeStruct]

    @property
    def calls_host(self) -> bool:
        """Whether running it would call the host, such as a device that is trained."""
        return any("callback" in equation.primitive.name for equation in equations(self.program))


def recorded(site: Site) -> Recorded | None:
    """Records the connection; None if it can be traced only where it stands, as one that names a mesh axis."""
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    params, inputs = jax.tree.map(shape, (site.params, site.inputs))
    try:
        program = jax.make_jaxpr(lambda params, inputs: site.connection(params, *inputs))(params, inputs)
    except Exception:  # the program itself runs it in its place, and reports what is wrong with it
        return None
    paths = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return Recorded(program, paths, list(inputs))


def drawn(layer: Recorded, generator: np.random.Generator, whole: int) -> Leaves:
    """Draws parameters and inputs from 0.5 to 1.5; integers and Booleans are `whole`."""

    def one(x: jax.ShapeDtypeStruct) -> jax.Array:
        values = generator.uniform(0.5, 1.5, x.shape) if differentiable(x) else np.full(x.shape, whole)
        return jnp.asarray(values, x.dtype)

    return [one(x) for x in (*layer.parameters.values(), *layer.inputs)]


def fan_ins(site: Site, nu: tuple[int, ...]) -> list[int]:
    """Counts, for each of the layer's parameters, how many of its values enter one unit; 0 where that is not known.

    Args:
      site: the layer.
      nu: the shape of its pre-activation.
    """
    leaves = jax.tree.leaves(site.params)
    if len(nu) == 2 and all(leaf.ndim < 2 or (leaf.ndim == 2 and nu[1] in leaf.shape) for leaf in leaves):
        return [math.prod(leaf.shape) // nu[1] if leaf.ndim == 2 else 1 for leaf in leaves]  # a matrix, either way up
    example: Any = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in site.inputs)
    layer = recorded(site._replace(inputs=example))
    if layer is None or layer.calls_host:
        return [0] * len(leaves)
    try:
        with jax.ensure_compile_time_eval():
            return _entering(layer)
    except Exception:  # it holds values of a trace, or runs only in its place
        return [0] * len(leaves)


def _entering(layer: Recorded) -> list[int]:
    values, count = drawn(layer, np.random.default_rng(0), whole=1), len(layer.parameters)
    moving = [differentiable(x) and i < count for i, x in enumerate(values)]
    run = jaxpr_as_fun(layer.program)
    nu, pull = jax.vjp(lambda some: run(*replaced(values, moving, some))[0], chosen(values, moving))
    middle = tuple(size // 2 for size in nu.shape)  # of an image, away from its border
    (found,) = pull(jnp.zeros_like(nu).at[middle].set(1))
    counts = iter(int(np.count_nonzero(np.asarray(leaf, float))) for leaf in found)
    return [next(counts) if one else 0 for one in moving[:count]]
