"""Dual propagation: the mean of a unit's two states goes up, their difference comes down (Høier et al. 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.require import layered, per_example, positive_hyperparameter
from nl_jax.base import (
    Array,
    Axons,
    Batch,
    Failure,
    GradientEstimator,
    Info,
    Key,
    LayerCredit,
    Objective,
    Params,
    State,
    stateless,
)  # fmt: skip
from nl_jax.estimators.lagrangian.lagrangian import stationarity
from nl_jax.estimators.lagrangian.relaxation import Relaxation, distance, relax
from nl_jax.propagation import Site, interpret

Offsets = dict[str, tuple[Array, Array]]
"""Zero offsets of ν and s̄ of each layer, for the derivatives with respect to them: δ and z."""


class _Found(NamedTuple):
    """The result of the sweeps: means s̄ and ∂C/∂s̄ by layer, losses, the gradient, sweeps taken, failures."""

    means: dict[str, Array]
    credit: dict[str, tuple[Array, Array]]
    losses: Array
    grads: Params
    taken: Array
    failures: tuple[Failure, ...]


def dual_propagation(
    objective: Objective, *, beta: float | Array = 0.1, num_steps: int | Array = 1, tolerance: float = 0.0
) -> GradientEstimator:
    """Computes the gradient from units with states s⁺ and s⁻: dual propagation (Høier, Staudt & Zach 2023), α = ½.

        s_l^± = f_l(ν_l ± ½ u_l),   s̄_l = ½ (s_l⁺ + s_l⁻),   ν_l = W_l s̄_{l−1} + b_l
        u_l = Σ_k (∂ν_k/∂s̄_l)ᵀ (s_k⁺ − s_k⁻) − β ∂C/∂s̄_l       over the layers k above that read layer l
        ∂E/∂W_l ≈ −(1/β) ⟨(s_l⁺ − s_l⁻) s̄_{l−1}ᵀ⟩

    The mean goes up, the difference comes down, and each layer is solved in closed form. These are the stationary
    points of Σ_l [E_l(s_l⁺, s̄_{l−1}) − E_l(s_l⁻, s̄_{l−1})] + β C with E_l = G_l(s_l) − s_lᵀ ν_l and G_l' = f_l⁻¹: the
    paper's objective for α = ½, except that the loss is evaluated at the mean of the output states. Any loss can
    therefore nudge, without its own proximal step.

    A finite difference replaces the derivative: (s⁺ − s⁻)/β = −[f(ν + ½βz) − f(ν − ½βz)]/β with z = −u/β. Where f is
    linear between the two states, as relu is unless its kink lies there, the estimate is backpropagation's up to
    rounding, at any β. Where f is curved, the error is of order β².

    A sweep is a forward pass with the u of the previous sweep (0 in the first one) and a backward pass that recomputes
    u. One sweep is enough where f is linear. Where f is curved, the means move a little, and more sweeps converge to
    the equations above.

    Args:
      objective: a per-example objective that takes `propagate`. An activation that is not elementwise must have a
        symmetric derivative, as the softmax has; values it holds besides ν receive their ordinary derivative.
      beta: β, above 0. In float32 the difference of states has a rounding error of 10⁻⁷, amplified by 1/(β |z|).
      num_steps: the maximum number of sweeps, at least 1.
      tolerance: sweeps end once u changes by at most this fraction of its change in the first sweep, in [0, 1).

    Returns:
      An estimator without state or randomness: 2 evaluations per sweep and 1 more. Its `info.residuals` is the
      Lagrangian's `KKT` at x = s̄ and λ = −z; its `credit` has z and δ = −(s⁺ − s⁻)/β at x = s̄.

    Raises:
      ValueError: if the objective takes no `propagate` or a setting is out of range; when run, if layers share a name.
      FloatingPointError: when run, if sweeps diverge; under `jax.jit` see `info.failures`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 8, 8, 2], activation=nl.activations.relu())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> at = jax.random.key(0), (), net.init(jax.random.key(1)), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> ours, _, info = jax.jit(dual_propagation(objective).estimate)(*at)
    >>> exact, _, _ = jax.jit(nl.backprop(objective).estimate)(*at)
    >>> bool(jnp.allclose(ours["hidden1"]["weight"], exact["hidden1"]["weight"], atol=1e-5)), int(info.evaluations)
    (True, 3)
    """
    layered("dual_propagation", objective)
    positive_hyperparameter("beta", beta)
    relaxation = Relaxation(num_steps, tolerance).checked()
    report = stationarity(objective)

    def run(params: Params, offsets: Offsets, batch: Batch, pulls: Axons) -> tuple[Array, Any]:
        """Runs forward once; its derivative is the backward pass."""

        def layer(site: Site, given: tuple[tuple[Array, Array], Array]) -> tuple[Array, Array]:
            (of_nu, of_mean), u = given
            mean = _mean(site, site.preactivation() + of_nu, u, beta) + of_mean
            return mean, mean

        losses, means = interpret(objective, layer)(params, batch, {n: (offsets[n], pulls[n]) for n in offsets})
        return jnp.sum(per_example(losses)), (losses, means)

    def sweeps(params: Params, batch: Batch) -> _Found:
        still = _still(objective, params, batch)

        def sweep(pulls: dict[str, Array]) -> tuple[dict[str, Array], Array]:
            found = jax.grad(run, argnums=1, has_aux=True)(params, still, batch, pulls)[0]
            moved = {name: -jnp.asarray(beta, z.dtype) * z for name, (_, z) in found.items()}
            return moved, distance(jax.tree.map(jnp.subtract, moved, pulls))

        remedy = f"beta={beta}: choose a smaller one"
        one_less = Relaxation(relaxation.num_steps - 1, relaxation.tolerance)
        pulls, taken, failures = relax(sweep, {name: x for name, (_, x) in still.items()}, one_less, remedy)
        (_, (losses, means)), (grads, credit) = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(
            params, still, batch, pulls
        )
        grads = jax.tree.map(lambda g: g / len(losses), grads)
        return _Found(means, credit, losses, grads, taken, failures)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        found = sweeps(params, batch)
        multipliers = {name: -z for name, (_, z) in found.credit.items()}
        _, residuals = report(params, found.means, multipliers, batch)
        evaluations = 3 + 2 * found.taken
        return found.grads, state, Info(jnp.mean(found.losses), evaluations, residuals, found.failures)

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del key, state
        found = sweeps(params, batch)
        return {name: LayerCredit(mean, *found.credit[name][::-1]) for name, mean in found.means.items()}

    return GradientEstimator(stateless, estimate, credit)


def _still(objective: Objective, params: Params, batch: Batch) -> Offsets:
    """Returns zero offsets; nothing is run."""

    def layer(site: Site, given: None) -> tuple[Array, tuple[Array, Array]]:
        nu = site.preactivation()
        axons = site.activation(nu)
        return axons, (nu, axons)

    shapes = jax.eval_shape(interpret(objective, layer), params, batch)[1]
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _mean(site: Site, nu: Array, u: Array, beta: float | Array) -> Array:
    """Computes s̄ = ½ [f(ν + ½u) + f(ν − ½u)], with dual propagation's derivative: δ = [f(ν + ½βz) − f(ν − ½βz)]/β."""
    activation, held = jax.closure_convert(site.activation, nu)

    def averaged(nu: Array, u: Array, held: list[Any]) -> Array:
        return 0.5 * (activation(nu + 0.5 * u, *held) + activation(nu - 0.5 * u, *held))

    @jax.custom_vjp
    def mean(nu: Array, u: Array, beta: Array, held: list[Any]) -> Array:
        del beta
        return averaged(nu, u, held)

    def forward(nu: Array, u: Array, beta: Array, held: list[Any]) -> tuple[Array, Any]:
        return averaged(nu, u, held), (nu, u, beta, held)

    def backward(kept: Any, z: Array) -> tuple[Array, Array, Array, list[Any]]:
        nu, u, beta, held = kept
        half = 0.5 * beta * z.astype(nu.dtype)
        apart = activation(nu + half, *held) - activation(nu - half, *held)  # −(s⁺ − s⁻)
        _, to_held = jax.vjp(lambda held: averaged(nu, u, held), held)
        return apart.astype(nu.dtype) / beta, jnp.zeros_like(u), jnp.zeros_like(beta), *to_held(z)

    mean.defvjp(forward, backward)
    return mean(nu, u.astype(nu.dtype), jnp.asarray(beta, nu.dtype), held)
