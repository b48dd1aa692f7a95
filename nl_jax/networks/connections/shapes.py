"""Connections that only change shapes, such as flatten."""

import math

from nl_jax.networks.connections.connection import ConnectionSpec, Joint, Shape


def reshape(source: str | None = None) -> ConnectionSpec:
    """Reshapes the source's axons (activity) to the receiving layer's shape, row-major."""

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        if shape is None or math.prod(shape) != math.prod(source_shape):
            raise ValueError(f"reshape cannot fit the source's shape {source_shape} into {shape}")
        return Joint(shape, lambda key, dtype: {}, lambda params, x: x.reshape(x.shape[0], *shape))

    return ConnectionSpec(join, source, "reshape")


def flatten(source: str | None = None) -> ConnectionSpec:
    """Flattens the source's axons (activity) to one vector, row-major."""

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        return reshape().join(source_shape, (math.prod(source_shape),))

    return ConnectionSpec(join, source, "flatten")
