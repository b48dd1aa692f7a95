"""Every rule beside its equation, unit by unit and example by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax import rules
from tests.registry import PARAMETRIC, RULES

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4))
Y = RNG.normal(size=(7, 3))
W = RNG.normal(size=(4, 3))
C = RNG.normal(size=(3, 3))
T = np.sign(RNG.normal(size=(7, 3)))
UNITS = range(3)


def softmax(u):
    return np.exp(u) / np.exp(u).sum()


def soft(x, temperature, sign_of_losers):
    u = W.T @ x
    s = softmax(u / temperature)
    signed = [s[j] if u[j] == u.max() else sign_of_losers * s[j] for j in UNITS]
    return [signed[j] * (x - u[j] * W[:, j]) for j in UNITS]


def own_wins(x):
    """Of a rule that takes the mean over a unit's own wins: the change of one example, times 7 over their number."""
    winners = [np.argmax(W.T @ one) if max(W.T @ one) > 0 else None for one in X]
    u = W.T @ x
    wins = [u[j] == u.max() and u[j] > 0 for j in UNITS]
    return [wins[j] * (x - u[j] * W[:, j]) * len(X) / max(winners.count(j), 1) for j in UNITS]


def linked(y):
    """Links among units by their answers y: the best one with the next two."""
    first, *following = np.argsort(-y)[:3]
    links = np.zeros((3, 3))
    for other in following:
        links[first, other] = links[other, first] = 1
    return list((links - C).T)


THETA = [1 + 0.1 * (np.mean(Y[:, j] ** 2) - 1) for j in UNITS]

# One example's change of every unit's incoming weights, Δw_j for each j.
EQUATIONS = {
    "hebb": lambda x, y, t: [y[j] * x for j in UNITS],
    "oja": lambda x, y, t: [y[j] * (x - y[j] * W[:, j]) for j in UNITS],
    "subspace": lambda x, y, t: [y[j] * (x - sum(y[k] * W[:, k] for k in UNITS)) for j in UNITS],
    "sanger": lambda x, y, t: [y[j] * (x - sum(y[k] * W[:, k] for k in range(j + 1))) for j in UNITS],
    "apex": lambda x, y, t: [y[j] * (x - y[j] * W[:, j]) for j in UNITS],
    "bcm": lambda x, y, t: [y[j] * (y[j] - THETA[j]) * x for j in UNITS],
    "instar": lambda x, y, t: [y[j] * (x - W[:, j]) for j in UNITS],
    "competitive": lambda x, y, t: [(y[j] == max(y)) * (x - W[:, j]) for j in UNITS],
    "spherical": lambda x, y, t: own_wins(x),
    "competitive_hebbian": lambda x, y, t: linked(y),
    "soft_hebb": lambda x, y, t: soft(x, 1.0, 1),
    "soft_hebb_anti_hebbian": lambda x, y, t: soft(x, 0.5, -1),
    "parametric": lambda x, y, t: [
        sum(value * x**a * y[j] ** b * W[:, j] ** c for (a, b, c), value in PARAMETRIC.items()) for j in UNITS
    ],
    "perceptron": lambda x, y, t: [(np.sign(y[j]) != t[j]) * t[j] * x for j in UNITS],
    "delta": lambda x, y, t: [(t[j] - y[j]) * x for j in UNITS],
    "delta_tanh": lambda x, y, t: [(t[j] - y[j]) * (1 - y[j] ** 2) * x for j in UNITS],
}


def changed(name, dtype="float64", x=X, y=Y, t=T):
    """The change by a rule with parameters of a dtype; the examples keep theirs."""
    rule = RULES[name]()
    params = {"weight": jnp.asarray(W, dtype), "bias": jnp.ones(3, dtype), "lateral": jnp.asarray(C, dtype)}
    if name == "competitive_hebbian":  # among units, which see their own answers
        params, x = {"weight": params["lateral"], "bias": params["bias"]}, y
    return rule.change(rule.init(params), params, jnp.asarray(x), jnp.asarray(y), jnp.asarray(t))


