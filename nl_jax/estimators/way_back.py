"""One run forth and back, in which every layer sends credit down in its own way.

Each layer becomes a function whose derivative *is* the rule (`jax.custom_vjp`), and one `jax.grad` runs them all: loops
in reverse, skip connections, tied weights and what a program does between its layers are JAX's own. With z_j = ∂L/∂x_j,
from the highest layer down:

    δ_j = z_j df_j(x_j)                                    seed 003 eq. 8, df from the value, eq. 10
    ∂L/∂M_ji = δ_j x_i,  ∂L/∂b_j = δ_j                     eq. 9, 12
    z_i ← z_i + back_j, starting from z_i = ∂L/∂x_i direct  eq. 12, where back_j = δ_j M_ji

No other derivative is taken than of single connections and activations, and of what the program does between them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from nl_jax.base import Array, Batch, Objective, Params, Program
from nl_jax.checks import per_example
from nl_jax.propagation import Site, interpret, record
from nl_jax.propagation.loops import zero_of


class Seen(NamedTuple):
    """A layer as its rule sees it; `connection` and `activation` hold no values of the moment and may be called later.

    Attributes:
      name: "hidden", in a loop "time/hidden".
      connection: `connection(params, *inputs) -> ν`.
      activation: `activation(ν) -> axons`.
      params: its parameters.
      companion: what stands where its parameters stand in a second tree that goes the same ways through the program,
        such as feedback weights B; without such a tree, its parameters.
      inputs: what it receives.
      steps: the number of the step in every loop around it.
      axons: what it sends on.
    """

    name: str
    connection: Callable[..., Array]
    activation: Callable[[Array], Array]
    params: Params
    companion: Params
    inputs: tuple[Array, ...]
    steps: tuple[Array, ...]
    axons: Array

    def transpose(self, params: Params) -> Callable[[Array], tuple[Array, ...]]:
        """The connection from ν to its inputs, for ordinary ones `params`ᵀ, at the inputs it receives."""
        return jax.vjp(functools.partial(self.connection, params), *self.inputs)[1]


Back = Callable[[Seen, Any, Array, Array], tuple[Any, ...]]
"""`back(seen, extra, z, delta) -> credit of the layer's inputs`, given its own by axons, z, and by ν, δ."""

Find = Callable[[Seen, Any], Any]
"""`find(seen, extra) -> found`: anything that a layer's companion, parameters and values tell."""


def transposed(seen: Seen, extra: Any, z: Array, delta: Array) -> tuple[Array, ...]:
    """δ_j B_ji: the derivative of the connection with the companion for its parameters."""
    del extra, z
    return seen.transpose(seen.companion)(delta)


class Run(NamedTuple):
    """A run forth and back.

    Attributes:
      losses: [batch].
      grads: a tree like the parameters, on the scale of the mean loss.
      credit: z by layer, what stands for ∂L/∂x, L the mean loss; () unless it was asked for.
    """

    losses: Array
    grads: Params
    credit: Any = ()


def way_back(
    objective: Objective,
    params: Params,
    batch: Batch,
    back: Back = transposed,
    *,
    companion: Params | None = None,
    extra: Any = (),
    credit: bool = False,
) -> Run:
    """Runs forward with `params`, then carries credit down by `back`, layer by layer.

    Args:
      objective: a per-example objective that takes `propagate`.
      params: of the program.
      batch: as the objective takes it.
      back: the way back from one layer.
      companion: a tree like `params` that goes the same ways. It does so as a tangent does: slices, transposes and
        scalings between `params` and a layer's parameters apply to it, what is not linear there to first order.
      extra: handed to `back`; any tree of arrays.
      credit: whether to return z.
    """
    values = jax.tree.leaves(extra), jax.tree.structure(extra)

    def layer(site: Site, offset: Array | None) -> tuple[Array, Array]:
        axons = _taught(site, back, values, companion is not None)
        return axons if offset is None else axons + offset, axons

    run = interpret(objective, layer)
    names: list[str] = []

    def losses(params: Params, offsets: dict[str, Array]) -> tuple[Array, Array]:
        losses, found = run(params, batch, offsets)
        names[:] = found
        losses = per_example(losses)
        return jnp.mean(losses), losses

    def beside(params: Params, offsets: dict[str, Array]) -> tuple[Array, Array]:
        if companion is None:
            return losses(params, offsets)
        return jax.jvp(lambda params: losses(params, offsets), (params,), (companion,))[0]

    if not credit:
        (_, each), grads = jax.value_and_grad(beside, has_aux=True)(params, {})
        return Run(each, grads)
    offsets = zero_axons(objective, params, batch)
    (_, each), (grads, z) = jax.value_and_grad(beside, argnums=(0, 1), has_aux=True)(params, offsets)
    return Run(each, grads, {name: z[name] for name in names})


def zero_axons(program: Program, params: Params, inputs: Any) -> dict[str, Array]:
    """Zeros of the shapes of all layers' axons; nothing is run."""
    shapes = jax.eval_shape(lambda params, inputs: record(program)(params, inputs)[1], params, inputs)
    return {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}


