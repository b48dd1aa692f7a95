"""Connections: how a lower layer's axons (activity) enter a higher layer's pre-activation.

Each function here describes a connection without shapes. The shapes come from the two layers it joins, when
`nl.network` builds the network. Images are [height, width, channels], as in JAX's NHWC.
"""

from nl_jax._core.deprecation import renamed as _renamed
from nl_jax.networks.connections.connection import ConnectionSpec, Joint, Shape
from nl_jax.networks.connections.convolution import conv_general_dilated
from nl_jax.networks.connections.decorrelated import decorrelated
from nl_jax.networks.connections.dense import Dense, dense, lateral_dense
from nl_jax.networks.connections.images import conv, max_pool
from nl_jax.networks.connections.shapes import flatten, reshape
from nl_jax.networks.connections.standardised import standardised_conv
from nl_jax.networks.connections.winner_take_all import winner_take_all

__all__ = [
    "ConnectionSpec",
    "Dense",
    "Joint",
    "Shape",
    "conv",
    "conv_general_dilated",
    "decorrelated",
    "dense",
    "flatten",
    "lateral_dense",
    "max_pool",
    "reshape",
    "standardised_conv",
    "winner_take_all",
]

__getattr__ = _renamed(__name__, {"Connection": "ConnectionSpec"})
