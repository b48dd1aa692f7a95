"""Flipout: shared noise, with each example's own signs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.products import LazyWeight, as_slices, looked_up, mapped, product
from nl_jax._core.products.lazy_weight import Bilinear, Part
from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions.bits import signs
from nl_jax.estimators.noise.directions.blocks import Blocks
from nl_jax.estimators.noise.directions.flat import drawn
from nl_jax.estimators.noise.directions.layout import At, over_blocks
from nl_jax.estimators.noise.directions.placement import everywhere
from nl_jax.estimators.noise.directions.sampler import NamedSampler
from nl_jax.estimators.noise.directions.structured import Direction, Sampler, Structured, parts


def flipout() -> Sampler:
    """Samples V_n = E ∘ s_n r_nᵀ, example n: signs E shared by the batch, s and r each example's own (Wen et al. 2018).

    Only for objectives in which examples do not interact and keep their places: the n-th loss must depend on the n-th
    row of every product, and on no other (no batch normalisation, no contrast between examples, no sorting). Otherwise
    the estimate is biased; `low_rank` and the samplers of independent signs have no such requirement. A layer whose
    connection declares that it mixes examples (`nl_jax.base.Connection`) is refused; other interactions are not
    detected.

    Every example's direction is judged by its own loss, at the cost of two products per layer:
    x (W + σ V) = x W + σ ((x ∘ s) E) ∘ r; averages are accumulated as E ∘ (Sᵀ diag(change) R). Weights are the same
    parameters as for `low_rank`; all others get independent signs shared by the batch.

    With P_w weights and P_c other parameters, and g_n the gradient of example n in a batch of N, the relative
    variance is [(P_w − 1) Σ ‖g_nʷ‖² + P_w Σ ‖g_nᶜ‖² + P_c Σ ‖g_nʷ‖² + N² (P_c − 1) ‖gᶜ‖²] / (N² ‖g‖² K):
    smaller than that of shared noise, (P − 1)/K, where examples' gradients agree, up to N times.
    """

    def sampler(key: Key, index: Array, template: Params) -> Direction:
        own = jax.random.fold_in(key, index)
        noise = parts(drawn(signs, own, template))
        keys = jax.random.split(jax.random.fold_in(own, jnp.uint32(2**32 - 1)), len(noise))
        flipped = [Flipped(xi, k) if len(xi.shape) >= 2 else xi for xi, k in zip(noise, keys, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(template), flipped)

    return NamedSampler("flipout", sampler)


Flips = Callable[[int], tuple[Array, Array]]
"""`flips(examples) -> (s, r)`, signs [examples, inputs] and [examples, units]."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flipped(Structured):
    """V_n = E ∘ s_n r_nᵀ, `noise` E [..., inputs, units]; the signs s, r are drawn from `key` when needed."""

    noise: Array | Blocks
    key: Key
    of_each_example: ClassVar[bool] = True

    def flips(self, examples: int) -> tuple[Array, Array]:
        """Returns s [examples, inputs] and r [examples, units]."""
        inputs, units = self.noise.shape[-2:]
        both = signs(self.key, (examples, inputs + units), self.noise.dtype)
        (both,) = everywhere([both], self.noise.sharding if isinstance(self.noise, Blocks) else None)
        return both[:, :inputs], both[:, inputs:]

    def displace(self, weight: Array, sigma: Any) -> LazyWeight:
        noise = self.noise.alone() if isinstance(self.noise, Blocks) else self.noise
        return _Displaced(weight, noise, self.flips, sigma)

    def added(self, total: Array, change: Array) -> Array:
        examples = change.shape[1]
        wide = wide_dtype(self.noise.dtype)
        s, r = jax.vmap(lambda one: one.flips(examples))(self)
        s = s.astype(wide) * jnp.expand_dims(change.astype(wide) / examples, 2)
        r = r.astype(wide)
        if not isinstance(self.noise, Blocks):
            judged = jnp.einsum("knm,knu->kmu", s, r)
            judged = jnp.expand_dims(judged, tuple(range(1, self.noise.ndim - 2)))
            return total + jnp.sum(self.noise.astype(wide) * judged, axis=0).astype(total.dtype)
        layout = self.noise.layout

        def increment(data: tuple[Blocks, Array, Array], at: At) -> Array:
            _, block, count, width = at

            def add(summed: Array, one: tuple[Any, Array, Array]) -> tuple[Array, None]:
                noise, s, r = one
                units = jax.lax.dynamic_slice_in_dim(r, block * layout.width, count * width, axis=1)
                return summed + noise.tile(*at).astype(wide) * (s.T @ units), None

            zeros = jnp.zeros((layout.inputs, count * width), wide)
            return jax.lax.scan(add, zeros, data)[0]

        return over_blocks(layout, total, increment, (self.noise, s, r), self.noise.sharding)


class _Displaced(LazyWeight):
    """W + σ E ∘ s rᵀ, with s and r each example's own."""

    def __init__(self, weight: Array, noise: Array | LazyWeight, flips: Flips, sigma: Any) -> None:
        super().__init__(weight)
        self.noise, self.flips, self.sigma = noise, flips, sigma

    def map(self, function: Part, *, swap: bool) -> Self:
        def flips(examples: int) -> tuple[Array, Array]:
            s, r = self.flips(examples)
            return (r, s) if swap else (s, r)

        return type(self)(function(self.weight), mapped(self.noise, function, swap=swap), flips, self.sigma)

    def as_slices(self) -> tuple[Any, Callable[[Any], LazyWeight]]:
        if self.ndim < 3:
            return super().as_slices()
        # All slices of a stacked weight have the same signs s and r.
        noise, close = as_slices(self.noise)
        return (self.weight, noise), lambda parts: _Displaced(parts[0], close(parts[1]), self.flips, self.sigma)

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        s, r = self.flips(x.shape[0])
        noise = product(bilinear, x * _along_ends(s.astype(x.dtype), x.ndim), self.noise)
        noise = noise * jnp.asarray(self.sigma, noise.dtype) * _along_ends(r.astype(noise.dtype), noise.ndim)
        return bilinear(x, self.weight) + noise

    def rows(self, ids: Array) -> Array:
        s, r = self.flips(ids.shape[0])
        s = jnp.take_along_axis(s, ids.reshape(len(ids), -1), axis=1).reshape(*ids.shape, 1)
        noise = looked_up(self.noise, ids) * s * _along_ends(r, ids.ndim + 1)
        return self.weight[ids] + jnp.asarray(self.sigma, noise.dtype) * noise.astype(self.dtype)


def _along_ends(flips: Array, ndim: int) -> Array:
    """Reshapes [examples, features] to [examples, 1, …, features]."""
    return jnp.expand_dims(flips, tuple(range(1, ndim - 1)))
