"""Bias, variance, cosine and signal-to-noise ratio against a reference, with standard errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.failures import raise_if_known
from nl_jax._core.numerics import divided, dot, in_one_dtype, largest_component, unit_vector, widened
from nl_jax._core.require import gradient_estimator, positive_integer, typed_key
from nl_jax.base import Array, Batch, Failure, GradientEstimator, Key, Params


class Measurement(NamedTuple):
    """An estimator compared with a reference at one point; every `*_error` is a standard error.

    ĝ are the estimates, g is the reference's gradient and n the number of estimates.

    Attributes:
      reference: g, a tree like the parameters.
      mean: the mean of ĝ.
      bias, bias_error: mean(ĝ) − g per component.
      variance, variance_error: the variance of ĝ per component (unbiased; its error is from the fourth moment).
      cosine, cosine_error: the mean cosine of the angle between one ĝ and g; NaN if g is zero. An estimate of zero
        counts as 0, because it makes no progress.
      relative_bias, relative_bias_error: ‖E ĝ − g‖² / ‖g‖², without bias: the share of the noise, E‖ĝ − E ĝ‖²/n, is
        subtracted, so that an unbiased estimator's is around 0, on either side of it.
      relative_variance, relative_variance_error: E‖ĝ − E ĝ‖² / ‖g‖².
      signal_to_noise, signal_to_noise_error: ‖g‖² / E‖ĝ − E ĝ‖², infinite for an exact estimator.
      zero_estimates: how many of the estimates were zero, as where no unit spiked or a change of the loss was rounded
        away.
    """

    reference: Params
    mean: Params
    bias: Params
    bias_error: Params
    variance: Params
    variance_error: Params
    cosine: Array
    cosine_error: Array
    relative_bias: Array
    relative_bias_error: Array
    relative_variance: Array
    relative_variance_error: Array
    signal_to_noise: Array
    signal_to_noise_error: Array
    zero_estimates: Array | int = 0

    def __str__(self) -> str:
        """The four numbers with their errors, without the trees, and how many estimates were zero if any were."""

        def shown(name: str) -> str:
            value = getattr(self, name)
            try:
                return f"{value:.3g}"
            except TypeError:  # several numbers, or none yet while tracing
                return str(value)

        names = {
            "cosine": "cosine", "relative_bias": "squared relative bias",
            "relative_variance": "relative variance", "signal_to_noise": "signal to noise",
        }  # fmt: skip
        said = [f"{label} {shown(name)} ± {shown(f'{name}_error')}" for name, label in names.items()]
        zero = shown("zero_estimates")
        return ", ".join([*said, f"zero estimates {zero}"] if zero != "0" else said)


class PerEstimate(NamedTuple):
    """Numbers of one estimate, whose deviation from the mean of all is d.

    Attributes:
      cosine: to the reference.
      square: ‖d‖².
      along_bias: ⟨bias, d⟩.
      along_last: ⟨d of the estimate before, d⟩; 0 for the first.
      zero: whether the estimate is zero.
    """

    cosine: Array
    square: Array
    along_bias: Array
    along_last: Array
    zero: Array


def cosine(a: Params, b: Params) -> Array:
    """Computes the cosine of the angle between two trees as vectors, ⟨a, b⟩ / ‖a‖‖b‖; NaN if either is zero.

    Half precision is computed in float32.

    >>> import jax.numpy as jnp
    >>> round(float(cosine({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([1.0, 1.0])})), 4)
    0.7071
    """
    a, b = in_one_dtype((a, b))
    return dot(unit_vector(a), unit_vector(b))


def measure(
    estimator: GradientEstimator,
    reference: GradientEstimator,
    key: Key,
    params: Params,
    batch: Batch,
    *,
    num_estimates: int = 100,
) -> Measurement:
    """Measures bias, variance, cosine and signal-to-noise ratio of an estimator at given parameters and batch.

    This is a pure function: jit it to run fast. Memory does not grow with `num_estimates`; every estimate is computed
    twice.

    Args:
      estimator: the estimator to measure. Each estimate has its own key and the estimator's initial state.
      reference: the estimator to compare with, usually `nl.backprop(objective)`; it is evaluated once.
      key: typed key.
      params: the parameters at which to measure.
      batch: the batch on which to measure.
      num_estimates: independent estimates, at least 2.

    Returns:
      A `Measurement`, at least in float32 for any parameter dtype; NaN under `jax.jit` if an estimate fails. Cosine,
      signal to noise and relative figures do not depend on the scale of the gradients.

    Raises:
      ValueError: if an estimator is not one, `num_estimates` is not a whole number of at least 2, or the key is
        not a typed key.
      FloatingPointError: outside of `jax.jit`, if an estimate fails (see `nl.Info`).

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> objective = lambda w, batch: jnp.sum(w**2) * batch
    >>> estimator = nl.forward_gradient(objective, num_samples=10)
    >>> at = jax.random.key(0), jnp.ones(8), jnp.ones(1)
    >>> m = jax.jit(lambda *at: measure(estimator, nl.backprop(objective), *at, num_estimates=1000))(*at)
    >>> predicted = (8 + 1) / 10  # (P + 1)/K
    >>> bool(abs(m.relative_variance - predicted) < 5 * m.relative_variance_error)
    True
    """
    gradient_estimator("estimator", estimator)
    gradient_estimator("reference", reference)
    n = positive_integer("num_estimates", num_estimates)
    if n < 2:
        raise ValueError("num_estimates must be at least 2: one estimate has no variance")
    typed_key(key)
    state_key, reference_key, sample_key = jax.random.split(key, 3)
    gradient = widened(reference.estimate(reference_key, reference.init(reference_key, params), params, batch)[0])
    # Gradients are measured in units of the reference's largest component, or fourth powers of small ones underflow.
    unit = _unit(gradient)
    exact = divided(gradient, unit)
    state = estimator.init(state_key, params)

    @jax.jit  # traced once for both passes
    def estimate(index: Array) -> tuple[Params, tuple[Failure, ...]]:
        grads, _, info = estimator.estimate(jax.random.fold_in(sample_key, index), state, params, batch)
        return divided(widened(grads), unit), info.failures

    # Two passes with the same keys: moments about the mean itself avoid rounding errors even with a large bias.
    def accumulate(total: Params, index: Array) -> tuple[Params, tuple[Failure, ...]]:
        sample, failures = estimate(index)
        return jax.tree.map(lambda t, x, g: t + (x - g) / n, total, sample, exact), failures

    def spread(carry: tuple[Params, Params, Params], index: Array) -> tuple[tuple[Params, Params, Params], PerEstimate]:
        *sums, before = carry
        sample, _ = estimate(index)
        d = jax.tree.map(jnp.subtract, sample, mean)
        second, fourth = (
            jax.tree.map(lambda s, x, p=p: s + x**p, total, d) for p, total in zip((2, 4), sums, strict=True)
        )
        zero = optax.tree.norm(sample) == 0
        progress = jnp.where(zero & (power > 0), 0, cosine(sample, exact))
        square = optax.tree.norm(d, squared=True)
        return (second, fourth, d), PerEstimate(progress, square, dot(bias, d), dot(before, d), zero)

    zeros = jax.tree.map(jnp.zeros_like, exact)
    bias, failures = jax.lax.scan(accumulate, zeros, jnp.arange(n))
    raise_if_known(failures)
    mean = jax.tree.map(jnp.add, exact, bias)
    power = optax.tree.norm(exact, squared=True)
    (second, fourth, _), each = jax.lax.scan(spread, (zeros, zeros, zeros), jnp.arange(n))
    variance = jax.tree.map(lambda s: s / (n - 1), second)
    variance_error = jax.tree.map(lambda f, v: _variance_error(f / n, v, n), fourth, variance)
    relative = optax.tree.sum(variance) / power
    relative_error = _standard_error(each.square) / power
    return Measurement(
        reference=gradient,
        mean=optax.tree.scale(unit, mean),
        bias=optax.tree.scale(unit, bias),
        bias_error=jax.tree.map(lambda v: unit * jnp.sqrt(v / n), variance),
        variance=jax.tree.map(lambda v: unit * (unit * v), variance),
        variance_error=jax.tree.map(lambda v: unit * (unit * v), variance_error),
        cosine=jnp.mean(each.cosine),
        cosine_error=_standard_error(each.cosine),
        relative_bias=optax.tree.norm(bias, squared=True) / power - relative / n,
        relative_bias_error=_square_bias_error(each, n) / power,
        relative_variance=relative,
        relative_variance_error=relative_error,
        signal_to_noise=1 / relative,
        signal_to_noise_error=jnp.where(relative > 0, relative_error / relative**2, 0),
        zero_estimates=jnp.sum(each.zero),
    )


def _unit(gradient: Params) -> Array:
    """Returns the largest absolute value of any component; 1 where nothing can be divided by it."""
    largest = largest_component(gradient)
    return jnp.where((largest >= jnp.finfo(largest.dtype).tiny) & jnp.isfinite(largest), largest, 1)


def _variance_error(fourth: Array, variance: Array, n: int) -> Array:
    """Computes the standard error of s², with Var(s²) = (μ₄ − σ⁴ (n − 3)/(n − 1)) / n."""
    return jnp.sqrt(jnp.maximum(fourth - variance**2 * (n - 3) / (n - 1), 0) / n)


def _square_bias_error(each: PerEstimate, n: int) -> Array:
    """Computes the standard error of ‖b̂‖² − tr V̂/n, for b = E ĝ − g and the covariance V of ĝ.

    Its variance is 4 bᵀV b/n + 2 tr V²/n². The mean of ⟨b̂, d⟩² is bᵀV b + tr V²/n, and that of ⟨d, d'⟩² over pairs of
    estimates is tr V². The floor, the error where there is no bias, makes the errors of small biases up to a fifth too
    large.
    """
    along, across = jnp.mean(each.along_bias**2), jnp.mean(each.along_last[1:] ** 2)
    return jnp.sqrt(jnp.maximum(4 * along / n - 2 * across / float(n) ** 2, 2 * across / float(n) ** 2))


def _standard_error(samples: Array) -> Array:
    return jnp.std(samples, ddof=1) / samples.shape[0] ** 0.5
