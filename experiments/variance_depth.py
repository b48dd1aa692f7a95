"""Variance of weight and node perturbation against depth in nonlinear networks (seed 000, which of them scales).

python -m experiments.variance_depth --help
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.random_networks import CASES, GAUSSIAN, draw, network, second_moment
from experiments.harness.results import Folder, Verdict
from nl_jax.base import Objective
from nl_jax.theory import mean_field, perturbation

CHANCE = 1e-3  # probability of rejecting a correct law
SPACES: dict[str, Callable[[Objective], nl.spaces.Space]] = {"weights": nl.spaces.weights, "nodes": nl.spaces.nodes}


@dataclass(frozen=True)
class Config:
    """Measure the relative variance of both perturbations in random networks of many depths and widths.

    Every estimate has one sample, on one example, with the exact directional derivative. This is the limit of small
    noise, in which the laws hold however small a network's axons (activity) become. Each network's variance is compared
    with the law given its own axons and credit. The exponents in depth and width are compared with the linear law, in
    which the variance is the number of weights or of nodes. Prints a table and writes config.json, metrics.jsonl,
    variance_depth.json, variance_depth.npz and variance_depth.png to --out. Fails if a law and its measurement
    disagree beyond chance.
    """

    out: Path = Path("results/variance_depth")
    """Folder for the results; files of an earlier run there are replaced."""
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of layers with weights, two or more, rising."""
    widths: tuple[int, ...] = (8, 16, 32)
    """Units per layer, one or more numbers, rising."""
    networks: int = 16
    """Random networks of each kind, depth and width, at least 5; each has its own example."""
    estimates: int = 300
    """Estimates of each gradient, at least 100."""
    quick: bool = False
    """A small version, three depths at one width, in under half a minute."""


class Sampled(NamedTuple):
    """Estimates in one space, for networks of one kind, depth and width.

    Attributes:
      squares: ‖ĝ − g‖²/‖g‖², [networks, estimates].
      cosines: between ĝ and g, [networks, estimates].
      law: expected value of the squares for each network, [networks].
    """

    squares: np.ndarray
    cosines: np.ndarray
    law: np.ndarray

    @property
    def deviation(self) -> float:
        """Deviation of the squares' mean from the law, in standard errors."""
        ratios = (self.squares / self.law[:, None]).ravel()
        return float((ratios.mean() - 1) / (ratios.std(ddof=1) / ratios.size**0.5))

    @property
    def log_variance(self) -> tuple[float, float]:
        """Mean over networks of the log of the relative variance, and its standard error."""
        logs = np.log(self.squares.mean(axis=1))
        return float(logs.mean()), float(logs.std(ddof=1) / len(logs) ** 0.5)


class Measurement(NamedTuple):
    """Results for a kind of network at one depth and width."""

    case: str
    space: str
    depth: int
    width: int
    sampled: Sampled

    @property
    def linear_law(self) -> float:
        """Relative variance if all components were alike: the number of weights or of nodes, plus 1."""
        components = self.depth * self.width * (self.width if self.space == "weights" else 1)
        return perturbation.relative_variance(perturbation.independent(components, kurtosis=GAUSSIAN), 1)


class Exponents(NamedTuple):
    """Exponents of variance ∝ depth^a width^b, fitted over the grid: arrays (a, b), or (a,) if there is one width."""

    measured: np.ndarray
    error: np.ndarray
    predicted: np.ndarray
    """The same fit to the linear law."""


