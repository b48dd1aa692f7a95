"""Which of several learning rules was at work, from observed changes of weights."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.special import betainc, log_ndtr, logsumexp

from nl_jax.base import Array, Batch, GradientEstimator, Key, Params
from nl_jax.checks import positive_hyperparameter, positive_integer, typed_key


class Trajectory(NamedTuple):
    """What was observed of learning; all leaves have the steps along a first axis.

    Attributes:
      params: the parameters before each step.
      batch: what the network was shown at each step.
      change: what was read of each step's change of the parameters, a tree like `params`.
      observed: a tree like `params` of bool, whether a change was observed; None for all. Others are not looked at,
        NaN included.
    """

    params: Params
    batch: Batch
    change: Params
    observed: Params | None = None


class Identified(NamedTuple):
    """What `identify` found, by candidate.

    Attributes:
      posterior: {name: probability}; they sum to 1.
      log_evidence: {name: log p(changes | candidate)}, up to a number that is the same for all.
      rate: {name: η, the learning rate that fits best, at least 0}.
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
    """The posterior over candidate learning rules, by Bayes' rule (after Nayebi et al. 2020 and Portes et al. 2022).

    A candidate predicts the changes d = −η g + noise, g being its estimates at all steps side by side and the noise
    Gaussian of standard deviation σ, independent from weight to weight and step to step. How far the rule moved the
    weights in all, A = η‖g‖ ≥ 0, has a flat prior, the same for all candidates whatever their scale, and is integrated
    out; so is σ, with prior 1/σ, unless it is given. Both integrals are closed: with n observed changes, a = −d·g/‖g‖
    and R² = ‖d‖² − a²

        log p(d) = −R²/2σ² + log Φ(a/σ)                       σ given
        log p(d) = −(n − 1) log R + log T_{n−1}(a √(n−1)/R)   σ unknown, T Student's distribution function

    Candidates that are random go by their mean, of `num_samples` estimates; what one estimate scatters about it counts
    as part of the noise, which then is not known and should be left open. That makes random candidates of little
    signal harder to tell apart than they are. A pure function: jit it to run fast.

    Args:
      trajectory: a `Trajectory`, of plain gradient steps; by momentum a step is no longer its own estimate.
      candidates: {name: estimator}; local rules by `nl.local_learning`. Each has its initial state at every step;
        feedback weights in it are those that it draws from `key`.
      key: typed key.
      noise: σ, above 0, of one observed change; None if it is not known.
      prior: {name: probability}, up to scale; the same for all by default.
      num_samples: estimates averaged at each step; 1 is enough of candidates that are not random.

    Returns:
      An `Identified`. The posterior is NaN where nothing was observed.

    Raises:
      ValueError: if there are fewer than two candidates, priors are not numbers above 0 for all of them, the
        trajectory's trees do not fit together, noise is not a finite number above 0, or the key is not a typed one.

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
    mask = ravel_pytree(seen)[0]
    d = jnp.where(mask, ravel_pytree(trajectory.change)[0], 0)
    n = jnp.sum(mask, dtype=d.dtype)

    log_evidence, rate = {}, {}
    for index, name in enumerate(names):
        estimated = _estimates(candidates[name], jax.random.fold_in(key, index), trajectory, count)
        g = jnp.where(mask, -ravel_pytree(estimated)[0], 0)
        length = jnp.linalg.norm(g)
        projection = jnp.vdot(d, g) / jnp.where(length > 0, length, 1)
        log_evidence[name] = evidence(jnp.vdot(d, d), projection, n, sigma)
        rate[name] = jnp.maximum(projection, 0) / jnp.where(length > 0, length, 1)
    logs = jnp.stack([log_evidence[name] + math.log(weights[name]) for name in names])
    posterior = jnp.exp(logs - logsumexp(logs))
    posterior = jnp.where(n > 0, posterior, jnp.nan)
    return Identified(dict(zip(names, posterior, strict=True)), log_evidence, rate)


def evidence(power: Array, a: Array, n: Array, sigma: Array | None) -> Array:
    """log p(d) from ‖d‖², its projection a on what is predicted, and the number n of changes."""
    rest = jnp.maximum(power - a**2, jnp.finfo(a.dtype).eps * power)
    if sigma is not None:
        return -rest / (2 * sigma.astype(a.dtype) ** 2) + log_ndtr(a / sigma.astype(a.dtype))
    nu = n - 1
    # T(t) = 1 − I/2 for t > 0 and I/2 below, I the incomplete beta function at ν/(ν + t²) = R²/‖d‖²
    tail = betainc(nu / 2, jnp.full_like(nu, 0.5), rest / power) / 2
    below = jnp.log(jnp.maximum(tail, jnp.finfo(a.dtype).tiny))
    return -nu / 2 * jnp.log(rest) + jnp.where(a > 0, jnp.log1p(-tail), below)


def _estimates(candidate: GradientEstimator, key: Key, trajectory: Trajectory, count: int) -> Params:
    """The candidate's estimates at all steps, a mean over `count` of them each."""
    init_key, sample_key = jax.random.split(key)

    def at_step(given: tuple[Array, Params, Batch]) -> Params:
        index, params, batch = given
        state = candidate.init(init_key, params)
        own = jax.random.split(jax.random.fold_in(sample_key, index), count)
        grads = jax.vmap(lambda k: candidate.estimate(k, state, params, batch)[0])(own)
        return jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)

    steps = jnp.shape(jax.tree.leaves(trajectory.params)[0])[0]
    return jax.lax.map(at_step, (jnp.arange(steps), trajectory.params, trajectory.batch))


def _prior(names: list[str], prior: Mapping[str, float] | None) -> dict[str, float]:
    if len(names) < 2:
        raise ValueError(f"candidates must map at least two names to estimators, got {names}: there is nothing to tell")
    given = dict.fromkeys(names, 1.0) if prior is None else dict(prior)
    if set(given) != set(names) or not all(0 < p < math.inf for p in given.values()):
        raise ValueError(f"prior must give each of {', '.join(names)} a finite number above 0, got {prior!r}")
    return given


def _require_fitting(trajectory: Trajectory) -> None:
    """ValueError unless changes, and what says which were observed, are like the parameters."""
    shapes = jax.tree.map(jnp.shape, trajectory.params)
    for name in ("change", "observed"):
        tree = getattr(trajectory, name)
        if (tree is not None or name == "change") and jax.tree.map(jnp.shape, tree) != shapes:
            raise ValueError(
                f"trajectory.{name} must be a tree of the shapes of trajectory.params, steps first: {shapes}, "
                f"got {jax.tree.map(jnp.shape, tree)}"
            )
