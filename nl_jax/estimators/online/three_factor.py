"""Reward-modulated learning by eligibility traces of noise (Fiete & Seung 2006; Miconi 2017)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import reached
from nl_jax._core.keys import own_key
from nl_jax._core.numerics import wide_dtype
from nl_jax._core.require import (
    floating,
    layered,
    loop_name,
    per_example,
    positive_integer,
    positive_number,
    takes,
    typed_key,
)
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.estimators.noise import reward_baselines
from nl_jax.estimators.noise.reward_baselines import RewardBaseline
from nl_jax.propagation import Site, interpret
from nl_jax.propagation.loops import require_steps

_RUNNING_MEAN = reward_baselines.running_mean()


def linear(xi: Array) -> Array:
    """Returns ξ: node perturbation's own trace, with which the estimate is unbiased."""
    return xi


def cubed(xi: Array) -> Array:
    """Returns ξ³, supralinear (Miconi 2017, eq. 2): large fluctuations dominate."""
    return xi**3


def three_factor(
    objective: Objective,
    *,
    sigma: float = 0.1,
    num_samples: int = 1,
    response: Callable[[Array], Array] = linear,
    baseline: RewardBaseline = _RUNNING_MEAN,
    loop: str = "time",
) -> GradientEstimator:
    """Sums each weight's input times its unit's noise over a trial, then multiplies by one number, the trial's loss.

        e_ij ← e_ij + S(ξ_j) x_i,   ∂L/∂W_ij ≈ ⟨(ℓ − b) e_ij⟩ / σ      (Fiete & Seung 2006, eq. 7; Miconi 2017, eq. 1)

    Noise σ ξ is added to every pre-activation, and traces e accumulate during the trial, one for each weight and
    example: only the reward, or loss, comes at its end. With S linear this is `reinforce` with Gaussian units, and the
    mean is the gradient of the expected loss, for any σ; with `cubed` it is not calibrated. No derivative of
    activations or losses is used. `node_perturbation` keeps no traces: it draws its noise again once the loss is known,
    and needs a clean run.

    Args:
      objective: a per-example objective that takes `propagate`, such as `nl.bandit`'s; examples must not interact.
      sigma: σ, standard deviation of the noise in units of the pre-activations, above 0.
      num_samples: K, the number of trials of each example, at least 1.
      response: S, elementwise: `linear` or `cubed` of this module, or any function.
      baseline: b, from `nl.reward_baselines`.
      loop: the name of the loop over time, all of whose steps share their parameters. A program without loops works
        too.

    Returns:
      An estimator with its baseline's state: 2 K evaluations, and the memory of one trace for each weight and example,
      whatever the number of steps. Parameters that a program uses outside its layers do not learn.

    Raises:
      ValueError: if a setting is not as described or the objective takes no `propagate`; when run, if a layer mixes
        examples or is in another loop.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> network = nl.recurrent(nl.cells.leaky(4, rate=0.5), 2, 3)
    >>> objective = nl.bandit(network.apply, lambda action, label: action == label)
    >>> params, batch = network.init(jax.random.key(0)), (jnp.ones([6, 10, 2]), jnp.arange(6) % 3)
    >>> estimator = three_factor(objective)
    >>> state = estimator.init(jax.random.key(1), params)
    >>> jax.jit(estimator.estimate)(jax.random.key(2), state, params, batch)[0]["hidden"]["recurrent"].shape
    (4, 4)
    """
    layered("three_factor", objective)
    sigma, num_samples = positive_number("sigma", sigma), positive_integer("num_samples", num_samples)
    loop_name("loop", loop)
    takes("response", response, 1, "a function of the noise, such as linear or cubed")
    if not isinstance(baseline, RewardBaseline):
        raise ValueError(f"baseline must be one of nl.reward_baselines, made by a call; got {baseline!r}")
    if num_samples < baseline.least_samples:
        raise ValueError(f"num_samples must be at least {baseline.least_samples} for this baseline, got {num_samples}")

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        floating(params)
        trials = jax.tree.map(lambda leaf: jnp.concatenate([jnp.asarray(leaf)] * num_samples), batch)

        def trial(site: Site, given: None) -> tuple[Array, Params | None]:
            nu = site.preactivation()
            if not jax.tree.leaves(site.params):
                return site.activation(nu), None
            _refuse(site, loop)
            xi = jax.random.normal(own_key(key, site), nu.shape, wide_dtype(nu.dtype)).astype(nu.dtype)
            return site.activation(nu + sigma * xi), _traces(site, response(xi))

        losses, traces = interpret(objective, trial, summed=True)(params, trials)
        each = per_example(losses).reshape(num_samples, -1)
        judgement = (each - baseline.expected(each, state)).reshape(-1) / (sigma * losses.size)
        lessons = {
            name: jax.tree.map(lambda e: jnp.tensordot(judgement.astype(e.dtype), e, axes=1), trace)
            for name, trace in traces.items()
        }
        loss = jnp.mean(losses)
        grads = jax.grad(_taught(objective, lessons, batch))(params)
        return grads, baseline.update(state, loss), Info(loss, jnp.int32(2 * num_samples))

    return GradientEstimator(lambda key, params: baseline.init(), estimate)


