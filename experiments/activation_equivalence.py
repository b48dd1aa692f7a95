"""Compares sigmoid networks with the equal tanh networks they convert to (seed 000), and how each learns.

python -m experiments.activation_equivalence --help
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict
from experiments.harness.settings import at_least

ROUNDINGS = 100.0  # allowed difference between sums of up to some hundred terms, in units of the dtype's resolution
DRIFT = 1e-9  # allowed relative distance of the parameters of two runs that are equal in exact arithmetic
APART = 0.01  # least relative difference of the final losses of two runs that are not equal


@dataclass(frozen=True)
class Config:
    """Convert random sigmoid networks to tanh; compare outputs and gradients; then train both at the same rate.

    Outputs agree to rounding, and gradients agree by the chain rule. Learning differs, because steepest descent
    depends on the parameterisation of a function. Prints a table and writes config.json, activation_equivalence.json
    and activation_equivalence.png to --out.
    """

    out: Path = Path("results/activation_equivalence")
    """Folder for the results; replaces files of an earlier run."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Numbers of hidden layers of the random networks; each layer has eight units."""
    networks: int = 200
    """Number of random networks of each depth."""
    scale: float = 3.0
    """Factor on the parameters of LeCun's initialisation, at which units are almost linear."""
    rate: float = 0.5
    """Learning rate of gradient descent."""
    steps: int = 3000
    """Number of gradient descent steps."""
    runs: int = 20
    """Number of initialisations for gradient descent."""
    quick: bool = False
    """Run a small version: 50 networks of one depth and 5 runs of 1000 steps, in under half a minute."""


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


def run(config: Config) -> tuple[dict[str, Comparison], Descent]:
    """Compares the networks, then trains them.

    Raises:
      ExperimentError: if a setting or folder is invalid, or the equivalence does not hold.
    """
    if config.quick:
        config = dataclasses.replace(
            config, depths=config.depths[:1], networks=min(config.networks, 50), runs=min(config.runs, 5),
            steps=min(config.steps, 1000),
        )  # fmt: skip
    at_least(config, depths=1, networks=1, runs=1, steps=1)
    if not (0 < config.scale < np.inf and 0 < config.rate < np.inf):
        raise ExperimentError("--scale and --rate must be finite numbers above 0")
    folder = Folder(config.out, config, outputs=["activation_equivalence.json", "activation_equivalence.png"])
    comparisons = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            comparisons[dtype] = compare(dtype, config)
    with jax.enable_x64(True):
        descent = descend(config)
    worst = float(max(max(np.max(c.outputs), np.max(c.gradients)) for c in comparisons.values()))
    verdict = Verdict(worst, ROUNDINGS, "roundings")
    judged = {"drift": descent.drift, "drift_allowed": DRIFT, "apart": descent.apart, "apart_at_least": APART}
    data = {dtype: comparison._asdict() for dtype, comparison in comparisons.items()}
    folder.data("activation_equivalence", {**verdict._asdict(), **judged, **data, "descent": descent._asdict()})
    picture = folder.picture("activation_equivalence", plot(comparisons, descent, config))
    print(table(comparisons, descent))
    print(f"picture and data: {picture.parent} ({picture.name}, activation_equivalence.json, config.json)")
    if not (verdict.agrees and descent.drift <= DRIFT and descent.apart >= APART):
        found = f"roundings {worst:.2g}, drift {descent.drift:.2g}, apart {descent.apart:.2g}"
        raise ExperimentError(f"the networks are not as equal, or not as different, as they should be: {found}")
    return comparisons, descent


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


def compare(dtype: str, config: Config) -> Comparison:
    """Compares outputs and gradients of random networks with those of their conversions."""
    found = []
    for depth in config.depths:
        net = _network((5, *[8] * depth, 4))

        @jax.jit
        @jax.vmap
        def differences(key: jax.Array, net: nl.Network = net) -> tuple[jax.Array, ...]:
            init, inputs, targets = jax.random.split(key, 3)
            params = jax.tree.map(lambda leaf: config.scale * leaf, net.init(init, dtype))
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

        keys = jax.random.split(jax.random.key(depth), config.networks)
        found.append([np.asarray(d, float) / np.finfo(dtype).eps for d in differences(keys)])
    return Comparison(*map(np.concatenate, zip(*found, strict=True)))


def _difference(a: Any, b: Any) -> jax.Array:
    """Returns the largest |a − b| over the largest |a|, across all leaves of two trees."""
    largest = optax.tree.norm(a, ord=jnp.inf)
    return optax.tree.norm(optax.tree.sub(a, b), ord=jnp.inf) / largest


