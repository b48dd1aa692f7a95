import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax import propagation
from nl_jax.propagation import feedforward
from tests import problems
from tests.problems import PROBLEMS


def affine(params, x):
    return x @ params


def twice(params, x, propagate=feedforward):
    return propagate("same", affine, jnp.tanh, params, propagate("same", affine, jnp.tanh, params, x))


SQUARE = jnp.eye(2)
INTERPRETATIONS = {
    "record": lambda program: propagation.record(program)(SQUARE, SQUARE),
    "clamp": lambda program: propagation.clamp(program)(SQUARE, SQUARE, {}),
    "inject": lambda program: propagation.inject(program)(SQUARE, SQUARE, {"same": SQUARE}),
    "local_gradient": lambda program: propagation.local_gradient(program)(SQUARE, SQUARE, SQUARE, {"same": SQUARE}),
}


@pytest.mark.parametrize("name", INTERPRETATIONS)
def test_duplicate_layers_are_named(name):
    with pytest.raises(ValueError, match="layer 'same' is propagated twice"):
        INTERPRETATIONS[name](twice)


def test_unknown_and_missing_layers_are_named():
    p = problems.chain()
    _, axons = propagation.record(p.forward)(p.params, p.batch[0])
    extra = {**axons, "ghost": axons["output"]}
    with pytest.raises(ValueError, match="no layer is named 'ghost'; the layers are hidden1, output"):
        propagation.clamp(p.forward)(p.params, p.batch[0], extra)
    with pytest.raises(ValueError, match="no layer is named 'ghost'"):
        propagation.inject(p.forward)(p.params, p.batch[0], extra)
    with pytest.raises(ValueError, match="layer 'ghost' is not among those known here: hidden1, output"):
        propagation.local_gradient(p.forward)(p.params, p.batch[0], axons["output"], extra)
    with pytest.raises(ValueError, match="layer 'output' is not among those known here: hidden1"):
        nl.lagrangian(p.objective)(p.params, {"hidden1": axons["hidden1"]}, {}, p.batch)


@pytest.mark.parametrize("run", ["record", "clamp", "inject", "local_gradient"])
def test_layers_inside_an_inner_transformation_are_an_error(run):
    """What is recorded inside the program's own vmap would leak, or be taken for a constant: a silent zero."""

    def program(params, x, propagate=feedforward):
        return jax.vmap(lambda x: propagate("same", affine, jnp.tanh, params, x))(x)

    given = {"same": jnp.ones(2)}  # of one example's shape
    runs = INTERPRETATIONS | {"inject": lambda program: propagation.inject(program)(SQUARE, SQUARE, given)}
    with pytest.raises(ValueError, match=r"layer 'same' is propagated inside a jax\.vmap.*for a loop use nl\.scan"):
        runs[run](program)


def test_wrong_shapes_are_named_not_broadcast():
    p = problems.chain()
    with pytest.raises(
        ValueError, match=r"layer 'hidden1': the offset has shape \(1, 5\), the pre-activation \(6, 5\)"
    ):
        propagation.inject(p.forward)(p.params, p.batch[0], {"hidden1": jnp.zeros((1, 5))})
    axons = {"hidden1": jnp.zeros((6, 5)), "output": jnp.zeros((1, 3))}
    with pytest.raises(ValueError, match=r"layer 'output': the given axons has shape \(1, 3\)"):
        propagation.clamp(p.forward)(p.params, p.batch[0], axons)
    with pytest.raises(ValueError, match=r"layer 'output': .* shape \(1, 3\), the layer's own \(6, 3\)"):
        propagation.clamp(p.forward)(p.params, p.batch[0], {"output": jnp.zeros((1, 3))})


@pytest.mark.parametrize("name", PROBLEMS)
def test_recording_changes_nothing(name):
    p = PROBLEMS[name]()
    outputs, axons = propagation.record(p.forward)(p.params, p.batch[0])
    chex.assert_trees_all_equal(outputs, p.forward(p.params, p.batch[0]))
    again, layers = propagation.clamp(p.forward)(p.params, p.batch[0], axons)
    chex.assert_trees_all_equal(outputs, again)
    # Feasible axons predict themselves.
    chex.assert_trees_all_equal({name: layer.predicted for name, layer in layers.items()}, axons)


def test_held_layers_do_not_talk_to_each_other():
    p = problems.chain()
    _, axons = propagation.record(p.forward)(p.params, p.batch[0])
    moved = {**axons, "hidden1": axons["hidden1"] + 1}
    outputs, layers = propagation.clamp(p.forward)(p.params, p.batch[0], moved)
    chex.assert_trees_all_equal(outputs, axons["output"])
    chex.assert_trees_all_equal(layers["hidden1"].predicted, axons["hidden1"])
    assert not np.allclose(layers["output"].predicted, axons["output"])


