"""A connection that decorrelates its inputs first."""

from typing import Any

import jax.numpy as jnp

from nl_jax.base import DECORRELATION, Array, Key, Params
from nl_jax.networks.connections.connection import ConnectionSpec, Joint, Shape


def decorrelated(connection: ConnectionSpec) -> ConnectionSpec:
    """Replaces a connection's inputs x by x R; a dense connection becomes ν = (x R) W + b.

    R, `params["decorrelation"]` of shape [inputs, inputs], starts as the identity and learns to decorrelate the inputs
    by a local rule, `nl.decorrelation` (Ahmad et al. 2022, where it multiplies columns, R x). R is a parameter like any
    other: an estimator gives it the gradient of the loss, unless `nl.partition` assigns it to another estimator.

    Args:
      connection: any connection that reads a vector, such as `nl.connections.dense()`.

    Raises:
      ValueError: if `connection` is not one of `nl.connections` or is already decorrelated; when the network is built,
        if its source is not a vector.

    >>> import jax, nl_jax as nl
    >>> net = nl.network(nl.Layer("input", 4), nl.Layer("output", 2, decorrelated(nl.connections.dense())))
    >>> jax.tree.map(jax.numpy.shape, net.init(jax.random.key(0)))["output"]
    {'bias': (2,), 'decorrelation': (4, 4), 'weight': (4, 2)}
    """
    if not isinstance(connection, ConnectionSpec):
        raise ValueError(
            "connection must be one of nl.connections, made by a call such as nl.connections.dense(); "
            f"got {connection!r}"
        )
    if connection.kind.startswith("decorrelated"):
        raise ValueError(f"connection {connection!r} is decorrelated already: decorrelate it once")

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        if len(source_shape) != 1:
            raise ValueError(
                f"decorrelated reads a vector, its source has shape {source_shape}: put a flatten layer between"
            )
        (inputs,) = source_shape
        inner = connection.join(source_shape, shape)

        def init(key: Key, dtype: Any) -> Params:
            return {**inner.init(key, dtype), DECORRELATION: jnp.eye(inputs, dtype=dtype)}

        def apply(params: Params, x: Array) -> Array:
            own = {name: value for name, value in params.items() if name != DECORRELATION}
            return inner.apply(own, x @ params[DECORRELATION])

        return Joint(inner.shape, init, apply)

    return ConnectionSpec(join, connection.source, f"decorrelated {connection.kind}")
