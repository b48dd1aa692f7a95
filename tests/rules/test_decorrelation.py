"""Decorrelation: its equation, where it comes to rest, what it sees, and the estimators that it goes along with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward

KEY = jax.random.key(0)
RULE = {"*/decorrelation": nl.decorrelation}


def mixing(inputs=4):
    """A factor A of strongly correlated inputs z A, z white."""
    return jnp.asarray(np.random.default_rng(3).normal(size=(inputs, inputs)) + np.eye(inputs), jnp.result_type(float))


def problem():
    network = nl.mlp([4, 5, 3], activation=nl.activations.tanh(), decorrelated=True)
    params = network.init(jax.random.key(1), jnp.result_type(float))
    R = lambda key, n: jnp.eye(n) + 0.3 * jax.random.normal(key, (n, n))
    params["hidden1"]["decorrelation"], params["output"]["decorrelation"] = R(KEY, 4), R(jax.random.key(5), 5)
    batch = jax.random.normal(jax.random.key(7), (6, 4)) @ mixing(), jnp.arange(6) % 3
    return network, nl.supervised(network.apply, nl.losses.cross_entropy), params, batch


def by_hand(R, x, kappa):
    """−ΔR of the papers, for columns q = Rᵀ x one by one."""
    columns = np.asarray(R).T  # the papers' R
    total = np.zeros_like(columns)
    for one in np.asarray(x):
        q = columns @ one
        outer = np.outer(q, q)
        C, V = outer - np.diag(q**2), np.diag(q**2) - np.eye(len(q))
        total += ((1 - kappa) * C + kappa * V) @ columns
    return (total / len(x)).T


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_change_is_the_papers_equation(kappa, x64):
    _, objective, params, (x, labels) = problem()
    estimator = nl.decorrelation(objective, kappa=kappa)
    grads, _, info = jax.jit(estimator.estimate)(KEY, (), params, (x, labels))
    own = params["hidden1"]
    hidden = np.tanh(x @ own["decorrelation"] @ own["weight"] + own["bias"][None, :])
    expected = {"hidden1": by_hand(own["decorrelation"], x, kappa)}
    expected["output"] = by_hand(params["output"]["decorrelation"], hidden, kappa)
    for name, change in expected.items():
        np.testing.assert_allclose(grads[name]["decorrelation"], change, rtol=1e-10)
        assert not np.allclose(grads[name]["decorrelation"].T, change)  # rows and columns are told apart
        assert not np.any(grads[name]["weight"])
        assert not np.any(grads[name]["bias"])
    np.testing.assert_allclose(info.loss, jnp.mean(objective(params, (x, labels))), rtol=1e-12)
    assert int(info.evaluations) == 2


def learned(kappa, rate, num_steps=3000):
    """R after learning on fixed inputs, and these."""
    network = nl.mlp([4, 2], activation=nl.activations.tanh(), decorrelated=True)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    x = jax.random.normal(jax.random.key(2), (2000, 4)) @ mixing() / 2
    learner = nl.learner(nl.decorrelation(objective, kappa=kappa), optax.sgd(rate))
    state = learner.init(KEY, network.init(jax.random.key(1), jnp.float64))
    step = lambda state, _: (learner.step(KEY, state, (x, jnp.zeros((2000, 2))))[0], None)
    return jax.jit(lambda state: jax.lax.scan(step, state, length=num_steps)[0])(state).params["output"][
        "decorrelation"
    ], x


def off_diagonal(q):
    """⟨q_i q_j⟩/√(⟨q_i²⟩⟨q_j²⟩) over i ≠ j, in standard errors of independent Gaussian values."""
    moments = q.T @ q / len(q)
    scale = np.sqrt(np.diagonal(moments))
    correlation = moments / np.outer(scale, scale)
    return np.max(np.abs(correlation[~np.eye(len(scale), dtype=bool)])) * len(q) ** 0.5


def test_at_rest_inputs_are_uncorrelated(x64):
    """On the inputs that it learned of to rounding, on fresh ones within the standard error of both samples."""
    R, x = learned(kappa=0.0, rate=0.05)
    assert off_diagonal(np.asarray(x @ R)) < 1e-6
    fresh = np.asarray(jax.random.normal(jax.random.key(9), (2000, 4)) @ mixing() / 2)
    assert off_diagonal(fresh @ np.asarray(R)) < 5 * 2**0.5
    assert off_diagonal(fresh) > 5 * 2**0.5  # as they came


def test_with_kappa_variances_are_one_as_well(x64):
    R, x = learned(kappa=0.5, rate=0.1)
    np.testing.assert_allclose((x @ R).T @ (x @ R) / len(x), np.eye(4), atol=1e-6)
    unscaled, _ = learned(kappa=0.0, rate=0.05)
    variances = np.mean(np.asarray(x @ unscaled) ** 2, axis=0)
    assert np.max(np.abs(variances - 1)) > 0.1


def test_without_kappa_small_steps_keep_the_volume(x64):
    """det R = 1 up to an error in proportion to the rate; whitening changes it."""
    errors = [abs(np.linalg.det(learned(0.0, rate, num_steps=int(10 / rate))[0]) - 1) for rate in (0.02, 0.005)]
    assert errors[1] < errors[0] / 3 < 0.1
    assert abs(np.linalg.det(learned(0.5, 0.1)[0]) - 1) > 0.1


ESTIMATORS = {
    "backprop": nl.backprop,
    "node_perturbation": functools.partial(nl.node_perturbation, num_samples=2),
    "iterative_node_perturbation": nl.iterative_node_perturbation,
    "activity_node_perturbation": nl.activity_node_perturbation,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_composes_with_any_estimator(name, x64):
    """Weights learn as by the estimator alone, R by the rule alone."""
    _, objective, params, batch = problem()
    both = nl.partition(objective, {**RULE, "*": ESTIMATORS[name]})
    state = both.init(KEY, params)
    grads, _, info = jax.jit(both.estimate)(KEY, state, params, batch)
    rule, _, by_rule = nl.decorrelation(objective).estimate(KEY, (), params, batch)
    alone = ESTIMATORS[name](objective)
    own = alone.init(jax.random.split(KEY, 2)[1], params)
    expected, _, by_estimator = jax.jit(alone.estimate)(jax.random.split(KEY, 2)[1], own, params, batch)
    for layer in params:
        np.testing.assert_allclose(grads[layer]["decorrelation"], rule[layer]["decorrelation"], rtol=1e-8)
        for part in ("weight", "bias"):
            np.testing.assert_allclose(grads[layer][part], expected[layer][part], rtol=1e-7, atol=1e-12)
    assert int(info.evaluations) == int(by_rule.evaluations) + int(by_estimator.evaluations)


def test_feedback_alignment_sends_credit_through_its_own_weights_and_r(x64):
    """By hand: δ = (e Bᵀ Rᵀ) f'(ν), B in the place of W alone; with W it is another gradient."""
    _, objective, params, (x, labels) = problem()
    both = nl.partition(
        objective, {**RULE, "*": functools.partial(nl.feedback_alignment, feedback=nl.feedback.random())}
    )
    state = both.init(KEY, params)
    grads, _, _ = jax.jit(both.estimate)(KEY, state, params, (x, labels))
    low, high = params["hidden1"], params["output"]
    hidden = jnp.tanh(x @ low["decorrelation"] @ low["weight"] + low["bias"][None, :])
    logits = hidden @ high["decorrelation"] @ high["weight"] + high["bias"][None, :]
    e = (jax.nn.softmax(logits) - jax.nn.one_hot(labels, 3)) / 6

    def by_hand(back):
        delta = e @ back.T @ high["decorrelation"].T * (1 - hidden**2)
        return (x @ low["decorrelation"]).T @ delta

    np.testing.assert_allclose(grads["hidden1"]["weight"], by_hand(state[1]["output/weight"]), rtol=1e-8)
    assert not np.allclose(grads["hidden1"]["weight"], by_hand(high["weight"]), rtol=0.1)
    rule, _, _ = nl.decorrelation(objective).estimate(KEY, (), params, (x, labels))
    np.testing.assert_allclose(grads["output"]["decorrelation"], rule["output"]["decorrelation"], rtol=1e-10)


