"""A forward pass and a backward pass in which each layer sends credit down by a given rule.

Each layer becomes a function whose derivative *is* the rule (`jax.custom_vjp`), and one `jax.grad` runs them all. JAX
itself handles loops in reverse, skip connections, tied weights and what a program does between its layers. With
z_j = ∂L/∂x_j, from the highest layer down:

    δ_j = z_j df_j(x_j)                                    seed 003 eq. 8, df from the value, eq. 10
    ∂L/∂M_ji = δ_j x_i,  ∂L/∂b_j = δ_j                     eq. 9, 12
    z_i ← z_i + back_j, starting from z_i = ∂L/∂x_i direct  eq. 12, where back_j = δ_j M_ji

The only derivatives are those of single connections and activations, and of what the program does between them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from nl_jax._core.require import per_example
from nl_jax.base import Array, Batch, LayerCredit, Objective, Params, Program
from nl_jax.propagation import Site, interpret
from nl_jax.propagation.loops import zero_of


class Seen(NamedTuple):
    """A layer as its rule sees it. Its functions close over no traced values and may be called later.

    Attributes:
      name: "hidden", in a loop "time/hidden".
      connection: `connection(*inputs) -> ν`, with the layer's own parameters.
      companion: the same connection with the corresponding values of a second tree like the parameters, such as
        feedback weights B; without such a tree, and where it has no value, with the layer's own parameters.
      activation: `activation(ν) -> axons`.
      inputs: the layer's inputs.
      steps: the number of the current step in every loop around it.
      axons: the layer's axons (activity).
    """

    name: str
    connection: Callable[..., Array]
    companion: Callable[..., Array]
    activation: Callable[[Array], Array]
    inputs: tuple[Array, ...]
    steps: tuple[Array, ...]
    axons: Array

    def transpose(self, connection: Callable[..., Array]) -> Callable[[Array], tuple[Array, ...]]:
        """Returns the map from ν to the inputs, at the layer's own inputs: for an ordinary connection its weightᵀ."""
        return jax.vjp(connection, *self.inputs)[1]


Back = Callable[[Seen, Any, Array, Array], tuple[Any, ...]]
"""`back(seen, extra, z, delta) -> credit of the layer's inputs`, given the credit of its axons, z, and of ν, δ."""

Find = Callable[[Seen, Any], Any]
"""`find(seen, extra) -> found`: anything computed from a layer's companion, parameters and values."""


def transposed(seen: Seen, extra: Any, z: Array, delta: Array) -> tuple[Array, ...]:
    """Computes δ_j B_ji: the derivative of the connection with the companion instead of its parameters."""
    del extra, z
    return seen.transpose(seen.companion)(delta)


Offsets = dict[str, tuple[Array, Array]]
"""Zero offsets of ν and of the axons of layers, for the derivatives with respect to them: δ and z."""


class Run(NamedTuple):
    """The result of a forward and a backward pass.

    Attributes:
      losses: [batch].
      grads: a tree like the parameters, on the scale of the mean loss.
      credit: by layer, see `nl.LayerCredit`; empty unless it was asked for.
    """

    losses: Array
    grads: Params
    credit: dict[str, LayerCredit]


