"""Runs on a mesh of four devices, as a program: its process needs an XLA flag. Prints what was found, as JSON."""

import json
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nl_jax as nl

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (64, 8))
DATA = X, X[:, :2]
objective = nl.supervised(lambda w, x: x @ w, nl.losses.half_squared_error)
LEARNER = nl.learner(nl.backprop(objective), optax.sgd(0.05, momentum=0.9))


NETWORK = nl.mlp([8, 3, 2], activation=nl.activations.tanh())
RULES = {  # that sum over the examples in different ways
    "oja": nl.rules.oja(),
    "spherical": nl.rules.spherical(),
    "parametric": nl.rules.parametric({(1, 1, 0): 1.0, (0, 2, 1): -1.0}),
}


def follow(rule, data):
    """The parameters after two steps of a local rule."""
    learner = nl.learner(nl.local_learning(NETWORK.apply, rule), optax.sgd(0.05))
    state = learner.init(KEY, NETWORK.init(KEY))
    return nl.fit(learner, KEY, state, data, num_steps=2, batch_size=16, progress=False)[0].params


class Compilations(logging.Handler):
    """Counts the compilations of runs' steps."""

    count = 0

    def emit(self, entry):
        self.count += "XLA compilation of jit(_steps)" in entry.getMessage()


def fit(data, batch_size, state=None, **settings):
    state = LEARNER.init(KEY, jnp.zeros((8, 2))) if state is None else state
    settings = {"num_steps": 6, "steps_per_dispatch": 3, "batch_size": batch_size, "progress": False} | settings
    return nl.fit(LEARNER, KEY, state, data, **settings)


def main(folder):
    jax.config.update("jax_log_compiles", True)
    logger, compilations = logging.getLogger("jax"), Compilations()
    logger.handlers, logger.propagate = [compilations], False
    found = []
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(kind,))
        rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["batch"], [None, None]))
        data = jax.device_put(DATA, rows)
        for batch_size in (None, 16, 6):  # 6 is not divided by four
            before = compilations.count
            state, history = fit(data, batch_size)
            state, more = fit(data, batch_size, state)
            compiled = compilations.count - before
            expected, losses = fit(DATA, batch_size, num_steps=12)
            np.testing.assert_allclose(state.params, expected.params, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(np.concatenate([history.loss, more.loss]), losses.loss, rtol=1e-4)
            assert state.params.sharding.is_equivalent_to(columns, 2)
            found.append({"axes": str(kind), "batch_size": batch_size, "compiled": compiled})
        for rule in RULES.values():
            params, expected = follow(rule, data[0]), follow(rule, X)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, expected)
        place = f"{folder}/{kind}"
        fit(data, 16, num_steps=3, checkpoint=place)
        resumed, _ = fit(data, 16, checkpoint=place)
        np.testing.assert_array_equal(resumed.params, fit(data, 16)[0].params)
        assert resumed.params.sharding.is_equivalent_to(columns, 2)
        batches = (jax.device_put((x, x[:, :2]), rows) for x in np.asarray(X).reshape(8, 8, 8))
        streamed, _ = nl.fit(LEARNER, KEY, LEARNER.init(KEY, jnp.zeros((8, 2))), batches, num_steps=8, progress=False)
        assert streamed.params.sharding.is_equivalent_to(columns, 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