@pytest.mark.parametrize("name", RULES)
def test_the_weights_change_by_the_equation(name):
    change, _ = changed(name)
    examples = [np.stack(EQUATIONS[name](x, y, t), axis=1) for x, y, t in zip(X, Y, T, strict=True)]
    np.testing.assert_allclose(change["weight"], np.mean(examples, axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_half_precision_is_summed_in_single(name):
    """There are more examples than float16 can count, and the squares of some are too large for it."""
    many = [np.tile(a, (10_000, 1)).astype(np.float16) for a in (100 * X, 300 * Y, T)]
    change, state = changed(name, "float16", *many)
    single = [a.astype(np.float32) for a in many]
    expected, _ = changed(name, "float32", *single)
    assert {leaf.dtype for leaf in jax.tree.leaves((change, state))} == {jnp.dtype("float16")}
    within = lambda a: np.clip(np.asarray(a, np.float64), -65504, 65504)
    for part, values in change.items():
        np.testing.assert_allclose(within(values), within(expected[part]), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("name", RULES)
def test_whole_numbers_are_floats(name):
    """As images are given, whose squares wrap."""
    whole = [np.abs(size * a).astype(np.uint8) for size, a in ((20, X), (20, Y), (1, T))]
    change, _ = changed(name, "float32", *whole)
    expected, _ = changed(name, "float32", *(a.astype(np.float32) for a in whole))
    for part, values in change.items():
        np.testing.assert_array_equal(values, expected[part])


def test_lateral_connections_are_oja_among_units():
    change, _ = changed("apex")
    expected = np.zeros((3, 3))
    for y in Y:
        for j in UNITS:
            for i in range(j):
                expected[i, j] += y[j] * (y[i] - y[j] * C[i, j]) / len(Y)
    np.testing.assert_allclose(change["lateral"], expected, rtol=1e-12, atol=1e-12)


def test_biases_change_by_supervised_rules_alone():
    for name, make in RULES.items():
        change, _ = changed(name)
        assert ("bias" in change) == make().supervised, name
    np.testing.assert_allclose(changed("delta")[0]["bias"], np.mean(T - Y, axis=0), rtol=1e-12)
    mistakes = np.where(np.sign(Y) == T, 0, T)
    np.testing.assert_allclose(changed("perceptron")[0]["bias"], np.mean(mistakes, axis=0), rtol=1e-12)


def test_an_axon_of_zero_is_a_mistake():
    params = {"weight": jnp.zeros((2, 1))}
    change, _ = rules.perceptron().change((), params, jnp.eye(2), jnp.zeros((2, 1)), jnp.ones((2, 1)))
    np.testing.assert_array_equal(change["weight"], [[0.5], [0.5]])


def test_the_perceptron_takes_classes_as_one_hot():
    t = jnp.asarray(T)
    change, other = (
        rules.perceptron().change((), {"weight": jnp.asarray(W), "bias": jnp.ones(3)}, X, Y, taught)[0]
        for taught in (t, (t + 1) / 2)
    )
    for part in ("weight", "bias"):
        np.testing.assert_array_equal(change[part], other[part])


def test_the_first_of_equal_axons_wins():
    params = {"weight": jnp.zeros((2, 2))}
    change, _ = rules.competitive().change((), params, jnp.ones((3, 2)), jnp.ones((3, 2)), None)
    np.testing.assert_array_equal(change["weight"], [[1, 0], [1, 0]])


def test_the_threshold_slides_to_the_mean_square():
    rule = rules.bcm(rate=0.5)
    params = {"weight": jnp.asarray(W)}
    theta = rule.init(params)
    for step in range(1, 4):
        _, theta = rule.change(theta, params, jnp.asarray(X), jnp.asarray(Y), None)
        rest = 0.5**step
        np.testing.assert_allclose(theta[0], rest + (1 - rest) * np.mean(Y**2, axis=0), rtol=1e-12)


@pytest.mark.parametrize("make", [lambda v: rules.bcm(rate=v), lambda v: rules.soft_hebb(temperature=v)])
@pytest.mark.parametrize("value", [0, -1, float("nan"), True])
def test_bad_settings_are_named(make, value):
    with pytest.raises(ValueError, match=r"(rate|temperature) must be a finite Python number above 0"):
        make(value)


@pytest.mark.parametrize("make", [lambda v: rules.bcm(rate=v), lambda v: rules.soft_hebb(temperature=v)])
def test_settings_may_be_arrays_of_one_number(make):
    """Such as `nl.sweep` tries."""

    def weight(rule):
        params = {"weight": jnp.asarray(W)}
        return rule.change(rule.init(params), params, X, Y, None)[0]["weight"]

    swept = jax.vmap(lambda value: weight(make(value)))(jnp.array([0.3, 0.6], jnp.float32))
    np.testing.assert_allclose(swept, [weight(make(0.3)), weight(make(0.6))], rtol=1e-6)


def test_bad_settings_of_single_rules_are_named():
    with pytest.raises(ValueError, match=r"rate must be at most 1.*got 1\.5"):
        rules.bcm(rate=1.5)
    with pytest.raises(ValueError, match=r"derivative must take one argument"):
        rules.delta(derivative=nl.activations.tanh)


def test_coefficients_as_an_array_are_those_of_the_mapping():
    params = {"weight": jnp.asarray(W)}
    dense = np.zeros((3, 3, 3))
    for powers, value in PARAMETRIC.items():
        dense[powers] = value
    by_name, by_array = (rules.parametric(theta).change((), params, X, Y, None)[0] for theta in (PARAMETRIC, dense))
    np.testing.assert_array_equal(by_name["weight"], by_array["weight"])


def test_ojas_coefficients_are_ojas_rule():
    params = {"weight": jnp.asarray(W)}
    theta = {(1, 1, 0): 1.0, (0, 2, 1): -1.0}
    ours, oja = (rule.change((), params, X, Y, None)[0] for rule in (rules.parametric(theta), rules.oja()))
    np.testing.assert_allclose(ours["weight"], oja["weight"], rtol=1e-12)


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (np.ones((3, 3)), r"theta must be of shape \(3, 3, 3\).*got \(3, 3\)"),
        ({(1, 1, 3): 1.0}, r"theta has a coefficient of \(1, 1, 3\).*each 0, 1 or 2"),
        ({(1, 1): 1.0}, r"theta has a coefficient of \(1, 1\)"),
    ],
)
def test_coefficients_of_no_term_are_refused(theta, message):
    with pytest.raises(ValueError, match=message):
        rules.parametric(theta)