def run(config: Config) -> list[Measurement]:
    """Measures at every width and depth in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if a law and its measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, depths=config.depths[::2], widths=config.widths[1:2] or config.widths,
            networks=min(config.networks, 10), estimates=min(config.estimates, 200),
        )  # fmt: skip
    _check(config)
    folder = Folder(config.out, config, outputs=[f"variance_depth.{kind}" for kind in ("npz", "json", "png")])
    found: list[Measurement] = []
    for width, depth in tqdm(list(itertools.product(config.widths, config.depths)), unit="size"):
        with jax.enable_x64(True):  # gradients may be very small
            found += _measure(depth, width, config)
        for one in found[-len(CASES) * len(SPACES) :]:
            log, error = one.sampled.log_variance
            folder.metric(
                case=one.case, space=one.space, depth=depth, width=width, variance=np.exp(log), log_error=error,
                law=np.exp(np.log(one.sampled.law).mean()), linear_law=one.linear_law,
                cosine=one.sampled.cosines.mean(), deviation=one.sampled.deviation,
            )  # fmt: skip
    verdict = judge(found)
    folder.arrays(
        "variance_depth",
        {field: [getattr(one, field) for one in found] for field in ("case", "space", "depth", "width")}
        | {field: [getattr(one.sampled, field) for one in found] for field in Sampled._fields},
    )
    laws = {f"{case}, {space}": scaling(found, case, space)._asdict() for case in CASES for space in SPACES}
    folder.data("variance_depth", {**verdict._asdict(), "compared": len(found), "exponents": laws})
    picture = folder.picture("variance_depth", plot(found, config))
    print(table(found, config))
    print(f"picture and data: {picture.parent} ({picture.name}, .json, .npz, metrics.jsonl, config.json)")
    if not verdict.agrees:
        raise ExperimentError(
            f"law and measurement disagree: by {verdict.largest_deviation:.1f} standard errors, where chance allows "
            f"{verdict.allowed:.1f}"
        )
    return found


def _check(config: Config) -> None:
    for name, fewest in (("depths", 2), ("widths", 1)):
        values = getattr(config, name)
        if len(values) < fewest or min(values) < 1 or sorted(set(values)) != list(values):
            raise ExperimentError(f"--{name} must be {fewest} or more rising numbers of at least 1, got {values}")
    for name, least in (("networks", 5), ("estimates", 100)):
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name} must be at least {least}, got {getattr(config, name)}")


def _measure(depth: int, width: int, config: Config) -> list[Measurement]:
    """Measures all kinds of networks at once, so that one program is compiled for each size."""
    activations = [case.activation for case in CASES.values()]

    def estimates(kind: jax.Array, key: jax.Array, params: Any, batch: Any) -> Any:
        forward = network(lambda nu: jax.lax.switch(kind, activations, nu))
        objective = nl.supervised(forward, nl.losses.half_squared_error)
        exact, _, _ = nl.backprop(objective).estimate(key, (), params, batch)

        def one(estimator: nl.GradientEstimator, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            estimate, _, _ = estimator.estimate(key, estimator.init(key, params), params, batch)
            off = optax.tree.norm(optax.tree.sub(estimate, exact), squared=True)
            return off / optax.tree.norm(exact, squared=True), nl.diagnostics.cosine(estimate, exact)

        keys = jax.random.split(key, config.estimates)
        estimators = {name: nl.forward_gradient(objective, space=space) for name, space in SPACES.items()}
        sampled = {space: jax.lax.map(functools.partial(one, made), keys) for space, made in estimators.items()}
        return sampled, second_moment(forward, params, batch)

    nets = config.networks
    drawn = [draw(case, depth, width, nets) for case in CASES.values()]
    params, batch = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *drawn)
    kinds = jnp.repeat(jnp.arange(len(CASES)), nets)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(depth), width), len(kinds))
    sampled, s = jax.jit(jax.vmap(estimates))(kinds, keys, params, batch)
    laws = {"weights": np.full(len(kinds), depth * width**2 + 1.0), "nodes": np.asarray(s) - 1}
    return [
        Measurement(case, space, depth, width, Sampled(*(np.asarray(of)[mine] for of in (*values, laws[space]))))
        for case, mine in zip(CASES, np.split(np.arange(len(kinds)), len(CASES)), strict=True)
        for space, values in sampled.items()
    ]


def of(found: Sequence[Measurement], **wanted: Any) -> list[Measurement]:
    """The measurements whose fields have these values."""
    return [one for one in found if all(getattr(one, name) == value for name, value in wanted.items())]


def scaling(found: Sequence[Measurement], case: str, space: str) -> Exponents:
    """Exponents of the variance in depth and width, by weighted least squares over the grid."""
    grid = of(found, case=case, space=space)
    values, errors = np.array([one.sampled.log_variance for one in grid]).T
    sizes = np.log([[one.depth, one.width] for one in grid])
    varied = np.ptp(sizes, axis=0) > 0
    design = np.column_stack([sizes[:, varied], np.ones(len(grid))])
    solve = np.linalg.pinv(design / errors[:, None]) / errors
    left = values - design @ (solve @ values)
    # Where no power law holds, the residuals exceed the errors; the exponents' errors are scaled accordingly.
    degrees = len(grid) - design.shape[1]
    excess = max(1.0, float(np.sum((left / errors) ** 2) / degrees)) if degrees else 1.0
    return Exponents(
        measured=(solve @ values)[:-1],
        error=(excess * ((solve * errors) ** 2).sum(axis=1))[:-1] ** 0.5,
        predicted=(solve @ np.log([one.linear_law for one in grid]))[:-1],
    )


def judge(found: Sequence[Measurement]) -> Verdict:
    """The largest deviation from the law, and the largest that chance allows."""
    off = np.array([one.sampled.deviation for one in found])
    return Verdict(float(np.max(np.abs(off))), allowed=float(scipy.stats.norm.isf(CHANCE / 2 / off.size)))


def overtaken(found: Sequence[Measurement], case: str, width: int) -> int | None:
    """The smallest measured depth at which nodes have the larger variance by law, or None."""
    nodes = of(found, case=case, space="nodes", width=width)
    return next((one.depth for one in nodes if np.log(one.sampled.law).mean() > np.log(one.linear_law * width)), None)


def table(found: Sequence[Measurement], config: Config) -> str:
    """Relative variances at the largest width, and exponents: a row for each kind of network and each space."""
    width = config.widths[-1]
    lines = [
        f"{'relative variance at width ' + str(width):30}" + "".join(f"{'depth ' + str(d):>11}" for d in config.depths)
        + f"{'depth to the':>18}" + f"{'width to the':>18}" * (len(config.widths) > 1) + f"{'off':>6}"
    ]  # fmt: skip
    for space, case in itertools.product(SPACES, CASES):
        here = of(found, case=case, space=space, width=width)
        law, mine = scaling(found, case, space), of(found, case=case, space=space)
        lines.append(
            f"{space + ': ' + case:30}" + "".join(f"{np.exp(one.sampled.log_variance[0]):>11.4g}" for one in here)
            + "".join(f"{value:>10.2f} ±{error:6.3f}" for value, error in zip(law.measured, law.error, strict=True))
            + f"{max(abs(one.sampled.deviation) for one in mine):>6.1f}"
        )  # fmt: skip
        if case == list(CASES)[-1]:
            expected = "".join(f"{value:>10.2f}{'':8}" for value in law.predicted)
            row = "".join(f"{one.linear_law:>11.4g}" for one in here)
            lines.append(f"{space + ': linear law':30}{row}{expected}")
    largest, allowed, unit = judge(found)
    lines.append("geometric means over networks; off: from the law given axons and credit, in standard errors, at most")
    for case in CASES:
        depth = overtaken(found, case, width)
        if depth:
            lines.append(f"{case}: from {depth} layers of {width} units on, nodes have the larger variance")
    lines.append(f"largest deviation of {len(found)} compared: {largest:.1f} {unit}; chance allows {allowed:.1f}")
    return "\n".join(lines)


def plot(found: Sequence[Measurement], config: Config) -> Any:
    """Plots variance against depth and width, the effect of unequal norms on node perturbation, and cosines."""
    from experiments.harness.plotting import figure, joined, style

    canvas, ((by_depth, imbalance), (by_width, cosine)) = figure(2, 2, size=(13, 10.5))
    width, middle = config.widths[-1], config.depths[len(config.depths) // 2]
    looks = {case: style(index) for index, case in zip((0, 2, 1, 3), CASES, strict=False)}
    for axes, name, wanted in ((by_depth, "depth", {"width": width}), (by_width, "width", {"depth": middle})):
        for (case, look), space in itertools.product(looks.items(), SPACES):
            here = of(found, case=case, space=space, **wanted)
            sizes, fill = [getattr(one, name) for one in here], "full" if space == "weights" else "none"
            _dots(axes, look, sizes, *_variances(here), fill, label=f"{space}: {case}" if axes is by_depth else None)
            if space == "nodes":
                laws = [np.exp(np.log(one.sampled.law).mean()) for one in here]
                axes.plot(sizes, laws, **joined(sizes, {"color": look["color"], "linewidth": 1.3}))
        for space, line in (("weights", "--"), ("nodes", ":")):
            here = of(found, case=case, space=space, **wanted)
            laws = [one.linear_law for one in here]
            label = f"linear law: number of {space}" if axes is by_depth else None
            sizes = [getattr(one, name) for one in here]
            axes.plot(sizes, laws, label=label, **joined(sizes, {"color": "grey", "linestyle": line, "linewidth": 1.6}))
    for case, look in looks.items():
        for shown in config.widths:
            here = of(found, case=case, space="nodes", width=shown)
            value, error = _variances(here)
            scale = np.array([one.linear_law for one in here])
            size = 4 + 4 * config.widths.index(shown) / max(1, len(config.widths) - 1)
            _dots(imbalance, look, config.depths, value / scale, error / scale, "none", markersize=size)
        wide = mean_field.mean_squares(CASES[case].activation, config.depths[-1], gain=CASES[case].gain)
        imbalance.plot(np.arange(1, config.depths[-1] + 1), wide.imbalance, color=look["color"], linewidth=1.3)
        for space in SPACES:
            here = of(found, case=case, space=space, width=width)
            values = np.array([one.sampled.cosines.mean(axis=1) for one in here])
            error = values.std(axis=1, ddof=1) / values.shape[1] ** 0.5
            _dots(cosine, look, config.depths, values.mean(axis=1), error, "full" if space == "weights" else "none")
            laws = [np.mean((2 / np.pi / (one.sampled.law + 1)) ** 0.5) for one in here]
            cosine.plot(config.depths, laws, **joined(laws, {"color": look["color"], "linewidth": 1.3}))
    relative = "E‖ĝ − g‖² / ‖g‖²"
    by_depth.set(title=f"relative variance against depth, {width} units a layer", xlabel="layers", ylabel=relative)
    by_width.set(title=f"relative variance against width, {middle} layers", xlabel="units a layer", ylabel=relative)
    units = " to ".join(
        str(w) for w in (config.widths if len(config.widths) == 1 else config.widths[:: len(config.widths) - 1])
    )
    imbalance.set(
        title=f"node perturbation over its linear law; larger markers: {units} units\n"
        "lines: very wide networks, ⟨q⟩⟨d⟩/⟨qd⟩ over layers", xlabel="layers", ylabel="variance / number of nodes",
    )  # fmt: skip
    cosine.set(
        title="cosine of one estimate and the gradient\nlines: √(2/πs), for layers of equal norms",
        xlabel="layers",
        ylabel=f"cosine, {width} units a layer",
    )
    for axes, ticks in (
        (by_depth, config.depths),
        (imbalance, config.depths),
        (by_width, config.widths),
        (cosine, config.depths),
    ):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.minorticks_off()
    handles, labels = by_depth.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    canvas.suptitle(
        f"One sample, one example, {config.networks} random networks of {config.estimates} estimates each: mean and "
        "standard error\nmarkers: measured; coloured lines: the law given each network's axons and credit"
    )
    return canvas


def _variances(here: Sequence[Measurement]) -> tuple[np.ndarray, np.ndarray]:
    logs, errors = np.array([one.sampled.log_variance for one in here]).T
    return np.exp(logs), np.exp(logs) * errors


def _dots(
    axes: Any,
    look: Any,
    x: Any,
    y: Any,
    error: Any,
    fillstyle: str,
    *,
    label: str | None = None,
    markersize: float = 6.5,
) -> None:
    axes.errorbar(
        x, y, error, color=look["color"], marker=look["marker"], markersize=markersize, fillstyle=fillstyle,
        linestyle="none", label=label,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.variance_depth")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
