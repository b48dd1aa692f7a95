"""Measures signal to noise per second and per evaluation on the user's own network."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from nl_jax._core.failures import raise_if_failed
from nl_jax._core.numerics import divided, dot, largest_component
from nl_jax._core.require import gradient_estimator, positive_integer, typed_key
from nl_jax.base import Batch, GradientEstimator, Key, Params
from nl_jax.evaluation.diagnostics.accuracy import measure
from nl_jax.evaluation.diagnostics.timing import Spread, interleaved, spread


class EstimatorEfficiency(NamedTuple):
    """The results of one estimator; `*_error` is a standard error, 0 for infinite figures.

    Attributes:
      seconds: seconds per estimate, median and quartiles.
      evaluations: forward passes per estimate.
      cosine, cosine_error: the cosine of one estimate to the gradient.
      signal_to_noise, signal_to_noise_error: ⟨E ĝ, g⟩²/(‖g‖² E‖ĝ − E ĝ‖²) of one estimate. It equals ‖g‖²/E‖ĝ − g‖² for
        an unbiased estimator, and does not depend on the scale of an uncalibrated one. Averaging n estimates multiplies
        it by n, so the cost of signal does not depend on the number of samples in one estimate. It is infinite where
        estimates are equal up to rounding, whether or not they are the gradient: the cosine shows their bias.
      per_second, per_second_error: signal to noise per second.
      per_evaluation, per_evaluation_error: signal to noise per evaluation.
    """

    seconds: Spread
    evaluations: int
    cosine: float
    cosine_error: float
    signal_to_noise: float
    signal_to_noise_error: float
    per_second: float
    per_second_error: float
    per_evaluation: float
    per_evaluation_error: float


class Efficiency(NamedTuple):
    """The candidates' rows by name; available as a table (`str` or `print`), a figure (`plot`) or data (`as_dict`)."""

    rows: dict[str, EstimatorEfficiency]

    def __str__(self) -> str:
        width = max(len("estimator"), *map(len, self.rows))
        head = f"{'estimator':{width}}  {'ms/estimate':>11}  {'evals':>6}  {'cosine':>15}"
        head += f"  {'SNR/second':>20}  {'SNR/1000 evals':>20}"
        lines = [
            f"{name:{width}}  {1e3 * row.seconds.median:11.2f}  {row.evaluations:6d}  "
            f"{row.cosine:7.3f} ± {row.cosine_error:4.3f}  {_figure(row.per_second, row.per_second_error):>20}  "
            f"{_figure(1e3 * row.per_evaluation, 1e3 * row.per_evaluation_error):>20}"
            for name, row in self.rows.items()
        ]
        return "\n".join([head, *lines])

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Returns plain numbers for JSON; infinite ones are None."""

        def plain(value: Any) -> Any:
            return value._asdict() if isinstance(value, Spread) else value if math.isfinite(value) else None

        return {name: {key: plain(value) for key, value in row._asdict().items()} for name, row in self.rows.items()}

    def plot(self) -> Any:
        """Plots signal to noise per second and per 1,000 evaluations with standard errors, as a Matplotlib figure.

        Estimators without noise are omitted.

        Raises:
          ImportError: if Matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot needs Matplotlib: pip install matplotlib") from error
        noisy = {name: row for name, row in reversed(self.rows.items()) if math.isfinite(row.per_second)}
        canvas = Figure(figsize=(10, 1.4 + 0.34 * len(noisy)), layout="constrained")
        left, right = canvas.subplots(1, 2, sharey=True)
        for axes, scale, value, label in (
            (left, 1, "per_second", "signal to noise per second"),
            (right, 1e3, "per_evaluation", "signal to noise per 1,000 evaluations"),
        ):
            middle = scale * np.array([getattr(row, value) for row in noisy.values()])
            deviation = scale * np.array([getattr(row, f"{value}_error") for row in noisy.values()])
            axes.errorbar(
                middle, list(noisy), xerr=deviation, fmt="o", color="#0072B2", ecolor="#000000", elinewidth=1.5
            )
            axes.set(xscale="log", xlabel=label)
            axes.grid(alpha=0.25, which="both", axis="x")
            axes.margins(y=0.06)
            axes.spines[["top", "right"]].set_visible(False)
        return canvas


