import dataclasses
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.training import sweep as module
from nl_jax.training.trials import trials_of

pytestmark = pytest.mark.slow

X = jax.random.normal(jax.random.key(0), [40, 3])
DATA = X[:30], X[:30] @ jnp.ones([3, 1])
HELD_OUT = X[30:], X[30:] @ jnp.ones([3, 1])
KEY = jax.random.key(1)
OBJECTIVE = nl.supervised(lambda w, x: x @ w, nl.losses.half_squared_error)


def learner_of(rate, sigma):
    return nl.learner(nl.weight_perturbation(OBJECTIVE, sigma=sigma), optax.sgd(rate))


def init(key):
    return jax.random.normal(key, [3, 1])


def score(params):
    return OBJECTIVE(params, HELD_OUT).mean()


def one_more(params):
    return score(params) + 1


GRID = {"rate": [0.02, 0.2, 1e30], "sigma": [1e-3, 1e-2]}
COMMON = {"num_steps": 20, "batch_size": 5, "steps_per_dispatch": 10, "seeds": 2, "score": score, "progress": False}


def swept(settings=GRID, **changed):
    return nl.sweep(learner_of, settings, KEY, init, DATA, **{**COMMON, **changed})


@pytest.fixture(scope="module")
def found():
    return swept(test=one_more, at_once=2)


def test_a_run_is_that_of_fit(found):
    """Of the best setting and the second seed, with numbers in the place of traced settings."""
    params_key, state_key, run_key = jax.random.split(jax.random.fold_in(KEY, 1), 3)
    learner = learner_of(**found.best)
    state = learner.init(state_key, init(params_key))
    state, history = nl.fit(learner, run_key, state, DATA, num_steps=20, batch_size=5, progress=False)
    np.testing.assert_allclose(found.states.params[1], state.params, rtol=1e-3)
    np.testing.assert_allclose(found.history.loss[found.best_index, 1], history.loss, rtol=1e-3)
    np.testing.assert_allclose(found.scores[found.best_index, 1], score(state.params), rtol=1e-2)
    np.testing.assert_allclose(found.test, found.scores[found.best_index] + 1, rtol=1e-5)
    assert found.states.estimator == ()


def test_the_best_may_be_any_of_its_group():
    again = swept({"rate": [0.2, 0.02], "sigma": [1e-3]}, at_once=2, test=one_more)
    assert again.best_index == 1
    np.testing.assert_allclose(again.test, again.scores[1] + 1, rtol=1e-5)


def test_the_best_is_the_lowest_mean_of_settings_that_lost_no_run(found):
    assert (found.scores.shape, found.scores.dtype) == ((6, 2), np.float32)
    assert not np.isfinite(found.scores[4:]).any()  # rate = 1e30
    assert found.best_index == found.scores[:4].mean(axis=1).argmin()
    assert found.best == {name: values[found.best_index] for name, values in found.settings.items()}
    rows = found.rows()
    assert [row["diverged"] for row in rows] == [0, 0, 0, 0, 2, 2]
    assert rows == sorted(rows[:4], key=lambda row: row["score"]) + rows[4:]
    assert (rows[0]["behind"], rows[0]["behind_error"]) == (0, 0)
    trial = [(row["rate"], row["sigma"]) for row in rows].index((found.settings["rate"][0], found.settings["sigma"][1]))
    a, b = found.scores[1]
    assert rows[trial]["error"] == pytest.approx(abs(a - b) / 2)
    c, d = found.scores[1] - found.scores[found.best_index]
    assert rows[trial]["behind_error"] == pytest.approx(abs(c - d) / 2)
    text = str(found)
    assert text.splitlines()[0].split() == ["rate", "sigma", "score", "behind", "the", "best", "diverged"]
    assert "2 of 2" in text
    assert "test score of the best" in text


