"""Time of XLA's convolution over that of `nl.connections.conv`, in loops and under vmap; the same of other libraries.

python -m benchmarks.convolution --help
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from flax import linen

import nl_jax as nl
from benchmarks import report
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from nl_jax.evaluation.diagnostics.timing import Spread, interleaved, ratio
from nl_jax.networks.connections.convolution import convolve

Convolve = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Config:
    """Measure how much faster `nl.connections.conv` is than `jax.lax.conv_general_dilated`.

    The kernels are 3 by 3, the padding "SAME". On a CPU, XLA is slow for derivatives in loops and for vmapped weights;
    on other devices both are the same, and the ratios 1. Convolutions of Flax linen and Equinox are compared with
    those that `nl.from_flax` and `nl.from_equinox` make of them. Prints a table and writes convolution.json and
    convolution.png to --out.
    """

    images: tuple[tuple[int, int, int], ...] = ((12, 8, 8), (14, 16, 32), (32, 16, 32))
    """Height and width in pixels, channels in, and channels out, of each layer measured."""
    batch_size: int = 50
    """Images per batch."""
    steps: int = 5
    """Steps of the loop."""
    weights: int = 8
    """Weights under vmap."""
    rounds: int = 7
    """Interleaved repeats; the table shows medians and quartiles."""
    out: Path = Path("results/benchmarks/convolution")
    """Folder for the results."""


def run(config: Config) -> dict[str, dict[str, Spread]]:
    """Measures, prints and saves; returns XLA's time over ours, by layer and situation.

    Raises:
      ExperimentError: for an invalid setting.
    """
    numbers = [
        config.batch_size,
        config.steps,
        config.weights,
        config.rounds,
        *(n for one in config.images for n in one),
    ]
    if not config.images or min(numbers) < 1:
        raise ExperimentError("all numbers must be at least 1, and there must be --images")
    folder = Folder(config.out, config, outputs=("convolution.json", "convolution.png"))
    found = {
        f"{side} × {side} × {channels} to {features}": _of_layer(config, side, channels, features)
        for side, channels, features in config.images
    }
    rows = [["layer, and XLA's time over ours", "median (quartiles)"]]
    for name, ratios in found.items():
        rows += [[name], *([f"  {situation}", str(value)] for situation, value in ratios.items())]
    print("\n".join(report.aligned(rows)))
    title = f"Convolution on {jax.devices()[0].device_kind}"
    canvas = report.ratios_figure(found, "time of XLA's convolution over that of nl_jax's", title)
    report.save(folder, "convolution", found, canvas)
    return found


def _of_layer(config: Config, side: int, channels: int, features: int) -> dict[str, Spread]:
    x = jax.random.normal(jax.random.key(0), (config.batch_size, side, side, channels))
    weight = jax.random.normal(jax.random.key(1), (3, 3, channels, features)) / 10
    ratios = {}
    for name, (theirs, ours) in _contestants(channels, features).items():
        for situation, made in SITUATIONS.items():
            if name and situation not in OF_LIBRARIES:
                continue
            calls = {"theirs": made(theirs, config, x, weight), "ours": made(ours, config, x, weight)}
            seconds = interleaved(calls, config.rounds, progress=False)
            ratios[f"{name}{situation}"] = ratio(seconds["theirs"], seconds["ours"])
    return ratios


def _contestants(channels: int, features: int) -> Mapping[str, tuple[Convolve, Convolve]]:
    """Returns the convolutions to compare, theirs and ours, by the beginning of their rows' names."""
    module = linen.Conv(features, (3, 3), use_bias=False)
    flax = nl.from_flax(module)
    layer = eqx.nn.Conv2d(channels, features, 3, padding=1, use_bias=False, key=jax.random.key(2))
    equinox = nl.from_equinox(layer)
    kernel = lambda of, weight: eqx.tree_at(lambda layer: layer.weight, of, weight.transpose(3, 2, 0, 1))
    return {
        "": (_by_xla, lambda x, weight: convolve(x, weight, (1, 1), "SAME")),
        "Flax, ": (
            lambda x, weight: module.apply({"params": {"kernel": weight}}, x),
            lambda x, weight: flax.apply({"kernel": weight}, x),
        ),
        "Equinox, ": (
            lambda x, weight: jax.vmap(kernel(layer, weight))(x.transpose(0, 3, 1, 2)),
            lambda x, weight: equinox.apply(kernel(equinox.params, weight), x.transpose(0, 3, 1, 2)),
        ),
    }


def _by_xla(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _gradient(of: Convolve) -> Callable[..., Any]:
    return jax.grad(lambda x, weight: jnp.sum(jnp.tanh(of(x, weight))), (0, 1))


def _forward(of: Convolve, config: Config, x: jax.Array, weight: jax.Array) -> Callable[[], Any]:
    del config
    compiled = jax.jit(lambda x, weight: jnp.tanh(of(x, weight)))
    return lambda: compiled(x, weight)


def _backward(of: Convolve, config: Config, x: jax.Array, weight: jax.Array) -> Callable[[], Any]:
    del config
    compiled = jax.jit(_gradient(of))
    return lambda: compiled(x, weight)


def _in_loop(of: Convolve, config: Config, x: jax.Array, weight: jax.Array) -> Callable[[], Any]:
    descend = lambda _, at: jax.tree.map(lambda value, slope: value - 1e-3 * slope, at, _gradient(of)(*at))
    compiled = jax.jit(lambda x, weight: jax.lax.fori_loop(0, config.steps, descend, (x, weight)))
    return lambda: compiled(x, weight)


def _under_vmap(of: Convolve, config: Config, x: jax.Array, weight: jax.Array) -> Callable[[], Any]:
    weights = jnp.stack([weight] * config.weights)
    compiled = jax.jit(jax.vmap(lambda weight: jnp.sum(jnp.tanh(of(x, weight)))))
    return lambda: compiled(weights)


def _backward_under_vmap(of: Convolve, config: Config, x: jax.Array, weight: jax.Array) -> Callable[[], Any]:
    weights = jnp.stack([weight] * config.weights)
    compiled = jax.jit(jax.vmap(_gradient(of), (None, 0)))
    return lambda: compiled(x, weights)


SITUATIONS = {
    "forward": _forward,
    "gradient": _backward,
    "gradients in a loop": _in_loop,
    "forward, weights under vmap": _under_vmap,
    "gradient, weights under vmap": _backward_under_vmap,
}


OF_LIBRARIES = ("forward", "gradients in a loop")
"""The situations in which other libraries' convolutions are measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.convolution")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
