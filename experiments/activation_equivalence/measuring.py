"""Measures how sigmoid networks differ from the tanh networks they convert to, and trains both at the same rate."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    depths: tuple[int, ...]
    networks: int
    scale: float
    rate: float
    steps: int
    runs: int


class Comparison(NamedTuple):
    """Largest differences relative to each network's largest value, in units of the dtype's resolution.

    Attributes:
      outputs: differences of the converted network's outputs, [networks].
      gradients: differences of its gradients, taken back by the chain rule, [networks].
      unchained: differences of its gradients without the chain rule, [networks].
    """

    outputs: np.ndarray
    gradients: np.ndarray
    unchained: np.ndarray


class Descent(NamedTuple):
    """Gradient descent on one task; losses are [runs, steps].

    Attributes:
      sigmoid: losses of the sigmoid networks.
      tanh: losses of the converted networks at the same rate.
      chained: losses of the converted networks when they follow the sigmoid networks' gradient.
      drift: largest final difference between the chained networks and the converted sigmoid networks, relative to the
        largest parameter.
    """

    sigmoid: np.ndarray
    tanh: np.ndarray
    chained: np.ndarray
    drift: float

    @property
    def apart(self) -> float:
        """Relative difference of the final losses of `sigmoid` and `tanh`; median over runs."""
        ends = np.stack([self.sigmoid[:, -1], self.tanh[:, -1]])
        return float(np.median(np.abs(ends[0] - ends[1]) / ends.max(axis=0)))


def _network(sizes: Sequence[int]) -> nl.Network:
    sigmoid = nl.activations.sigmoid()
    return nl.mlp(sizes, activation=sigmoid, output_activation=sigmoid)


def _convert(net: nl.Network) -> Callable[[Any], Any]:
    """Returns the linear map θ' = Aθ to the parameters of the equal tanh network."""
    return lambda params: nl.tanh_from_sigmoid(net, params)[1]


def _pull(net: nl.Network, gradient: Any) -> Any:
    """Returns Aᵀ ∂E/∂θ', equal to ∂E/∂θ by the chain rule; both networks' parameters have the same tree structure."""
    (pulled,) = jax.linear_transpose(_convert(net), gradient)(gradient)
    return pulled


def compare(dtype: str, settings: Settings) -> Comparison:
    """Compares outputs and gradients of random networks with those of their conversions."""
    found = []
    for depth in settings.depths:
        net = _network((5, *[8] * depth, 4))

        @jax.jit
        @jax.vmap
        def differences(key: jax.Array, net: nl.Network = net) -> tuple[jax.Array, ...]:
            init, inputs, targets = jax.random.split(key, 3)
            params = jax.tree.map(lambda leaf: settings.scale * leaf, net.init(init, dtype))
            size = net.shapes["input"] + net.shapes["output"]
            x = jax.random.normal(inputs, (16, size[0]), dtype)
            y = jax.random.uniform(targets, (16, size[1]), dtype)
            converted, tanh_params = nl.tanh_from_sigmoid(net, params)
            of = [(net.apply, params), (converted.apply, tanh_params)]
            outputs = [forward(p, x) for forward, p in of]
            gradients = [
                nl.backprop(nl.supervised(forward, nl.losses.half_squared_error)).estimate(key, (), p, (x, y))[0]
                for forward, p in of
            ]
            return (
                _difference(*outputs),
                _difference(gradients[0], _pull(net, gradients[1])),
                _difference(*gradients),
            )

        keys = jax.random.split(jax.random.key(depth), settings.networks)
        found.append([np.asarray(d, float) / np.finfo(dtype).eps for d in differences(keys)])
    return Comparison(*map(np.concatenate, zip(*found, strict=True)))


def _difference(a: Any, b: Any) -> jax.Array:
    """Returns the largest |a − b| over the largest |a|, across all leaves of two trees."""
    largest = optax.tree.norm(a, ord=jnp.inf)
    return optax.tree.norm(optax.tree.sub(a, b), ord=jnp.inf) / largest


def descend(settings: Settings) -> Descent:
    """Trains both networks on the exclusive or of two inputs' signs, starting from the same functions."""
    net = _network((2, 8, 1))
    keys = jax.random.split(jax.random.key(1), settings.runs)
    x = jax.random.normal(jax.random.key(2), (100, 2))
    data = x, (x[:, :1] * x[:, 1:] > 0).astype(x.dtype)
    convert = _convert(net)
    params = jax.jit(jax.vmap(lambda key: net.init(key, x.dtype)))(keys)
    as_tanh = jax.jit(jax.vmap(convert))(params)
    forward = nl.tanh_from_sigmoid(net, jax.tree.map(lambda leaf: leaf[0], params))[0].apply
    # θ ← θ − η g is θ' ← θ' − η A g, and g = Aᵀ g' of the converted network's own gradient g'.
    chained = optax.stateless(lambda gradient, params: convert(_pull(net, gradient)))

    def walk(forward: nl.base.Forward, params: Any, *change: optax.GradientTransformation) -> tuple[Any, np.ndarray]:
        objective = nl.supervised(forward, nl.losses.half_squared_error)
        learner = nl.learner(nl.backprop(objective), optax.chain(*change, optax.sgd(settings.rate)))

        @jax.jit
        @jax.vmap
        def walked(params: Any) -> tuple[Any, jax.Array]:
            def step(state: nl.LearnerState, _: None) -> tuple[nl.LearnerState, jax.Array]:
                state, info = learner.step(jax.random.key(0), state, data)  # backprop needs no randomness
                return state, info.loss

            state, losses = jax.lax.scan(step, learner.init(jax.random.key(0), params), length=settings.steps)
            return state.params, losses

        end, losses = walked(params)
        return end, np.asarray(losses)

    sigmoid_end, sigmoid = walk(net.apply, params)
    _, tanh = walk(forward, as_tanh)
    chained_end, along = walk(forward, as_tanh, chained)
    drift = jax.jit(jax.vmap(lambda params, other: _difference(convert(params), other)))(sigmoid_end, chained_end)
    return Descent(sigmoid, tanh, along, float(drift.max()))
