"""Axons, z, δ and multipliers by layer: what they are, and that they are what teaches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import clamp, feedforward, inject, interpret, record
from tests import problems
from tests.registry import ESTIMATORS

KEY = jax.random.key(3)
# Those whose credit is shown; of equilibrium networks a weight learns at both its ends.
TAUGHT = (
    *("backprop_recursion", "fixed_prediction", "predictive_coding", "primal_dual", "feedback_random"),
    *("error_predictive_coding", "dual_propagation"),
    *("direct_feedback", "target_propagation", "node_none", "node_antithetic", "node_batch_credit", "forward_nodes"),
)
SHOWN = (
    *("backprop", "lagrangian_backprop", "zero_divergence", "auxiliary_coordinates", "extragradient"),
    *("augmented_lagrangian", "admm", "equilibrium_propagation", "contrastive_hebbian", "feedback_sign_symmetric"),
    *("feedback_sign_concordant", "feedback_kolen_pollack", "feedback_weight_mirror", "node_orthogonal", "node_clean"),
    *("node_iterative", "node_activity"),
)


def credit_of(estimator, problem):
    state = estimator.init(jax.random.key(1), problem.params)
    return jax.jit(estimator.credit)(KEY, state, problem.params, problem.batch)


def exact(problem):
    """∂L/∂x and ∂L/∂ν by autodiff, of programs without loops: each layer alone is held, or displaced."""

    def derivatives(*at):
        axons = record(problem.objective)(*at)[1]

        def by_axons(name):
            return jax.grad(lambda x: jnp.sum(clamp(problem.objective)(*at, {name: x})[0]))(axons[name])

        still = jax.tree.map(jnp.zeros_like, axons)
        delta = jax.grad(lambda gamma: jnp.sum(inject(problem.objective)(*at, gamma)))(still)
        return {name: nl.LayerCredit(axons[name], by_axons(name), delta[name]) for name in axons}

    return jax.jit(derivatives)(problem.params, problem.batch)


@pytest.mark.parametrize("name", ["skip", "convolution", "tied"])
def test_backprop_shows_the_derivatives(name, x64):
    problem = problems.PROBLEMS[name]()
    for make in (nl.backprop, nl.backprop_recursion):
        chex.assert_trees_all_close(credit_of(make(problem.objective), problem), exact(problem), rtol=1e-10, atol=1e-12)


def test_of_loops_all_steps_are_shown(x64):
    problem = problems.recurrent()
    found = exact(problems.unrolled(problem))
    steps = [found[f"hidden{t}"] for t in range(problems.STEPS)]
    expected = {"time/hidden": jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps), "output": found["output"]}
    for make in (nl.backprop, nl.backprop_recursion):
        chex.assert_trees_all_close(credit_of(make(problem.objective), problem), expected, rtol=1e-10, atol=1e-12)


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


def assert_teaches(estimator, problem):
    state = estimator.init(jax.random.key(1), problem.params)

    @jax.jit
    def both(params):
        at = KEY, state, params, problem.batch
        grads, of_credit = estimator.estimate(*at)[0], taught(problem, estimator.credit(*at))
        return grads, of_credit

    grads, of_credit = both(problem.params)
    chex.assert_trees_all_close(grads, of_credit, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", TAUGHT)
def test_the_credit_that_is_shown_is_what_teaches(name, x64):
    problem = problems.chain()
    assert_teaches(ESTIMATORS[name].make(problem.objective), problem)


@pytest.mark.parametrize("make", [nl.node_perturbation, nl.feedback_alignment])
def test_in_loops_as_well(make, x64):
    problem = problems.recurrent()
    assert_teaches(make(problem.objective), problem)


def test_all_others_say_that_they_have_none():
    problem = problems.chain()
    for name, entry in ESTIMATORS.items():
        estimator = entry.make(problem.objective)
        at = KEY, estimator.init(KEY, problem.params), problem.params, problem.batch
        if name in (*TAUGHT, *SHOWN):
            found = jax.eval_shape(estimator.credit, *at)
            assert list(found) == ["hidden1", "output"], name
            assert (found["output"].z is None) == name.startswith(("node", "forward", "direct")), name
        else:
            with pytest.raises(ValueError, match="this estimator has no credit of layers to show"):
                estimator.credit(*at)


def test_without_layers_backprop_has_none():
    estimator = nl.backprop(lambda w, batch: (w * batch) ** 2)
    with pytest.raises(ValueError, match="the credit of backprop needs to reach the layers"):
        estimator.credit(KEY, (), jnp.ones(()), jnp.ones(3))


@pytest.mark.parametrize("make", [nl.fixed_prediction, nl.zero_divergence])
def test_what_is_the_gradient_has_its_credit(make, x64):
    problem = problems.skip()
    ours, theirs = (credit_of(f(problem.objective), problem) for f in (make, nl.backprop))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_multipliers_are_the_lagrangians(x64):
    """∂L/∂x = 0 at the axons and multipliers that are shown, λ = −∂C/∂x, and not at those of the other sign."""
    problem = problems.skip()
    credit = credit_of(nl.backprop(problem.objective), problem)
    axons = {name: of.axons for name, of in credit.items()}

    def imbalance(multipliers):
        total = lambda x: jnp.sum(nl.lagrangian(problem.objective)(problem.params, x, multipliers, problem.batch))
        return jnp.stack([jnp.linalg.norm(g) for g in jax.tree.leaves(jax.jit(jax.grad(total))(axons))])

    np.testing.assert_allclose(imbalance({name: of.multipliers for name, of in credit.items()}), 0, atol=1e-12)
    assert imbalance({name: of.z for name, of in credit.items()}).max() > 0.1


def test_feedback_alignment_sends_credit_through_b(x64):
    problem = problems.chain()
    estimator = nl.feedback_alignment(problem.objective)
    b = estimator.init(jax.random.key(1), problem.params)["output"]["weight"]
    credit, backprop = credit_of(estimator, problem), credit_of(nl.backprop(problem.objective), problem)
    chex.assert_trees_all_close(credit["output"], backprop["output"], rtol=1e-12)
    z = backprop["output"].delta @ b.T
    by_hand = nl.LayerCredit(backprop["hidden1"].axons, z, z * (1 - backprop["hidden1"].axons ** 2))
    chex.assert_trees_all_close(credit["hidden1"], by_hand, rtol=1e-12)
    assert jnp.abs(credit["hidden1"].z - backprop["hidden1"].z).max() > 0.1


def test_the_recursion_takes_the_derivative_from_the_value(x64):
    """Backprop's δ is by autodiff, the recursion's by what the activation declares."""
    wrong = nl.activations.Activation(jnp.tanh, lambda x: 2 * (1 - x**2), surrogate=True)
    network = nl.mlp([4, 5, 3], activation=wrong)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    problem = problems.Problem(objective, network.init(KEY, jnp.float64), (jnp.ones((2, 4)), jnp.zeros(2, int)), None)
    ours, autodiff = (credit_of(make(objective), problem)["hidden1"] for make in (nl.backprop_recursion, nl.backprop))
    np.testing.assert_allclose(ours.z, autodiff.z, rtol=1e-12)
    np.testing.assert_allclose(ours.delta, 2 * autodiff.delta, rtol=1e-12)


def test_predictive_coding_shows_its_errors(x64):
    """z = −μ r at axons that have moved from where the network itself has them."""
    problem = problems.chain()
    credit = credit_of(nl.predictive_coding(problem.objective, penalty=2.0, tolerance=1e-9, num_steps=2000), problem)
    x, hidden = problem.batch[0], credit["hidden1"]
    own = problem.params["hidden1"]
    predicted = jnp.tanh(x @ own["weight"] + own["bias"][None, :])
    np.testing.assert_allclose(hidden.z, -2.0 * (hidden.axons - predicted), rtol=1e-10)
    np.testing.assert_allclose(hidden.delta, hidden.z * (1 - predicted**2), rtol=1e-10)
    assert jnp.abs(hidden.axons - predicted).max() > 0.01


def test_node_perturbation_shows_the_gradient_on_average(x64):
    problem = problems.chain()
    estimator = nl.node_perturbation(problem.objective, sigma=1e-5, num_samples=4)
    keys = jax.random.split(KEY, 2000)
    found = jax.jit(jax.vmap(lambda key: estimator.credit(key, (), problem.params, problem.batch)))(keys)
    right = credit_of(nl.backprop(problem.objective), problem)

    def deviation(credit):
        """The largest of all units of all examples, in standard errors."""
        worst = []
        for name, of in credit.items():
            error = of.delta.std(axis=0, ddof=1) / len(keys) ** 0.5
            worst.append(jnp.max(jnp.abs(of.delta.mean(axis=0) - right[name].delta) / error))
        return max(worst)

    assert deviation(found) < 5
    mean = {name: of._replace(delta=jnp.broadcast_to(of.delta.mean(axis=1, keepdims=True), of.delta.shape))
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


def test_equilibrium_propagation_shows_credit_at_rest(x64):
    """δ is the derivative of the loss at rest by a bias of the example's own."""
    problem = problems.chain()
    settled = {"num_steps": 500, "tolerance": 1e-12}
    nudge = nl.nudges.symmetric(0.01)
    credit = credit_of(nl.equilibrium_propagation(problem.objective, nudge=nudge, **settled), problem)
    at_rest = nl.at_equilibrium(biased(problem.objective), **settled)
    zeros = {name: jnp.zeros_like(of.axons) for name, of in credit.items()}
    delta = jax.jit(jax.grad(lambda offsets: jnp.sum(at_rest(offsets, (problem.params, problem.batch)))))(zeros)
    chex.assert_trees_all_close({name: of.delta for name, of in credit.items()}, delta, rtol=1e-3, atol=1e-6)
    assert jnp.abs(delta["hidden1"] - credit_of(nl.backprop(problem.objective), problem)["hidden1"].delta).max() > 0.01


def test_contrastive_hebbian_learning_shows_nearly_backprops(x64):
    problem = problems.chain()
    right = credit_of(nl.backprop(problem.objective), problem)
    off = []
    for strength in (1e-2, 1e-3):
        credit = credit_of(nl.contrastive_hebbian(problem.objective, feedback_strength=strength), problem)
        off.append(max(jnp.abs(credit[name].delta - right[name].delta).max() for name in right))
    assert off[0] < 0.1
    np.testing.assert_allclose(off[0] / off[1], 10, rtol=0.1)  # an error of order γ
