"""Compares credit by layer: one step of backprop (seed 001 §2), and four estimators on digits.

python -m experiments.credit --help
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nl_jax as nl
from experiments.harness.data import digits
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict
from nl_jax.theory import perturbation

ROUNDINGS = 100.0  # allowed difference from the seed's formulas, in units of float64's resolution
ERRORS = 5.0  # allowed difference of node perturbation from theory, in standard errors
RATE = 0.5  # α of the one step
EXACT = nl.backprop, nl.backprop_recursion, nl.lagrangian_backprop
SHOWN = 8  # number of examples in the figure of δ


@dataclass(frozen=True)
class Config:
    """Draw the values and the credit of a network's units for one step of backprop; then compare estimators' credit.

    Exits with 1 unless three estimators return the seed's δ and γ and take its step, and node perturbation's error
    agrees with theory. Prints a table and writes config.json, credit.json, credit.npz, credit.png and layers.png to
    --out.
    """

    out: Path = Path("results/credit")
    """Folder for the results; replaces files of an earlier run."""
    units: int = 24
    """Units of each hidden layer of the digits network on which estimators are compared."""
    depth: int = 4
    """Hidden layers of that network."""
    images: int = 200
    """Number of digits in the batch, out of 1,437."""
    samples: int = 64
    """Noisy passes per node perturbation estimate, K."""
    estimates: int = 40
    """Number of node perturbation estimates, for the standard errors."""
    quick: bool = False
    """Run a small version: 50 digits and 10 estimates, in a few seconds."""


class Step(NamedTuple):
    """One step on one example, by the seed's formulas.

    Attributes:
      h, y: values of the hidden units and the outputs.
      delta, gamma: credit of the outputs' and the hidden units' pre-activations.
      v, w: the weights after the step; those of the constant unit 0 come first.
    """

    h: np.ndarray
    y: np.ndarray
    delta: np.ndarray
    gamma: np.ndarray
    v: np.ndarray
    w: np.ndarray


class Comparison(NamedTuple):
    """Credit δ on one batch; for node perturbation, that of the first estimate.

    Attributes:
      delta: credit by estimator and layer, [images, units].
      cosine: cosine of δ to backprop's δ, by estimator, [layers].
      size: norm of δ over that of backprop's δ, by estimator, [layers].
      law: node perturbation's expected relative error ‖δ̂ − δ‖²/‖δ‖² by theory, [layers].
      error: its measured relative error, [estimates, layers].
      slope: ⟨δ̂, δ⟩/‖δ‖², 1 on average for an unbiased estimate, [estimates, layers].
    """

    delta: dict[str, dict[str, np.ndarray]]
    cosine: dict[str, np.ndarray]
    size: dict[str, np.ndarray]
    law: np.ndarray
    error: np.ndarray
    slope: np.ndarray

    @property
    def deviation(self) -> float:
        """Largest deviation of errors from theory and of slopes from 1, in standard errors."""
        return max(_deviation(self.error, self.law), _deviation(self.slope, 1.0))


def run(config: Config) -> Comparison:
    """Takes the step, compares the estimators, and saves the results.

    Raises:
      ExperimentError: if a setting or folder is invalid, or a formula or the theory does not hold.
    """
    if config.quick:
        config = dataclasses.replace(config, images=min(config.images, 50), estimates=min(config.estimates, 10))
    for name, least in {"units": 1, "depth": 1, "images": SHOWN, "samples": 1, "estimates": 2}.items():
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name} must be at least {least}, got {getattr(config, name)}")
    outputs = ("credit.json", "credit.npz", "credit.png", "layers.png")
    folder = Folder(config.out, config, outputs=outputs)
    with jax.enable_x64(True):
        net, params, x, target = seed_network()
        step = by_formula(params, x, target)
        roundings = {make.__name__: distance(make, net, params, x, target, step) for make in EXACT}
        compared = compare(config)
    parts = max(max(roundings.values()) / ROUNDINGS, compared.deviation / ERRORS)
    verdict = Verdict(parts, 1.0, "parts of what is allowed")
    judged = {"roundings": roundings, "standard_errors": compared.deviation, "step": step._asdict()}
    measured = {name: value for name, value in compared._asdict().items() if name != "delta"}
    folder.data("credit", {**verdict._asdict(), **judged, **measured})
    folder.arrays("credit", {f"{e}/{layer}": d for e, of in compared.delta.items() for layer, d in of.items()})
    folder.picture("credit", plot(net, x, step, compared))
    folder.picture("layers", show(compared))
    print(table(step, roundings, compared))
    print(f"pictures and data: {folder.path} ({', '.join(outputs)}, config.json)")
    if not verdict.agrees:
        found = f"roundings {max(roundings.values()):.2g}, standard errors {compared.deviation:.2g}"
        raise ExperimentError(f"the credit is not that of the formulas: {found}")
    return compared


def seed_network() -> tuple[nl.Network, Any, np.ndarray, np.ndarray]:
    """Returns seed 001's three-level network of sigmoid units, p = 3, M = 4, q = 2, its parameters and one example."""
    sigmoid = nl.activations.sigmoid()
    wide = jax.nn.initializers.normal(2.0)
    net = nl.mlp([3, 4, 2], activation=sigmoid, output_activation=sigmoid, weight_init=wide)
    params = net.init(jax.random.key(1), jnp.float64)
    for layer in params.values():
        layer["bias"] = jnp.linspace(-1, 1, layer["bias"].size)
    return net, params, np.array([0.8, -0.4, 0.3]), np.array([1.0, 0.0])


