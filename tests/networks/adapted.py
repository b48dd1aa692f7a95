"""Small networks of Flax linen, Flax NNX and Equinox, and what nl_jax makes of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import nl_jax as nl
from tests.registry import ESTIMATORS

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
        return self.inputs, np.arange(BATCH) % CLASSES


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, 4, 4, 2)))


def words() -> jax.Array:
    return jnp.asarray(np.arange(BATCH * TOKENS).reshape(BATCH, TOKENS) % VOCABULARY)


def _embed(size: int, rngs: nnx.Rngs) -> nnx.Embed:
    # Its outputs have the precision that it is made with, whatever that of its table is.
    return nnx.Embed(size, WIDTH, dtype=jnp.result_type(float), rngs=rngs)


class LinenConvolution(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.tanh(linen.LayerNorm()(linen.Conv(3, (2, 2))(x)))
        x = linen.avg_pool(x, (2, 2), (2, 2))
        return linen.Dense(CLASSES, name="output")(x.reshape(len(x), -1))


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
        self.words, self.places = _embed(VOCABULARY, rngs), _embed(TOKENS, rngs)
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
    rng = np.random.default_rng(9)
    wide = lambda x: jnp.asarray(np.asarray(x, float) + 0.1 * rng.normal(size=x.shape))
    return jax.tree.map(wide, params)


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
    "linen_convolution": lambda: _linen(LinenConvolution(), images(), ("Conv_0", "LayerNorm_0", "output")),
    "linen_transformer": lambda: _linen(LinenTransformer(), words(), ("words", *BLOCK, "output")),
    "nnx_convolution": lambda: _nnx(NNXConvolution(nnx.Rngs(0)), images(), ("conv", "norm", "output")),
    "nnx_transformer": lambda: _nnx(NNXTransformer(nnx.Rngs(0)), words(), ("words", *NNX_BLOCK, "output")),
    "equinox_convolution": lambda: _equinox(
        eqx.filter_jit(EquinoxConvolution)(jax.random.key(0)), images(), ("conv", "norm", "output")
    ),
    "equinox_transformer": lambda: _equinox(
        eqx.filter_jit(EquinoxTransformer)(jax.random.key(0)), words(), ("words", "places", *EQUINOX_BLOCK, "output")
    ),
}


@functools.cache
def _made(name: str, x64: bool) -> Adapted:
    return MAKE[name]()


def adapted(name: str) -> Adapted:
    """One of `MAKE`, made once for all tests of one precision."""
    return _made(name, jax.config.jax_enable_x64)


def check_layers(name: str) -> None:
    """Its layers have the names that they should, in the order of the calls."""
    model = adapted(name)
    names: list[str] = []

    def record(params, inputs):
        _, axons = nl.propagation.record(model.apply)(params, inputs)
        names.extend(axons)
        return axons

    axons = jax.eval_shape(record, model.params, model.inputs)
    assert tuple(names) == model.layers
    assert all(layer.shape[0] == BATCH for layer in axons.values())


def check_gradients(name: str, rtol: float = 1e-10) -> None:
    """Outputs and gradients are the library's own, and so are the gradients of an exact node-space estimator."""
    model = adapted(name)

    @jax.jit
    def found(params, batch):
        def own(params):
            outputs = model.original(params, batch[0])
            return jnp.mean(nl.losses.cross_entropy(outputs, batch[1])), outputs

        (_, outputs), grads = jax.value_and_grad(own, has_aux=True)(params)
        ours = jax.grad(lambda params: jnp.mean(model.objective(params, batch)))(params)
        recursion, _, _ = nl.backprop_recursion(model.objective).estimate(jax.random.key(0), (), params, batch)
        return (outputs, model.apply(params, batch[0])), (grads, ours, recursion)

    (outputs, of_program), (grads, *others) = found(model.params, model.batch)
    np.testing.assert_allclose(of_program, outputs, rtol=rtol)
    largest = max(float(np.max(np.abs(g))) for g in jax.tree.leaves(grads))
    assert largest > 0.01
    for other in others:
        chex.assert_trees_all_close(other, grads, rtol=rtol, atol=rtol * largest)


# A third of them for each library: what they reach the layers by is `nl.propagation` alone, the same for all libraries.
NODE_SPACE = [name for name, entry in ESTIMATORS.items() if entry.layers]


def check_estimator(name: str, estimator: str) -> None:
    """It traces, through every layer, to a gradient of the parameters' shapes; none has a reason to refuse."""
    model = adapted(name)
    seen: list[str] = []

    def objective(params, batch, propagate=nl.propagation.feedforward):
        def around(site, given, propagate):
            seen.append(site.name)
            return propagate(site.name, site.connection, site.activation, site.params, *site.inputs)

        return model.objective(params, batch, propagate=nl.propagation.Around(propagate, around))

    make = ESTIMATORS[estimator].make
    if estimator == "target_propagation":  # convolutions' weights do not show the shapes of its decoders
        make = functools.partial(make, example=model.batch)
    made = make(objective)
    key = jax.random.key(0)
    state = jax.eval_shape(made.init, key, model.params)
    grads, *_ = jax.eval_shape(made.estimate, key, state, model.params, model.batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, model.params)
    assert set(seen) == set(model.layers)


def check_audit(name: str) -> None:
    """The audit sees the layers: node perturbation is a three-factor rule on them, backprop transports weights."""
    model = adapted(name)
    noisy = nl.audit(functools.partial(nl.node_perturbation, num_samples=2), model.objective, model.params, model.batch)
    assert noisy.verdict == "three-factor"
    backprop = nl.audit(nl.backprop, model.objective, model.params, model.batch)
    assert "weight transport" in backprop.verdict
