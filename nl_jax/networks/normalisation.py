"""Batch normalisation (seed 001 §5; Ioffe & Szegedy 2015).

    μ_q = 1/B Σ_i z_iq,   σ_q² = 1/B Σ_i (z_iq − μ_q)²,   z̃ = (z − μ)/√(σ² + ε),   ẑ = γ z̃ + β,   ŷ = f(ẑ)

Examples interact through μ and σ. At inference an output must not depend on the other examples in the batch:
`population` gathers the statistics of the data, and `inference` uses them instead of the batch's. Both run the same
forward function, and no state is kept between its calls.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.require import positive_number
from nl_jax.base import Array, Connection, Forward, Params, Propagate
from nl_jax.networks.connections import Shape
from nl_jax.networks.layers import Layer, Transform
from nl_jax.propagation import Around, Site, feedforward, interpret


class Moments(NamedTuple):
    """Mean μ and variance σ² of each unit or channel, [units], at least in float32."""

    mean: Array
    variance: Array


@dataclass(frozen=True)
class BatchNormalised:
    """A connection whose pre-activation z is normalised over the batch: γ (z − μ)/√(σ² + ε) + β.

    Attributes:
      connection: any `connection(params, *inputs) -> z`, [batch, …, units]. γ and β, [units], are stored next to its
        own parameters as `params["gamma"]` and `params["beta"]`. Subtracting the mean cancels any bias of its own.
      epsilon: ε.
    """

    connection: Connection
    epsilon: float
    mixes_examples: ClassVar[bool] = True

    def __call__(self, params: Params, *inputs: Array) -> Array:
        z = self.connection(params, *inputs)
        return self._rescaled(params, z, _moments(z))

    def with_moments(self, moments: Moments) -> Connection:
        """Returns the connection with the given moments instead of the batch's: examples no longer interact."""
        return lambda params, *inputs: self._rescaled(params, self.connection(params, *inputs), moments)

    def unbiased_moments(self, params: Params, *inputs: Array) -> Moments:
        """Returns the batch's μ and B/(B − 1) σ², where B is the number of values per unit."""
        z = self.connection(params, *inputs)
        mean, variance = _moments(z)
        values = z.size // z.shape[-1]
        return Moments(mean, variance * (values / (values - 1)))

    def _rescaled(self, params: Params, z: Array, moments: Moments) -> Array:
        of_units = {**moments._asdict(), "gamma": params["gamma"], "beta": params["beta"]}
        for name, value in of_units.items():
            if value.shape != z.shape[-1:]:
                raise ValueError(
                    f"batch normalisation: {name} must have shape {z.shape[-1:]}, one for each unit, got {value.shape}"
                )
        wide, over = wide_dtype(z.dtype), tuple(range(z.ndim - 1))
        mean, variance, gamma, beta = (jnp.expand_dims(value.astype(wide), over) for value in of_units.values())
        return (gamma * (z.astype(wide) - mean) / jnp.sqrt(variance + self.epsilon) + beta).astype(z.dtype)


def batch_normalised(connection: Connection, *, epsilon: float = 1e-5) -> BatchNormalised:
    """Normalises a connection's pre-activation over the batch, for forward functions written by hand.

    Args:
      connection: any connection. The result also needs `params["gamma"]` and `params["beta"]`, [units].
      epsilon: ε, above 0, in units of z².

    Raises:
      ValueError: if `epsilon` is not above 0; when run, if γ or β has another shape or a unit has only one value.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> linear = lambda params, x: x @ params["weight"]
    >>> params = {"weight": jnp.ones([2, 1]), "gamma": jnp.ones(1), "beta": jnp.zeros(1)}
    >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> nl.propagation.feedforward("hidden", batch_normalised(linear), jnp.tanh, params, x).round(3).tolist()
    [[-0.7620000243186951], [0.7620000243186951]]
    """
    return BatchNormalised(connection, positive_number("epsilon", epsilon))