def test_held_layers_move_those_above_them():
    """What is not held is computed from what it receives; nothing held is the forward run."""
    p = problems.skip()

    @jax.jit
    def run(params, x):
        outputs, clean = propagation.record(p.forward)(params, x)
        moved = {"low": clean["low"] + 1}
        given = {}, moved, clean | moved
        return outputs, clean, *(_values(*propagation.clamp(p.forward)(params, x, values)) for values in given)

    outputs, clean, nothing, some, everything = run(p.params, p.batch[0])
    chex.assert_trees_all_equal(nothing, (outputs, clean, clean))
    found, axons, predicted = some
    chex.assert_trees_all_equal(axons["low"], clean["low"] + 1)
    chex.assert_trees_all_equal(predicted, axons | {"low": clean["low"]})  # they differ at the held layer alone
    chex.assert_trees_all_equal(found, axons["output"])
    assert not np.allclose(axons["high"], clean["high"])
    assert not np.allclose(axons["output"], everything[2]["output"])  # there by way of "high" as well


def _values(outputs, layers):
    """Outputs, axons and predictions of a run that holds some layers."""
    axons = {name: layer.axons for name, layer in layers.items()}
    return outputs, axons, {name: layer.predicted for name, layer in layers.items()}


def test_injected_offsets_enter_the_preactivation():
    p = problems.chain()
    x = p.batch[0]
    offset = jnp.full((6, 5), 0.3)
    outputs = propagation.inject(p.forward)(p.params, x, {"hidden1": offset})
    shifted = {**p.params, "hidden1": {**p.params["hidden1"], "bias": p.params["hidden1"]["bias"] + 0.3}}
    np.testing.assert_allclose(outputs, p.forward(shifted, x), rtol=1e-6)


def test_displaced_axons_are_sent_on():
    """x = f(W x) + e by hand; and e is the residual of the axons that it makes."""
    p = problems.chain()
    x, error = p.batch[0], jnp.full((6, 5), 0.3)
    outputs, axons = propagation.displace(p.forward)(p.params, x, {"hidden1": error})
    own, above = p.params["hidden1"], p.params["output"]
    hidden = jnp.tanh(x @ own["weight"] + own["bias"][None, :]) + 0.3
    np.testing.assert_allclose(axons["hidden1"], hidden, rtol=1e-6)
    np.testing.assert_allclose(outputs, hidden @ above["weight"] + above["bias"][None, :], rtol=1e-5)
    held = propagation.clamp(p.forward)(p.params, x, axons)[1]["hidden1"]
    np.testing.assert_allclose(held.axons - held.predicted, error, rtol=1e-6)
    with pytest.raises(ValueError, match=r"layer 'hidden1': the error has shape \(1, 5\), the layer's axons \(6, 5\)"):
        propagation.displace(p.forward)(p.params, x, {"hidden1": jnp.zeros((1, 5))})


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_credit_gives_the_exact_gradient(name, x64):
    """Whatever the program: skip connections, tied weights, convolutions, parameters outside layers."""
    p = PROBLEMS[name]()
    losses, preactivations, _, _ = propagation.local(p.objective)(p.params, p.batch)
    zeros = jax.tree.map(jnp.zeros_like, preactivations)
    credit = jax.grad(lambda o: jnp.mean(propagation.inject(p.objective)(p.params, p.batch, o)))(zeros)
    mean = jnp.full_like(losses, 1 / len(losses))
    grads = jax.jit(propagation.local_gradient(p.objective))(p.params, p.batch, mean, credit)
    exact = jax.grad(lambda params: jnp.mean(p.objective(params, p.batch)))(p.params)
    chex.assert_trees_all_close(grads, exact, rtol=1e-12, atol=1e-14)


def test_no_credit_crosses_from_one_layer_to_another():
    p = problems.chain()
    x = p.batch[0]
    credit = {"output": jnp.ones((6, 3))}
    grads = propagation.local_gradient(p.forward)(p.params, x, jnp.zeros((6, 3)), credit)
    hidden = nl.propagation.record(p.forward)(p.params, x)[1]["hidden1"]
    np.testing.assert_allclose(grads["output"]["weight"], hidden.T @ credit["output"], rtol=1e-6)
    chex.assert_trees_all_equal(grads["hidden1"], jax.tree.map(jnp.zeros_like, p.params["hidden1"]))


def test_interpretations_are_functions_of_arrays():
    """jit, grad and vmap go through, as through any function."""
    p = problems.chain()
    x = p.batch[0]
    injected = propagation.inject(p.forward)
    many = jnp.stack([jnp.zeros((6, 5)), jnp.ones((6, 5))])
    mapped = jax.jit(jax.vmap(lambda o: injected(p.params, x, {"hidden1": o})))(many)
    np.testing.assert_allclose(mapped[0], p.forward(p.params, x), rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda o: jnp.sum(injected(p.params, x, {"hidden1": o})))(many[0])
    assert slope.shape == (6, 5)
    assert float(jnp.abs(slope).sum()) > 0
