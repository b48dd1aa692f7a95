"""Turns credit from any source into parameter gradients, layer by layer, without backpropagation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import reached, severed
from nl_jax.base import Array, Params, Program
from nl_jax.propagation.interpretation import Site, interpret
from nl_jax.propagation.loops import accumulated

Respond = Callable[[Site, Array], Array | None]
"""`respond(site, preactivation) -> response`: a function of ν whose credit is known after the run."""


class Local(NamedTuple):
    """A clean run of a program, with the local dependence of its layers on their parameters.

    Attributes:
      outputs: the program's outputs.
      responses: responses by layer name, for layers whose ν^l depends on the parameters; by default ν^l itself.
      learned: the names of those layers, in the order of propagation.
      pull: `pull(output_credit, credit) -> parameter gradient` (see `local_gradient`), with the responses' credit.
    """

    outputs: Any
    responses: dict[str, Array]
    learned: tuple[str, ...]
    pull: Callable[[Any, Mapping[str, Array]], Params]


Activate = Callable[[Site, Array], Array]
"""`activate(site, preactivation) -> axons`, used instead of the site's activation."""


def local(
    program: Program, respond: Respond | None = None, activate: Activate | None = None
) -> Callable[[Params, Any], Local]:
    """Runs the program once and returns a function that turns any credit into a parameter gradient.

    Connections are differentiated only with respect to their own parameters. Activations and losses need no
    derivative, and no information passes from one layer to another. Parameters that a program uses outside its
    layers (a scale after the last one) are the exception: they receive the derivative of the values that use them.

    Do not differentiate the result again: derivatives stop at every layer.

    Args:
      program: a forward function or an objective.
      respond: the function of ν^l that receives credit, by default ν^l itself, stacked over the steps of a loop. Any
        other response is summed over the steps. With R = Σ_t ⟨γ_t, ν_t⟩, for noise that is drawn where it is needed,
        the credit of one number per example suffices for all steps, and memory does not grow with them. It may return
        None.
      activate: computes a layer's axons, by default its own activation of ν.
    """

    def layer(site: Site, given: None) -> tuple[Array, Array | None]:
        nu = site.preactivation()
        axons = site.activation(severed(nu)) if activate is None else activate(site, severed(nu))
        return axons, nu if respond is None else respond(site, nu)

    run = interpret(program, layer, loop=accumulated, summed=respond is not None)

    def localized(params: Params, inputs: Any) -> Local:
        learned = learning_layers(program, params, inputs)
        names: list[str] = []

        def layers(params: Params) -> tuple[Any, list[Array]]:
            outputs, found = run(params, inputs)
            names[:] = found
            return outputs, list(found.values())

        (outputs, responses), transpose = jax.vjp(layers, params)
        found = dict(zip(names, responses, strict=True))

        def pull(output_credit: Any, credit: Mapping[str, Array]) -> Params:
            for name in credit:
                if name not in found:
                    raise ValueError(f"layer {name!r} is not among those known here: {', '.join(found) or 'none'}")
            # A layer without credit gets zeros, which cost nothing once compiled.
            everywhere = [credit.get(name, jnp.zeros_like(value)) for name, value in found.items()]
            return transpose((output_credit, everywhere))[0]

        return Local(outputs, {name: value for name, value in found.items() if name in learned}, (*learned,), pull)

    return localized


def learning_layers(program: Program, params: Params, inputs: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the ν shapes of layers whose ν depends on the parameters with lower axons held; runs nothing."""
    names: list[str] = []
    shapes: list[Any] = []

    def layer(site: Site, given: None) -> tuple[Array, Array]:
        nu = site.preactivation()
        return site.activation(severed(nu)), nu

    def preactivations(params: Params, inputs: Any) -> list[Array]:
        _, found = interpret(program, layer)(params, inputs)
        names[:], shapes[:] = found, [jax.ShapeDtypeStruct(nu.shape, nu.dtype) for nu in found.values()]
        return list(found.values())

    sources = reached(preactivations, params, inputs)
    return {name: shape for name, shape, source in zip(names, shapes, sources, strict=True) if 0 in source}


def local_gradient(program: Program) -> Callable[[Params, Any, Any, Mapping[str, Array]], Params]:
    """Turns node credit into a parameter gradient, layer by layer, without backpropagation.

    Given δ^l = ∂E/∂ν^l for each layer, the parameter gradient is the derivative of
    E(cut outputs) + Σ_l ⟨δ^l, ν^l⟩ with every layer's inputs held fixed. For a dense layer this is
    ∂E/∂W^l = δ^l x^{l-1} (seed 000, node perturbation; seed 003 eq. 9). It is also correct for tied weights,
    convolutions and parameters used after the last layer. With exact credit it equals `jax.grad`.

    Returns:
      `gradient(params, inputs, output_credit, node_credit) -> grads`, where `output_credit` has the
      shape of the program's outputs (the weight of each output, e.g. 1/batch for per-example losses)
      and `node_credit` maps layer names to arrays of their pre-activations' shapes.

    Raises:
      ValueError: when run, for duplicate or unknown layer names.
    """

    def gradient(params: Params, inputs: Any, output_credit: Any, node_credit: Mapping[str, Array]) -> Params:
        return local(program)(params, inputs).pull(output_credit, node_credit)

    return gradient
