"""Decorrelation: its equation, where it comes to rest, what it sees, and the estimators that it goes along with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward
from nl_jax.rules import decorrelation

KEY = jax.random.key(0)
RULE = {"*/decorrelation": nl.decorrelation}


def mixing(inputs=4):
    """A factor A of strongly correlated inputs z A, z white."""
    return (np.random.default_rng(3).normal(size=(inputs, inputs)) + np.eye(inputs)).astype(jnp.result_type(float))


def problem():
    return _problem(jax.config.jax_enable_x64)


@functools.cache
def _problem(x64):
    network = nl.mlp([4, 5, 3], activation=nl.activations.tanh(), decorrelated=True)

    @jax.jit
    def drawn():
        params = network.init(jax.random.key(1), jnp.result_type(float))
        R = lambda key, n: jnp.eye(n) + 0.3 * jax.random.normal(key, (n, n))
        params["hidden1"]["decorrelation"], params["output"]["decorrelation"] = R(KEY, 4), R(jax.random.key(5), 5)
        return params, (jax.random.normal(jax.random.key(7), (6, 4)) @ mixing(), jnp.arange(6) % 3)

    params, batch = jax.device_get(drawn())
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


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_change_is_the_papers_equation(kappa, x64):
    _, objective, params, (x, labels) = problem()
    estimator = nl.decorrelation(objective, kappa=kappa)
    run = jax.jit(lambda *at: (estimator.estimate(KEY, (), *at), jnp.mean(objective(*at))))
    (grads, _, info), loss = jax.device_get(run(params, (x, labels)))
    own = params["hidden1"]
    hidden = np.tanh(x @ own["decorrelation"] @ own["weight"] + own["bias"][None, :])
    expected = {"hidden1": by_hand(own["decorrelation"], x, kappa)}
    expected["output"] = by_hand(params["output"]["decorrelation"], hidden, kappa)
    for name, change in expected.items():
        np.testing.assert_allclose(grads[name]["decorrelation"], change, rtol=1e-10)
        assert not np.allclose(grads[name]["decorrelation"].T, change)  # rows and columns are told apart
        assert not np.any(grads[name]["weight"])
        assert not np.any(grads[name]["bias"])
    np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
    assert int(info.evaluations) == 2


def test_moments_are_summed_in_single_precision():
    """Products of R, moments and many inputs overflow float16, though the change does not."""
    for examples, inputs in ((1000, 3), (3, 1000)):
        found = decorrelation.change(
            jnp.eye(inputs, dtype=jnp.float16), jnp.full((examples, inputs), 10, jnp.float16), 0.0
        )
        assert found.dtype == jnp.float16
        np.testing.assert_array_equal(found, 100 * (np.eye(inputs) - 1))


X = np.random.default_rng(2).normal(size=(2000, 4)) @ (np.random.default_rng(3).normal(size=(4, 4)) + np.eye(4)) / 2


@functools.cache  # in float64, by all that ask
def learning(kappa):
    """`run(rate, num_steps) -> R` after learning on X."""
    network = nl.mlp([4, 2], activation=nl.activations.tanh(), decorrelated=True)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    estimator = nl.decorrelation(objective, kappa=kappa)

    @jax.jit
    def run(x, rate, num_steps):
        def step(_, params):
            grads, _, _ = estimator.estimate(KEY, (), params, (x, jnp.zeros((2000, 2))))
            return jax.tree.map(lambda w, g: w - rate * g, params, grads)

        start = network.init(jax.random.key(1), jnp.float64)
        return jax.lax.fori_loop(0, num_steps, step, start)["output"]["decorrelation"]

    return lambda rate, num_steps=3000: np.asarray(run(X, np.float64(rate), np.int32(num_steps)))


def off_diagonal(q):
    """⟨q_i q_j⟩/√(⟨q_i²⟩⟨q_j²⟩) over i ≠ j, in standard errors of independent Gaussian values."""
    moments = q.T @ q / len(q)
    scale = np.sqrt(np.diagonal(moments))
    correlation = moments / np.outer(scale, scale)
    return np.max(np.abs(correlation[~np.eye(len(scale), dtype=bool)])) * len(q) ** 0.5


def test_at_rest_inputs_are_uncorrelated(x64):
    """On the inputs that it learned of to rounding, on fresh ones within the standard error of both samples."""
    R = learning(0.0)(0.05)
    assert off_diagonal(X @ R) < 1e-6
    fresh = np.random.default_rng(9).normal(size=(2000, 4)) @ mixing() / 2
    assert off_diagonal(fresh @ R) < 5 * 2**0.5
    assert off_diagonal(fresh) > 5 * 2**0.5  # as they came


def test_with_kappa_variances_are_one_as_well(x64):
    R = learning(0.5)(0.1)
    np.testing.assert_allclose((X @ R).T @ (X @ R) / len(X), np.eye(4), atol=1e-6)
    variances = np.mean((X @ learning(0.0)(0.05)) ** 2, axis=0)
    assert np.max(np.abs(variances - 1)) > 0.1


def test_without_kappa_small_steps_keep_the_volume(x64):
    """det R = 1 up to an error in proportion to the rate; whitening changes it."""
    errors = [abs(np.linalg.det(learning(0.0)(rate, int(10 / rate))) - 1) for rate in (0.02, 0.005)]
    assert errors[1] < errors[0] / 3 < 0.1
    assert abs(np.linalg.det(learning(0.5)(0.1)) - 1) > 0.1


ESTIMATORS = {
    "backprop": nl.backprop,
    "node_perturbation": functools.partial(nl.node_perturbation, num_samples=2),
    "activity_node_perturbation": nl.activity_node_perturbation,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_composes_with_any_estimator(name, x64):
    """Weights learn as by the estimator alone, R by the rule alone."""
    _, objective, params, batch = problem()
    both, alone = nl.partition(objective, {**RULE, "*": ESTIMATORS[name]}), ESTIMATORS[name](objective)

    @jax.jit
    def run(*at):
        key = jax.random.split(KEY, 2)[1]
        of_rule = nl.decorrelation(objective).estimate(KEY, (), *at)
        of_estimator = alone.estimate(key, alone.init(key, at[0]), *at)
        return both.estimate(KEY, both.init(KEY, at[0]), *at), of_rule, of_estimator

    (grads, _, info), (rule, _, by_rule), (expected, _, by_estimator) = run(params, batch)
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

    @jax.jit
    def run(*at):
        state = both.init(KEY, at[0])
        rule = nl.decorrelation(objective).estimate(KEY, (), *at)[0]
        return both.estimate(KEY, state, *at)[0], state[1]["output/weight"], rule

    grads, b, rule = jax.device_get(run(params, (x, labels)))
    low, high = params["hidden1"], params["output"]
    hidden = np.tanh(x @ low["decorrelation"] @ low["weight"] + low["bias"])
    odds = np.exp(hidden @ high["decorrelation"] @ high["weight"] + high["bias"])
    e = (odds / odds.sum(axis=1, keepdims=True) - np.eye(3)[labels]) / 6

    def by_hand(back):
        delta = e @ back.T @ high["decorrelation"].T * (1 - hidden**2)
        return (x @ low["decorrelation"]).T @ delta

    np.testing.assert_allclose(grads["hidden1"]["weight"], by_hand(b), rtol=1e-8)
    assert not np.allclose(grads["hidden1"]["weight"], by_hand(high["weight"]), rtol=0.1)
    np.testing.assert_allclose(grads["output"]["decorrelation"], rule["output"]["decorrelation"], rtol=1e-10)


@pytest.mark.slow
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
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)

    @jax.jit
    def run(x):
        params = network.init(KEY)
        grads = nl.decorrelation(objective).estimate(KEY, (), params, (x, jnp.ones((7, 2))))[0]
        return grads, network.axons(params, x)["hidden"]

    grads, hidden = run(x)
    np.testing.assert_allclose(grads["output"]["hidden"]["decorrelation"], by_hand(np.eye(4), hidden, 0.0), atol=1e-6)
    assert not np.any(grads["output"]["input"]["weight"])


def test_in_a_loop_over_time_changes_add_up(x64):
    def connection(params, x, h):
        return x @ params["decorrelation"] @ params["weight"] + h @ params["recurrent"]

    def forward(params, xs, propagate=feedforward):
        def step(h, x, propagate):
            return propagate("hidden", connection, jnp.tanh, params["hidden"], x, h), None

        return nl.scan("time", step, jnp.zeros((len(xs), 2)), jnp.swapaxes(xs, 0, 1), propagate)[0]

    xs = np.random.default_rng(0).normal(size=(5, 4, 3)) + 1
    params = {"hidden": {"decorrelation": np.eye(3), "weight": np.ones((3, 2)), "recurrent": np.eye(2)}}
    objective = nl.supervised(forward, nl.losses.half_squared_error)
    grads, _, _ = jax.jit(nl.decorrelation(objective).estimate)(KEY, (), params, (xs, np.ones((5, 2))))
    expected = sum(by_hand(np.eye(3), xs[:, t], 0.0) for t in range(4))
    np.testing.assert_allclose(grads["hidden"]["decorrelation"], expected, rtol=1e-10)


def test_local_rules_see_decorrelated_inputs(x64):
    """Hebb's rule behind it: ΔW = ⟨q yᵀ⟩, and R stays."""
    network = nl.network(
        nl.Layer("input", 4), nl.Layer("output", 4, nl.connections.decorrelated(nl.connections.dense()))
    )
    x = np.random.default_rng(0).normal(size=(6, 4))

    @jax.jit
    def run(x, mixing):
        params = network.init(KEY, jnp.float64)
        params["output"]["decorrelation"] = mixing
        rule = nl.local_learning(network.apply, nl.rules.hebb())
        return rule.estimate(KEY, {"output": ()}, params, x)[0]["output"], network.apply(params, x)

    grads, y = jax.device_get(run(x, mixing()))
    np.testing.assert_allclose(-grads["weight"], (x @ mixing()).T @ y / 6, rtol=1e-10)
    assert not np.any(grads["decorrelation"])


def test_it_is_shown_in_summary_and_diagram():
    network, *_ = problem()
    assert "decorrelated dense ← input" in network.summary()
    assert network.diagram() is not None


BAD_CONNECTIONS = [
    (lambda c: c.decorrelated("dense"), r"connection must be one of nl\.connections, .*got 'dense'"),
    (lambda c: c.decorrelated(c.decorrelated(c.dense())), "is decorrelated already: decorrelate it once"),
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
    params = jax.eval_shape(network.init, KEY)
    with pytest.raises(ValueError, match=r"no layer has a parameter 'decorrelation': join layers by"):
        jax.eval_shape(nl.decorrelation(objective).estimate, KEY, (), params, (jnp.ones((3, 4)), jnp.ones((3, 2))))