def beside(program: Program, find: Find) -> Callable[[Params, Params, Any, Any], dict[str, Any]]:
    """Runs the program forward and finds, layer by layer, what a companion of the parameters makes of it.

    Returns:
      `run(params, companion, inputs, extra) -> {layer: found}`, in loops summed over the steps; differentiable by the
      companion alone. Layers in which None is found are left out.
    """

    def run(params: Params, companion: Params, inputs: Any, extra: Any) -> dict[str, Any]:
        names: list[str] = []

        def layer(site: Site, given: None) -> tuple[Array, Any]:
            axons = jax.lax.stop_gradient(site.axons())
            return axons, _token(site, axons, find, extra)

        def found(params: Params) -> list[Any]:
            _, found = interpret(program, layer, summed=True)(params, inputs)
            names[:] = found
            return list(found.values())

        _, values = jax.jvp(found, (params,), (companion,))
        return dict(zip(names, values, strict=True))

    return run


class _Pure(NamedTuple):
    """A site's functions with the values they close over handed in, in the order in which they are here."""

    connection: Callable[..., Array]
    activation: Callable[..., Array]
    derivative: Callable[..., Array] | None
    held: tuple[list[Any], list[Any], list[Any]]


def _pure(site: Site) -> _Pure:
    connection, of_connection = jax.closure_convert(site.connection, site.params, *site.inputs)
    nu = jax.eval_shape(connection, site.params, *site.inputs, *of_connection)
    activation, of_activation = jax.closure_convert(site.activation, nu)
    derivative, of_derivative = None, []
    if hasattr(site.activation, "derivative"):
        axons = jax.eval_shape(activation, nu, *of_activation)
        derivative, of_derivative = jax.closure_convert(site.activation.derivative, axons)
    return _Pure(connection, activation, derivative, (of_connection, of_activation, of_derivative))


def _seen(site: Site, pure: _Pure, held: Any, params: Params, companion: Params, inputs: Any, steps: Any, axons: Any):
    of_connection, of_activation, _ = held
    return Seen(
        site.name,
        lambda params, *inputs: pure.connection(params, *inputs, *of_connection),
        lambda nu: pure.activation(nu, *of_activation),
        params,
        companion,
        inputs,
        steps,
        axons,
    )


def _taught(site: Site, back: Back, extra: Any, paired: bool) -> Array:
    """The layer's axons, of which the derivative is the rule."""
    pure = _pure(site)
    leaves, tree = extra

    @jax.custom_vjp
    def apply(params: Params, companion: Params, inputs: Any, held: Any, steps: Any, leaves: Any) -> Array:
        return pure.activation(pure.connection(params, *inputs, *held[0]), *held[1])

    def forward(params: Params, companion: Params, inputs: Any, held: Any, steps: Any, leaves: Any) -> Any:
        nu, to_connection = jax.vjp(lambda params, own: pure.connection(params, *inputs, *own), params, held[0])
        if pure.derivative is None:
            axons, to_activation = jax.vjp(pure.activation, nu, *held[1])
        else:  # by the value, where the activation knows how (seed 003 eq. 10)
            axons, to_held = jax.vjp(lambda *own: pure.activation(nu, *own), *held[1])
            slope, dtype = pure.derivative(axons, *held[2]), nu.dtype
            to_activation = jax.tree_util.Partial(_by_value, to_held, slope, jnp.zeros((), dtype))
        return axons, (to_connection, to_activation, params, companion, inputs, held, steps, leaves, axons)

    def backward(kept: Any, z: Array) -> Any:
        to_connection, to_activation, params, companion, inputs, held, steps, leaves, axons = kept
        delta, *of_activation = to_activation(z)
        to_params, of_connection = to_connection(delta)
        companion = params if companion is None else companion
        seen = _seen(site, pure, held, params, companion, inputs, steps, axons)
        to_inputs = back(seen, jax.tree.unflatten(tree, leaves), z, delta)
        return to_params, None, tuple(to_inputs), (of_connection, of_activation, None), None, None

    apply.defvjp(forward, backward)
    arguments = site.inputs, pure.held, site.steps, leaves
    if not paired:
        return apply(site.params, None, *arguments)

    @jax.custom_jvp
    def along(params: Params, *arguments: Any) -> Array:
        return apply(params, params, *arguments)

    def rule(primals: Any, tangents: Any) -> tuple[Array, Any]:
        params, *arguments = primals
        companion = jax.tree.map(_instantiated, tangents[0], is_leaf=_is_symbol)
        axons = apply(params, companion, *arguments)
        return axons, SymbolicZero(jax.typeof(axons).to_tangent_aval())

    along.defjvp(rule, symbolic_zeros=True)
    return along(site.params, *arguments)


def _by_value(to_held: Callable, slope: Array, like: Array, z: Array) -> tuple[Array, ...]:
    return (z * slope).astype(like.dtype), *to_held(z)


def _token(site: Site, axons: Array, find: Find, extra: Any) -> Any:
    """Zeros, of which the derivative along the companion is what is found."""
    pure = _pure(site)

    def found(companion: Params, params: Params, held: Any, inputs: Any, steps: Any, axons: Array, extra: Any) -> Any:
        return find(_seen(site, pure, held, params, companion, inputs, steps, axons), extra)

    arguments = pure.held, site.inputs, site.steps, axons, extra
    shapes = jax.eval_shape(found, site.params, site.params, *arguments)
    if shapes is None:
        return None

    @jax.custom_jvp
    def token(params: Params, *arguments: Any) -> Any:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        return token(*primals), found(tangents[0], *primals)

    token.defjvp(rule)
    return token(site.params, *arguments)


def _is_symbol(x: Any) -> bool:
    return isinstance(x, SymbolicZero)


def _instantiated(x: Any) -> Any:
    return zero_of(x.aval) if _is_symbol(x) else x
