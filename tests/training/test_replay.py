"""Descent in place, and a run repeated from its log to the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from tests.estimators.test_blocks import LAWS, WIDE, _temporaries

KEY = jax.random.key(5)
NETWORK = nl.mlp([300, 250, 4], activation=nl.activations.tanh())  # 75,000 weights: two blocks
OBJECTIVE = nl.supervised(NETWORK.apply, nl.losses.cross_entropy)
DATA = jax.random.normal(KEY, (20, 300)), jnp.arange(20) % 4
PARAMS = NETWORK.init(jax.random.key(6))
BATCH = jax.tree.map(lambda x: x[:10], DATA)


def estimator(law="rank_one", samples=3, **settings):
    return nl.weight_perturbation(OBJECTIVE, num_samples=samples, directions=LAWS[law], **settings)


def run(folder, ours, steps=7, rate=0.05, **settings):
    """The run twice: the second time its steps are there, and compared."""
    learner = nl.seeded(ours, rate)
    for _ in range(2):
        log = nl.TrainingLog(folder, ours, PARAMS, BATCH, **settings)
        state, _ = nl.fit(
            learner, jax.random.key(7), learner.init(KEY, PARAMS), DATA, num_steps=steps, batch_size=10,
            steps_per_dispatch=3, log=log, progress=False,
        )  # fmt: skip
    return log, state


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize(
    ("law", "samples"), [("gaussian", 3), ("gaussian", 1), ("rank_one", 3), ("rank_one", 1), ("flipout", 2)]
)
def test_a_replay_has_the_same_bits(law, samples, tmp_path):
    """As the run, a late joiner, and one who begins at a snapshot."""
    log, state = run(tmp_path, estimator(law, samples), snapshot_every=4)
    same(nl.replay(PARAMS, log), state.params)
    assert not np.array_equal(nl.replay(PARAMS, log, steps=6)["output"]["weight"], state.params["output"]["weight"])
    assert [path.name for path in tmp_path.glob("*.npz")] == ["snapshot-000000006.npz"]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    same(nl.replay(shapes, tmp_path), state.params)
    same(nl.replay(PARAMS, tmp_path, steps=0), PARAMS)


def test_in_place_is_gradient_descent():
    """The update of optax.sgd at the same key, to rounding; the rate follows a schedule."""
    ours = nl.seeded(estimator(), optax.linear_schedule(0.1, 0.0, 4))
    theirs = nl.learner(estimator(), optax.sgd(0.05))
    state = ours.init(KEY, PARAMS)._replace(step=jnp.int32(2))
    state, info = jax.jit(ours.step)(KEY, state, BATCH)
    expected, _ = jax.jit(theirs.step)(KEY, theirs.init(KEY, PARAMS), BATCH)
    np.testing.assert_allclose(info.update.scale, -0.05, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state.params, expected.params)


@pytest.mark.parametrize("law", ["gaussian", "rademacher", "rank_one"])
def test_in_place_has_the_memory_of_inference(law):
    """At most 0.15 parameters of temporaries; the optax learner, which forms a gradient, has more than one."""
    ours = nl.weight_perturbation(
        nl.supervised(WIDE.apply, nl.losses.cross_entropy), num_samples=8, directions=LAWS[law]
    )
    learner = nl.seeded(ours, 0.1)
    state = jax.eval_shape(learner.init, KEY, jax.eval_shape(WIDE.init, KEY))
    batch = jax.ShapeDtypeStruct((32, 1024), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.int32)
    assert _temporaries(lambda state, key, batch: learner.step(key, state, batch), state, KEY, batch) < 0.15


def test_a_torn_record_is_dropped(tmp_path):
    log, _ = run(tmp_path, estimator())
    path = tmp_path / "updates.bin"
    whole = path.read_bytes()
    assert len(whole) == 7 * log.bytes_per_step == 7 * (8 + 8 + 4 + 4 * 3 + 4)
    for left in (whole[:-1], whole[: -log.bytes_per_step + 1], whole[:-20] + bytes(20)):
        path.write_bytes(left)
        again = nl.TrainingLog(tmp_path, estimator(), PARAMS, BATCH)
        assert (again.steps, len(path.read_bytes())) == (6, 6 * log.bytes_per_step)
        log, _ = run(tmp_path, estimator())  # goes on, and ends with the same bytes
        assert path.read_bytes() == whole
    damaged = bytearray(whole)
    damaged[log.bytes_per_step * 2 + 25] ^= 1
    path.write_bytes(damaged)
    assert nl.TrainingLog(tmp_path, estimator(), PARAMS, BATCH).steps == 2


def test_what_is_refused(tmp_path):
    log, state = run(tmp_path / "log", estimator())
    with pytest.raises(ValueError, match="another run's: its rates differ"):
        nl.TrainingLog(tmp_path / "log", estimator(samples=2), PARAMS, BATCH)
    with pytest.raises(ValueError, match="other updates from step 0 on"):
        run(tmp_path / "log", estimator(), rate=0.06)
    _, info = nl.seeded(estimator(), 0.05).step(KEY, state, BATCH)
    later = jax.tree.map(lambda x: x[None], info.update)
    with pytest.raises(ValueError, match="ends at step 7, these begin at step 9"):
        log.append(later, 10, state.params)
    with pytest.raises(ValueError, match=r"other parameters: it has .*4.* where these have .*5"):
        nl.replay(nl.mlp([300, 250, 5], activation=nl.activations.tanh()).init(KEY), log)
    with pytest.raises(ValueError, match="at most the log's 7, got 8"):
        nl.replay(PARAMS, log, steps=8)
    with pytest.raises(FileNotFoundError, match="has no training log"):
        nl.replay(PARAMS, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a state of its own cannot be replayed"):
        nl.TrainingLog(tmp_path / "state", estimator(baseline=nl.baselines.running_mean()), PARAMS, BATCH)
    with pytest.raises(ValueError, match="whose gradient is a list of numbers"):
        nl.seeded(nl.backprop(OBJECTIVE), 0.1)
    with pytest.raises(ValueError, match="no list of numbers"):
        nl.seeded(nl.node_perturbation(OBJECTIVE), 0.1).step(KEY, state, BATCH)
    with pytest.raises(ValueError, match="learning_rate must be"):
        nl.seeded(estimator(), 0.0)


def test_a_law_of_ones_own_is_handed_to_the_replay(tmp_path):
    own = lambda key, index, template: nl.directions.rademacher()(key, index, template)
    ours = nl.weight_perturbation(OBJECTIVE, directions=own)
    log, state = run(tmp_path, ours)
    with pytest.raises(ValueError, match=r"pass it, replay\(…, law=…\)"):
        nl.replay(PARAMS, log)
    again = nl.replay(PARAMS, log, law=own)  # whose arrays XLA may add otherwise: to rounding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, state.params)
