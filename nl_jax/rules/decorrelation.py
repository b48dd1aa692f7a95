"""Decorrelates the inputs of layers by a rule local to each layer (Ahmad et al. 2022)."""

from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import in_one_dtype
from nl_jax._core.paths import path_name
from nl_jax._core.products import unfold
from nl_jax._core.require import layered, nonnegative_number, per_example, typed_key
from nl_jax.base import DECORRELATION, Array, Batch, GradientEstimator, Info, Key, Objective, Params, State, stateless
from nl_jax.propagation import Site, local
from nl_jax.rules.rule import mean_outer


def decorrelation(objective: Objective, *, kappa: float = 0.0) -> GradientEstimator:
    """Changes every R so that its outputs q = x R become uncorrelated; all other parameters do not change.

        ΔR = −R [(1 − κ) C + κ V],   C = ⟨q qᵀ⟩ without its diagonal,   V = diag(⟨q²⟩ − 1)

    With κ = 0 this is the rule of Ahmad et al. 2022 and of Dalm et al. 2023, R ← R − η (⟨q qᵀ⟩ − diag ⟨q²⟩) R for
    columns q = R x. κ > 0 also drives variances to 1 (Ahmad 2024). Correlations are second moments: means are not
    subtracted. The rule sees only a layer's own inputs and R. At convergence C is 0, and V is also 0 if κ is above 0.
    With κ = 0 small steps preserve det R, because C has no trace: inputs are decorrelated without changing their scale.

    `grads` are minus the change, so `optax.sgd(η)` makes R ← R + η ΔR. The weights learn by any other estimator:
    `nl.partition(objective, {"*/decorrelation": nl.decorrelation, "*": nl.node_perturbation})`. R can have a learning
    rate of its own through `optax.multi_transform`.

    Args:
      objective: a per-example objective that takes `propagate`, of a network with `nl.connections.decorrelated`. Its
        losses are only reported.
      kappa: κ, from 0 to 1.

    Returns:
      An estimator without randomness or state. It costs 2 evaluations: a forward pass and as much again for the
      changes. In a loop over time the changes of all steps are summed.

    Raises:
      ValueError: if the objective takes no `propagate` or `kappa` is out of range; when run, if no layer has a
        parameter named "decorrelation", or such a parameter is not multiplied once by its inputs.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh(), decorrelated=True)
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> estimator = nl.partition(objective, {"*/decorrelation": nl.decorrelation, "*": nl.node_perturbation})
    >>> key, params = jax.random.key(0), net.init(jax.random.key(1))
    >>> state = estimator.init(key, params)
    >>> grads, state, info = jax.jit(estimator.estimate)(key, state, params, (jnp.ones([5, 3]), jnp.zeros(5, int)))
    >>> (grads["hidden1"]["decorrelation"].round(1) + 0.0).tolist()  # all inputs alike
    [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    layered("decorrelation", objective)
    kappa = nonnegative_number("kappa", kappa)
    if kappa > 1:
        raise ValueError(f"kappa must be at most 1, the share of unit variance in the rule; got {kappa}")

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        met: dict[str, Any] = {}

        def respond(site: Site, nu: Array) -> Array | None:
            """Returns ⟨−ΔR, R⟩; its derivative by R is −ΔR, whether R is a layer's, a slice of a stack or a part."""
            places = _places(site.params)
            if not places:
                return None
            leaves = jax.tree.leaves(site.params)
            passed = [(leaves[i], x) for i, x in zip(places, _inputs(site, places), strict=True)]
            met[site.name] = nu.dtype
            minus = [jax.lax.stop_gradient(-change(R, x @ R, kappa)) for R, x in passed]
            return sum((jnp.vdot(m, R) for m, (R, _) in zip(minus, passed, strict=True)), start=jnp.zeros((), nu.dtype))

        run = local(objective, respond)(params, batch)
        if not met:
            raise ValueError(
                f"no layer has a parameter {DECORRELATION!r}: join layers by nl.connections.decorrelated(…), or build "
                "the network by nl.mlp(…, decorrelated=True)"
            )
        losses = per_example(run.outputs)
        grads = run.pull(jnp.zeros_like(losses), {name: jnp.ones((), dtype) for name, dtype in met.items()})
        return grads, state, Info(jnp.mean(losses), jnp.int32(2))

    return GradientEstimator(stateless, estimate)


def change(R: Array, q: Array, kappa: float) -> Array:
    """Computes ΔR = −R [(1 − κ) C + κ V] for one layer.

    Args:
      R: [inputs, inputs].
      q: the layer's inputs multiplied by R, [examples, inputs].
      kappa: κ.
    """
    dtype = R.dtype
    R, q = in_one_dtype((R, q))  # in half precision, moments of many inputs overflow
    moments = mean_outer(q, q)
    diagonal = jnp.diag(jnp.diagonal(moments))
    V = diagonal - jnp.eye(len(R), dtype=R.dtype)
    return (-R @ ((1 - kappa) * (moments - diagonal) + kappa * V)).astype(dtype)


def _places(params: Params) -> list[int]:
    """Returns the indices of the layer's R among the leaves of its parameters, one per decorrelating connection."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [i for i, path in enumerate(paths) if path and path_name(path[-1:]) == DECORRELATION]


def _inputs(site: Site, places: list[int]) -> list[Array]:
    try:
        return unfold(site.connection, site.params, *site.inputs, which=places)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"layer {site.name!r} does not multiply its {DECORRELATION!r} once by its inputs, as "
            f"`x @ params[{DECORRELATION!r}]`: {error}"
        ) from error
