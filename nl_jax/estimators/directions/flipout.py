"""Flipout: one noise, for each example with its own signs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, Params
from nl_jax.estimators.directions.flat import drawn
from nl_jax.estimators.directions.signs import signs
from nl_jax.estimators.directions.structured import Direction, Law, Structured
from nl_jax.numerics import wide_dtype
from nl_jax.products import Bilinear, Part, StandIn


def flipout() -> Law:
    """V_n = E ∘ s_n r_nᵀ for example n: signs E shared by the batch, s and r each example's own (Wen et al. 2018).

    Only for objectives in which examples do not interact and keep their places: the n-th loss must depend on the n-th
    row of every product, and on no other (no batch normalisation, no contrast between examples, no sorting). Otherwise
    the estimate is biased; `low_rank` and the laws of independent signs do not mind. A layer whose connection says that
    it mixes examples (`nl_jax.base.Connection`) is refused, the rest cannot be seen.

    Every example judges its own direction by its own loss, for two products a layer:
    x (W + σ V) = x W + σ ((x ∘ s) E) ∘ r; averages are accumulated as E ∘ (Sᵀ diag(change) R). Weights are the
    parameters that `low_rank` takes for weights; all others get independent signs shared by the batch.

    With P_w weights and P_c other parameters, and g_n the gradient of example n in a batch of N, the relative
    variance is [(P_w − 1) Σ ‖g_nʷ‖² + P_w Σ ‖g_nᶜ‖² + P_c Σ ‖g_nʷ‖² + N² (P_c − 1) ‖gᶜ‖²] / (N² ‖g‖² K):
    smaller than that of shared noise, (P − 1)/K, where examples' gradients agree, up to N times.
    """

    def law(key: Key, index: Array, template: Params) -> Direction:
        own = jax.random.fold_in(key, index)
        leaves, tree = jax.tree.flatten(drawn(signs, own, template))
        keys = jax.random.split(jax.random.fold_in(own, 1), len(leaves))
        parts = [Flipped(xi, k) if xi.ndim >= 2 else xi for xi, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(tree, parts)

    law.__name__ = law.__qualname__ = "flipout"
    return law


Flips = Callable[[int], tuple[Array, Array]]
"""`flips(examples) -> (s, r)`, signs [examples, inputs] and [examples, units]."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flipped(Structured):
    """V_n = E ∘ s_n r_nᵀ, `noise` E [..., inputs, units]; the signs s, r are drawn from `key` when needed."""

    noise: Array
    key: Key
    of_each_example: ClassVar[bool] = True

    def flips(self, examples: int) -> tuple[Array, Array]:
        """s [examples, inputs] and r [examples, units]."""
        *_, inputs, units = self.noise.shape
        both = signs(self.key, (examples, inputs + units), self.noise.dtype)
        return both[:, :inputs], both[:, inputs:]

    def displace(self, weight: Array, sigma: Array | float) -> StandIn:
        return _Displaced(weight, self.noise, self.flips, sigma)

    def credit(self, change: Array) -> Array:
        examples = change.shape[1]
        wide = wide_dtype(self.noise.dtype)
        s, r = jax.vmap(lambda one: one.flips(examples))(self)
        s = s.astype(wide) * jnp.expand_dims(change.astype(wide) / examples, 2)
        judged = jnp.einsum("knm,knu->kmu", s, r.astype(wide))
        judged = jnp.expand_dims(judged, tuple(range(1, self.noise.ndim - 2)))
        return jnp.sum(self.noise.astype(wide) * judged, axis=0)


class _Displaced(StandIn):
    """W + σ E ∘ s rᵀ, with s and r each example's own."""

    def __init__(self, weight: Array, noise: Array, flips: Flips, sigma: Array | float) -> None:
        super().__init__(weight)
        self.noise, self.flips, self.sigma = noise, flips, sigma

    def map(self, function: Part, *, swap: bool) -> Self:
        def flips(examples: int) -> tuple[Array, Array]:
            s, r = self.flips(examples)
            return (r, s) if swap else (s, r)

        return type(self)(function(self.weight), function(self.noise), flips, self.sigma)

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        s, r = self.flips(x.shape[0])
        noise = bilinear(x * _along_ends(s.astype(x.dtype), x.ndim), self.noise)
        noise = noise * jnp.asarray(self.sigma, noise.dtype) * _along_ends(r.astype(noise.dtype), noise.ndim)
        return bilinear(x, self.weight) + noise


def _along_ends(flips: Array, ndim: int) -> Array:
    """[examples, features] as [examples, 1, …, features]."""
    return jnp.expand_dims(flips, tuple(range(1, ndim - 1)))
