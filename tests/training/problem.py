"""A small run with a checkpoint folder, also as a program to be killed: python -m tests.training.problem FOLDER."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (24, 3))
DATA = X, X @ jnp.array([[1.0], [-2.0], [0.5]])
objective = nl.supervised(lambda w, x: x @ w, nl.losses.half_squared_error)


def jitter(updates, key, params=None):
    """Noise from a key in the optimizer's state, as `optax.add_noise` has it."""
    key, used = jax.random.split(key)
    return updates + 0.01 * jax.random.normal(used, updates.shape), key


NOISY = optax.GradientTransformation(lambda params: jax.random.key(5), jitter)
MOMENTUM = optax.sgd(lambda count: jnp.where(count < 40, 0.05, 0.01), momentum=0.9)
LEARNER = nl.learner(nl.weight_perturbation(objective, num_samples=4), optax.chain(NOISY, MOMENTUM))
STEPS = 60


def fit(folder=None, **settings):
    """A run of `STEPS` steps, saved every other."""
    data = settings.pop("data", DATA)
    batch_size = 8 if data is DATA else None
    default = {"num_steps": STEPS, "steps_per_dispatch": 2, "progress": False, "batch_size": batch_size}
    start = LEARNER.init(KEY, jnp.zeros((3, 1)))
    return nl.fit(LEARNER, KEY, start, data, **{**default, "checkpoint": folder, **settings})


def same(run, other):
    """Raises unless two runs' states and histories are equal to the last bit."""

    def equal(a, b):
        if jax.dtypes.issubdtype(jnp.asarray(a).dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(equal, run, other)


if __name__ == "__main__":
    fit(sys.argv[1])
