"""A language model with Llama's architecture as a program of layers (Touvron et al. 2023), such as SmolLM2.

    x ← x + A(RMS(x)),   x ← x + (silu(g W_g) ∘ g W_u) W_d,  g = RMS(x),   logits = RMS(x) E,   x⁰ = Eᵀ[ids]

Blocks are stacked: every weight has a leading depth axis, and `nl.scan` runs over it, so the noise of a stacked weight
is drawn inside the loop. The embedding E [width, vocabulary] is one parameter with two uses, look-up by token and
multiplication; its noise is drawn where it is needed in each of them.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nl_jax as nl
from nl_jax.base import Array, Key, Params, Propagate
from nl_jax.propagation import feedforward

_identity = lambda x: x


@dataclass(frozen=True)
class Model:
    """The model's sizes.

    Attributes:
      vocabulary: tokens.
      width: features of a token.
      depth: number of blocks.
      heads: attention heads; a divisor of the width.
      groups: heads of keys and values, each shared by heads/groups heads; a divisor of the heads.
      hidden: units of each block's feed-forward layer.
      base: of the rotary angles, base^(−2 i/head).
      epsilon: added to the mean square in the normalisation.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    groups: int
    hidden: int
    base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        """Features of a head."""
        return self.width // self.heads

    def shapes(self) -> Params:
        """Shapes of the parameters; weights are [inputs, units], those of blocks [depth, inputs, units]."""
        width, keys = self.width, self.groups * self.head
        inside = {
            "query": (width, width), "key": (width, keys), "value": (width, keys), "mix": (width, width),
            "gate": (width, self.hidden), "up": (width, self.hidden), "down": (self.hidden, width),
            "attention_norm": (width,), "feed_forward_norm": (width,),
        }  # fmt: skip
        blocks = {name: (self.depth, *shape) for name, shape in inside.items()}
        return {"embedding": (width, self.vocabulary), "blocks": blocks, "norm": (width,)}

    def init(self, key: Key) -> Params:
        """Fresh parameters: weights N(0, 1/inputs), an embedding of standard deviation 0.02, norm scales 1."""
        shapes, tree = jax.tree.flatten(self.shapes(), is_leaf=lambda shape: isinstance(shape, tuple))
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        # One draw for all: compiling a draw for every shape takes longer than training a small model.
        drawn = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
        normal = jax.tree.unflatten(tree, [own.reshape(shape) for own, shape in zip(drawn, shapes, strict=True)])

        def leaf(path: Any, normal: Array) -> Array:
            name = path[-1].key
            if "norm" in name:
                return jnp.ones(normal.shape)
            return normal * (0.02 if name == "embedding" else normal.shape[-2] ** -0.5)

        return jax.tree_util.tree_map_with_path(leaf, normal)

    def apply(self, params: Params, ids: Array, propagate: Propagate = feedforward) -> Array:
        """Logits of the next token at every position, [batch, length, vocabulary]; `ids` is integer [batch, length]."""
        return self.logits(params, self.features(params, ids, propagate), propagate)

    def features(self, params: Params, ids: Array, propagate: Propagate = feedforward) -> Array:
        """Inputs of the output layer, [batch, length, width]."""
        look_up = lambda embedding, ids: embedding.T[ids]
        x = propagate("embedding", look_up, _identity, params["embedding"], ids)
        angles = self._angles(ids.shape[1])

        def block(x: Array, own: Params, propagate: Propagate) -> tuple[Array, None]:
            read = self._normalised(own["attention_norm"], x)
            x = x + propagate("attention", lambda own, x: self._attention(own, x, angles), _identity, own, read)
            read = self._normalised(own["feed_forward_norm"], x)
            return x + propagate("feed_forward", _feed_forward, _identity, own, read), None

        x, _ = nl.scan("depth", block, x, params["blocks"], propagate)
        return self._normalised(params["norm"], x)

    @staticmethod
    def logits(params: Params, features: Array, propagate: Propagate = feedforward) -> Array:
        """Logits […, vocabulary] of features […, width], the batch axis first."""
        return propagate("output", lambda embedding, x: x @ embedding, _identity, params["embedding"], features)

    def _normalised(self, scale: Array, x: Array) -> Array:
        power = jnp.mean(x**2, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(power + self.epsilon) * scale.reshape(*(1,) * (x.ndim - 1), -1)

    def _angles(self, length: int) -> tuple[Array, Array]:
        """cos and sin of position · base^(−2 i/head), each [1, length, 1, head/2]."""
        speeds = self.base ** (-2 * jnp.arange(self.head // 2) / self.head)
        angle = jnp.outer(jnp.arange(length, dtype=jnp.float32), speeds).reshape(1, length, 1, -1)
        return jnp.cos(angle), jnp.sin(angle)

    def _attention(self, own: Params, x: Array, angles: tuple[Array, Array]) -> Array:
        batch, length, _ = x.shape
        split = lambda y: y.reshape(batch, length, -1, self.head)
        query, key = (_rotated(split(_times(x, own, name)), angles) for name in ("query", "key"))
        query = query.reshape(batch, length, self.groups, -1, self.head)
        scores = jnp.einsum("bigrh,bjgh->bgrij", query, key) * self.head**-0.5
        seen = jnp.tril(jnp.ones((length, length), bool)).reshape(1, 1, 1, length, length)
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bgrij,bjgh->bigrh", weights, split(_times(x, own, "value")))
        return _times(mixed.reshape(batch, length, -1), own, "mix")


def _times(x: Array, own: Params, name: str) -> Array:
    """x W, or x W + (x A) B if the weight has a low-rank adapter."""
    y = x @ own[name]
    return y + (x @ own[name + "_A"]) @ own[name + "_B"] if name + "_A" in own else y


def _feed_forward(own: Params, x: Array) -> Array:
    return _times(jax.nn.silu(_times(x, own, "gate")) * _times(x, own, "up"), own, "down")


def _rotated(x: Array, angles: tuple[Array, Array]) -> Array:
    """Rotary positions (Su et al. 2021): rotates neighbours (2i, 2i + 1), the order of Llama's heads in GGUF files."""
    cos, sin = angles
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def adapters(model: Model, key: Key, rank: int = 4, names: tuple[str, ...] = ("query", "value")) -> Params:
    """Low-rank adapters that change nothing initially (Hu et al. 2021): A is N(0, 1/inputs), B is zero.

    Returns:
      For each name A [depth, inputs, rank] and B [depth, rank, units]; `adapted` adds them to the parameters.
    """
    shapes, found = model.shapes()["blocks"], {}
    for name, own in zip(names, jax.random.split(key, len(names)), strict=True):
        depth, inputs, units = shapes[name]
        found[name + "_A"] = jax.random.normal(own, (depth, inputs, rank)) * inputs**-0.5
        found[name + "_B"] = jnp.zeros((depth, rank, units))
    return found


def adapted(params: Params, beside: Params) -> Params:
    """The parameters with adapters added beside the weights of the blocks."""
    return {**params, "blocks": params["blocks"] | beside}


def next_token_loss(model: Model, params: Params, ids: Array, propagate: Propagate = feedforward) -> Array:
    """Mean cross-entropy of the next token over positions, in nats, [batch]; `ids` is [batch, length]."""
    logits = model.apply(params, ids[:, :-1], propagate)
    return jnp.mean(negative_log_likelihood(logits, ids[:, 1:]), axis=1)


def negative_log_likelihood(logits: Array, ids: Array) -> Array:
    """−log softmax(logits)_id, for `logits` […, vocabulary] and `ids` […]; no array of the logits' size is formed."""
    chosen = jnp.take_along_axis(logits, jnp.expand_dims(ids, -1), axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