def test_it_is_local():
    _, objective, params, batch = problem()
    audit = nl.audit(nl.decorrelation, objective, params, batch)
    assert audit.verdicts["hidden1/decorrelation"] == audit.verdicts["output/decorrelation"] == "local"
    backprop = nl.audit(nl.backprop, objective, params, batch)
    assert backprop.verdicts["hidden1/decorrelation"] != "local"


def test_each_of_several_connections_has_its_own():
    c = nl.connections
    network = nl.network(
        nl.Layer("input", 3),
        nl.Layer("hidden", 4, c.decorrelated(c.dense()), nl.activations.tanh()),
        nl.Layer("output", 2, [c.decorrelated(c.dense("hidden")), c.dense("input", bias=False)]),
    )
    params, x = network.init(KEY), jax.random.normal(KEY, (7, 3))
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    grads, _, _ = nl.decorrelation(objective).estimate(KEY, (), params, (x, jnp.ones((7, 2))))
    hidden = network.axons(params, x)["hidden"]
    np.testing.assert_allclose(grads["output"]["hidden"]["decorrelation"], by_hand(np.eye(4), hidden, 0.0), atol=1e-6)
    assert not np.any(grads["output"]["input"]["weight"])


def test_in_a_loop_over_time_changes_add_up(x64):
    def connection(params, x, h):
        return x @ params["decorrelation"] @ params["weight"] + h @ params["recurrent"]

    def forward(params, xs, propagate=feedforward):
        def step(h, x, propagate):
            return propagate("hidden", connection, jnp.tanh, params["hidden"], x, h), None

        return nl.scan("time", step, jnp.zeros((len(xs), 2)), jnp.swapaxes(xs, 0, 1), propagate)[0]

    xs = jax.random.normal(KEY, (5, 4, 3)) + 1
    params = {"hidden": {"decorrelation": jnp.eye(3), "weight": jnp.ones((3, 2)), "recurrent": jnp.eye(2)}}
    objective = nl.supervised(forward, nl.losses.half_squared_error)
    grads, _, _ = nl.decorrelation(objective).estimate(KEY, (), params, (xs, jnp.ones((5, 2))))
    expected = sum(by_hand(np.eye(3), xs[:, t], 0.0) for t in range(4))
    np.testing.assert_allclose(grads["hidden"]["decorrelation"], expected, rtol=1e-10)


