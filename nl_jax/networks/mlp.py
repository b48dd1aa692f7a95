"""Multilayer perceptrons: chains of dense layers."""

from collections.abc import Sequence

from jax.nn import initializers

from nl_jax.base import ActivationFn, Initializer
from nl_jax.networks.connections import decorrelated as decorrelating
from nl_jax.networks.connections import dense
from nl_jax.networks.layers import Layer
from nl_jax.networks.wiring import Network, network


def mlp(
    sizes: Sequence[int],
    *,
    activation: ActivationFn,
    output_activation: ActivationFn | None = None,
    weight_init: Initializer = initializers.lecun_normal(),
    bias: bool = True,
    decorrelated: bool = False,
) -> Network:
    """A multilayer perceptron: x^l = f(W^l x^{l-1} + b^l), l = 1 … L (seed 000).

    Args:
      sizes: units per layer from input to output, at least two numbers of at least 1.
      activation: f of the hidden layers.
      output_activation: f of the last layer; by default the identity (logits).
      weight_init: scheme for the weights, from `jax.nn.initializers`.
      bias: whether layers have biases.
      decorrelated: whether every layer decorrelates its inputs first, see `nl.connections.decorrelated`.

    Returns:
      A `Network` with layers "input", "hidden1", "hidden2", …, "output".

    Raises:
      ValueError: if `sizes` is not as described.

    >>> import jax, nl_jax as nl
    >>> net = nl.mlp([64, 32, 10], activation=nl.activations.tanh())
    >>> net.shapes
    {'input': (64,), 'hidden1': (32,), 'output': (10,)}
    >>> net.apply(net.init(jax.random.key(0)), jax.numpy.ones([5, 64])).shape
    (5, 10)
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes must list at least the input's and the output's units, got {sizes!r}")
    joined = dense(weight_init=weight_init, bias=bias)
    connection = decorrelating(joined) if decorrelated else joined
    hidden = [Layer(f"hidden{l}", n, connection, activation) for l, n in enumerate(sizes[1:-1], start=1)]
    return network(Layer("input", sizes[0]), *hidden, Layer("output", sizes[-1], connection, output_activation))
