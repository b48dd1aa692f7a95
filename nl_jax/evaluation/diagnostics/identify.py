"""Identifies which of several learning rules produced observed weight changes."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, log_ndtr, logsumexp

from nl_jax._core.numerics import in_one_dtype
from nl_jax._core.require import positive_hyperparameter, positive_integer, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Key, Params
from nl_jax.evaluation.diagnostics.scatter import Scatter, scatter, scattered_evidence


class Trajectory(NamedTuple):
    """Observations of learning; all leaves have the steps on the first axis.

    Attributes:
      params: the parameters before each step.
      batch: the network's batch at each step.
      change: the measured parameter change of each step, a tree like `params`.
      observed: a tree of bool like `params` that marks observed changes; None for all. Unobserved values are ignored
        and may be NaN.
    """

    params: Params
    batch: Batch
    change: Params
    observed: Params | None = None


class Identified(NamedTuple):
    """The result of `identify`, by candidate.

    Attributes:
      posterior: {name: probability}; they sum to 1.
      log_evidence: {name: log p(changes | candidate)}, up to a constant shared by all candidates.
      rate: {name: η, the best-fitting learning rate, at least 0}; accurate to a few percent for random candidates.
    """

    posterior: dict[str, Array]
    log_evidence: dict[str, Array]
    rate: dict[str, Array]


def identify(
    trajectory: Trajectory,
    candidates: Mapping[str, GradientEstimator],
    key: Key,
    *,
    noise: float | Array | None = None,
    prior: Mapping[str, float] | None = None,
    num_samples: int = 1,
) -> Identified:
    """Computes the posterior over candidate rules by Bayes' rule (after Nayebi et al. 2020 and Portes et al. 2022).

    A candidate predicts the changes d = −η g + noise. g concatenates its estimates at all steps; the noise is Gaussian
    with standard deviation σ, independent across weights and steps. The total distance that the rule moved the weights,
    A = η‖g‖ ≥ 0, has a flat prior, the same for all candidates at any scale, and is integrated out. σ is integrated out
    too, with prior 1/σ, unless it is given. Both integrals have closed forms. With n observed changes, a = −d·g/‖g‖ and
    R² = ‖d‖² − a²:

        log p(d) = −R²/2σ² + log Φ(a/σ)                       σ given
        log p(d) = −(n − 1) log R + log T_{n−1}(a √(n−1)/R)   σ unknown, T Student's distribution function

    The estimates of a random candidate scatter about their mean. The scatter is measured from `num_samples` estimates
    at each step as ĝ = c m + √(λ v) ε: m and v are the mean and variance of each weight's estimate, and (c, λ) are the
    sizes of single estimates along the mean and around it. The integrals are then sums over η and σ
    (`scattered_evidence`), with A² = η² E‖ĝ‖². With `num_samples` of 1 a random candidate is represented by a single
    estimate, as if it were not random, and is hardly ever identified. This is a pure function: jit it to run fast.

    Args:
      trajectory: a `Trajectory` of plain gradient steps. With momentum a step is not proportional to its own estimate.
      candidates: {name: estimator}; local rules are made by `nl.local_learning`. Each has its initial state at every
        step; any feedback weights in it are drawn from `key`.
      key: typed key.
      noise: σ, above 0, of one observed change; None if unknown.
      prior: {name: probability}, up to scale; uniform by default.
      num_samples: estimates of each candidate at each step. Candidates that are not random need 1; random ones need
        several times the number of weights.

    Returns:
      An `Identified`, computed in float32 at least. The posterior is NaN if nothing was observed.

    Raises:
      ValueError: if there are fewer than two candidates, priors are not numbers above 0 for all of them, the
        trajectory's trees do not fit together, noise is not a finite number above 0, or the key is not a typed key.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 2], activation=nl.activations.identity(), bias=False)
    >>> candidates = {name: nl.local_learning(net.apply, getattr(nl.rules, name)()) for name in ("hebb", "oja")}
    >>> W, x, noise = (jax.random.normal(jax.random.key(i), (10, *s)) for i, s in enumerate([(3, 2), (4, 3), (3, 2)]))
    >>> params = {"output": {"weight": W}}
    >>> def grown(W, x):
    ...     return nl.rules.oja().change((), {"weight": W}, x, x @ W, None)[0]["weight"]
    >>> change = {"output": {"weight": 0.1 * jax.vmap(grown)(W, x) + 0.05 * noise}}
    >>> found = identify(Trajectory(params, x, change), candidates, jax.random.key(3))
    >>> bool(found.posterior["oja"] > 0.99), bool(abs(found.rate["oja"] - 0.1) < 0.02)
    (True, True)
    """
    typed_key(key)
    names = list(candidates)
    weights = _prior(names, prior)
    count = positive_integer("num_samples", num_samples)
    sigma = None if noise is None else jnp.asarray(positive_hyperparameter("noise", noise))
    _require_fitting(trajectory)
    seen = trajectory.observed
    if seen is None:
        seen = jax.tree.map(lambda change: jnp.ones(jnp.shape(change), bool), trajectory.change)
    mask = _by_step(seen)
    d = jnp.where(mask, _by_step(in_one_dtype(trajectory.change)), 0)
    n = jnp.sum(mask, dtype=d.dtype)

    def weigh(estimated: Scatter) -> tuple[Array, Array]:
        """Computes log p(d) and η."""
        g = estimated._replace(mean=-estimated.mean).seen(mask)
        length = jnp.linalg.norm(g.mean)
        safe = jnp.where(length > 0, length, 1)
        projection = jnp.vdot(d, g.mean) / safe
        fixed = evidence(jnp.vdot(d, d), projection, n, sigma), jnp.maximum(projection, 0) / safe
        if count == 1:
            return fixed
        # Rounding differences between identical estimates do not count as scatter.
        random = jnp.sum(g.variance) > 1e3 * jnp.finfo(d.dtype).eps ** 2 * length**2
        return jax.tree.map(lambda x, y: jnp.where(random, x, y), scattered_evidence(d, n, g, sigma), fixed)

    estimated = [
        _estimates(candidates[name], jax.random.fold_in(key, index), trajectory, count)
        for index, name in enumerate(names)
    ]
    log_evidence, rate = jax.lax.map(weigh, jax.tree.map(lambda *x: jnp.stack(x), *estimated))
    logs = log_evidence + jnp.log(jnp.asarray([weights[name] for name in names], d.dtype))
    posterior = jnp.where(n > 0, jnp.exp(logs - logsumexp(logs)), jnp.nan)
    return Identified(*(dict(zip(names, values, strict=True)) for values in (posterior, log_evidence, rate)))


def evidence(power: Array, a: Array, n: Array, sigma: Array | None) -> Array:
    """Computes log p(d) from ‖d‖², the projection a of d on the prediction, and the number n of changes."""
    rest = jnp.maximum(power - a**2, jnp.finfo(a.dtype).eps * power)
    if sigma is not None:
        return -rest / (2 * sigma.astype(a.dtype) ** 2) + log_ndtr(a / sigma.astype(a.dtype))
    nu = n - 1
    # T(t) = 1 − I/2 for t > 0 and I/2 below, I the incomplete beta function at ν/(ν + t²) = R²/‖d‖²
    tail = betainc(nu / 2, jnp.full_like(nu, 0.5), rest / power) / 2
    below = jnp.log(jnp.maximum(tail, jnp.finfo(a.dtype).tiny))
    return -nu / 2 * jnp.log(rest) + jnp.where(a > 0, jnp.log1p(-tail), below)


def _estimates(candidate: GradientEstimator, key: Key, trajectory: Trajectory, count: int) -> Scatter:
    """Computes the candidate's estimates at all steps, `count` per step."""
    init_key, sample_key = jax.random.split(key)

    def at_step(given: tuple[Array, Params, Batch]) -> Scatter:
        index, params, batch = given
        state = candidate.init(init_key, params)
        own = jax.random.split(jax.random.fold_in(sample_key, index), count)
        estimates = jax.vmap(lambda k: candidate.estimate(k, state, params, batch)[0])(own)
        return scatter(_by_step(in_one_dtype(estimates)))

    steps = jnp.shape(jax.tree.leaves(trajectory.params)[0])[0]
    return jax.lax.map(at_step, (jnp.arange(steps), trajectory.params, trajectory.batch))


