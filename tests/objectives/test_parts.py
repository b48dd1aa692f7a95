import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax._core.paths import by_path

pytestmark = pytest.mark.slow

WIDTH, RANK = 128, 2
KEY = jax.random.key(0)


def adapted(params, batch, propagate=nl.propagation.feedforward):
    """Frozen int8 weights with a scale each, and adapters beside them."""
    x, y = batch

    def connection(layer, x):
        weight = layer["scale"] * layer["quantised"].astype(jnp.float32)
        return x @ weight + (x @ layer["adapter"]["down"]) @ layer["adapter"]["up"]

    for name in ("one", "two"):
        x = propagate(name, connection, jnp.tanh, params[name], x)
    return jnp.sum((x - y) ** 2, axis=-1)


def _params(key):
    a, b = jax.random.split(key)
    layer = {
        "quantised": jax.random.randint(a, [WIDTH, WIDTH], -127, 127, jnp.int8),
        "scale": jnp.float32(1e-3),
        "adapter": {"down": jax.random.normal(b, [WIDTH, RANK]) / 11, "up": jnp.zeros([RANK, WIDTH])},
    }
    return {"one": layer, "two": layer}


PARAMS = _params(KEY)
BATCH = jax.random.normal(jax.random.key(1), [5, WIDTH]), jax.random.normal(jax.random.key(2), [5, WIDTH])
PART = nl.train_only(adapted, PARAMS, "*/adapter/*")


def test_only_the_chosen_leaves_are_there():
    assert sorted(PART.params) == [f"{a}/adapter/{b}" for a in ("one", "two") for b in ("down", "up")]
    whole = PART.whole({path: x + 1 for path, x in PART.params.items()})
    assert jax.tree.structure(whole) == jax.tree.structure(PARAMS)
    assert whole["one"]["quantised"] is PARAMS["one"]["quantised"]
    np.testing.assert_array_equal(whole["two"]["adapter"]["up"], 1)


def test_gradients_are_those_of_the_whole():
    def loss(adapters):
        return adapted(jax.tree.map(lambda p, a: p if a is None else a, PARAMS, adapters), BATCH).mean()

    chosen = {name: {"quantised": None, "scale": None, "adapter": of["adapter"]} for name, of in PARAMS.items()}
    expected = by_path(jax.grad(loss)(chosen))
    grads, _, _ = nl.backprop(PART.objective).estimate(KEY, (), PART.params, BATCH)
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, expected[path], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [nl.weight_perturbation, nl.node_perturbation, nl.forward_gradient])
def test_a_learner_trains_them(make):
    estimator = make(PART.objective, num_samples=8)
    learner = nl.learner(estimator, optax.sgd(2e-3))
    _, history = nl.fit(learner, KEY, learner.init(KEY, PART.params), BATCH, num_steps=150, progress=False)
    assert history.loss[-10:].mean() < 0.97 * history.loss[0]


@pytest.mark.parametrize("join", [lambda e: nl.learner(e, optax.sgd(0.1, momentum=0.9)), lambda e: nl.seeded(e, 0.1)])
def test_nothing_is_allocated_for_the_others(join):
    learner = join(nl.weight_perturbation(PART.objective, num_samples=8))
    state = learner.init(KEY, PART.params)
    assert max(leaf.size for leaf in jax.tree.leaves(state)) == WIDTH * RANK
    step = jax.jit(learner.step, donate_argnums=1).lower(KEY, state, BATCH).compile()
    of_step, of_forward = (
        compiled.memory_analysis().temp_size_in_bytes
        for compiled in (step, jax.jit(PART.objective).lower(PART.params, BATCH).compile())
    )
    unpacked = 2 * 4 * WIDTH**2  # the two frozen weights as float32, which the objective makes of them
    assert of_forward < 1.2 * unpacked
    assert of_step < 1.2 * unpacked


def test_the_log_of_a_run_is_that_of_the_adapters(tmp_path):
    estimator = nl.weight_perturbation(PART.objective, num_samples=2)
    learner = nl.seeded(estimator, 1e-2)
    log = nl.TrainingLog(tmp_path, estimator, PART.params, BATCH)
    start = learner.init(KEY, PART.params)
    state, _ = nl.fit(learner, KEY, start, BATCH, num_steps=10, log=log, progress=False)
    again = nl.replay(PART.params, log)
    jax.tree.map(np.testing.assert_array_equal, again, state.params)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ((), "patterns must name the parameters to train; the paths are one/adapter/down"),
        (("*/adapter/*", "three/*"), "pattern 'three/\\*' matches no parameter; the paths are one/adapter/down"),
        (("one",), r"pattern 'one' matches no parameter; write 'one/\*' for all of this layer"),
        (("one/*",), "parameter 'one/quantised' cannot be trained, its dtype is int8"),
    ],
)
def test_bad_patterns(patterns, message):
    with pytest.raises(ValueError, match=message):
        nl.train_only(adapted, PARAMS, *patterns)