def by_formula(params: Any, x: np.ndarray, target: np.ndarray) -> Step:
    """Returns h, ŷ, δ, γ and the new weights of seed 001 §2, sum by sum; unit 0 of both layers is constantly 1."""
    w, v = (_with_bias(params[name]) for name in ("hidden1", "output"))  # [0 … p, M], [0 … M, q]
    sigma = lambda z: 1 / (1 + np.exp(-z))
    (p, M), q = (w.shape[0] - 1, w.shape[1]), v.shape[1]
    x = np.array([1.0, *x])
    h = np.array([1.0, *(sigma(sum(w[j, m] * x[j] for j in range(p + 1))) for m in range(M))])
    y = np.array([sigma(sum(v[m, k] * h[m] for m in range(M + 1))) for k in range(q)])
    delta = np.array([(y[k] - target[k]) * y[k] * (1 - y[k]) for k in range(q)])
    gamma = np.array([sum(delta[k] * v[m, k] * h[m] * (1 - h[m]) for k in range(q)) for m in range(1, M + 1)])
    return Step(h[1:], y, delta, gamma, v - RATE * np.outer(h, delta), w - RATE * np.outer(x, gamma))


def _with_bias(layer: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.asarray(layer["bias"])[None, :], np.asarray(layer["weight"])])


def distance(make: Any, net: nl.Network, params: Any, x: np.ndarray, target: np.ndarray, step: Step) -> float:
    """Returns the largest difference of an estimator's credit and step from the formulas, in units of rounding."""
    estimator = make(nl.supervised(net.apply, nl.losses.half_squared_error))
    key, batch = jax.random.key(0), (jnp.asarray(x)[None, :], jnp.asarray(target)[None, :])
    learner = nl.learner(estimator, optax.sgd(RATE))
    state = learner.init(key, params)
    credit = jax.jit(estimator.credit)(key, state.estimator, params, batch)
    after = jax.jit(learner.step)(key, state, batch)[0].params
    hidden, output = credit["hidden1"], credit["output"]
    weights = _with_bias(after["output"]), _with_bias(after["hidden1"])
    ours = hidden.axons[0], output.axons[0], output.delta[0], hidden.delta[0], *weights
    apart = (np.abs(np.asarray(a) - b).max() / np.abs(b).max() for a, b in zip(ours, step, strict=True))
    return float(max(apart) / np.finfo(float).eps)


def compare(config: Config) -> Comparison:
    """Compares four estimators' credit on digits, at the initial weights."""
    train = digits().train
    batch = train.images[: config.images].astype(float), train.labels[: config.images]
    net = nl.mlp([64, *[config.units] * config.depth, 10], activation=nl.activations.tanh())
    params = jax.jit(net.init, static_argnums=1)(jax.random.key(0), jnp.float64)
    objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    estimators = {
        "backprop": nl.backprop(objective),
        "feedback alignment": nl.feedback_alignment(objective),
        "predictive coding": nl.predictive_coding(objective),
        "node perturbation": nl.node_perturbation(objective, num_samples=config.samples),
    }

    def shown(estimator: nl.GradientEstimator, estimates: int) -> dict[str, np.ndarray]:
        """Returns δ by layer, [estimates, images, units]."""
        state = estimator.init(jax.random.key(2), params)

        def one(key: nl.base.Key) -> dict[str, nl.base.Array]:
            return {name: of.delta for name, of in estimator.credit(key, state, params, batch).items()}

        keys = jax.random.split(jax.random.key(3), estimates)
        found = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
        return {name: np.asarray(found[name]) for name in list(net.shapes)[1:]}

    every = {name: shown(of, config.estimates if name == "node perturbation" else 1) for name, of in estimators.items()}
    delta = {name: {layer: of[layer][0] for layer in of} for name, of in every.items()}
    right, noisy = delta["backprop"], every["node perturbation"]
    power = _inner(right, right)
    off = {name: of - right[name] for name, of in noisy.items()}
    size = {name: np.sqrt(_inner(of, of) / power) for name, of in delta.items()}
    cosine = {name: _inner(of, right) / power / size[name] for name, of in delta.items()}
    expected = np.asarray(law(right, config.samples)) / power
    return Comparison(delta, cosine, size, expected, _inner(off, off) / power, _inner(noisy, right) / power)


