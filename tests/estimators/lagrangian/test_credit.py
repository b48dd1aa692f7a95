"""Axons, z, δ and multipliers by layer: what they are, and that they are what teaches."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.base import without_credit
from nl_jax.propagation import clamp, feedforward, inject, interpret, record
from tests import problems
from tests.registry import ESTIMATORS

KEY = jax.random.key(3)
# Those whose credit is compared with what they teach; of equilibrium networks a weight learns at both its ends.
TAUGHT = (
    *("backprop_recursion", "fixed_prediction", "predictive_coding", "primal_dual", "feedback_random"),
    *("error_predictive_coding", "dual_propagation"),
    *("direct_feedback", "target_propagation", "node_none", "node_antithetic", "node_batch_credit", "forward_nodes"),
)
# Those that have their credit from one of these or from what other tests below ask for it, but for some setting.
ALIKE = (
    *("backprop", "lagrangian_backprop", "zero_divergence", "equilibrium_propagation", "contrastive_hebbian"),
    *("feedback_sign_symmetric", "feedback_sign_concordant", "feedback_kolen_pollack", "node_orthogonal", "node_clean"),
)
SHOWN = (
    *("auxiliary_coordinates", "extragradient", "augmented_lagrangian", "admm", "feedback_weight_mirror"),
    *("node_iterative", "node_activity"),
)


def credits_of(makes, problem, exact=None):
    """Several estimators' credit, and what `exact(params, batch)` returns; compiled together."""

    @jax.jit
    def run(params, batch):
        found = []
        for estimator in (make(problem.objective) for make in makes):
            found.append(estimator.credit(KEY, estimator.init(jax.random.key(1), params), params, batch))
        return found, exact(params, batch) if exact else None

    found, expected = run(problem.params, problem.batch)
    return (*found, expected) if exact else found


def by_autodiff(objective):
    """∂L/∂x and ∂L/∂ν, of programs without loops: each layer alone is held, or displaced."""

    def derivatives(*at):
        axons = record(objective)(*at)[1]

        def by_axons(name):
            return jax.grad(lambda x: jnp.sum(clamp(objective)(*at, {name: x})[0]))(axons[name])

        still = jax.tree.map(jnp.zeros_like, axons)
        delta = jax.grad(lambda gamma: jnp.sum(inject(objective)(*at, gamma)))(still)
        return {name: nl.LayerCredit(axons[name], by_axons(name), delta[name]) for name in axons}

    return derivatives


BACKPROPS = nl.backprop, nl.backprop_recursion


