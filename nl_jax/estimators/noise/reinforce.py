"""REINFORCE: the score-function estimator (Williams 1992)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nl_jax._core.keys import own_key
from nl_jax._core.paths import first_matches
from nl_jax._core.require import floating, layered, per_example, positive_integer, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.estimators.noise import reward_baselines
from nl_jax.estimators.noise.engine.shares import require_automatic, require_sharding
from nl_jax.estimators.noise.reward_baselines import RewardBaseline
from nl_jax.estimators.noise.stochastic_units import Unit
from nl_jax.propagation import Site, interpret, local

_LEAVE_ONE_OUT = reward_baselines.leave_one_out()


def reinforce(
    objective: Objective,
    *,
    units: Unit | Mapping[str, Unit],
    num_samples: int = 2,
    baseline: RewardBaseline = _LEAVE_ONE_OUT,
    sharding: NamedSharding | None = None,
) -> GradientEstimator:
    """Estimates the gradient of the *expected* loss of a network with stochastic units.

        ∂E[ℓ]/∂ν^l = ⟨(ℓ − b) e^l⟩,   e^l = ∂ log p(s^l | ν^l)/∂ν^l,   ∂E[ℓ]/∂W^l = ⟨(ℓ − b) e^l x^{l−1}⟩

    where x^{l−1} are the axons (activity) drawn in the layer below. This is reward-increment = non-negative factor ×
    offset reinforcement × characteristic eligibility: a three-factor rule in which one number, ℓ − b, is broadcast to
    all units. Unbiased for any amount of noise and any K. The only derivatives are those of each connection with
    respect to its own parameters and of log p.

    With Gaussian units it differs from node perturbation only in x^{l−1}, which node perturbation takes from a clean
    pass. In the first layer both therefore have the same expectation. Above it they agree only as σ → 0, because node
    perturbation misses the joint effect of noise on x and ℓ.

    Args:
      objective: a per-example objective that takes `propagate`, such as `nl.bandit`'s; examples must not interact.
      units: from `nl.units`, for every layer with parameters, or by layer name, patterns (shell style) allowed:
        `{"output": nl.units.categorical(), "*": nl.units.bernoulli()}`; the first match in order wins. Brackets
        that are part of a name stand for themselves. Layers without parameters (pooling) stay as they are.
      num_samples: K, drawn all at once, as K copies of the batch; if they do not fit in memory use
        `nl.average(estimator, n)`.
      baseline: b, from `nl.reward_baselines`.
      sharding: `NamedSharding(mesh, PartitionSpec("samples"))` divides the samples over an automatic axis of a mesh;
        the devices' gradients are summed. Up to rounding, the result does not depend on the devices. None: no division.

    Returns:
      An estimator with its baseline's state: 2 K evaluations (K passes and their local gradients). Its loss is the mean
      over the samples, an estimate of the expected loss.

    Raises:
      ValueError: if a setting is not as described or the objective takes no `propagate`; when run, if a layer with
        parameters has no unit, a pattern matches no layer, a layer's first axis is not the batch, or a Gaussian unit's
        σ is too small for its dtype.

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
    require_sharding(sharding, num_samples)
    if sharding is not None:
        require_automatic(sharding)
    if num_samples < baseline.least_samples:
        raise ValueError(
            f"num_samples must be at least {baseline.least_samples} for this baseline, got {num_samples}: "
            "nl.reward_baselines.running_mean() needs only one"
        )

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        floating(params)
        copies = jax.tree.map(lambda leaf: _repeated(leaf, num_samples, sharding), batch)
        draws = _Draws(key, *_drawing(objective, params, copies, chosen))
        losses, responses, learned, pull = local(objective, draws.respond, draws.activate)(params, copies)
        for name in learned:
            if name not in responses:
                raise ValueError(
                    f"layer {name!r} has parameters but no stochastic unit: add one, such as units={{{name!r}: "
                    "nl.units.gaussian(sigma=0.1), …}, and pass the layer's parameters to propagate"
                )
        each = per_example(losses).reshape(num_samples, -1)
        judgement = (each - baseline.expected(each, state)).reshape(-1) / losses.size
        credit = {name: judgement.astype(response.dtype) for name, response in responses.items()}
        # Parameters used outside any layer receive the exact gradient of the loss, averaged over the samples.
        grads = pull(jnp.full_like(losses, 1 / losses.size), credit)
        loss = jnp.mean(losses)
        return grads, baseline.update(state, loss), Info(loss, jnp.int32(2 * num_samples))

    return GradientEstimator(lambda key, params: baseline.init(), estimate)


class _Draws:
    """The stochastic units of one run: each layer's sample is drawn for its axons and kept for its eligibility."""

    def __init__(self, key: Key, examples: int, units: Mapping[str, Unit]) -> None:
        self.key, self.examples, self.units = key, examples, units
        self.samples: dict[str, Array] = {}

    def activate(self, site: Site, nu: Array) -> Array:
        """Returns the axons of a sample s ~ p(s | ν)."""
        if site.name not in self.units:
            return site.activation(nu)
        unit = self.units[site.name]
        self.samples[site.name] = unit.sample(own_key(self.key, site), nu)
        return unit.axons(self.samples[site.name], site.activation)

    def respond(self, site: Site, nu: Array) -> Array | None:
        """Returns ⟨e, ν⟩ per example. Its credit is ℓ − b, the same for all units and all steps of a loop."""
        if site.name not in self.units:
            return None
        if nu.shape[:1] != (self.examples,):
            raise ValueError(
                f"every example is judged by its own loss, so that layer {site.name!r} must have its {self.examples} "
                f"examples along the first axis; its shape is {nu.shape}"
            )
        e = self.units[site.name].eligibility(self.samples[site.name], jax.lax.stop_gradient(nu))
        products = jax.lax.stop_gradient(e) * nu.astype(e.dtype)
        return jnp.sum(products.reshape(self.examples, -1), axis=1)


def _drawing(
    objective: Objective, params: Params, batch: Batch, units: Mapping[str, Unit]
) -> tuple[int, dict[str, Unit]]:
    """Returns the number of examples and the unit of each layer that draws; runs nothing."""
    layers: dict[str, None] = {}

    def layer(site: Site, given: None) -> tuple[Array, None]:
        if jax.tree.leaves(site.params):
            layers[site.name] = None
        return site.axons(), None

    losses = jax.eval_shape(lambda *at: per_example(interpret(objective, layer)(*at)[0]), params, batch)
    places = first_matches(layers, units)
    for place, pattern in enumerate(units):
        if place not in places.values():
            raise ValueError(f"no layer gets units[{pattern!r}]; those with parameters are {', '.join(layers)}")
    return len(losses), {name: list(units.values())[place] for name, place in places.items()}


def _repeated(leaf: Array, times: int, sharding: NamedSharding | None) -> Array:
    leaf = jnp.asarray(leaf)
    copies = jnp.broadcast_to(leaf, (times, *leaf.shape))
    if sharding is not None:  # XLA divides all that is computed from them; the noise is the same as on one device
        open_axes = [PartitionSpec.UNCONSTRAINED] * leaf.ndim
        spec = PartitionSpec(*sharding.spec, *open_axes)
        copies = jax.lax.with_sharding_constraint(copies, NamedSharding(sharding.mesh, spec))
    return copies.reshape(times * leaf.shape[0], *leaf.shape[1:])
