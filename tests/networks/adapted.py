"""Small networks of Flax linen, Flax NNX and Equinox, and what nl_jax makes of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen, nnx

import nl_jax as nl

BATCH, TOKENS, VOCABULARY, WIDTH, CLASSES = 3, 4, 5, 4, 2


class Adapted(NamedTuple):
    """A model of another library.

    Attributes:
      apply: what nl_jax makes of it.
      original: `original(params, inputs) -> outputs`, by the library itself.
      params: of both.
      inputs: a batch.
      layers: the names its layers should have, in the order in which they are called.
    """

    apply: Callable[..., Any]
    original: Callable[[Any, Any], Any]
    params: Any
    inputs: Any
    layers: tuple[str, ...]

    @property
    def objective(self) -> Callable[..., Any]:
        return nl.supervised(self.apply, nl.losses.cross_entropy)

    @property
    def batch(self) -> Any:
        return self.inputs, jnp.arange(BATCH) % CLASSES


IMAGES = jax.random.normal(jax.random.key(1), (BATCH, 4, 4, 2))
WORDS = jnp.arange(BATCH * TOKENS).reshape(BATCH, TOKENS) % VOCABULARY


class LinenConvolution(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.tanh(linen.LayerNorm()(linen.Conv(3, (2, 2))(x)))
        x = linen.avg_pool(x, (2, 2), (2, 2))
        return linen.Dense(CLASSES)(x.reshape(len(x), -1))


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x))
        return x + linen.Dense(WIDTH)(linen.gelu(linen.Dense(5)(linen.LayerNorm()(x))))


class LinenTransformer(linen.Module):
    @linen.compact
    def __call__(self, words):
        places = linen.Embed(TOKENS, WIDTH, name="places")(jnp.arange(words.shape[1]))
        x = linen.Embed(VOCABULARY, WIDTH, name="words")(words) + places
        return linen.Dense(CLASSES, name="output")(LinenBlock(name="block")(x).mean(axis=1))


class NNXConvolution(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(2, 3, (2, 2), rngs=rngs), nnx.GroupNorm(3, num_groups=1, rngs=rngs)
        self.output = nnx.Linear(12, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.tanh(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.output(x.reshape(len(x), -1))


class NNXTransformer(nnx.Module):
    def __init__(self, rngs):
        self.words, self.places = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs), nnx.Embed(TOKENS, WIDTH, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.Linear(WIDTH, 5, rngs=rngs), nnx.gelu, nnx.Linear(5, WIDTH, rngs=rngs))
        self.output = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, words):
        x = self.words(words) + self.places(jnp.arange(words.shape[1]))
        x = x + self.attention(self.norms[0](x))
        x = x + self.mlp(self.norms[1](x))
        return self.output(x.mean(axis=1))


class EquinoxConvolution(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    output: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.conv = eqx.nn.Conv2d(2, 3, 2, padding=((0, 1), (0, 1)), key=keys[0])
        self.norm, self.output = eqx.nn.GroupNorm(1, 3), eqx.nn.Linear(12, CLASSES, key=keys[1])

    def __call__(self, x):  # [height, width, channels], as of the other libraries
        x = jnp.tanh(self.norm(self.conv(x.transpose(2, 0, 1))))
        return self.output(eqx.nn.AvgPool2d(2, 2)(x).reshape(-1))


class EquinoxTransformer(eqx.Module):
    words: eqx.nn.Embedding
    places: eqx.nn.Embedding
    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    output: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.words = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.places = eqx.nn.Embedding(TOKENS, WIDTH, key=keys[1])
        self.norms = [eqx.nn.LayerNorm(WIDTH) for _ in range(2)]
        self.attention = eqx.nn.MultiheadAttention(2, WIDTH, key=keys[2])
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 5, 1, activation=jax.nn.gelu, key=keys[3])
        self.output = eqx.nn.Linear(WIDTH, CLASSES, key=keys[4])

    def __call__(self, words):
        x = jax.vmap(self.words)(words) + jax.vmap(self.places)(jnp.arange(len(words)))
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
        return self.output(x.mean(axis=0))


def _wide(params: Any) -> Any:
    """In the precision of the test, and moved away from ones and zeros, where a mistake could hide."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return tree.unflatten([jnp.asarray(x, float) + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def _linen(module: linen.Module, inputs: Any, layers: tuple[str, ...]) -> Adapted:
    model = nl.from_flax(module)
    params = _wide(jax.jit(model.init)(jax.random.key(0), inputs))
    return Adapted(model.apply, lambda params, x: module.apply({"params": params}, x), params, inputs, layers)


def _nnx(model: nnx.Module, inputs: Any, layers: tuple[str, ...]) -> Adapted:
    split = nl.from_flax(model)
    graph, _, rest = nnx.split(model, nnx.Param, ...)
    original = lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)
    return Adapted(split.apply, original, _wide(split.params), inputs, layers)


def _equinox(model: eqx.Module, inputs: Any, layers: tuple[str, ...]) -> Adapted:
    split = nl.from_equinox(model)
    static = eqx.partition(model, eqx.is_inexact_array)[1]
    original = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    return Adapted(split.apply, original, _wide(split.params), inputs, layers)


ATTENTION = ("query", "key", "value", "out")
BLOCK = (
    "block.LayerNorm_0",
    *(f"block.MultiHeadDotProductAttention_0.{name}" for name in ATTENTION),
    *("block.LayerNorm_1", "block.Dense_1", "block.Dense_0"),  # Python makes the outer one first
)
NNX_BLOCK = ("norms.0", *(f"attention.{name}" for name in ATTENTION), "norms.1", "mlp.layers.0", "mlp.layers.2")
EQUINOX_BLOCK = (
    "norms.0",
    *(f"attention.{name}_proj" for name in ("query", "key", "value", "output")),
    *("norms.1", "mlp.layers.0", "mlp.layers.1"),
)

MAKE: dict[str, Callable[[], Adapted]] = {
    "linen_convolution": lambda: _linen(LinenConvolution(), IMAGES, ("Conv_0", "LayerNorm_0", "Dense_0")),
    "linen_transformer": lambda: _linen(LinenTransformer(), WORDS, ("words", *BLOCK, "output")),
    "nnx_convolution": lambda: _nnx(NNXConvolution(nnx.Rngs(0)), IMAGES, ("conv", "norm", "output")),
    "nnx_transformer": lambda: _nnx(NNXTransformer(nnx.Rngs(0)), WORDS, ("words", *NNX_BLOCK, "output")),
    "equinox_convolution": lambda: _equinox(
        EquinoxConvolution(jax.random.key(0)), IMAGES, ("conv", "norm", "output")
    ),
    "equinox_transformer": lambda: _equinox(
        EquinoxTransformer(jax.random.key(0)), WORDS, ("words", "places", *EQUINOX_BLOCK, "output")
    ),
}


@functools.cache
def _made(name: str, x64: bool) -> Adapted:
    return MAKE[name]()


def adapted(name: str) -> Adapted:
    """One of `MAKE`, made once for all tests of one precision."""
    return _made(name, jax.config.jax_enable_x64)