def descend(config: Config) -> Descent:
    """Trains both networks on the exclusive or of two inputs' signs, starting from the same functions."""
    net = _network((2, 8, 1))
    keys = jax.random.split(jax.random.key(1), config.runs)
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
        learner = nl.learner(nl.backprop(objective), optax.chain(*change, optax.sgd(config.rate)))

        @jax.jit
        @jax.vmap
        def walked(params: Any) -> tuple[Any, jax.Array]:
            def step(state: nl.LearnerState, _: None) -> tuple[nl.LearnerState, jax.Array]:
                state, info = learner.step(jax.random.key(0), state, data)  # backprop needs no randomness
                return state, info.loss

            state, losses = jax.lax.scan(step, learner.init(jax.random.key(0), params), length=config.steps)
            return state.params, losses

        end, losses = walked(params)
        return end, np.asarray(losses)

    sigmoid_end, sigmoid = walk(net.apply, params)
    _, tanh = walk(forward, as_tanh)
    chained_end, along = walk(forward, as_tanh, chained)
    drift = jax.jit(jax.vmap(lambda params, other: _difference(convert(params), other)))(sigmoid_end, chained_end)
    return Descent(sigmoid, tanh, along, float(drift.max()))


def table(comparisons: Mapping[str, Comparison], descent: Descent) -> str:
    """Returns the results as text."""
    lines = [f"{'largest relative difference':38}" + "".join(f"{dtype:>12}" for dtype in comparisons)]
    for name, text in COMPARED.items():
        values = [np.max(getattr(c, name)) for c in comparisons.values()]
        lines.append(f"{text:38}" + "".join(f"{value:>8.3g} eps" for value in values))
    lines += [
        f"{descent.tanh.shape[1]:,} steps of descent by the chain rule: parameters drift apart by {descent.drift:.1e}",
        f"and at the same rate: final losses differ by {descent.apart:.0%} (median over runs); on average sigmoid "
        f"{descent.sigmoid[:, -1].mean():.4f}, tanh {descent.tanh[:, -1].mean():.4f}",
    ]
    return "\n".join(lines)


COMPARED = {
    "outputs": "outputs",
    "gradients": "gradients, by the chain rule",
    "unchained": "gradients, as they are",
}


def plot(comparisons: Mapping[str, Comparison], descent: Descent, config: Config) -> Any:
    """Plots differences in units of rounding (left) and learning curves (right)."""
    from experiments.harness.plotting import figure, style

    canvas, (rounding, learning) = figure(1, 2, size=(13, 5))
    bins = np.geomspace(0.1, 1e17, 73)
    for index, (name, text) in zip((2, 6, 3), COMPARED.items(), strict=True):
        for dtype, comparison in comparisons.items():
            look = style(index)
            rounding.hist(
                np.maximum(getattr(comparison, name), bins[0]), bins, histtype="step", linewidth=1.6,
                color=look["color"], linestyle="-" if dtype == "float64" else "--", label=f"{text}, {dtype}",
            )  # fmt: skip
    rounding.axvline(ROUNDINGS, color="grey", linestyle=":", linewidth=1.4, label="allowed")
    rounding.set(
        xscale="log", xlabel="largest relative difference, in units of the resolution", ylabel="networks",
        title="the same function, the same gradient by the chain rule",
    )  # fmt: skip
    rounding.legend(frameon=False, fontsize=8, handlelength=1.4, loc="center", bbox_to_anchor=(0.67, 0.6))
    step = np.arange(descent.tanh.shape[1])
    curves = {"sigmoid": (2, descent.sigmoid), "tanh, the same rate": (3, descent.tanh)}
    for label, (index, losses) in curves.items():
        look = style(index)
        learning.plot(step, losses.mean(axis=0), color=look["color"], linewidth=1.8, label=label)
        learning.plot(step, losses.T, color=look["color"], linewidth=0.5, alpha=0.35)
    every = slice(0, None, max(1, len(step) // 25))
    look = style(0)
    learning.plot(
        step[every], descent.chained.mean(axis=0)[every], color=look["color"], marker="o", markersize=4.5,
        fillstyle="none", linestyle="none", label="tanh, trained with the sigmoid network's gradient",
    )  # fmt: skip
    learning.set(
        xlabel=f"steps at rate {config.rate:g}", ylabel="loss", yscale="log",
        title="same initial weights, different units: each run and the mean",
    )  # fmt: skip
    learning.legend(frameon=False, fontsize=9)
    canvas.suptitle(
        f"Sigmoid networks and the tanh networks they convert to: depth {', '.join(map(str, config.depths))}, "
        f"{config.networks} networks each"
    )
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.activation_equivalence")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
