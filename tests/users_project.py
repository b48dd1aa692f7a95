"""What a user writes, as mypy --strict reads it in .ci/run: estimators, a network, an estimator of one's own."""

import jax
import jax.numpy as jnp
import optax

import nl_jax as nl

network = nl.mlp([4, 8, 3], activation=nl.activations.tanh())
objective = nl.supervised(network.apply, nl.losses.cross_entropy)


def spsa(objective: nl.base.Objective, c: float = 1e-3) -> nl.GradientEstimator:
    def init(key: jax.Array, params: nl.base.Params) -> tuple[()]:
        return ()

    def estimate(
        key: jax.Array, state: nl.base.State, params: nl.base.Params, batch: nl.base.Batch
    ) -> tuple[nl.base.Params, nl.base.State, nl.Info]:
        nl.require.typed_key(key)
        signs = nl.directions.rademacher()(key, jnp.int32(0), params)

        def moved(step: float) -> nl.base.Params:
            return jax.tree.map(lambda w, s: w + step * s, params, signs)

        above, below = (jnp.mean(nl.require.per_example(objective(moved(step), batch))) for step in (c, -c))
        grads = jax.tree.map(lambda s: (above - below) / (2 * c) * s, signs)
        return grads, state, nl.Info((above + below) / 2, jnp.int32(2))

    return nl.GradientEstimator(init, estimate)


def main() -> tuple[nl.base.Params, jax.Array, nl.diagnostics.Measurement, nl.conformance.Certificate]:
    """Trains, measures and certifies. Type checkers read it; statements of the module would run with every test."""
    batch = jnp.ones((5, 4)), jnp.zeros(5, jnp.int32)
    params = network.init(jax.random.key(1))
    for estimator in (nl.backprop(objective), nl.node_perturbation(objective, num_samples=4), spsa(objective)):
        learner = nl.learner(estimator, optax.adam(1e-2))
        state = learner.init(jax.random.key(0), params)
        state, info = jax.jit(learner.step)(jax.random.key(2), state, batch)
        print(float(info.loss))
        state, history = nl.fit(learner, jax.random.key(3), state, batch, num_steps=3, progress=False)
    print(nl.audit(spsa, objective, params, batch).verdict)
    found = nl.diagnostics.measure(
        spsa(objective), nl.backprop(objective), jax.random.key(0), params, batch, num_estimates=4
    )
    return state.params, history.loss, found, nl.conformance.certify(spsa, nl.conformance.Claims(), num_keys=2)
