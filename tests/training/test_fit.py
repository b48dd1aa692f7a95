import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax import batching

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
X = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5]], np.float32)
START = jnp.zeros((3, 1))
objective = nl.supervised(lambda w, x: x @ w, nl.losses.half_squared_error)
LEARNER = nl.learner(nl.weight_perturbation(objective, num_samples=4), optax.sgd(0.05))
BACKPROP = nl.learner(nl.backprop(objective), optax.sgd(0.1))


def _fit(learner=LEARNER, state=None, **settings):
    state = learner.init(KEY, START) if state is None else state
    return nl.fit(learner, KEY, state, (X, Y), **{"progress": False, "num_steps": 50, "batch_size": 8} | settings)


def test_fit_is_the_loop_of_steps():
    state, history = _fit(num_steps=7, steps_per_dispatch=3)
    by_hand = LEARNER.init(KEY, START)
    step_key, order_key = jax.random.split(KEY)
    indices = np.asarray(jax.jit(batching.shuffled, static_argnums=(1, 2, 3, 4))(order_key, 0, 7, 24, 8))
    losses, step = [], jax.jit(LEARNER.step)
    for t in range(7):
        by_hand, info = step(jax.random.fold_in(step_key, t), by_hand, (X[indices[t]], Y[indices[t]]))
        losses.append(float(info.loss))
    np.testing.assert_allclose(state.params, by_hand.params, rtol=1e-4)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-4)
    assert int(state.step) == 7
    assert history.evaluations.tolist() == [5] * 7


@pytest.mark.parametrize("order", [batching.shuffled, batching.uniform])
def test_a_run_cut_anywhere_and_continued_is_the_same_run(order):
    whole, history = _fit(num_steps=20, order=order)
    half, first = _fit(num_steps=13, order=order, steps_per_dispatch=1)
    again, second = _fit(state=half, num_steps=7, order=order, steps_per_dispatch=1)
    np.testing.assert_array_equal(whole.params, again.params)
    np.testing.assert_array_equal(history.loss, np.concatenate([first.loss, second.loss]))


def test_single_sample_minibatch_and_full_batch():
    for batch_size in (1, 8, None):
        _, history = _fit(BACKPROP, batch_size=batch_size, num_steps=200)
        assert history.loss[-1] < 1e-3 * history.loss[0], batch_size
    full, step = BACKPROP.init(KEY, START), jax.jit(BACKPROP.step)
    for t in range(3):
        full, _ = step(jax.random.key(t), full, (X, Y))
    np.testing.assert_allclose(_fit(BACKPROP, batch_size=None, num_steps=3)[0].params, full.params, rtol=1e-5)


def test_minibatch_sum_is_batch_size_times_the_mean():
    summed = nl.learner(nl.batch_sum(nl.backprop(objective)), optax.sgd(0.1 / 8))
    np.testing.assert_allclose(_fit(summed)[0].params, _fit(BACKPROP)[0].params, rtol=1e-4)


def test_record_and_log():
    seen = []

    def log(state):
        seen.append(int(state.step))
        return {}

    _, norms = _fit(num_steps=10, steps_per_dispatch=4, log=log, record=lambda state, info: jnp.sum(state.params**2))
    assert norms.shape == (10,)
    assert seen == [0, 4, 8, 10]


def test_a_typed_key_cannot_be_recorded():
    for record, where in ((lambda s, i: {"key": KEY}, " at 'key'"), (lambda s, i: KEY, "")):
        with pytest.raises(
            ValueError, match=rf"record keeps a typed key{where}: keep .*, jax\.random\.key_data\(key\)"
        ):
            _fit(num_steps=1, record=record)


@pytest.mark.parametrize("wrong", [-1, 24])
@pytest.mark.parametrize("steps_per_dispatch", [1, 4])
def test_an_order_that_chooses_examples_that_do_not_exist(wrong, steps_per_dispatch):
    order = lambda *of: batching.uniform(*of).at[-1, 3].set(wrong)
    with pytest.raises(ValueError, match=rf"order must return indices from 0 to 23, .*; got {wrong}$"):
        _fit(num_steps=4, order=order, steps_per_dispatch=steps_per_dispatch)
    _fit(num_steps=4, order=lambda *of: batching.uniform(*of).at[-1, 3].set(23))


