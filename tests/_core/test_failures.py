"""What fails in compiled code is carried by every wrapper to whoever runs it, and raised there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax._core.failures import raise_if_known

KEY = jax.random.key(0)
MESSAGE = "it broke at limit={}: choose a larger one"
START = {"a": jnp.float32(0), "b": jnp.float32(0)}
BATCH = jnp.ones(2)


def _objective(params, batch):
    return sum(params.values()) * batch


def brittle(objective, *, limit):
    """Grows its parameters by 1 a step, and fails where one exceeds the limit."""

    def estimate(key, state, params, batch):
        loss = jnp.mean(objective(params, batch))
        failed = jnp.any(jnp.stack(jax.tree.leaves(params)) > limit)
        grads = jax.tree.map(lambda p: jnp.where(failed, jnp.nan, -jnp.ones_like(p)), params)
        return grads, state, nl.Info(loss, jnp.int32(1), (), (nl.Failure(failed, MESSAGE.format(limit)),))

    return nl.GradientEstimator(lambda key, params: (), estimate)


def _grown(wild, sound=1e9):
    """Factories of an estimator that fails and one that does not, in the places of all that wraps estimators."""
    fails, holds = (functools.partial(brittle, limit=limit) for limit in (wild, sound))
    descent = optax.sgd(1.0)
    return {
        "alone": nl.learner(fails(_objective), descent),
        "average": nl.learner(nl.average(fails(_objective), 2), descent),
        "mix": nl.learner(nl.mix([holds(_objective), fails(_objective)], [0.5, 0.5]), descent),
        "partition": nl.learner(nl.partition(_objective, {"a": holds, "b": fails}), descent),
        "batch_sum": nl.learner(nl.batch_sum(fails(_objective)), descent),
        "alternating": nl.alternating(_objective, [nl.Stage("a", holds, descent), nl.Stage("b", fails, descent)]),
    }


@pytest.mark.parametrize("name", _grown(0))
def test_wrappers_carry_failures(name):
    for limit, failed in ((-1, True), (1, False)):
        learner = _grown(limit)[name]
        _, info = jax.jit(learner.step)(KEY, learner.init(KEY, START), BATCH)
        assert [bool(failure.occurred) for failure in info.failures if failure.message == MESSAGE.format(limit)] == [
            failed
        ]
    nl.raise_if_failed(info.failures)


def test_the_first_that_occurred_is_raised():
    never, once = nl.Failure(jnp.zeros((2, 3), bool), "never"), nl.Failure(jnp.arange(3) == 2, "once")
    nl.raise_if_failed(())
    nl.raise_if_failed([never])
    with pytest.raises(FloatingPointError, match=r"^once$"):
        nl.raise_if_failed([never, once, nl.Failure(jnp.bool_(True), "later")])


def test_nothing_is_known_while_tracing():
    failures = lambda w: [nl.Failure(w > 0, "positive")]
    with pytest.raises(jax.errors.ConcretizationTypeError):
        jax.jit(lambda w: nl.raise_if_failed(failures(w)))(1.0)
    jax.jit(lambda w: raise_if_known(failures(w)))(1.0)
    jax.vmap(lambda w: raise_if_known(failures(w)))(jnp.ones(2))
    with pytest.raises(FloatingPointError, match="positive"):
        raise_if_known(failures(1.0))
    with pytest.raises(FloatingPointError, match="positive"):  # a derivative's values are known
        jax.grad(lambda w: [w * w, raise_if_known(failures(w))][0])(1.0)


def test_messages_are_of_the_structure():
    """So that a scan or a map of steps keeps them, and steps of two settings are not taken for one another."""
    one, other = (nl.Failure(jnp.bool_(False), message) for message in ("one", "other"))
    assert jax.tree.leaves(one) == [False]
    assert jax.tree.structure(one) != jax.tree.structure(other)
    stacked = jax.lax.map(lambda x: nl.Failure(x > 1, "one"), jnp.arange(3))
    assert stacked.message == "one"
    np.testing.assert_array_equal(stacked.occurred, [False, False, True])


def test_fit_raises_after_the_dispatch_and_names_the_step():
    learner = _grown(4)["alone"]
    fit = functools.partial(nl.fit, learner, KEY, data=BATCH, steps_per_dispatch=4, progress=False)
    state, history = fit(learner.init(KEY, START), num_steps=5)  # parameters 0 to 4 at the steps
    assert (history.residuals, history.failures) == ((), ())  # neither is kept
    with pytest.raises(nl.Diverged, match=f"^at step 5 {MESSAGE.format(4)}$") as caught:
        fit(state, num_steps=9)
    np.testing.assert_array_equal(caught.value.state.params["a"], 5)
    np.testing.assert_array_equal(caught.value.history.loss, [10, np.nan, np.nan, np.nan])
    with pytest.raises(nl.Diverged, match="at step 5"):  # the last step's own failure
        fit(state, num_steps=1)


@pytest.mark.slow
def test_restarts_fail_only_if_all_do_and_say_why():
    learner = _grown(2.5)["alone"]

    def run(beginnings, num_steps):
        return nl.restarts(
            learner, KEY, beginnings, BATCH, score=lambda p: p["a"], num_restarts=8, num_steps=num_steps, progress=False
        )

    near_or_far = lambda key: jax.tree.map(lambda p: p - 10 * jax.random.bernoulli(key).astype(p.dtype), START)
    found = run(near_or_far, 4)
    lost = np.isnan(found.scores)
    assert 0 < lost.sum() < 8
    assert found.best.params["a"] == -6
    for num_steps in (4, 9):  # at the last step, where losses are finite still, and long before
        with pytest.raises(nl.Diverged, match=rf"^all 8 restarts have diverged by step \d: {MESSAGE.format(2.5)}$"):
            run(lambda key: START, num_steps)


def test_measurements_raise_or_are_nan():
    at = KEY, START, BATCH
    measure = functools.partial(nl.diagnostics.measure, num_estimates=2)
    wild, exact = brittle(_objective, limit=-1), nl.backprop(_objective)
    with pytest.raises(FloatingPointError, match=MESSAGE.format(-1)):
        measure(wild, exact, *at)
    assert np.isnan(jax.jit(lambda: measure(wild, exact, *at).cosine)())
    with pytest.raises(FloatingPointError, match=MESSAGE.format(-1)):
        nl.diagnostics.efficiency({"wild": wild}, _objective, START, BATCH, num_estimates=2, rounds=1, progress=False)


WILD = {
    "iterations": functools.partial(nl.primal_dual, step_size=2.0, num_steps=50),
    "a scan of iterations": functools.partial(nl.auxiliary_coordinates, optimizer=optax.sgd(20.0), num_steps=50),
    "a scan of estimates": lambda objective: nl.average(nl.primal_dual(objective, step_size=2.0, num_steps=50), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WILD)
def test_eager_steps_raise_at_once(name):
    """Also where the iterations themselves are traced, and cannot."""
    network = nl.mlp([2, 2, 2], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    learner = nl.learner(WILD[name](objective), optax.sgd(0.1))
    at = KEY, learner.init(KEY, network.init(KEY)), (jnp.ones((3, 2)), jnp.ones((3, 2)))
    with pytest.raises(
        FloatingPointError, match=r"diverged at (step_size=2\.0|optimizer's step size): choose a smaller"
    ):
        learner.step(*at)
    state, info = jax.jit(learner.step)(*at)  # raises nothing
    assert info.failures[0].occurred
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(state.params))
