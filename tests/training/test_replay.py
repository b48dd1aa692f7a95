"""Descent in place, and a run repeated from its log to the same bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from tests.estimators.noise.test_blocks import DEEP, SAMPLERS, _temporaries

pytestmark = pytest.mark.slow

KEY = jax.random.key(5)
NETWORK = nl.mlp([300, 250, 4], activation=nl.activations.tanh())  # 75,000 weights: two blocks
OBJECTIVE = nl.supervised(NETWORK.apply, nl.losses.cross_entropy)
DATA = jax.random.normal(KEY, (20, 300)), jnp.arange(20) % 4
PARAMS = NETWORK.init(jax.random.key(6))
BATCH = jax.tree.map(lambda x: x[:10], DATA)


@functools.cache
def estimator(sampler="rank_one", samples=3, **settings):
    return nl.weight_perturbation(OBJECTIVE, num_samples=samples, directions=SAMPLERS[sampler], **settings)


@functools.cache
def learner_of(ours, rate=0.05, **momentum):
    """The same learner for all runs of one kind, so that it is compiled once."""
    return nl.seeded(ours, rate, example=BATCH, **momentum)


def run(folder, ours, steps=9, rate=0.05, snapshot_every=None, key=jax.random.key(7), **momentum):
    """The run twice: the second time its steps are there, and compared. Three steps a call, and what is left."""
    learner = learner_of(ours, rate, **momentum)
    for _ in range(2):
        log = nl.TrainingLog(folder, ours, PARAMS, BATCH, snapshot_every=snapshot_every, **momentum)
        state, _ = nl.fit(
            learner, key, learner.init(KEY, PARAMS), DATA, num_steps=steps, batch_size=10, steps_per_dispatch=3,
            log=log, progress=False,
        )  # fmt: skip
    return log, state


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_snapshots_of_half_precision(tmp_path):
    ours = nl.weight_perturbation(lambda w, x: x * jnp.sum(w**2).astype(x.dtype))
    learner, params = nl.seeded(ours, 0.05), jnp.ones(3, jnp.bfloat16)
    log = nl.TrainingLog(tmp_path, ours, params, jnp.ones(4), snapshot_every=2)
    state, _ = nl.fit(
        learner, KEY, learner.init(KEY, params), jnp.ones(4), num_steps=3, log=log, steps_per_dispatch=1, progress=False
    )
    same(nl.replay(params, log), state.params)


@pytest.mark.parametrize(
    ("sampler", "samples", "steps"), [("gaussian", 3, 9), ("rank_one", 1, 7), ("rank_one", 3, 9), ("flipout", 2, 9)]
)
def test_a_replay_has_the_same_bits(sampler, samples, steps, tmp_path):
    """As the run, a late joiner, and one who begins at a snapshot."""
    log, state = run(tmp_path, estimator(sampler, samples), steps, snapshot_every=6)
    same(nl.replay(PARAMS, log), state.params)
    assert not np.array_equal(nl.replay(PARAMS, log, steps=6)["output"]["weight"], state.params["output"]["weight"])
    assert [path.name for path in tmp_path.glob("*.npz")] == ["snapshot-000000006.npz"]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    same(nl.replay(shapes, tmp_path), state.params)
    same(nl.replay(PARAMS, tmp_path, steps=0), PARAMS)


@pytest.mark.parametrize("window", [2, 5])
def test_a_replay_with_momentum_has_the_same_bits(window, tmp_path):
    """From the first step, and from a snapshot: the gradients before it are in the log."""
    own = {"momentum": 0.9, "window": window}
    log, state = run(tmp_path, estimator(), snapshot_every=6, **own)
    same(nl.replay(PARAMS, log), state.params)
    first, _ = run(tmp_path / "first", estimator(), steps=3, **own)
    learner = learner_of(estimator(), **own)
    half = learner.init(KEY, nl.replay(PARAMS, first))._replace(step=jnp.int32(3), optimizer=first.past())
    end, _ = nl.fit(
        learner, jax.random.key(7), half, DATA, num_steps=6, batch_size=10, steps_per_dispatch=3, progress=False
    )
    same(end.params, state.params)
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    same(nl.replay(PARAMS, log), state.params)
    without = nl.TrainingLog(tmp_path / "without", estimator(), PARAMS, BATCH)
    assert log.bytes_per_step == without.bytes_per_step
    with pytest.raises(ValueError, match="momentum and window of a training log must be"):
        _mistaken(tmp_path, own)
    with pytest.raises(ValueError, match="another run: momentum differ"):
        nl.TrainingLog(tmp_path, estimator(), PARAMS, BATCH, momentum=0.8, window=window)
    with pytest.raises(ValueError, match="another run: momentum differ"):
        nl.TrainingLog(tmp_path, estimator(), PARAMS, BATCH)


def test_keys_of_another_generator(tmp_path):
    """The log learns it from the run, before the first step."""
    other = jax.random.key(7, impl="rbg")
    log, state = run(tmp_path, estimator(), steps=4, key=other)
    same(nl.replay(PARAMS, tmp_path), state.params)
    assert log.bytes_per_step == 8 + 16 + 4 + 4 * 3 + 4
    with pytest.raises(ValueError, match=r"another run: its keys are of rbg, this run's of threefry2x32"):
        run(tmp_path, estimator(), steps=4)
    _, info = jax.eval_shape(learner_of(estimator()).step, other, state, BATCH)
    updates = jax.tree.map(lambda x: np.ones((1, *x.shape), x.dtype), info.update)
    new = nl.TrainingLog(tmp_path / "new", estimator(), PARAMS, BATCH)
    with pytest.raises(ValueError, match=r"keys must be of threefry2x32, of 2 words, these have 4"):
        new.append(updates, 1, PARAMS)


def test_a_log_of_many_runs_is_refused_before_the_first_step(tmp_path):
    log = nl.TrainingLog(tmp_path, estimator(), PARAMS, BATCH)
    with pytest.raises(ValueError, match=r"a training log records one run, this report is of 2 runs: train each by"):
        nl.restarts(
            learner_of(estimator()), KEY, lambda key: PARAMS, BATCH, score=lambda params: 0.0, num_restarts=2,
            num_steps=1, log=log, progress=False,
        )  # fmt: skip


def _mistaken(folder, momentum):
    learner = learner_of(estimator(), **momentum)
    _, info = jax.eval_shape(learner.step, KEY, learner.init(KEY, PARAMS), BATCH)
    log = nl.TrainingLog(folder / "mistaken", estimator(), PARAMS, BATCH)
    log.append(jax.tree.map(lambda x: np.ones((1, *x.shape), x.dtype), info.update), 1, PARAMS)


LINEAR = nl.weight_perturbation(lambda w, batch: batch @ w, num_samples=2)  # its gradients do not depend on w


def test_momentum_is_heavy_ball_within_its_window_and_as_much_in_all(x64):
    """Against optax for H steps and by the equation after them, where optax differs."""
    w, batch, steps, window, mu, rate = np.zeros(3), np.eye(3), 9, 4, 0.9, 0.05
    ours = nl.seeded(LINEAR, rate, momentum=mu, window=window, example=batch)
    theirs = nl.learner(LINEAR, optax.sgd(rate, momentum=mu))
    states, gradients = [made.init(KEY, w) for made in (ours, theirs)], []

    @jax.jit
    def step(key, states):
        own, other = (made.step(key, state, batch)[0] for made, state in zip((ours, theirs), states, strict=True))
        return LINEAR.estimate(key, (), w, batch)[0], [own, other]

    c = [*(mu**i for i in range(window)), mu**window / (1 - mu)]
    np.testing.assert_allclose(sum(c), 1 / (1 - mu))
    expected = np.zeros(3)
    for t in range(steps):
        key = jax.random.fold_in(KEY, t)
        gradient, states = step(key, states)
        gradients.insert(0, np.asarray(gradient))
        expected -= rate * sum(factor * g for factor, g in zip(c, gradients, strict=False))
        np.testing.assert_allclose(states[0].params, expected, rtol=1e-5)
        near = np.allclose(states[0].params, states[1].params, rtol=1e-5)
        assert near == (t < window)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"momentum": 0.9, "window": 0}, "window must be"),
        ({"momentum": 0.9}, "momentum needs example="),
    ],
)
def test_momentum_that_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        nl.seeded(LINEAR, 0.1, **settings)


def test_momentum_with_keys_of_two_generators_is_refused():
    learner, other = nl.seeded(LINEAR, 0.1, momentum=0.9, example=jnp.eye(3)), jax.random.key(0, impl="rbg")
    state = learner.init(KEY, jnp.zeros(3))
    with pytest.raises(ValueError, match="key is of rbg, but init was given a key of another generator"):
        jax.eval_shape(learner.step, other, state, jnp.eye(3))


def test_in_place_is_gradient_descent():
    """The update of optax.sgd at the same key, to rounding; the rate follows a schedule."""
    ours = nl.seeded(estimator(), optax.linear_schedule(0.1, 0.0, 4))
    theirs = nl.learner(estimator(), optax.sgd(0.05))
    state = ours.init(KEY, PARAMS)._replace(step=jnp.int32(2))
    both = jax.jit(lambda state, other: (ours.step(KEY, state, BATCH), theirs.step(KEY, other, BATCH)[0]))
    (state, info), expected = both(state, theirs.init(KEY, PARAMS))
    np.testing.assert_allclose(info.update.scale, -0.05, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.params, expected.params)


@pytest.mark.parametrize("sampler", ["gaussian", "rank_one"])
def test_in_place_has_the_memory_of_inference(sampler):
    """At most 0.15 parameters of temporaries, with momentum as well."""
    ours = nl.weight_perturbation(
        nl.supervised(DEEP.apply, nl.losses.cross_entropy), num_samples=8, directions=SAMPLERS[sampler]
    )
    batch = jax.ShapeDtypeStruct((8, 2048), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    learner = nl.seeded(ours, 0.1, momentum=0.9, example=batch)
    state = jax.eval_shape(learner.init, KEY, jax.eval_shape(DEEP.init, KEY))
    assert _temporaries(lambda state, key, batch: learner.step(key, state, batch), state, KEY, batch) < 0.15


def test_a_torn_record_is_dropped(tmp_path):
    log, _ = run(tmp_path, estimator())
    path = tmp_path / "updates.bin"
    whole = path.read_bytes()
    assert len(whole) == 9 * log.bytes_per_step == 9 * (8 + 8 + 4 + 4 * 3 + 4)
    for left in (whole[:-1], whole[: -log.bytes_per_step + 1], whole[:-20] + bytes(20)):
        path.write_bytes(left)
        again = nl.TrainingLog(tmp_path, estimator(), PARAMS, BATCH)
        assert (again.steps, len(path.read_bytes())) == (8, 8 * log.bytes_per_step)
        log, _ = run(tmp_path, estimator())  # goes on, and ends with the same bytes
        assert path.read_bytes() == whole
    damaged = bytearray(whole)
    damaged[log.bytes_per_step * 2 + 25] ^= 1
    path.write_bytes(damaged)
    assert nl.TrainingLog(tmp_path, estimator(), PARAMS, BATCH).steps == 2


def test_what_is_refused(tmp_path):
    log, state = run(tmp_path / "log", estimator(), steps=3)
    with pytest.raises(ValueError, match="another run: rates differ"):
        nl.TrainingLog(tmp_path / "log", estimator(samples=2), PARAMS, BATCH)
    with pytest.raises(ValueError, match="other updates from step 0 on"):
        run(tmp_path / "log", estimator(), steps=3, rate=0.06)
    _, info = jax.eval_shape(learner_of(estimator()).step, KEY, state, BATCH)  # its shapes are looked at, no more
    later = jax.tree.map(lambda x: np.ones((1, *x.shape), x.dtype), info.update)
    with pytest.raises(ValueError, match="ends at step 3, these begin at step 5"):
        log.append(later, 6, state.params)
    with pytest.raises(ValueError, match=r"other parameters: it has .*4.* where these have .*5"):
        nl.replay(jax.eval_shape(nl.mlp([300, 250, 5], activation=nl.activations.tanh()).init, KEY), log)
    with pytest.raises(ValueError, match="at most the log's 3, got 4"):
        nl.replay(PARAMS, log, steps=4)
    for steps in (2.0, True, -1):
        with pytest.raises(ValueError, match=f"steps must be a whole number of at least 0, got {steps}"):
            nl.replay(PARAMS, log, steps=steps)
    with pytest.raises(FileNotFoundError, match="has no training log"):
        nl.replay(PARAMS, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a state of its own cannot be replayed"):
        nl.TrainingLog(tmp_path / "state", estimator(baseline=nl.baselines.running_mean()), PARAMS, BATCH)
    with pytest.raises(ValueError, match="estimator must have a `sample` function"):
        nl.seeded(nl.backprop(OBJECTIVE), 0.1)
    with pytest.raises(ValueError, match="cannot be stored as rates"):
        jax.eval_shape(nl.seeded(nl.node_perturbation(OBJECTIVE), 0.1).step, KEY, state, BATCH)
    with pytest.raises(ValueError, match="learning_rate must be"):
        nl.seeded(estimator(), 0.0)


def test_a_law_of_ones_own_is_handed_to_the_replay(tmp_path):
    own = lambda key, index, template: nl.directions.rademacher()(key, index, template)
    ours = nl.weight_perturbation(OBJECTIVE, directions=own)
    log, state = run(tmp_path, ours, steps=3)
    with pytest.raises(ValueError, match=r"pass it, replay\(…, directions=…\)"):
        nl.replay(PARAMS, log)
    again = nl.replay(PARAMS, log, directions=own)  # whose arrays XLA may add otherwise: to rounding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, state.params)