@pytest.mark.parametrize("name", ["skip", "convolution", "tied"])
def test_backprop_shows_the_derivatives(name, x64):
    problem = problems.PROBLEMS[name]()
    *found, expected = credits_of(BACKPROPS, problem, by_autodiff(problem.objective))
    for credit in found:
        chex.assert_trees_all_close(credit, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_of_loops_all_steps_are_shown(x64):
    problem = problems.recurrent()
    *found, exact = credits_of(BACKPROPS, problem, by_autodiff(problems.unrolled(problem).objective))
    steps = [exact[f"hidden{t}"] for t in range(problems.STEPS)]
    expected = {"time/hidden": jax.tree.map(lambda *leaves: np.stack(leaves), *steps), "output": exact["output"]}
    for credit in found:
        chex.assert_trees_all_close(credit, expected, rtol=1e-10, atol=1e-12)


def taught(problem, credit):
    """The gradient of ⟨C(x) + Σ δ ν⟩ with all axons held: the mean over examples."""

    def layer(site, given):
        x, delta = given
        return x, jnp.sum(delta * site.preactivation())

    def total(params):
        held = {name: (of.axons, of.delta) for name, of in credit.items()}
        losses, products = interpret(problem.objective, layer)(params, problem.batch, held)
        return jnp.mean(losses) + sum(jnp.sum(p) for p in products.values()) / len(losses)

    return jax.grad(total)(problem.params)


def assert_teaches(make, problem):
    """Returns the credit."""
    estimator = make(problem.objective)

    @jax.jit
    def both(params):
        at = KEY, estimator.init(jax.random.key(1), params), params, problem.batch
        credit = estimator.credit(*at)
        return estimator.estimate(*at)[0], taught(problem, credit), credit

    grads, of_credit, credit = both(problem.params)
    chex.assert_trees_all_close(grads, of_credit, rtol=1e-10, atol=1e-12)
    return credit


@pytest.mark.slow
@pytest.mark.parametrize("name", TAUGHT)
def test_the_credit_that_is_shown_is_what_teaches(name, x64):
    credit = assert_teaches(ESTIMATORS[name].make, problems.chain())
    assert sorted(credit) == ["hidden1", "output"]
    assert (credit["output"].z is None) == name.startswith(("node", "forward", "direct"))


@pytest.mark.slow
@pytest.mark.parametrize("make", [nl.node_perturbation, nl.feedback_alignment])
def test_in_loops_as_well(make, x64):
    assert_teaches(make, problems.recurrent())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_all_layers_are_shown_in_their_order(name):
    problem = problems.chain()
    estimator = ESTIMATORS[name].make(problem.objective)
    state = jax.eval_shape(estimator.init, KEY, problem.params)
    credit = jax.eval_shape(estimator.credit, KEY, state, problem.params, problem.batch)
    assert list(credit) == ["hidden1", "output"]
    assert (credit["output"].z is None) == name.startswith("node")


def test_all_others_say_that_they_have_none():
    """Those of noise in weights share one `credit`, and are asked by two of them."""
    problem = problems.chain()
    of_weights = set()
    for name in sorted(ESTIMATORS.keys() - {*TAUGHT, *ALIKE, *SHOWN}):
        estimator = ESTIMATORS[name].make(problem.objective)
        if estimator.credit is not without_credit:
            of_weights.add(name)
        if estimator.credit is without_credit or name in ("weight_clean", "subspace_inputs"):
            state = jax.eval_shape(estimator.init, KEY, problem.params)
            with pytest.raises(ValueError, match="this estimator does not compute credit per layer"):
                jax.eval_shape(estimator.credit, KEY, state, problem.params, problem.batch)
    assert all(name.startswith(("weight_", "subspace_", "forward_")) for name in of_weights), of_weights
    for name in (*TAUGHT, *ALIKE, *SHOWN):
        assert ESTIMATORS[name].make(problem.objective).credit is not without_credit


def test_without_layers_backprop_has_none():
    estimator = nl.backprop(lambda w, batch: (w * batch) ** 2)
    with pytest.raises(ValueError, match="the credit of backprop needs to reach the layers"):
        estimator.credit(KEY, (), jnp.ones(()), jnp.ones(3))


@pytest.mark.parametrize("make", [nl.fixed_prediction, nl.zero_divergence])
def test_what_is_the_gradient_has_its_credit(make, x64):
    problem = problems.skip()
    ours, theirs = credits_of((make, nl.backprop), problem)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_multipliers_are_the_lagrangians(x64):
    """∂L/∂x = 0 at the axons and multipliers that are shown, λ = −∂C/∂x, and not at those of the other sign."""
    problem = problems.skip()
    (credit,) = credits_of([nl.backprop], problem)
    axons = {name: of.axons for name, of in credit.items()}

    @jax.jit
    def imbalance(multipliers):
        total = lambda x: jnp.sum(nl.lagrangian(problem.objective)(problem.params, x, multipliers, problem.batch))
        return jnp.stack([jnp.linalg.norm(g) for g in jax.tree.leaves(jax.grad(total)(axons))])

    np.testing.assert_allclose(imbalance({name: of.multipliers for name, of in credit.items()}), 0, atol=1e-12)
    assert max(imbalance({name: of.z for name, of in credit.items()})) > 0.1


def test_feedback_alignment_sends_credit_through_b(x64):
    problem = problems.chain()
    estimator = nl.feedback_alignment(problem.objective)
    draw = lambda params, batch: estimator.init(jax.random.key(1), params)["output"]["weight"]
    credit, backprop, b = jax.device_get(credits_of((nl.feedback_alignment, nl.backprop), problem, draw))
    chex.assert_trees_all_close(credit["output"], backprop["output"], rtol=1e-12)
    z = backprop["output"].delta @ b.T
    by_hand = nl.LayerCredit(backprop["hidden1"].axons, z, z * (1 - backprop["hidden1"].axons ** 2))
    chex.assert_trees_all_close(credit["hidden1"], by_hand, rtol=1e-12)
    assert np.abs(credit["hidden1"].z - backprop["hidden1"].z).max() > 0.1


def test_the_recursion_takes_the_derivative_from_the_value(x64):
    """Backprop's δ is by autodiff, the recursion's by what the activation declares."""
    wrong = nl.activations.Activation(jnp.tanh, lambda x: 2 * (1 - x**2), surrogate=True)
    network = nl.mlp([4, 5, 3], activation=wrong)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    problem = problems.Problem(objective, network.init(KEY, jnp.float64), (jnp.ones((2, 4)), jnp.zeros(2, int)), None)
    autodiff, ours = (jax.device_get(credit["hidden1"]) for credit in credits_of(BACKPROPS, problem))
    np.testing.assert_allclose(ours.z, autodiff.z, rtol=1e-12)
    np.testing.assert_allclose(ours.delta, 2 * autodiff.delta, rtol=1e-12)


def test_predictive_coding_shows_its_errors(x64):
    """z = −μ r at axons that have moved from where the network itself has them."""
    problem = problems.chain()
    make = functools.partial(nl.predictive_coding, penalty=2.0, tolerance=1e-9, num_steps=2000)
    (credit,), x, own = jax.device_get((credits_of([make], problem), problem.batch[0], problem.params["hidden1"]))
    hidden = credit["hidden1"]
    predicted = np.tanh(x @ own["weight"] + own["bias"])
    np.testing.assert_allclose(hidden.z, -2.0 * (hidden.axons - predicted), rtol=1e-10)
    np.testing.assert_allclose(hidden.delta, hidden.z * (1 - predicted**2), rtol=1e-10)
    assert np.abs(hidden.axons - predicted).max() > 0.01


@pytest.mark.slow
def test_node_perturbation_shows_the_gradient_on_average(x64):
    problem = problems.chain()
    estimator = nl.node_perturbation(problem.objective, sigma=1e-5, num_samples=4)
    num = 2000

    def drawn(params, batch):
        return jax.vmap(lambda key: estimator.credit(key, (), params, batch))(jax.random.split(KEY, num))

    right, found = jax.device_get(credits_of([nl.backprop], problem, drawn))

    def deviation(credit):
        """The largest of all units of all examples, in standard errors."""
        worst = []
        for name, of in credit.items():
            error = of.delta.std(axis=0, ddof=1) / num**0.5
            worst.append(np.max(np.abs(of.delta.mean(axis=0) - right[name].delta) / error))
        return max(worst)

    assert deviation(found) < 5
    mean = {name: of._replace(delta=np.broadcast_to(of.delta.mean(axis=1, keepdims=True), of.delta.shape))
            for name, of in found.items()}  # fmt: skip
    assert deviation(mean) > 5  # one credit for all examples is none of theirs
    assert {of.z for of in found.values()} == {of.multipliers for of in found.values()} == {None}
    np.testing.assert_allclose(found["output"].axons[0], right["output"].axons, rtol=1e-12)


def biased(program):
    """The program with a bias of each example's own in every layer: `biased(offsets, (params, inputs))`."""

    def run(offsets, batch, propagate=feedforward):
        params, inputs = batch

        def with_bias(name, connection, activation, own, *inputs):
            nu = lambda pair, *inputs: connection(pair[0], *inputs) + pair[1]
            return propagate(name, nu, activation, (own, offsets[name]), *inputs)

        return program(params, inputs, propagate=with_bias)

    return run


@pytest.mark.slow
def test_equilibrium_propagation_shows_credit_at_rest(x64):
    """δ is the derivative of the loss at rest by a bias of the example's own."""
    problem = problems.chain()
    settled = {"num_steps": 500, "tolerance": 1e-12}
    make = functools.partial(nl.equilibrium_propagation, nudge=nl.nudges.symmetric(0.01), **settled)
    at_rest = nl.at_equilibrium(biased(problem.objective), **settled)

    def by_bias(params, batch):
        zeros = jax.tree.map(jnp.zeros_like, record(problem.objective)(params, batch)[1])
        return jax.grad(lambda offsets: jnp.sum(at_rest(offsets, (params, batch))))(zeros)

    credit, backprop, delta = jax.device_get(credits_of((make, nl.backprop), problem, by_bias))
    chex.assert_trees_all_close({name: of.delta for name, of in credit.items()}, delta, rtol=1e-3, atol=1e-6)
    assert np.abs(delta["hidden1"] - backprop["hidden1"].delta).max() > 0.01


def test_contrastive_hebbian_learning_shows_nearly_backprops(x64):
    problem = problems.chain()
    strengths = jnp.array([1e-2, 1e-3])

    def shown(params, batch):
        make = lambda strength: nl.contrastive_hebbian(problem.objective, feedback_strength=strength)
        return jax.lax.map(lambda strength: make(strength).credit(KEY, (), params, batch), strengths)

    right, credit = jax.device_get(credits_of([nl.backprop], problem, shown))
    off = [max(np.abs(credit[name].delta[i] - right[name].delta).max() for name in right) for i in range(2)]
    assert off[0] < 0.1
    np.testing.assert_allclose(off[0] / off[1], 10, rtol=0.1)  # an error of order γ