def batch_norm(layer: Layer, *, epsilon: float = 1e-5) -> Layer:
    """Normalises a layer's pre-activation (the sum over its connections) over the batch.

    The layer's parameters gain γ, initially ones, and β, initially zeros, [units] or [channels]. β acts as a bias, so
    the connections need none.

    Args:
      layer: any layer that receives a connection.
      epsilon: ε, above 0, in units of z².

    Raises:
      ValueError: if `layer` receives no connection or is already normalised, or `epsilon` is not above 0; when the
        network is built, if a source is named "gamma" or "beta".

    >>> import jax, nl_jax as nl
    >>> hidden = nl.Layer("hidden", 8, nl.connections.dense(bias=False), nl.activations.tanh())
    >>> net = nl.network(nl.Layer("input", 4), batch_norm(hidden), nl.Layer("output", 2, nl.connections.dense()))
    >>> jax.tree.map(jax.numpy.shape, net.init(jax.random.key(0)))["hidden"]
    {'beta': (8,), 'gamma': (8,), 'weight': (4, 8)}
    """
    epsilon = positive_number("epsilon", epsilon)

    def init(shape: Shape, dtype: Any) -> dict[str, Array]:
        return {"gamma": jnp.ones(shape[-1:], dtype), "beta": jnp.zeros(shape[-1:], dtype)}

    return layer.transformed(Transform(init, lambda connection: BatchNormalised(connection, epsilon), "batch_norm"))


def population(forward: Forward) -> Callable[[Params, Any], dict[str, Moments]]:
    """Gathers the statistics for inference: the averages over batches of μ and of B/(B − 1) σ².

    As in training, lower layers are normalised by each batch's own moments (Ioffe & Szegedy 2015, algorithm 2).

    Args:
      forward: `forward(params, inputs, propagate=feedforward) -> outputs`.

    Returns:
      `statistics(params, batches) -> {layer: Moments}` of the batch-normalised layers, for inputs stacked to
      [batches, batch, …]. The batches run one after the other.

    Raises:
      ValueError: when run, if a layer of Flax normalises by the batch: its running averages are the model's own.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.network(nl.Layer("input", 2), nl.batch_norm(nl.Layer("output", 2, nl.connections.dense())))
    >>> params, x = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), [100, 2])
    >>> statistics = population(net.apply)(params, x.reshape(4, 25, 2))
    >>> outputs = inference(net.apply, statistics)(params, x)
    >>> bool(jnp.allclose(outputs.mean(axis=0), 0, atol=1e-5)), bool(jnp.allclose(outputs.std(axis=0), 1, atol=0.1))
    (True, True)
    """

    def layer(site: Site, given: None) -> tuple[Array, Moments | None]:
        if not isinstance(site.connection, BatchNormalised):
            _require_no_averages(site)
            return site.axons(), None
        return site.axons(), site.connection.unbiased_moments(site.params, *site.inputs)

    moments = interpret(forward, layer)

    def statistics(params: Params, batches: Any) -> dict[str, Moments]:
        each = jax.lax.map(lambda inputs: moments(params, inputs)[1], batches)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), each)

    return statistics


def inference(forward: Forward, statistics: Mapping[str, Moments]) -> Forward:
    """Returns the forward function with fixed statistics instead of each batch's own: examples no longer interact.

    Args:
      forward: `forward(params, inputs, propagate=feedforward) -> outputs`.
      statistics: the statistics of every batch-normalised layer, from `population`.

    Returns:
      A forward function of the same form, which accepts any `propagate`; γ and β are unchanged.

    Raises:
      ValueError: when run, if a batch-normalised layer has no statistics, or they have another shape; or if a layer of
        Flax normalises by the batch.
    """

    def inferring(params: Params, inputs: Any, propagate: Propagate = feedforward) -> Any:
        def around(site: Site, moments: Moments | None, propagate: Propagate) -> Array:
            connection = site.connection
            if isinstance(connection, BatchNormalised):
                if moments is None:
                    known = ", ".join(statistics) or "none"
                    raise ValueError(
                        f"there are no statistics of layer {site.name!r}, only of {known}: gather them anew"
                    )
                connection = connection.with_moments(moments)
            else:
                _require_no_averages(site)
            return propagate(site.name, connection, site.activation, site.params, *site.inputs)

        return forward(params, inputs, propagate=Around(propagate, around, statistics))

    return inferring


def _require_no_averages(site: Site) -> None:
    """Raises ValueError for a batch normalisation of another library, whose statistics are not among the outputs."""
    if getattr(site.connection, "keeps_averages", False):
        raise ValueError(
            f"layer {site.name!r} normalises by the batch, and its running averages are the model's own: run the model "
            "in training mode on some batches to update them, then evaluate it by them (docs/networks.md)"
        )


def _moments(z: Array) -> Moments:
    """Computes μ and σ² over all axes but the last."""
    if math.prod(z.shape[:-1]) < 2:
        raise ValueError(
            f"batch normalisation needs two values of a unit or more, got pre-activations of shape {z.shape}: give it "
            "a batch, or for inference nl.normalisation.inference(forward, statistics)"
        )
    over = tuple(range(z.ndim - 1))
    wide = z.astype(wide_dtype(z.dtype))
    return Moments(jnp.mean(wide, axis=over), jnp.var(wide, axis=over))
