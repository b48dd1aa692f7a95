"""Energy networks: programs of layers whose connections work both ways."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.base import ActivationFn, Array, Batch, Connection, Params, Program, Propagate
from nl_jax.checks import layered, positive_hyperparameter, positive_number
from nl_jax.estimators.constrained.relaxation import Relaxation, distance, relax
from nl_jax.propagation import Site, feedforward, record, survey
from nl_jax.tracing import if_mapped

Axons = Mapping[str, Array]


@dataclass(frozen=True)
class EnergyNetwork:
    """The network of a program, with axons x free to move and an energy to tell where they come to rest.

        F = Σ_l s_l [G_l(x_l) − ⟨x_l, ν_l⟩] + β C,   G_l' = f_l⁻¹,   s_l = γ^{l−L}

    (Hopfield 1984 with γ = 1; Xie & Seung 2003 with weak feedback). ν_l is what the connections of layer l make of
    the axons below it. F is stationary where every layer answers to what it is sent from below and from above:

        x_l = f_l(ν_l + Σ_{m>l} γ^{m−l} (∂ν_m/∂x_l)ᵀ x_m − β γ^{L−l} ∂C/∂x_l)

    The way back is autodiff's, so that convolutions, skip connections and tied weights have one, with the weights of
    the way forth. G is never needed: only Φ = Σ_l s_l ⟨x_l, ν_l⟩, the primitive function of Ernoult et al. (2019).

    Layers without parameters (pooling, a flattening) have no axons of their own to relax: they belong to the
    connections of the layers above. A layer's f must be the gradient of some function, as elementwise activations
    and the softmax are, and hold no parameters.

    Attributes:
      program: an objective, or a forward function if nothing is nudged.
      feedback_strength: γ; l counts layers in the order of propagation, L is the last one.
      rate: of the damped iteration x ← x + rate (f(…) − x), of all layers at once.
      relaxation: how long.
    """

    program: Program
    feedback_strength: float | Array
    rate: float
    relaxation: Relaxation

    def start(self, params: Params, batch: Batch) -> dict[str, Array]:
        """The axons of the network without feedback, where relaxation begins."""
        _, axons = record(self.program)(params, batch)
        if not axons:
            raise ValueError("no layer has parameters, so that none has axons to relax: hand them to propagate")
        self._refuse_learned_activations(params, axons, batch)
        return axons

    def settle(
        self, params: Params, start: Axons, batch: Batch, *, held: Axons | None = None
    ) -> tuple[dict[str, Array], Array]:
        """The free equilibrium, but for layers that are held, and the number of steps taken."""

        def step(axons: Axons) -> tuple[dict[str, Array], Array]:
            moved, change = self._step(params, axons, batch, None, held or {})
            return moved, distance(change)

        return relax(step, dict(start), self.relaxation, self._remedy)

    def settle_all(
        self, params: Params, start: Axons, batch: Batch, strengths: Array
    ) -> tuple[dict[str, Array], Array]:
        """The equilibria under several nudges, stacked along a new first axis; they stop together."""

        def step(axons: Axons) -> tuple[dict[str, Array], Array]:
            each = lambda x, beta: self._step(params, x, batch, beta, {})
            moved, change = jax.vmap(each)(axons, strengths)
            return moved, distance(jax.tree.map(lambda x: jnp.abs(jnp.swapaxes(x, 0, 1)), change))

        stacked = {name: jnp.broadcast_to(x, (strengths.size, *x.shape)) for name, x in start.items()}
        return relax(step, stacked, self.relaxation, self._remedy)

    def outputs(self, params: Params, axons: Axons, batch: Batch) -> Any:
        """What the program makes of given axons: C, if it is an objective."""
        return survey(self.program, given=axons)(params, batch)[0]

    def harmony(self, params: Params, axons: Axons, batch: Batch, nudge: float | Array | None = None) -> Array:
        """Φ − β C, summed over the batch: −F but for what each layer has to itself."""
        losses, sites = survey(self.program, given=axons)(params, batch)
        inner = lambda site: jnp.sum(site.axons * site.connection(site.params, *site.inputs))
        phi = jnp.sum(jnp.stack([scale * inner(sites[name]) for name, scale in self._scales(sites).items()]))
        return phi if nudge is None else phi - nudge * jnp.sum(losses)

    def forces(
        self, params: Params, axons: Axons, batch: Batch, nudge: float | Array | None = None
    ) -> dict[str, Array]:
        """∂(Φ − β C)/∂x_l, by layer."""
        holomorphic = any(jnp.iscomplexobj(x) for x in axons.values())
        return jax.grad(self.harmony, argnums=1, holomorphic=holomorphic)(params, dict(axons), batch, nudge)

    def answers(self, params: Params, axons: Axons, batch: Batch, forces: Axons) -> dict[str, Array]:
        """x_l = f_l(s_l⁻¹ force_l), by layer."""
        _, sites = survey(self.program, given=axons)(params, batch)
        return {name: sites[name].activation(forces[name] / scale) for name, scale in self._scales(sites).items()}

    def _step(
        self, params: Params, axons: Axons, batch: Batch, nudge: float | Array | None, held: Axons
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        answers = self.answers(params, axons, batch, self.forces(params, axons, batch, nudge)) | {**held}
        change = {name: answers[name] - axons[name] for name in axons}
        return {name: axons[name] + self.rate * change[name] for name in axons}, change

    def _scales(self, sites: Mapping[str, Site]) -> dict[str, float | Array]:
        return {name: self.feedback_strength ** (l - len(sites)) for l, name in enumerate(sites, start=1)}

    @property
    def _remedy(self) -> str:
        return f"rate={self.rate}: choose a smaller one, or smaller weights"

    def _refuse_learned_activations(self, params: Params, axons: Axons, batch: Batch) -> None:
        """ValueError if an activation depends on parameters, by which F would have to be differentiated through G."""
        met: list[str] = []

        def watch(params: Params) -> None:
            for name, site in survey(self.program, given=axons)(params, batch)[1].items():
                if_mapped(site.activation(axons[name]), functools.partial(met.append, name))

        jax.eval_shape(jax.vmap(watch), jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params))
        if met:
            raise ValueError(
                f"the activation of layer {met[0]!r} holds parameters, whose part in the energy is not known: use them "
                "in a connection"
            )


def energy_network(
    user: str,
    program: Program,
    feedback_strength: float | Array,
    rate: float,
    num_steps: int | Array,
    tolerance: float,
) -> EnergyNetwork:
    """An `EnergyNetwork` with its settings checked.

    Raises:
      ValueError: in the name of its user, if the program takes no `propagate` or a setting is out of range.
    """
    layered(user, program)
    feedback_strength = positive_hyperparameter("feedback_strength", feedback_strength)
    if positive_number("rate", rate) > 1:
        raise ValueError(f"rate must be at most 1, the whole way to where a layer is sent, got {rate!r}")
    relaxation = Relaxation(num_steps, tolerance).checked()
    return EnergyNetwork(_of_neurons(program), feedback_strength, float(rate), relaxation)


def _of_neurons(program: Program) -> Program:
    """The program without its layers that have no parameters: they become part of those above."""

    def run(params: Params, inputs: Batch, propagate: Propagate = feedforward) -> Array:
        def of_neurons(
            name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            apply = propagate if jax.tree.leaves(params) else feedforward
            return apply(name, connection, activation, params, *inputs)

        return program(params, inputs, propagate=of_neurons)

    return run