def test_an_order_of_small_integers_may_choose_from_many_examples():
    order = lambda *of: batching.uniform(*of[:3], 200, of[4]).astype(jnp.uint8)
    learner = nl.learner(nl.backprop(lambda w, x: (w - x) ** 2), optax.sgd(0.1))
    state = learner.init(KEY, jnp.float32(0))
    nl.fit(learner, KEY, state, jnp.ones(300), num_steps=2, batch_size=4, order=order, progress=False)


def test_many_runs_refuse_such_an_order_too():
    order = lambda *of: batching.uniform(*of).at[0, 0].set(5)
    learner_of = lambda rate: nl.learner(nl.backprop(lambda w, x: (w - x) ** 2), optax.sgd(rate))
    settings = {"num_steps": 2, "batch_size": 4, "order": order, "progress": False, "score": lambda w: w**2}
    with pytest.raises(ValueError, match=r"order must return indices from 0 to 4"):
        nl.restarts(learner_of(0.1), KEY, jax.random.normal, jnp.ones(5), num_restarts=2, **settings)
    with pytest.raises(ValueError, match=r"order must return indices from 0 to 4"):
        nl.sweep(learner_of, {"rate": [0.1, 0.2]}, KEY, jax.random.normal, jnp.ones(5), **settings)


def test_an_order_that_returns_other_than_indices():
    for wrong in (lambda indices: indices[:, :5], lambda indices: indices.astype(float)):
        order = lambda *of, wrong=wrong: wrong(batching.uniform(*of))
        with pytest.raises(ValueError, match=r"order must return .* \[num_steps, batch_size\] = \[4, 8\], got "):
            _fit(num_steps=4, order=order)


def test_a_second_fit_does_not_compile_again():
    traces = []

    def counted(w, x):
        traces.append(1)
        return x @ w

    learner = nl.learner(nl.backprop(nl.supervised(counted, nl.losses.half_squared_error)), optax.sgd(0.1))
    _fit(learner, num_steps=10)
    before = len(traces)
    _fit(learner, num_steps=10)
    assert len(traces) == before


def test_ctrl_c_keeps_what_was_done_and_the_run_goes_on():
    def log(state):
        if int(state.step) == 8:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt) as caught:
        _fit(num_steps=20, steps_per_dispatch=4, log=log)
    stopped = caught.value
    assert isinstance(stopped, nl.Interrupted)
    assert int(stopped.state.step) == 8
    assert stopped.history.loss.shape == (8,)
    continued, _ = _fit(state=stopped.state, num_steps=12)
    np.testing.assert_array_equal(continued.params, _fit(num_steps=20)[0].params)


def test_divergence_is_an_error_that_keeps_the_last_good_state():
    wild = nl.learner(nl.backprop(objective), optax.sgd(1e6))
    with pytest.raises(nl.Diverged, match=r"the loss is (inf|nan) at step \d+: lower the learning rate") as caught:
        _fit(wild, num_steps=40, steps_per_dispatch=2)
    assert np.isfinite(caught.value.state.params).all()
    assert not np.isfinite(caught.value.history.loss[-1])


def test_a_donated_state_is_taken_over():
    given = LEARNER.init(KEY, START + 0.0)
    state, history = _fit(state=given, num_steps=20, steps_per_dispatch=4, donate=True)
    expected, its_history = _fit(num_steps=20, steps_per_dispatch=4)
    np.testing.assert_array_equal(state.params, expected.params)
    np.testing.assert_array_equal(history.loss, its_history.loss)
    assert given.params.is_deleted()
    wild = nl.learner(nl.backprop(objective), optax.sgd(1e6))
    with pytest.raises(nl.Diverged) as caught:
        _fit(wild, wild.init(KEY, START + 0.0), num_steps=40, steps_per_dispatch=2, donate=True)
    assert caught.value.state is None
    assert not np.isfinite(caught.value.history.loss[-1])