def _by_step(tree: Params) -> Array:
    """Concatenates all leaves to [steps, n]."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([jnp.reshape(leaf, (jnp.shape(leaf)[0], -1)) for leaf in leaves], axis=1)


def _prior(names: list[str], prior: Mapping[str, float] | None) -> dict[str, float]:
    if len(names) < 2:
        raise ValueError(f"candidates must map at least two names to estimators, got {names}: there is nothing to tell")
    given = dict.fromkeys(names, 1.0) if prior is None else dict(prior)
    if set(given) != set(names) or not all(0 < p < math.inf for p in given.values()):
        raise ValueError(f"prior must give each of {', '.join(names)} a finite number above 0, got {prior!r}")
    return given


def _require_fitting(trajectory: Trajectory) -> None:
    """Raises a ValueError unless `change` and `observed` fit the parameters, and the batch their number of steps."""
    shapes = jax.tree.map(jnp.shape, trajectory.params)
    for name in ("change", "observed"):
        tree = getattr(trajectory, name)
        if (tree is not None or name == "change") and jax.tree.map(jnp.shape, tree) != shapes:
            raise ValueError(
                f"trajectory.{name} must be a tree of the shapes of trajectory.params, steps first: {shapes}, "
                f"got {jax.tree.map(jnp.shape, tree)}"
            )
    steps = jnp.shape(jax.tree.leaves(trajectory.params)[0])[:1]
    for name in ("params", "batch"):
        found = [jnp.shape(leaf) for leaf in jax.tree.leaves(getattr(trajectory, name))]
        if not steps or any(shape[:1] != steps for shape in found):
            raise ValueError(
                f"trajectory.{name} must have the same number of steps on the first axis of every leaf, {steps} as in "
                f"trajectory.params; got leaves of shape {', '.join(map(str, found))}"
            )
