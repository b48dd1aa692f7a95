"""Energy networks: programs of layers whose connections work in both directions."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import reached
from nl_jax._core.require import layered, positive_hyperparameter, positive_number
from nl_jax.base import Array, Axons, Batch, LayerCredit, Params, Program, Propagate
from nl_jax.estimators.lagrangian.credit import of_axons
from nl_jax.estimators.lagrangian.relaxation import Relaxation, Relaxed, distance, relax
from nl_jax.propagation import Around, Site, clamp, feedforward, interpret, parallel_loop, places, record


@dataclass(frozen=True)
class EnergyNetwork:
    """The energy network of a program: its axons x (activity) relax to a stationary point of an energy F.

        F = Σ_l s_l [G_l(x_l) − ⟨x_l, ν_l⟩] + β C,   G_l' = f_l⁻¹,   s_l = γ^{l−L}

    (Hopfield 1984 with γ = 1; Xie & Seung 2003 with weak feedback). ν_l is what the connections of layer l compute from
    the axons below it. F is stationary where every layer responds to its inputs from below and from above:

        x_l = f_l(ν_l + Σ_{m>l} γ^{m−l} (∂ν_m/∂x_l)ᵀ x_m − β γ^{L−l} ∂C/∂x_l)

    Feedback is computed by autodiff, so that convolutions, skip connections and tied weights have it, with the forward
    weights. G is never needed: only Φ = Σ_l s_l ⟨x_l, ν_l⟩, the primitive function of Ernoult et al. (2019).

    Layers without parameters (pooling, a flattening) have no axons of their own to relax: they belong to the
    connections of the layers above. A layer's f must be the gradient of some function, as elementwise activations and
    the softmax are, and hold no parameters.

    Attributes:
      program: an objective, or a forward function if nothing is nudged.
      feedback_strength: γ; l counts layers in the order of propagation, L is the last one.
      rate: the step of the damped iteration x ← x + rate (f(…) − x), of all layers at once.
      relaxation: the length of the iteration.
    """

    program: Program
    feedback_strength: float | Array
    rate: float
    relaxation: Relaxation

    def start(self, params: Params, batch: Batch) -> dict[str, Array]:
        """Returns the axons of the network without feedback, where relaxation begins."""
        _, axons = record(self.program)(params, batch)
        if not axons:
            raise ValueError(
                "no layer has parameters, so there are no axons to relax: pass the parameters to propagate"
            )
        self._refuse_feedback(axons, min(math.log10(jnp.finfo(x.dtype).max) - 3 for x in axons.values()), "range")
        self._refuse_learned_activations(params, axons, batch)
        return axons

    def settle(
        self, params: Params, start: Axons, batch: Batch, *, held: Axons | None = None
    ) -> Relaxed[dict[str, Array]]:
        """Finds the free equilibrium, except for layers that are held."""

        def step(axons: Axons) -> tuple[dict[str, Array], Array]:
            moved, change = self._step(params, axons, batch, None, held or {})
            return moved, distance(change)

        return relax(step, dict(start), self.relaxation, self.remedy)

    def settle_all(self, params: Params, start: Axons, batch: Batch, strengths: Array) -> Relaxed[dict[str, Array]]:
        """Finds the equilibria under several nudges, stacked along a new first axis; they stop together."""

        def step(axons: Axons) -> tuple[dict[str, Array], Array]:
            each = lambda x, beta: self._step(params, x, batch, beta, {})
            moved, change = jax.vmap(each)(axons, strengths)
            return moved, distance(jax.tree.map(lambda x: jnp.abs(jnp.swapaxes(x, 0, 1)), change))

        stacked = {name: jnp.broadcast_to(x, (strengths.size, *x.shape)) for name, x in start.items()}
        return relax(step, stacked, self.relaxation, self.remedy)

    def outputs(self, params: Params, axons: Axons, batch: Batch) -> Any:
        """Returns the program's outputs for given axons: C, if it is an objective."""
        return clamp(self.program)(params, batch, axons)[0]

    def harmony(self, params: Params, axons: Axons, batch: Batch, nudge: float | Array | None = None) -> Array:
        """Computes Φ − β C, summed over the batch: −F except for the layers' own terms G."""

        def layer(site: Site, x: Array) -> tuple[Array, Array]:
            return x, jnp.sum(x * site.preactivation())

        losses, inner = interpret(self.program, layer, loop=parallel_loop)(params, batch, axons)
        scales = self._scales(inner, axons)
        phi = jnp.sum(jnp.stack([jnp.sum(scales[name] * product) for name, product in inner.items()]))
        return phi if nudge is None else phi - nudge * jnp.sum(losses)

    def forces(
        self, params: Params, axons: Axons, batch: Batch, nudge: float | Array | None = None
    ) -> dict[str, Array]:
        """Computes ∂(Φ − β C)/∂x_l, by layer."""
        holomorphic = any(jnp.iscomplexobj(x) for x in axons.values())
        return jax.grad(self.harmony, argnums=1, holomorphic=holomorphic)(params, dict(axons), batch, nudge)

    def answers(self, params: Params, axons: Axons, batch: Batch, forces: Axons) -> dict[str, Array]:
        """Computes x_l = f_l(s_l⁻¹ force_l), by layer."""

        def layer(site: Site, given: tuple[Array, Array]) -> tuple[Array, Array]:
            x, sent = given
            return x, site.activation(sent)

        scaled = {name: (axons[name], sent) for name, sent in self._unscaled(params, axons, batch, forces).items()}
        return interpret(self.program, layer, loop=parallel_loop)(params, batch, scaled)[1]

    def credit(self, params: Params, axons: Axons, batch: Batch, multipliers: Axons) -> dict[str, LayerCredit]:
        """Computes each layer's credit: z = −λ at its output, δ at its total input from all sides, s_l⁻¹ ∂Φ/∂x_l."""
        sent = self._unscaled(params, axons, batch, self.forces(params, axons, batch))
        return of_axons(self.program, params, batch, axons, jax.tree.map(jnp.negative, dict(multipliers)), sent)

    def _unscaled(self, params: Params, axons: Axons, batch: Batch, forces: Axons) -> dict[str, Array]:
        """Computes s_l⁻¹ force_l, by layer."""
        order: list[str] = []

        def layer(site: Site, x: Array) -> tuple[Array, None]:
            order.append(site.name)
            return x, None

        jax.eval_shape(interpret(self.program, layer), params, batch, axons)
        found = {}
        for name, scale in self._scales(order, axons).items():
            missing = forces[name].ndim - jnp.ndim(scale)
            found[name] = forces[name] / jnp.reshape(scale, (*jnp.shape(scale), *[1] * missing))
        return found

    def _step(
        self, params: Params, axons: Axons, batch: Batch, nudge: float | Array | None, held: Axons
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        answers = self.answers(params, axons, batch, self.forces(params, axons, batch, nudge)) | {**held}
        change = {name: answers[name] - axons[name] for name in axons}
        return {name: axons[name] + self.rate * change[name] for name in axons}, change

    def _scales(self, order: Iterable[str], axons: Axons) -> dict[str, float | Array]:
        """Computes s_l by layer, for names in the order of propagation; an array over the steps for layers in loops."""
        ranks, count = places({name: axons[name].shape for name in order})
        exponents = {name: rank + 1 - count for name, rank in ranks.items()}
        return {
            name: self.feedback_strength ** (n if isinstance(n, int) else jnp.asarray(n, float))
            for name, n in exponents.items()
        }

    @property
    def remedy(self) -> str:
        """What to change if its iterations diverge."""
        return f"rate={self.rate}: choose a smaller one, or smaller weights"

    def refuse_lost_feedback(self, axons: Axons) -> None:
        """Raises ValueError if a change of the outputs has an effect on the first layer that is lost in rounding."""
        self._refuse_feedback(axons, min(-math.log10(jnp.finfo(x.dtype).eps) for x in axons.values()), "precision")

    def _refuse_feedback(self, axons: Axons, most: float, lost: str) -> None:
        """Raises ValueError if γ^{1−L}, the scale of the first layer, is too large or too small by powers of ten."""
        try:
            gamma = float(self.feedback_strength)
        except jax.errors.ConcretizationTypeError:
            return  # a sweep's, of unknown value
        _, count = places({name: x.shape for name, x in axons.items()})
        if gamma and (count - 1) * abs(math.log10(gamma)) > most:
            nearest = 10 ** (most / (count - 1))
            bound = f"at least {math.ceil(1e3 / nearest) / 1e3}" if gamma < 1 else f"at most {int(1e3 * nearest) / 1e3}"
            raise ValueError(
                f"feedback_strength={gamma:g} is too far from 1 for {count} layers (each step of a loop counts): "
                f"{gamma:g}^{count - 1}, the scale of what the first layer receives, is beyond the {lost} of its "
                f"axons; choose {bound}"
            )

    def _refuse_learned_activations(self, params: Params, axons: Axons, batch: Batch) -> None:
        """Raises ValueError if an activation depends on parameters: the gradient of F by them would need G."""

        def layer(site: Site, x: Array) -> tuple[Array, Array]:
            return x, site.activation(x)

        for name, sources in reached(lambda p: interpret(self.program, layer)(p, batch, axons)[1], params).items():
            if sources:
                raise ValueError(
                    f"the activation of layer {name!r} holds parameters, whose part in the energy is not known: use "
                    "them in a connection"
                )


def energy_network(
    user: str,
    program: Program,
    feedback_strength: float | Array,
    rate: float,
    num_steps: int | Array,
    tolerance: float,
) -> EnergyNetwork:
    """Returns an `EnergyNetwork` with its settings checked.

    Raises:
      ValueError: with the name of its user, if the program takes no `propagate` or a setting is out of range.
    """
    layered(user, program)
    feedback_strength = positive_hyperparameter("feedback_strength", feedback_strength)
    if positive_number("rate", rate) > 1:
        raise ValueError(f"rate must be at most 1, a full step of the iteration, got {rate!r}")
    relaxation = Relaxation(num_steps, tolerance).checked()
    return EnergyNetwork(_of_neurons(program), feedback_strength, float(rate), relaxation)


def _of_neurons(program: Program) -> Program:
    """Returns the program without its layers that have no parameters: they become part of those above."""

    def run(params: Params, inputs: Batch, propagate: Propagate = feedforward) -> Array:
        def of_neurons(site: Site, given: None, propagate: Propagate) -> Array:
            apply = propagate if jax.tree.leaves(site.params) else feedforward
            return apply(site.name, site.connection, site.activation, site.params, *site.inputs)

        return program(params, inputs, propagate=Around(propagate, of_neurons))

    return run