def feedback_path(
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
      params: the program's parameters.
      batch: as the objective takes it.
      back: the backward rule of one layer.
      companion: a tree like `params`. It reaches the layers as a tangent does: slices, transposes and scalings between
        `params` and a layer's parameters apply to it, and nonlinear operations to first order.
      extra: passed to `back`; any tree of arrays.
      credit: whether to return the credit.
    """

    def run(params: Params, offsets: Offsets, paired: Array | None) -> tuple[Array, tuple[Array, list[Array]]]:
        def layer(site: Site, offset: tuple[Array, Array] | None) -> tuple[Array, Array]:
            if offset is None:
                axons = taught(site, back, extra, paired)
                return axons, axons
            of_nu, of_axons = offset
            moved = site._replace(connection=lambda *arguments: site.connection(*arguments) + of_nu)
            axons = taught(moved, back, extra, paired)
            return axons + of_axons, axons

        losses, found = interpret(objective, layer)(params, batch, offsets)
        names[:] = found
        losses = per_example(losses)
        return jnp.mean(losses), (losses, list(found.values()))

    def both(params: Params, offsets: Offsets) -> tuple[Array, tuple[Array, list[Array]]]:
        if companion is None:
            return run(params, offsets, None)
        # Every layer must see the tangents, even if its own parameters have none.
        one = jnp.ones(())
        return jax.jvp(lambda params, one: run(params, offsets, one), (params, one), (companion, one))[0]

    names: list[str] = []
    offsets = _zeros(objective, params, batch) if credit else {}
    (_, (each, axons)), (grads, found) = jax.value_and_grad(both, argnums=(0, 1), has_aux=True)(params, offsets)
    if not credit:
        return Run(each, grads, {})
    summed = jax.tree.map(lambda of_mean: of_mean * len(each), found)
    return Run(each, grads, {name: LayerCredit(x, *summed[name][::-1]) for name, x in zip(names, axons, strict=True)})


def _zeros(program: Program, params: Params, inputs: Any) -> Offsets:
    """Returns zero offsets; nothing is run."""

    def layer(site: Site, given: None) -> tuple[Array, tuple[Array, Array]]:
        nu = site.preactivation()
        axons = site.activation(nu)
        return axons, (nu, axons)

    shapes = jax.eval_shape(interpret(program, layer), params, inputs)[1]
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def beside(program: Program, find: Find) -> Callable[[Params, Params, Any, Any], dict[str, Any]]:
    """Returns a function that runs the program and applies `find` to each layer with a companion of its parameters.

    Returns:
      `run(params, companion, inputs, extra) -> {layer: found}`, in loops summed over the steps; differentiable only
      with respect to the companion. Layers for which `find` returns None are left out.
    """

    def run(params: Params, companion: Params, inputs: Any, extra: Any) -> dict[str, Any]:
        names: list[str] = []

        def found(params: Params, paired: Array) -> list[Any]:
            def layer(site: Site, given: None) -> tuple[Array, Any]:
                axons = jax.lax.stop_gradient(site.axons())
                return axons, _found(site, axons, find, extra, paired)

            _, found = interpret(program, layer, summed=True)(params, inputs)
            names[:] = found
            return list(found.values())

        one = jnp.ones(())
        values, _ = jax.jvp(found, (params, one), (companion, one))
        return dict(zip(names, values, strict=True))

    return run


class _Own(NamedTuple):
    """The values that a layer depends on: its parameters, and what its functions close over."""

    params: Params
    connection: list[Any]
    activation: list[Any]
    derivative: list[Any]


class _Pure(NamedTuple):
    """A layer's functions, which take what they closed over as arguments after the others."""

    connection: Callable[..., Array]
    activation: Callable[..., Array]
    derivative: Callable[..., Array] | None


def _pure(site: Site) -> tuple[_Pure, _Own]:
    connection, of_connection = jax.closure_convert(site.connection, site.params, *site.inputs)
    nu = jax.eval_shape(connection, site.params, *site.inputs, *of_connection)
    activation, of_activation = jax.closure_convert(site.activation, nu)
    own = _Own(site.params, of_connection, of_activation, [])
    by_value = getattr(site.activation, "derivative", None)
    if by_value is None:
        return _Pure(connection, activation, None), own
    axons = jax.eval_shape(activation, nu, *of_activation)
    derivative, of_derivative = jax.closure_convert(by_value, axons)
    return _Pure(connection, activation, derivative), own._replace(derivative=of_derivative)


def _seen(name: str, pure: _Pure, own: _Own, companion: _Own, inputs: Any, steps: Any, axons: Any) -> Seen:
    def connected(own: _Own) -> Callable[..., Array]:
        return lambda *inputs: pure.connection(own.params, *inputs, *own.connection)

    activation = lambda nu: pure.activation(nu, *own.activation)
    return Seen(name, connected(own), connected(companion), activation, inputs, steps, axons)


def taught(site: Site, back: Back, extra: Any, paired: Array | None) -> Array:
    """Computes the layer's axons, with the rule as their derivative."""
    pure, held = _pure(site)

    @jax.custom_vjp
    def apply(own: _Own, companion: _Own | None, inputs: Any, steps: Any, extra: Any) -> Array:
        return pure.activation(pure.connection(own.params, *inputs, *own.connection), *own.activation)

    def forward(own: _Own, companion: _Own | None, inputs: Any, steps: Any, extra: Any) -> tuple[Array, Any]:
        connection = lambda params, values: pure.connection(params, *inputs, *values)
        nu, to_connection = jax.vjp(connection, own.params, own.connection)
        if pure.derivative is None:
            axons, to_activation = jax.vjp(pure.activation, nu, *own.activation)
        else:  # from the value, where the activation defines it (seed 003 eq. 10)
            axons, to_held = jax.vjp(lambda *values: pure.activation(nu, *values), *own.activation)
            slope = pure.derivative(axons, *own.derivative)
            to_activation = jax.tree_util.Partial(_by_value, to_held, slope, jnp.zeros((), nu.dtype))
        return axons, (to_connection, to_activation, own, companion, inputs, steps, extra, axons)

    def backward(kept: Any, z: Array) -> tuple[_Own, None, tuple[Any, ...], None, None]:
        to_connection, to_activation, own, companion, inputs, steps, extra, axons = kept
        delta, *of_activation = to_activation(z)
        of_params, of_connection = to_connection(delta)
        seen = _seen(site.name, pure, own, own if companion is None else companion, inputs, steps, axons)
        to_inputs = tuple(back(seen, extra, z, delta))
        of_derivative = [zero_of(leaf) for leaf in own.derivative]
        return _Own(of_params, of_connection, of_activation, of_derivative), None, to_inputs, None, None

    apply.defvjp(forward, backward)
    arguments = site.inputs, site.steps, extra
    if paired is None:
        return apply(held, None, *arguments)
    (own, *arguments), companion = parted(paired, (held, *arguments))
    return apply(own, companion[0], *arguments)


def parted(paired: Array | None, values: Any) -> tuple[Any, Any]:
    """Returns the values, and their counterparts in the second tree: the tangents, as values of their own.

    The returned values have no tangents. A value without a counterpart, such as the parameters of another part, a
    loop's state or an index, is its own companion. Without a pair, every value is.
    """
    if paired is None:
        return values, values

    @jax.custom_jvp
    def both(paired: Array, values: Any) -> tuple[Any, Any]:
        return values, values

    def rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        values = primals[1]
        missing = lambda t: isinstance(t, SymbolicZero) or t.dtype == jax.dtypes.float0
        companions = jax.tree.map(lambda own, t: own if missing(t) else t, values, tangents[1])
        pair = values, companions
        return pair, jax.tree.map(lambda leaf: SymbolicZero(jax.typeof(leaf).to_tangent_aval()), pair)

    both.defjvp(rule, symbolic_zeros=True)
    return both(paired, values)


def _by_value(to_held: Callable, slope: Array, like: Array, z: Array) -> tuple[Array, ...]:
    return (z * slope).astype(like.dtype), *to_held(z)


def _found(site: Site, axons: Array, find: Find, extra: Any, paired: Array) -> Any:
    """Applies `find` to a layer and its companion."""
    pure, held = _pure(site)

    def found(own: _Own, companion: _Own, inputs: Any, steps: Any, axons: Array, extra: Any) -> Any:
        return find(_seen(site.name, pure, own, companion, inputs, steps, axons), extra)

    arguments = site.inputs, site.steps, axons, extra
    (own, *arguments), companion = parted(paired, (held, *arguments))
    return found(own, companion[0], *arguments)