def efficiency(
    estimators: Mapping[str, GradientEstimator],
    objective: Any,
    params: Params,
    batch: Batch,
    *,
    key: Key | None = None,
    num_estimates: int = 100,
    rounds: int = 15,
    progress: bool = True,
) -> Efficiency:
    """Measures each candidate's signal to noise per second and per evaluation, on this network, batch and machine.

    Signal and noise are measured against `jax.grad` of the objective's mean loss. Times are medians of interleaved
    repeats of the jitted estimate.

    Args:
      estimators: candidates by name.
      objective: the per-example objective whose gradient they estimate; it must be differentiable.
      params: the parameters at which to measure; the ranking may change during training.
      batch: the batch on which to measure.
      key: typed key; by default one with seed 0.
      num_estimates: independent estimates per candidate, at least 2; each is computed twice.
      rounds: timed repeats, at least 1.
      progress: whether to show progress bars, if tqdm is installed.

    Returns:
      An `Efficiency`; print it, or call its `plot()`.

    Raises:
      ValueError: if there is no candidate, one is not an estimator, or a number is out of range.
      FloatingPointError: if an estimate fails (see `nl.Info`).

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> objective = lambda w, batch: (batch @ w) ** 2
    >>> candidates = {"backprop": nl.backprop(objective), "weights": nl.weight_perturbation(objective, num_samples=8)}
    >>> table = efficiency(candidates, objective, jnp.ones(4), jnp.ones([2, 4]), num_estimates=20, progress=False)
    >>> bool(table.rows["backprop"].per_second > table.rows["weights"].per_second > 0)
    True
    """
    if not isinstance(estimators, Mapping) or not estimators:
        raise ValueError(f"estimators must map names to at least one candidate, got {estimators!r}")
    for name, candidate in estimators.items():
        gradient_estimator(f"estimators[{name!r}]", candidate)
    rounds = positive_integer("rounds", rounds)
    key = jax.random.key(0) if key is None else key
    typed_key(key)
    reference = _autodiff(objective)

    runs = {name: _Repeated(estimator, key, params, batch) for name, estimator in estimators.items()}
    seconds = interleaved(runs, rounds, progress=progress)
    rows = {}
    for name, run in runs.items():
        info = run()[2]
        raise_if_failed(info.failures)
        evaluations = int(info.evaluations)
        quality = jax.jit(lambda *at, e=run.warm(): measure(e, reference, *at, num_estimates=num_estimates))
        rows[name] = _row(seconds[name], evaluations, quality(key, params, batch))
    return Efficiency(rows)


class _Repeated:
    """Runs an estimator repeatedly and carries its state, so that estimators which learn from past steps can do so."""

    def __init__(self, estimator: GradientEstimator, key: Key, params: Params, batch: Batch) -> None:
        self.estimator, self.state, self.at = estimator, estimator.init(key, params), (params, batch)
        self.key, self.compiled = key, jax.jit(estimator.estimate)

    def __call__(self) -> Any:
        grads, self.state, info = self.compiled(self.key, self.state, *self.at)
        return grads, self.state, info

    def warm(self) -> GradientEstimator:
        """Returns the estimator with its present state as the initial state."""
        return self.estimator._replace(init=lambda key, params: self.state)


def _row(seconds: np.ndarray, evaluations: int, quality: Any) -> EstimatorEfficiency:
    # The standard error of a median for normal deviations: 0.93 times the interquartile range over √rounds.
    time = spread(seconds)
    time_error = 0.93 * (time.high - time.low) / len(seconds) ** 0.5 / time.median
    unit = largest_component(quality.reference)  # in which no square underflows
    mean, reference = divided(quality.mean, unit), divided(quality.reference, unit)
    power = optax.tree.norm(reference, squared=True)
    scale = float(dot(mean, reference) / power)
    snr, snr_error = (scale**2 * float(x) for x in (quality.signal_to_noise, quality.signal_to_noise_error))
    noise, rounding = quality.relative_variance * power, np.finfo(np.float32).eps
    noiseless = bool(noise < rounding * optax.tree.norm(mean, squared=True))
    snr, relative = (math.inf, 0.0) if noiseless else (snr, snr_error / snr if snr else math.nan)
    per_second, per_evaluation = snr / time.median, snr / evaluations
    return EstimatorEfficiency(
        seconds=time,
        evaluations=evaluations,
        cosine=float(quality.cosine),
        cosine_error=float(quality.cosine_error),
        signal_to_noise=snr,
        signal_to_noise_error=0.0 if noiseless else snr_error,
        per_second=per_second,
        per_second_error=0.0 if noiseless else per_second * math.hypot(relative, time_error),
        per_evaluation=per_evaluation,
        per_evaluation_error=0.0 if noiseless else per_evaluation * relative,
    )


def _autodiff(objective: Any) -> GradientEstimator:
    def estimate(key: Key, state: Any, params: Params, batch: Batch) -> Any:
        del key
        return jax.grad(lambda p: objective(p, batch).mean())(params), state, None

    return GradientEstimator(lambda key, params: (), estimate)


def _figure(value: float, error: float) -> str:
    if math.isinf(value) or math.isnan(value):
        return "no noise" if value > 0 else "not a number"
    return f"{value:,.0f} ± {error:,.0f}" if value >= 1000 else f"{value:.3g} ± {error:.2g}"