def test_a_best_at_the_end_of_its_range_is_told():
    scores = np.array([[1.0], [0.5], [2.0]])
    settings = {"rate": np.array([1, 2, 3.0]), "sigma": np.array([1, 1, 1.0])}
    of = lambda index: nl.Sweep(settings, scores, index, {n: v[index] for n, v in settings.items()}, None, None, None)
    assert of(1).edges == []
    assert of(2).edges == ["rate"]
    assert "end of the range tried: rate" in str(of(0))


def test_groups_change_nothing(found, monkeypatch):
    steps = []
    two = {
        "settings": {"rate": [0.02, 0.2], "sigma": [1e-3]},
        "log": lambda report: steps.append(report.state.step.size),
    }
    together = swept(**two)
    assert steps == [4] * 3
    np.testing.assert_allclose(together.scores, found.scores[[0, 2]], rtol=1e-3)
    monkeypatch.setattr(module, "_SHARE", 1e-12)  # memory for none: one after the other
    steps.clear()
    alone = swept(**two)
    assert steps == [2] * 6
    np.testing.assert_allclose(alone.scores, together.scores, rtol=1e-3)


def test_a_sweep_goes_on_where_it_was_interrupted(found, tmp_path):
    taken = []

    def interrupted(report):
        taken.append(int(report.step))
        if len(taken) == 5:
            raise KeyboardInterrupt

    settings = {"test": one_more, "at_once": 2, "checkpoint": tmp_path}
    with pytest.raises(nl.Interrupted):
        swept(log=interrupted, **settings)
    assert taken == [0, 10, 20, 0, 10]
    again = []
    on = swept(log=lambda report: again.append(int(report.step)), **settings)
    assert again == [10, 20, 0, 10, 20]
    for ours, whole in zip(jax.tree.leaves(on), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(ours, whole)
    with pytest.raises(ValueError, match="belongs to another"):
        swept(settings={"rate": [0.3, 0.2, 1e30], "sigma": [1e-3, 1e-2]}, **settings)


def test_a_list_of_settings():
    rows = [{"rate": 0.02, "sigma": 1e-3}, {"rate": 0.2, "sigma": 1e-2}]
    listed = swept(rows, at_once=2)
    assert {n: v.tolist() for n, v in listed.settings.items()} == {"rate": [0.02, 0.2], "sigma": [1e-3, 1e-2]}
    assert listed.scores.shape == (2, 2)


def test_the_rate_of_descent_in_place_can_be_swept():
    estimator = nl.weight_perturbation(OBJECTIVE)
    found = nl.sweep(lambda rate: nl.seeded(estimator, rate), {"rate": [0.02, 0.05]}, KEY, init, DATA, **COMMON)
    assert found.scores.shape == (2, 2)
    with pytest.raises(ValueError, match=r"learning_rate must be one number, got an array of shape \(2,\)"):
        nl.seeded(estimator, jnp.ones(2))


def test_score_and_init_are_read_anew_in_every_sweep():
    at = {"offset": 0.0}
    shifted = lambda params: jnp.sum(params) * 0 + at["offset"]
    begun = lambda key: jnp.full([3, 1], at["offset"])
    few = {**COMMON, "score": shifted, "test": shifted, "record": lambda state, info: info.loss}
    for at["offset"] in (0.0, 1.0):
        found = nl.sweep(learner_of, {"rate": [1e-9], "sigma": [1e-3]}, KEY, begun, DATA, **few)
        assert (found.scores == at["offset"]).all()
        assert (found.test == at["offset"]).all()
        np.testing.assert_allclose(found.states.params, at["offset"], atol=1e-4)


@dataclasses.dataclass
class Unhashable:
    """Calls a function. A dataclass that can be compared has no hash."""

    function: Callable

    def __call__(self, *of, **named):
        return self.function(*of, **named)


def test_functions_need_no_hash():
    functions = {"score": Unhashable(score), "test": Unhashable(score), "record": Unhashable(lambda s, i: i.loss)}
    before = module.MANY_DONATING.steps._cache_size()
    found = nl.sweep(
        Unhashable(lambda rate: learner_of(rate, 1e-3)), {"rate": [0.02, 0.2]}, KEY, Unhashable(init), DATA,
        **{**COMMON, **functions, "at_once": 1},
    )  # fmt: skip
    assert found.history.shape == (2, 2, 20)
    assert module.MANY_DONATING.steps._cache_size() == before + 1  # for both groups


@pytest.mark.parametrize("values", [[Fraction(1, 2), 2], [10**20], [jnp.float16(0.5)], [True], [0, 0.5]], ids=str)
def test_numbers_of_any_kind_are_settings(values):
    np.testing.assert_array_equal(trials_of({"rate": values})["rate"], np.array(values, float))


def test_what_cannot_be_swept_is_an_error():
    untold = lambda report: pytest.fail("training began")
    for settings in ({}, [], {"rate": [], "sigma": [1]}, [{"rate": 1}, {"sigma": 1}], [3], [{}], 3):
        with pytest.raises(ValueError, match="settings must be values by name"):
            swept(settings)
    with pytest.raises(ValueError, match=r"those of 'rate' are \['adam', 'sgd'\]"):
        swept({"rate": ["adam", "sgd"]})
    for wrong in (["0.1"], [[1], [2, 3]], [1j], [None]):
        for settings in ({"rate": wrong}, [{"rate": one} for one in wrong]):
            with pytest.raises(ValueError, match="settings must be numbers, those of 'rate' are"):
                swept(settings)
    with pytest.raises(ValueError, match=r"must be one number each, those of 'rate' have shape \(2,\)"):
        swept({"rate": [[1, 2], [3, 4]]})
    with pytest.raises(ValueError, match=r"settings must be named like the arguments of learner_of: missing .*'rate'"):
        swept({"lr": [0.1]})
    with pytest.raises(ValueError, match=r"init must take one argument, got .'w'"):
        nl.sweep(learner_of, GRID, KEY, {"w": jnp.zeros(3)}, DATA, **COMMON)
    for value in (np.inf, np.nan, 1e-46, 1e39):
        with pytest.raises(ValueError, match=r"must be 0 or numbers of float32, .* those of 'rate' are"):
            swept({"rate": [value]})
    with pytest.raises(ValueError, match=r"test must take one argument, got 0\.5: a function of the parameters"):
        swept({"rate": [0.1], "sigma": [1e-3]}, test=0.5)
    with pytest.raises(ValueError, match="score must return one number"):
        swept({"rate": [0.02, 0.2], "sigma": [1e-3]}, at_once=2, score=lambda w: w, log=untold)
    with pytest.raises(ValueError, match="test must return one number"):
        swept({"rate": [0.02, 0.2], "sigma": [1e-3]}, at_once=2, test=lambda w: w, log=untold)
    with pytest.raises(ValueError, match="data must be arrays"):
        nl.sweep(learner_of, GRID, KEY, init, iter([DATA]), **{**COMMON, "batch_size": None})
    with pytest.raises(ValueError, match="learner_of must return"):
        nl.sweep(lambda rate: optax.sgd(rate), {"rate": [1.0]}, KEY, init, DATA, **COMMON)
    with pytest.raises(ValueError, match="log returned True at step 10, but a sweep cannot be stopped early"):
        swept({"rate": [0.02, 0.2], "sigma": [1e-3]}, at_once=2, log=lambda report: report.step > 0)
    with pytest.raises(nl.Diverged, match="every one of 2 settings lost a run"):
        swept({"rate": [1e30], "sigma": [1e-3, 1e-2]}, at_once=2)


def test_the_same_sweep_is_compiled_once(found):
    before = module.MANY_DONATING.steps._cache_size()
    swept(test=one_more, at_once=2)
    assert module.MANY_DONATING.steps._cache_size() == before