def test_local_rules_see_decorrelated_inputs(x64):
    """Hebb's rule behind it: ΔW = ⟨q yᵀ⟩, and R stays."""
    network = nl.network(
        nl.Layer("input", 4), nl.Layer("output", 4, nl.connections.decorrelated(nl.connections.dense()))
    )
    params, x = network.init(KEY, jnp.float64), jax.random.normal(KEY, (6, 4))
    params["output"]["decorrelation"] = mixing()
    grads, _, _ = nl.local_learning(network.apply, nl.rules.hebb()).estimate(KEY, {"output": ()}, params, x)
    np.testing.assert_allclose(-grads["output"]["weight"], (x @ mixing()).T @ network.apply(params, x) / 6, rtol=1e-10)
    assert not np.any(grads["output"]["decorrelation"])


def test_it_is_shown_in_summary_and_diagram():
    network, *_ = problem()
    assert "decorrelated dense ← input" in network.summary()
    assert network.diagram() is not None


BAD_CONNECTIONS = [
    (lambda c: c.decorrelated("dense"), r"connection must be one of nl\.connections, .*got 'dense'"),
    (lambda c: c.decorrelated(c.decorrelated(c.dense())), "is decorrelated already: once is enough"),
    (
        lambda c: nl.network(
            nl.Layer("input", (4, 4, 1)), nl.Layer("output", None, c.decorrelated(c.conv(3, channels=2)))
        ),
        r"layer 'output', connection from 'input': decorrelated reads a vector, its source has shape \(4, 4, 1\)",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD_CONNECTIONS, ids=["no connection", "twice", "image"])
def test_bad_connections_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make(nl.connections)


@pytest.mark.parametrize(
    ("kappa", "message"),
    [(-0.1, "kappa must be a finite Python number of at least 0"), (1.5, "kappa must be at most 1, the share")],
    ids=["below", "above"],
)
def test_bad_settings_are_errors_at_construction(kappa, message):
    with pytest.raises(ValueError, match=message):
        nl.decorrelation(problem()[1], kappa=kappa)


def test_a_network_without_it_is_an_error():
    network = nl.mlp([4, 2], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    with pytest.raises(ValueError, match=r"no layer has a parameter 'decorrelation': join layers by"):
        nl.decorrelation(objective).estimate(KEY, (), network.init(KEY), (jnp.ones((3, 4)), jnp.ones((3, 2))))
