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


trace = jax.eval_shape  # as far as an interpretation has to get to raise an error
SQUARE = np.eye(2, dtype=np.float32)
INTERPRETATIONS = {
    "record": lambda program: trace(propagation.record(program), SQUARE, SQUARE),
    "clamp": lambda program: trace(propagation.clamp(program), SQUARE, SQUARE, {}),
    "inject": lambda program: trace(propagation.inject(program), SQUARE, SQUARE, {"same": SQUARE}),
    "local_gradient": lambda program: trace(
        propagation.local_gradient(program), SQUARE, SQUARE, SQUARE, {"same": SQUARE}
    ),
}


@pytest.mark.parametrize("name", INTERPRETATIONS)
def test_duplicate_layers_are_named(name):
    with pytest.raises(ValueError, match="layer 'same' is propagated twice"):
        INTERPRETATIONS[name](twice)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ((3, affine, jnp.tanh), "the name of a layer or loop must be a string, such as 'hidden', got 3"),
        (("same", None, jnp.tanh), "layer 'same': its connection must be a function of .*, got None"),
        (("same", affine, None), "layer 'same': its activation must be a function .*, got None: for none use nl.activ"),
        (("same", affine, lambda nu: (nu, nu)), "layer 'same': its activation must return one array, got tuple"),
        (("same", lambda *at: [affine(*at)], lambda nu: nu[0]), "layer 'same': its connection must return one array"),
    ],
    ids=["name", "no connection", "no activation", "activation", "connection"],
)
@pytest.mark.parametrize("run", ["record", "local_gradient"])
def test_what_is_no_layer_is_said(run, layer, message):
    def program(params, x, propagate=feedforward):
        return propagate(*layer, params, x)

    with pytest.raises(ValueError, match=message):
        INTERPRETATIONS[run](program)


def test_layers_without_an_activation_are_refused_by_plain_runs_too():
    with pytest.raises(ValueError, match="layer 'same': its activation must be a function"):
        feedforward("same", affine, None, SQUARE, SQUARE)


def test_inputs_are_arguments_of_their_own():
    def program(params, x, propagate=feedforward):
        return propagate("same", lambda params, both: both[0] @ params + both[1], jnp.tanh, params, (x, x))

    with pytest.raises(ValueError, match="layer 'same': each input must be one array, got tuple: hand in several as"):
        INTERPRETATIONS["record"](program)


def test_unknown_and_missing_layers_are_named():
    p = problems.chain()
    _, axons = trace(propagation.record(p.forward), p.params, p.batch[0])
    extra = {**axons, "ghost": axons["output"]}
    with pytest.raises(ValueError, match="no layer is named 'ghost'; the layers are hidden1, output"):
        trace(propagation.clamp(p.forward), p.params, p.batch[0], extra)
    with pytest.raises(ValueError, match="no layer is named 'ghost'"):
        trace(propagation.inject(p.forward), p.params, p.batch[0], extra)
    with pytest.raises(ValueError, match="layer 'ghost' is not among those known here: hidden1, output"):
        trace(propagation.local_gradient(p.forward), p.params, p.batch[0], axons["output"], extra)
    with pytest.raises(ValueError, match="layer 'output' is not among those known here: hidden1"):
        trace(nl.lagrangian(p.objective), p.params, {"hidden1": axons["hidden1"]}, {}, p.batch)


@pytest.mark.parametrize("run", ["record", "clamp", "inject", "local_gradient"])
def test_layers_inside_an_inner_transformation_are_an_error(run):
    """What is recorded inside the program's own vmap would leak, or be taken for a constant: a silent zero."""

    def program(params, x, propagate=feedforward):
        return jax.vmap(lambda x: propagate("same", affine, jnp.tanh, params, x))(x)

    given = {"same": SQUARE[0]}  # of one example's shape
    runs = INTERPRETATIONS | {"inject": lambda program: trace(propagation.inject(program), SQUARE, SQUARE, given)}
    with pytest.raises(ValueError, match=r"layer 'same' is propagated inside a jax\.vmap.*for a loop use nl\.scan"):
        runs[run](program)


def test_wrong_shapes_are_named_not_broadcast():
    p = problems.chain()
    with pytest.raises(
        ValueError, match=r"layer 'hidden1': the offset has shape \(1, 5\), the pre-activation \(6, 5\)"
    ):
        trace(propagation.inject(p.forward), p.params, p.batch[0], {"hidden1": np.zeros((1, 5), np.float32)})
    axons = {"hidden1": np.zeros((6, 5), np.float32), "output": np.zeros((1, 3), np.float32)}
    with pytest.raises(ValueError, match=r"layer 'output': the given axons has shape \(1, 3\)"):
        trace(propagation.clamp(p.forward), p.params, p.batch[0], axons)
    with pytest.raises(ValueError, match=r"layer 'output': .* shape \(1, 3\), the layer's own \(6, 3\)"):
        trace(propagation.clamp(p.forward), p.params, p.batch[0], {"output": axons["output"]})