def test_ctrl_c_waits_for_a_donated_state():
    """A signal in the midst of a dispatch, as from the terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

    def interrupted(state, info):
        jax.debug.callback(lambda step: signal.raise_signal(signal.SIGINT) if step == 6 else None, state.step)
        return info.loss

    with pytest.raises(nl.Interrupted) as caught:
        _fit(state=LEARNER.init(KEY, START + 0.0), num_steps=20, steps_per_dispatch=4, donate=True, record=interrupted)
    assert int(caught.value.state.step) == 8
    assert caught.value.history.shape == (8,)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"order": 3}, "order must take 5 arguments, got 3: nl.batching.shuffled or nl.batching.uniform"),
        ({"batch_size": 25}, "batch_size must be at most the 24 examples there are, got 25"),
        ({"steps_per_dispatch": 0}, "steps_per_dispatch must be"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        _fit(**settings)


def test_what_is_no_learner_or_no_state_is_refused():
    with pytest.raises(
        ValueError, match=r"learner must be made by nl\.learner\(estimator, optimizer\), got GradientEst"
    ):
        nl.fit(nl.backprop(objective), KEY, BACKPROP.init(KEY, START), (X, Y), num_steps=1)
    with pytest.raises(ValueError, match=r"state must be made by learner\.init\(key, params\), got dict"):
        nl.fit(BACKPROP, KEY, {"w": START}, (X, Y), num_steps=1)


def test_a_run_cannot_be_part_of_a_traced_function():
    keys, state = jax.random.split(KEY, 2), BACKPROP.init(KEY, START)
    fit = lambda key, state, data: nl.fit(BACKPROP, key, state, data, num_steps=1, progress=False)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    advice = "is being traced, and a training run cannot be part of jax.jit, jax.vmap or jax.grad: take nl.restarts"
    with pytest.raises(ValueError, match=f"key {advice}"):
        jax.vmap(fit, in_axes=(0, None, None))(keys, state, (X, Y))
    with pytest.raises(ValueError, match=f"state {advice}"):
        jax.vmap(fit, in_axes=(None, 0, None))(KEY, states, (X, Y))
    with pytest.raises(ValueError, match=f"data {advice}"):
        jax.jit(lambda x: fit(KEY, state, (x, Y)))(X)


def test_data_of_unequal_lengths():
    for data in ((X, Y[:3]), (X[0], Y[0])):
        with pytest.raises(ValueError, match="data must be arrays with examples along their first axis"):
            nl.fit(LEARNER, KEY, LEARNER.init(KEY, START), data, num_steps=1)


def test_nothing_to_learn():
    learner = nl.learner(nl.backprop(lambda params, x: x), optax.sgd(0.1))
    state, _ = nl.fit(learner, KEY, learner.init(KEY, {}), jnp.ones(4), num_steps=2, progress=False)
    assert state.params == {}


def test_a_loss_that_is_not_finite_at_the_first_step_is_blamed_on_the_data():
    with pytest.raises(nl.Diverged, match="at step 0: look for NaN in data and parameters"):
        nl.fit(LEARNER, KEY, LEARNER.init(KEY, START), (X * np.nan, Y), num_steps=1, progress=False)


def two_valleys(w, batch):
    """Two minima, the left one lower."""
    return (w**2 - 1) ** 2 + 0.3 * w + 0 * batch


def _restarts(rate=0.05, **settings):
    learner = nl.learner(nl.backprop(two_valleys), optax.sgd(rate))
    score = lambda w: two_valleys(w, 0.0)
    return nl.restarts(
        learner, KEY, jax.random.normal, jnp.zeros(4),
        **{"score": score, "num_restarts": 12, "num_steps": 60, "progress": False} | settings,
    )  # fmt: skip


def test_restarts_find_both_minima_and_keep_the_lower():
    found = _restarts()
    assert found.scores.shape == (12,)
    assert found.history.loss.shape == (12, 60)
    assert (found.states.params > 0.5).any()
    assert (found.states.params < -0.5).any()
    assert found.best.params < -0.5
    assert found.scores[found.best_index] == found.scores.min()
    np.testing.assert_array_equal(found.best.params, found.states.params[found.best_index])


def test_restarts_differ_in_batches_and_noise_too():
    """From one beginning, with exact gradients or noisy ones, no two runs are the same."""
    for learner in (BACKPROP, LEARNER):
        found = nl.restarts(
            learner, KEY, lambda key: START, (X, Y), score=lambda w: jnp.sum(w**2), num_restarts=3, num_steps=2,
            batch_size=None if learner is LEARNER else 4, progress=False,
        )  # fmt: skip
        assert len(np.unique(found.states.params, axis=0)) == 3


def test_a_score_is_one_number():
    with pytest.raises(ValueError, match=r"score must return one number, got shape \(4,\): average over the examples"):
        _restarts(score=lambda w: two_valleys(w, jnp.zeros(4)))
    with pytest.raises(nl.Diverged, match="no score of 12 restarts is finite"):
        _restarts(score=lambda w: w * jnp.nan)


def test_a_lost_run_is_never_the_best():
    found = _restarts(score=lambda w: jnp.where(w < 0, jnp.nan, two_valleys(w, 0.0)))
    assert found.best.params > 0


def test_restarts_fail_only_if_all_do():
    with pytest.raises(nl.Diverged, match=r"all 12 restarts have diverged by step \d+: lower the learning rate"):
        _restarts(rate=1e4)


def test_restarts_with_finite_parameters_have_not_diverged():
    """Whatever the length of a dispatch: an optimizer may pass over steps whose loss is not finite."""
    data = jnp.array([[1, 0], [0, jnp.nan], [1, 1], [0.5, 0.2]])
    optimizer = optax.apply_if_finite(optax.sgd(0.1), 10)
    learner = nl.learner(nl.backprop(lambda w, batch: (batch @ w - 1) ** 2), optimizer)
    first, second = (
        nl.restarts(
            learner, KEY, lambda key: jax.random.normal(key, (2,)), data, score=jnp.sum, num_restarts=2, num_steps=8,
            batch_size=1, steps_per_dispatch=steps, progress=False,
        )
        for steps in (1, 8)
    )  # fmt: skip
    assert np.isnan(first.history.loss).any(axis=1).all()
    np.testing.assert_array_equal(first.scores, second.scores)


def test_parameters_lost_in_the_last_step_are_an_error():
    wild = nl.learner(nl.backprop(objective), optax.sgd(1e38))
    with pytest.raises(nl.Diverged, match="parameters are no longer finite after step 0"):
        _fit(wild, wild.init(KEY, START + 100), num_steps=1)


def test_the_estimator_s_state_goes_from_step_to_step():
    def estimate(key, state, params, batch):
        return jnp.full_like(params, state), state + 1, nl.Info(jnp.float32(0), jnp.int32(1))

    counting = nl.GradientEstimator(lambda key, params: jnp.float32(0), estimate)
    state, _ = _fit(nl.learner(counting, optax.sgd(1.0)), num_steps=4)
    assert float(state.estimator) == 4
    np.testing.assert_array_equal(state.params, -(0 + 1 + 2 + 3))
    mixed = nl.mix([counting, counting], [0.5, 0.5])
    _, states, _ = mixed.estimate(KEY, mixed.init(KEY, START), START, (X, Y))
    assert [float(s) for s in states] == [1, 1]


def test_residuals_are_kept_only_on_request():
    network = nl.mlp([3, 1], activation=nl.activations.tanh())
    learner = nl.learner(
        nl.lagrangian_backprop(nl.supervised(network.apply, nl.losses.half_squared_error)), optax.sgd(0.1)
    )
    state = learner.init(KEY, jax.jit(network.init)(KEY))
    assert _fit(learner, state, num_steps=2)[1].residuals == ()
    kept = _fit(learner, state, num_steps=2, record=lambda state, info: info)[1].residuals
    assert kept.primal["output"].shape == (2,)


def test_learner_refuses_what_is_not_one():
    with pytest.raises(ValueError, match="estimator must be a GradientEstimator"):
        nl.learner(objective, optax.sgd(0.1))
    with pytest.raises(ValueError, match="optimizer must be an optax optimizer"):
        nl.learner(nl.backprop(objective), 0.1)
    with pytest.raises(ValueError, match="key must be a typed key"):
        BACKPROP.init(0, START)


def test_optimizers_with_extra_arguments_get_the_loss(lenient):
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, rtol=0.9))
    learner = nl.learner(nl.backprop(objective), optimizer)
    state, _ = _fit(learner, num_steps=20, batch_size=None)
    assert float(state.optimizer[1].scale) < 1