def _traces(site: Site, tried: Array) -> Params:
    """S(ξ_j) x_i of every example: the connection's derivative by its own parameters, [batch, *parameter's shape]."""

    def of_example(tried: Array, inputs: tuple[Array, ...]) -> Params:
        one = tuple(jnp.expand_dims(x, 0) for x in inputs)
        return jax.vjp(lambda params: site.connection(params, *one), site.params)[1](jnp.expand_dims(tried, 0))[0]

    return jax.vmap(of_example)(tried, site.inputs)


def _taught(objective: Objective, lessons: dict[str, Params], batch: Batch) -> Callable[[Params], Array]:
    """Computes Σ_l ⟨θ_l, lesson_l⟩, whose gradient takes the layers' lessons to the program's own parameters."""

    def layer(site: Site, given: None) -> tuple[Array, Any]:
        axons = site._replace(params=jax.lax.stop_gradient(site.params)).axons()
        if site.name not in lessons:
            return axons, None
        products = jax.tree.map(lambda p, g: jnp.sum(p * g).astype(float), site.params, lessons[site.name])
        return axons, sum(jax.tree.leaves(products))

    def total(params: Params) -> Array:
        _, found = interpret(objective, layer, loop=_first_step, summed=True)(params, batch)
        return sum(found.values(), start=jnp.asarray(0.0))

    return total


def _first_step(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
    """Runs one step instead of a loop whose layers have the same parameters at all steps."""
    require_steps(name, xs, length)
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    begin, zeros = carry  # what layers found is summed beside the loop's own carry
    closed = jax.make_jaxpr(lambda begin, x: jax.tree.leaves(body((begin, zeros), x)[0][0]))(begin, first)
    leaves, tree = jax.tree.flatten(begin)
    fixed = [end is start for end, start in zip(closed.jaxpr.outvars, closed.jaxpr.invars, strict=False)]

    def found(changing: list[Any], x: Any) -> list[Array]:
        moved = iter(changing)
        start = [leaf if one else next(moved) for leaf, one in zip(leaves, fixed, strict=True)]
        return jax.tree.leaves(body((jax.tree.unflatten(tree, start), zeros), x)[0][1])

    if any(reached(found, [leaf for leaf, one in zip(leaves, fixed, strict=True) if not one], first)):
        raise ValueError(
            f"three_factor: a layer in loop {name!r} has parameters that change from step to step, but steps must "
            "share them: use reinforce or node_perturbation"
        )
    steps = length if not jax.tree.leaves(xs) else len(jax.tree.leaves(xs)[0])
    carry, y = body(carry, jax.tree.map(lambda leaf: leaf[0], xs))
    return carry, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps, *leaf.shape)), y)


def _refuse(site: Site, loop: str) -> None:
    if site.steps and (len(site.steps) > 1 or site.name.rpartition("/")[0] != loop):
        raise ValueError(
            f"three_factor: layer {site.name!r} is in another loop than the one over time, loop={loop!r}, whose steps "
            "share their parameters: use reinforce or node_perturbation"
        )
    if site.mixes_examples:
        raise ValueError(
            f"three_factor: layer {site.name!r} mixes examples, each of which is judged by its own loss: use "
            "node_perturbation with credit=nl.spaces.per_batch_credit()"
        )