@pytest.mark.parametrize("name", PROBLEMS)
def test_recording_changes_nothing(name):
    p = PROBLEMS[name]()

    @jax.jit
    def run(params, x):
        outputs, axons = propagation.record(p.forward)(params, x)
        return outputs, p.forward(params, x), axons, propagation.clamp(p.forward)(params, x, axons)

    outputs, plain, axons, (again, layers) = run(p.params, p.batch[0])
    chex.assert_trees_all_equal(outputs, plain)
    chex.assert_trees_all_equal(outputs, again)
    # Feasible axons predict themselves.
    chex.assert_trees_all_equal({name: layer.predicted for name, layer in layers.items()}, axons)


def test_held_layers_do_not_talk_to_each_other():
    p = problems.chain()

    @jax.jit
    def run(params, x):
        _, axons = propagation.record(p.forward)(params, x)
        return axons, propagation.clamp(p.forward)(params, x, {**axons, "hidden1": axons["hidden1"] + 1})

    axons, (outputs, layers) = run(p.params, p.batch[0])
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
    offset = np.full((6, 5), 0.3, np.float32)
    outputs = jax.jit(propagation.inject(p.forward))(p.params, p.batch[0], {"hidden1": offset})
    shifted = {**p.params, "hidden1": {**p.params["hidden1"], "bias": p.params["hidden1"]["bias"] + 0.3}}
    np.testing.assert_allclose(outputs, jax.jit(p.forward)(shifted, p.batch[0]), rtol=1e-6)


def test_displaced_axons_are_sent_on():
    """x = f(W x) + e by hand; and e is the residual of the axons that it makes."""
    p = problems.chain()
    x, error = p.batch[0], np.full((6, 5), 0.3, np.float32)

    @jax.jit
    def run(params, x, error):
        outputs, axons = propagation.displace(p.forward)(params, x, {"hidden1": error})
        return outputs, axons, propagation.clamp(p.forward)(params, x, axons)[1]["hidden1"]

    outputs, axons, held = run(p.params, x, error)
    own, above = (jax.tree.map(np.asarray, p.params[name]) for name in ("hidden1", "output"))
    hidden = np.tanh(np.asarray(x) @ own["weight"] + own["bias"]) + 0.3
    np.testing.assert_allclose(axons["hidden1"], hidden, rtol=1e-5)
    np.testing.assert_allclose(outputs, hidden @ above["weight"] + above["bias"], rtol=1e-5)
    np.testing.assert_allclose(held.axons - held.predicted, error, rtol=1e-6)
    with pytest.raises(ValueError, match=r"layer 'hidden1': the error has shape \(1, 5\), the layer's axons \(6, 5\)"):
        trace(propagation.displace(p.forward), p.params, x, {"hidden1": error[:1]})


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_credit_gives_the_exact_gradient(name, x64):
    """Whatever the program: skip connections, tied weights, convolutions, parameters outside layers."""
    check_exact_credit(PROBLEMS[name]())


def check_exact_credit(p):
    """With each layer's exact credit the local gradient is the gradient; half the credit is not."""

    @jax.jit
    def run(params, batch, share):
        losses, preactivations, _, _ = propagation.local(p.objective)(params, batch)
        zeros = jax.tree.map(jnp.zeros_like, preactivations)
        credit = jax.grad(lambda o: jnp.mean(propagation.inject(p.objective)(params, batch, o)))(zeros)
        credit = jax.tree.map(lambda delta: share * delta, credit)
        mean = jnp.full_like(losses, 1 / len(losses))
        found = propagation.local_gradient(p.objective)(params, batch, mean, credit)
        return found, jax.grad(lambda params: jnp.mean(p.objective(params, batch)))(params)

    chex.assert_trees_all_close(*run(p.params, p.batch, 1.0), rtol=1e-12, atol=1e-14)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(*run(p.params, p.batch, 0.5), rtol=1e-2)


def test_no_credit_crosses_from_one_layer_to_another():
    p = problems.chain()
    x = p.batch[0]
    credit = {"output": np.ones((6, 3), np.float32)}
    gradient, record = propagation.local_gradient(p.forward), propagation.record(p.forward)
    run = lambda params, *at: (gradient(params, *at), record(params, x))
    grads, (_, axons) = jax.jit(run)(p.params, x, np.zeros((6, 3), np.float32), credit)
    np.testing.assert_allclose(grads["output"]["weight"], np.asarray(axons["hidden1"]).T @ credit["output"], rtol=1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["hidden1"]))


def test_interpretations_are_functions_of_arrays():
    """jit, grad and vmap go through, as through any function."""
    p = problems.chain()
    x = p.batch[0]
    injected = propagation.inject(p.forward)
    many = np.stack([np.zeros((6, 5)), np.ones((6, 5))]).astype(np.float32)
    mapped = jax.jit(jax.vmap(lambda o: injected(p.params, x, {"hidden1": o})))(many)
    np.testing.assert_allclose(mapped[0], jax.jit(p.forward)(p.params, x), rtol=1e-5, atol=1e-6)
    slope = jax.jit(jax.grad(lambda o: jnp.sum(injected(p.params, x, {"hidden1": o}))))(many[0])
    assert slope.shape == (6, 5)
    assert np.abs(slope).sum() > 0