def _inner(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns ⟨a, b⟩ of each layer, stacked along a last axis."""
    return np.stack([np.sum(a[name] * b[name], axis=(-2, -1)) for name in a], axis=-1)


@functools.partial(jax.jit, static_argnums=1)
def law(delta: Mapping[str, nl.base.Array], samples: int) -> nl.base.Array:
    """Returns E ‖δ̂ − δ‖² by layer, Σ_n (units ‖δ_n‖² + ‖δ_nl‖²)/K, with ‖δ_n‖² over all nodes of example n."""
    of_all = jnp.sum(jnp.stack([jnp.sum(of**2, axis=1) for of in delta.values()]), axis=0)
    one = jnp.ones((1, 1))  # δ is the gradient with respect to a weight whose input is 1
    variance = functools.partial(perturbation.node_variance, one, K=samples, kurtosis=3)
    return jnp.stack([jnp.sum(jax.vmap(variance)(of[:, None], of_all[:, None])) for of in delta.values()])


def _deviation(values: np.ndarray, expected: Any) -> float:
    error = values.std(axis=0, ddof=1) / len(values) ** 0.5
    return float(np.max(np.abs(values.mean(axis=0) - expected) / error))


def table(step: Step, roundings: Mapping[str, float], compared: Comparison) -> str:
    """Returns the results as text."""
    numbers = lambda values: "  ".join(f"{value:8.4f}" for value in values)
    lines = [f"{name:6}{numbers(of)}" for name, of in zip("hŷδγ", step[:4], strict=True)]
    lines += [f"{name:20} shows these and takes the seed's step to {n:.1f} roundings" for name, n in roundings.items()]
    layers = list(compared.delta["backprop"])
    lines.append(f"{'cosine to backprop’s δ':24}" + "".join(f"{layer:>10}" for layer in layers))
    lines += [f"  {name:22}" + "".join(f"{c:10.3f}" for c in of) for name, of in compared.cosine.items()]
    lines.append(f"{'size, backprop’s is 1':24}")
    lines += [f"  {name:22}" + "".join(f"{s:10.3f}" for s in of) for name, of in compared.size.items()]
    lines.append("relative error of node perturbation")
    lines += [f"  {what:22}" + "".join(f"{v:10.3f}" for v in values)
              for what, values in (("measured", compared.error.mean(axis=0)), ("law", compared.law))]  # fmt: skip
    lines.append(f"law and slope: at most {compared.deviation:.1f} standard errors off")
    return "\n".join(lines)


def plot(net: nl.Network, x: np.ndarray, step: Step, compared: Comparison) -> Any:
    """Plots the step on the network diagram (top), and cosine and size of four estimators' credit by layer (bottom)."""
    from experiments.harness.plotting import figure, style

    canvas, ((forth, back), (direction, size)) = figure(2, 2, size=(12, 8.5))
    forth.get_gridspec().set_height_ratios((0.85, 1))
    values = {"input": x, "hidden1": step.h, "output": step.y}
    net.diagram(title="forth: the values x, h and ŷ of one example", values=values, axes=forth)
    values = {"hidden1": step.gamma, "output": step.delta}
    net.diagram(title="back: its credit γ and δ, targets 1 and 0", values=values, axes=back)
    layers = list(compared.delta["backprop"])
    for index, name in enumerate(compared.cosine):
        look = {**style(index), "markevery": 1}
        direction.plot(layers, compared.cosine[name], label=name, **look)
        size.plot(layers, compared.size[name], label=name, **look)
    longer = np.sqrt(1 + compared.law)
    for axes, expected in ((direction, 1 / longer), (size, longer)):
        axes.plot(layers, expected, ":", color="grey", linewidth=2.2, label="node perturbation, law", zorder=1)
        axes.set_xlabel("layer")
    direction.set(ylabel="cosine to backprop’s δ", ylim=(-0.25, 1.05), title="direction of the credit")
    size.set(ylabel="‖δ‖ over that of backprop", yscale="log", title="its size")
    size.yaxis.set_major_formatter("{x:g}")
    size.yaxis.set_minor_formatter("{x:.1g}")
    canvas.legend(*size.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return canvas


def show(compared: Comparison) -> Any:
    """Plots δ: one row per estimator, one column per layer, examples by units."""
    from experiments.harness.plotting import figure

    layers = list(compared.delta["backprop"])
    rows, columns = len(compared.delta), len(layers)
    canvas, panels = figure(rows, columns, size=(2.9 * columns + 1, 1.6 * rows + 1))
    for row, (name, of) in enumerate(compared.delta.items()):
        for axes, layer in zip(panels[row], layers, strict=True):
            largest = np.abs(compared.delta["backprop"][layer][:SHOWN]).max()
            image = axes.imshow(of[layer][:SHOWN], cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
            axes.grid(visible=False)
            axes.set(yticks=[])
            axes.tick_params(labelbottom=row == len(compared.delta) - 1)
            if row == 0:
                axes.set_title(layer)
                canvas.colorbar(image, ax=panels[:, layers.index(layer)], location="bottom", shrink=0.8, label="δ")
            if row == len(compared.delta) - 1:
                axes.set_xlabel("unit")
        panels[row][0].set_ylabel(f"{name}\nexample", fontsize=9)
    canvas.suptitle("Credit δ of the first examples, on backprop’s scale of each layer")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.credit")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
