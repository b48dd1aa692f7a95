"""Data from an iterator: the same run as from arrays, in the memory of a few batches, and resumed where it was."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax import batching
from tests.training.problem import DATA, KEY, fit, objective, same

SGD = nl.learner(nl.backprop(objective), optax.sgd(0.05))
START = jnp.zeros((3, 1))


class Batches:
    """Batches of a stream that never ends, drawn from its position."""

    def __init__(self, size=8, last=10**9):
        self.size, self.last, self.position, self.handed_out = size, last, 0, []

    def __iter__(self):
        return self

    def __next__(self):
        if self.position == self.last:
            raise StopIteration
        chosen = np.random.default_rng(self.position).integers(0, 24, self.size)
        self.position += 1
        batch = tuple(np.asarray(x)[chosen] for x in DATA)
        self.handed_out.append(self.position)
        return batch

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def _fit(data, learner=SGD, **settings):
    return nl.fit(learner, KEY, learner.init(KEY, START), data, **{"num_steps": 10, "progress": False} | settings)


@pytest.mark.slow
def test_the_same_run_as_from_arrays():
    def in_turn(key, first_step, num_steps, num_examples, batch_size):
        return (first_step + jnp.arange(num_steps))[:, None] * batch_size + jnp.arange(batch_size)[None]

    drawn = [batch for batch, _ in zip(Batches(), range(10), strict=False)]
    arrays = tuple(np.concatenate(parts) for parts in zip(*drawn, strict=True))
    noisy = nl.learner(nl.weight_perturbation(objective, num_samples=2), optax.sgd(0.05))
    state, history = _fit(Batches(), noisy, steps_per_dispatch=4)
    expected, losses = _fit(arrays, noisy, batch_size=8, order=in_turn)
    np.testing.assert_allclose(state.params, expected.params, rtol=1e-5)
    np.testing.assert_allclose(history.loss, losses.loss, rtol=1e-5)
    assert history.evaluations.tolist() == losses.evaluations.tolist()


def test_iterables_and_generators_are_data_too():
    listed = [batch for batch, _ in zip(Batches(), range(10), strict=False)]

    class Loader:
        def __iter__(self):
            return iter(listed)

    same(_fit(Loader()), _fit(Batches()))
    same(_fit(batch for batch in listed), _fit(Batches()))


def test_no_batch_is_drawn_that_is_not_used():
    data = Batches()
    first, early = _fit(data, steps_per_dispatch=4)
    assert data.position == 10
    second, late = nl.fit(SGD, KEY, first, data, num_steps=5, progress=False)
    state, history = _fit(Batches(), num_steps=15)
    same(second, state)
    np.testing.assert_array_equal(history.loss, np.concatenate([early.loss, late.loss]))


def test_a_buffer_that_the_iterator_uses_again():
    def reusing():
        buffer = tuple(np.empty((8, *x.shape[1:]), np.float32) for x in DATA)
        for batch in Batches():
            for place, x in zip(buffer, batch, strict=True):
                place[:] = x
            yield buffer

    same(_fit(reusing()), _fit(Batches()))


def test_memory_does_not_grow_with_the_data():
    batches, alive = [], []

    def watched():
        for inputs, labels in Batches():
            batch = jnp.asarray(inputs), jnp.asarray(labels)
            batches.append(weakref.ref(batch[0]))
            alive.append(sum(batch() is not None for batch in batches))
            yield batch

    _fit(watched(), num_steps=40, steps_per_dispatch=40)
    assert max(alive) <= 5


@pytest.mark.slow
def test_a_killed_run_goes_on_where_the_data_was(tmp_path):
    """Two batches are ahead of the step when a dispatch ends; they are drawn again."""

    def stop(report):
        if report.step == 14:
            raise KeyboardInterrupt

    whole = fit(data=Batches(), num_steps=30)
    with pytest.raises(nl.Interrupted):
        fit(tmp_path, data=Batches(), num_steps=30, log=stop)
    data = Batches()
    same(fit(tmp_path, data=data, num_steps=30), whole)
    assert data.handed_out == [1, *range(15, 31)]  # the first for its shape
    same(fit(tmp_path, data=Batches(), num_steps=30), whole)


@pytest.mark.slow
def test_restarts_share_the_batches():
    found = nl.restarts(
        SGD, KEY, lambda key: jax.random.normal(key, (3, 1)), Batches(), score=lambda w: jnp.sum(w**2), num_restarts=2,
        num_steps=6, steps_per_dispatch=4, progress=False,
    )  # fmt: skip
    assert found.history.loss.shape == (2, 6)
    first = jnp.asarray(found.states.params[0])
    assert not np.array_equal(first, found.states.params[1])


def test_data_that_ends_is_an_error_that_loses_nothing(tmp_path):
    with pytest.raises(
        nl.Exhausted, match="data ended after 7 of 10 steps: repeat it, or ask for fewer steps"
    ) as caught:
        fit(tmp_path, data=Batches(last=7), num_steps=10)
    assert (int(caught.value.state.step), len(caught.value.history.loss)) == (7, 7)
    with pytest.raises(nl.Exhausted, match="data ended after 7 of 10 steps"):
        fit(tmp_path, data=Batches(last=7), num_steps=10)
    with pytest.raises(nl.Exhausted, match="data ended after 0 of 10 steps"):
        _fit(iter(()))


def test_bad_iterators(tmp_path):
    with pytest.raises(ValueError, match="batch_size and order must be left out where data is an iterator"):
        _fit(Batches(), batch_size=8)
    with pytest.raises(ValueError, match="batch_size and order must be left out"):
        _fit(Batches(), order=batching.uniform)
    with pytest.raises(ValueError, match="data is a generator, whose position cannot be saved in a checkpoint"):
        fit(tmp_path, data=(batch for batch in Batches()), num_steps=4)
    assert not list(tmp_path.iterdir())
    opaque = Batches()
    opaque.get_state = lambda: {"rng": object()}
    with pytest.raises(ValueError, match=r"get_state\(\) must return bytes, or what JSON can hold"):
        fit(tmp_path, data=opaque, num_steps=4)


def test_positions_may_be_bytes(tmp_path):
    class InBytes(Batches):
        def get_state(self):
            return bytes([255, self.position])

        def set_state(self, state):
            assert state[0] == 255
            self.position = state[1]

    fit(tmp_path, data=InBytes(), num_steps=4)
    same(fit(tmp_path, data=InBytes(), num_steps=8), fit(data=Batches(), num_steps=8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_grain(tmp_path, kind):
    grain = pytest.importorskip("grain")
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    examples = [tuple(np.asarray(x)[i] for x in DATA) for i in range(24)]

    def data():
        if kind == "dataset":
            return grain.MapDataset.source(examples).shuffle(seed=1).repeat().batch(8).to_iter_dataset(alone)
        sampler = grain.samplers.IndexSampler(24, shuffle=True, seed=1, num_epochs=None)
        return grain.DataLoader(
            data_source=examples, sampler=sampler, operations=[grain.transforms.Batch(8)], read_options=alone
        )

    whole = fit(data=data(), num_steps=12)
    fit(tmp_path, data=data(), num_steps=6)
    same(fit(tmp_path, data=data(), num_steps=12), whole)
