"""Programs of layers and the ways to run them.

A program is written with `feedforward` and `scan`. `interpret` runs it in any other way; `record`, `clamp`, `inject`,
`displace` and `local` are the interpretations that learning rules share. All are ordinary functions of arrays: jit,
grad and vmap apply. A program must call `propagate` in its own body or in a step of `scan`. Inside the program's own
transformations (`jax.vmap`, `jax.lax.scan`) its layers cannot be reached, which raises a ValueError. Layers see the
whole batch.
"""

from nl_jax._core.deprecation import renamed as _renamed
from nl_jax.propagation.around import Around
from nl_jax.propagation.interpretation import Given, Layer, Loop, Site, interpret, loops_around, places, plain_loop
from nl_jax.propagation.local import Local, learning_layers, local, local_gradient
from nl_jax.propagation.parallel import parallel_loop
from nl_jax.propagation.program import feedforward, scan
from nl_jax.propagation.views import Clamped, PartlyClamped, clamp, displace, inject, record, zero_axons

__all__ = [
    "Around",
    "Clamped",
    "Given",
    "Layer",
    "Local",
    "Loop",
    "PartlyClamped",
    "Site",
    "clamp",
    "displace",
    "feedforward",
    "inject",
    "interpret",
    "learning_layers",
    "local",
    "local_gradient",
    "loops_around",
    "parallel_loop",
    "places",
    "plain_loop",
    "record",
    "scan",
    "zero_axons",
]

__getattr__ = _renamed(__name__, {"hold": "clamp", "Held": "Clamped", "Partly": "PartlyClamped"})
