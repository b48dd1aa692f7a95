"""REINFORCE: the score-function estimator (Williams 1992)."""

import fnmatch
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from nl_jax.base import (
    ActivationFn,
    Array,
    Batch,
    Connection,
    GradientEstimator,
    Info,
    Key,
    Objective,
    Params,
    Propagate,
    State,
)
from nl_jax.checks import floating, layered, per_example, positive_integer, typed_key
from nl_jax.estimators import reward_baselines
from nl_jax.estimators.reward_baselines import RewardBaseline
from nl_jax.estimators.stochastic_units import Unit
from nl_jax.propagation import local

_LEAVE_ONE_OUT = reward_baselines.leave_one_out()


def reinforce(
    objective: Objective,
    *,
    units: Unit | Mapping[str, Unit],
    num_samples: int = 2,
    baseline: RewardBaseline = _LEAVE_ONE_OUT,
) -> GradientEstimator:
    """Estimates the gradient of the *expected* loss of a network whose units are drawn at random.

        ∂E[ℓ]/∂ν^l = ⟨(ℓ − b) e^l⟩,   e^l = ∂ log p(s^l | ν^l)/∂ν^l,   ∂E[ℓ]/∂W^l = ⟨(ℓ − b) e^l x^{l−1}⟩

    with x^{l−1} the axons drawn below. Reward-increment = non-negative factor × offset reinforcement × characteristic
    eligibility: a three-factor rule, in which one number tells every unit how it went. Exact in expectation, for
    any amount of noise and any K; no derivative is taken but of each connection by its own parameters and of log p.

    With Gaussian units it is node perturbation but for x^{l−1}, which that takes from a clean pass. So in the first
    layer both have the same expectation, and above it only as σ → 0: what noise does to x and ℓ together is lost there.

    Args:
      objective: a per-example objective that takes `propagate`, such as `nl.bandit`'s; examples must not interact.
      units: of `nl.units`, for every layer with parameters, or by layer name, patterns (shell style) allowed:
        `{"output": nl.units.categorical(), "*": nl.units.bernoulli()}`; the first match in order wins. Layers
        without parameters (pooling) stay as they are.
      num_samples: K, drawn all at once, as K copies of the batch; for more than memory holds take
        `nl.average(estimator, n)`.
      baseline: b, of `nl.reward_baselines`.

    Returns:
      An estimator with its baseline's state: 2 K evaluations (K passes and their local gradients). Its loss is the mean
      over the samples, an estimate of the expected loss.

    Raises:
      ValueError: if a setting is not as described or the objective takes no `propagate`; when run, if a layer with
        parameters has no unit or a pattern no layer, a layer's first axis is not the batch, or a Gaussian unit's σ
        is lost in its dtype.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([2, 3], activation=nl.activations.tanh(), weight_init=jax.nn.initializers.zeros)
    >>> objective = nl.bandit(net.apply, lambda action, label: action == label)
    >>> estimator = reinforce(objective, units=nl.units.categorical(), num_samples=2000)
    >>> batch = jnp.ones([4, 2]), jnp.full(4, 2)
    >>> grads, _, info = estimator.estimate(jax.random.key(0), (), net.init(jax.random.key(1)), batch)
    >>> [round(9 * float(g)) for g in grads["output"]["bias"]], round(3 * float(info.loss))  # −E[reward] is −1/3
    ([1, 1, -2], -1)
    """
    layered("reinforce", objective)
    chosen = units if isinstance(units, Mapping) else {"*": units}
    for pattern, unit in chosen.items():
        if not isinstance(unit, Unit):
            raise ValueError(f"units[{pattern!r}] must be made by a call, such as nl.units.bernoulli(); got {unit!r}")
    if not isinstance(baseline, RewardBaseline):
        raise ValueError(f"baseline must be one of nl.reward_baselines, made by a call; got {baseline!r}")
    num_samples = positive_integer("num_samples", num_samples)
    if num_samples < baseline.least_samples:
        raise ValueError(
            f"num_samples must be at least {baseline.least_samples} for this baseline, got {num_samples}: "
            "nl.reward_baselines.running_mean() needs but one"
        )

    def init(key: Key, params: Params) -> State:
        del key, params
        return baseline.init()

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        floating(params)
        copies = jax.tree.map(lambda leaf: _repeated(leaf, num_samples), batch)
        (losses, eligibility), preactivations, pull = local(_drawn(objective, chosen, key))(params, copies)
        each = per_example(losses).reshape(num_samples, -1)
        judgement = (each - baseline.expected(each, state)).reshape(-1) / losses.size
        credit = {
            name: _judged(name, judgement, eligibility.get(name)).astype(preactivation.dtype)
            for name, preactivation in preactivations.items()
        }
        # Parameters used outside any layer: the loss's own derivative, averaged over the samples.
        by_loss = jnp.full_like(losses, 1 / losses.size)
        grads = pull((by_loss, jax.tree.map(jnp.zeros_like, eligibility)), credit)
        loss = jnp.mean(losses)
        return grads, baseline.update(state, loss), Info(loss, jnp.int32(2 * num_samples))

    return GradientEstimator(init, estimate)


def _drawn(objective: Objective, units: Mapping[str, Unit], key: Key) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The objective with its layers' axons drawn at random: `(losses, {layer: eligibility})`."""

    def drawn(params: Params, batch: Batch, propagate: Propagate) -> tuple[Array, dict[str, Array]]:
        eligibility: dict[str, Array] = {}
        unused = set(units)

        def draw(
            name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            pattern = next((p for p in units if fnmatch.fnmatchcase(name, p)), None)
            if pattern is None or not jax.tree.leaves(params):
                return propagate(name, connection, activation, params, *inputs)
            unused.discard(pattern)
            own_key = jax.random.fold_in(key, len(eligibility))

            def respond(preactivation: Array) -> Array:
                sample = units[pattern].sample(own_key, preactivation)
                eligibility[name] = units[pattern].eligibility(sample, preactivation)
                return units[pattern].axons(sample, activation)

            return propagate(name, connection, respond, params, *inputs)

        losses = objective(params, batch, propagate=draw)
        if unused:
            raise ValueError(f"no layer gets units[{min(unused)!r}]; those that draw are {', '.join(eligibility)}")
        return losses, eligibility

    return drawn


def _judged(name: str, judgement: Array, eligibility: Array | None) -> Array:
    """(ℓ_n − b_n) e_n for each example."""
    if eligibility is None:
        raise ValueError(
            f"layer {name!r} depends on parameters but draws nothing, so that its credit would have to come from other "
            f"layers: name a unit for it, such as units={{{name!r}: nl.units.gaussian(sigma=0.1), …}}, and let it "
            "receive its parameters by propagate"
        )
    if eligibility.shape[:1] != judgement.shape:
        raise ValueError(
            f"every example is judged by its own loss, so that layer {name!r} must have its {judgement.size} examples "
            f"along the first axis; its shape is {eligibility.shape}"
        )
    return jnp.einsum("n,n...->n...", judgement.astype(eligibility.dtype), eligibility)


def _repeated(leaf: Array, times: int) -> Array:
    leaf = jnp.asarray(leaf)
    return jnp.broadcast_to(leaf, (times, *leaf.shape)).reshape(times * leaf.shape[0], *leaf.shape[1:])
