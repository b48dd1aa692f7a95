"""Variance laws as algebra and by their definition; the laws of `nl.directions` are held to them in their own tests."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.theory import perturbation as theory

G = np.array([[0.5, -1.0], [2.0, 0.3], [0.1, 0.7]])


def samples(directions, g):
    """(gᵀξ) ξ for rows ξ, as vectors."""
    directions = np.reshape(directions, (len(directions), -1))
    return (directions @ g.ravel())[:, None] * directions


def all_signs(count):
    return np.array(list(itertools.product([-1.0, 1.0], repeat=count)))


def second_moment(directions, g=G):
    return np.mean(np.sum(samples(directions, g) ** 2, axis=1)) / np.sum(g**2)


def outer(a, b):
    return np.einsum("kim,kjm->kij", a, b)


def test_signs_by_enumeration():
    """Of all 2^P signs, and of all a bᵀ, s = P; of rank two 1 more, for 2(1 − 1/2) is 1."""
    assert second_moment(all_signs(6)) == pytest.approx(theory.independent(6, kurtosis=1))
    for rank in (1, 2):
        factors = all_signs(5 * rank).reshape(-1, 5, rank)
        directions = outer(factors[:, :3], factors[:, 3:]) / rank**0.5
        assert second_moment(directions) == pytest.approx(theory.low_rank(6, rank))
    assert theory.low_rank(6, 2) == 7
    assert theory.low_rank(6, 2, weights=0.5) == 6.5


def test_three_values_by_enumeration():
    """±1/√p with chance p, else 0, at p = ½: of four equal chances two are 0."""
    grid = np.array(list(itertools.product([-(2**0.5), 0.0, 0.0, 2**0.5], repeat=6)))
    assert second_moment(grid) == pytest.approx(theory.independent(6, kurtosis=2))


def test_rank_one_gaussian():
    """Within 5 standard errors; dense Gaussian noise and rank-one signs, of P + 2 and P, must fail."""
    a, b = (np.random.default_rng(k).normal(size=(400_000, n, 1)) for k, n in ((1, 3), (2, 2)))
    squares = np.sum(samples(outer(a, b), G) ** 2, axis=1) / np.sum(G**2)
    error = squares.std(ddof=1) / len(squares) ** 0.5
    assert abs(squares.mean() - theory.rank_one_gaussian(3, 2)) < 5 * error
    for wrong in (theory.independent(6, kurtosis=3), theory.low_rank(6, 1)):
        assert abs(squares.mean() - wrong) > 5 * error


def test_coordinates_by_enumeration():
    """K of P without replacement, all choices: (P − K)/K."""
    directions = samples(6**0.5 * np.eye(6), G)
    for K in (1, 2, 5, 6):
        means = np.array([directions[list(chosen)].mean(axis=0) for chosen in itertools.combinations(range(6), K)])
        measured = np.mean(np.sum((means - G.ravel()) ** 2, axis=1)) / np.sum(G**2)
        assert measured == pytest.approx(theory.relative_variance(6, K, order=6), abs=1e-12)
        assert measured == pytest.approx((6 - K) / K, abs=1e-12)


def test_samples_average():
    s = theory.independent(6, kurtosis=3)
    assert (theory.relative_variance(s, 1), theory.relative_variance(s, 4)) == (7, 7 / 4)
    assert theory.relative_variance(6, 4, order=8) == pytest.approx(5 / 4 * 4 / 7)
    assert theory.relative_variance(6, 4, order=10**12) == pytest.approx(theory.relative_variance(6, 4))


def test_cosine():
    """Of signs by enumeration, of Gaussian noise within 5 standard errors."""
    signs, normal = all_signs(6), np.random.default_rng(3).normal(size=(20_000, 6))
    cosines = [(xi @ G.ravel()) ** 2 / np.sum(xi**2, axis=1) / np.sum(G**2) for xi in (signs, normal)]
    assert cosines[0].mean() == pytest.approx(theory.squared_cosine(6))
    error = cosines[1].std(ddof=1) / len(normal) ** 0.5
    assert abs(cosines[1].mean() - theory.squared_cosine(6)) < 5 * error
    assert abs(cosines[1].mean() - theory.squared_cosine(7)) > 5 * error


def test_projected_noise():
    """Gaussian noise in 2 of 6 dimensions: E‖ĝ − g‖² of means of two, within 5 standard errors; not of all of g."""
    rng = np.random.default_rng(4)
    Q = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    g = G.ravel()
    captured = float(np.sum((Q.T @ g) ** 2) / np.sum(g**2))
    assert 0.05 < captured < 0.9
    directions = (rng.normal(size=(60_000, 2)) @ Q.T).reshape(-1, 2, 6)
    means = np.mean([samples(directions[:, k], g) for k in range(2)], axis=0)
    off = np.sum((means - g) ** 2, axis=1) / np.sum(g**2)
    error = off.std(ddof=1) / len(off) ** 0.5
    s = theory.independent(2, kurtosis=3)
    assert abs(off.mean() - theory.projected(s, 2, captured=captured)) < 5 * error
    for wrong in (theory.projected(s, 2, captured=1.0), theory.projected(s, 1, captured=captured)):
        assert abs(off.mean() - wrong) > 5 * error
    cosines = np.array([xi @ g for xi in directions[:, 0]]) ** 2 / np.sum(directions[:, 0] ** 2, axis=1) / np.sum(g**2)
    error = cosines.std(ddof=1) / len(cosines) ** 0.5
    assert abs(cosines.mean() - theory.squared_cosine(2, captured=captured)) < 5 * error
    assert abs(cosines.mean() - theory.squared_cosine(2)) > 5 * error


def test_random_subspaces():
    """√(m/r) Q G of random Q, shared by K: what Q misses stays; at r = m it is Gaussian noise."""
    rng, K, r = np.random.default_rng(5), 2, 1
    Q = rng.normal(size=(40_000, 3, r))
    Q /= np.linalg.norm(Q, axis=1, keepdims=True)
    directions = 3**0.5 * np.einsum("nir,knru->kniu", Q, rng.normal(size=(K, 40_000, r, 2)))
    means = np.mean([samples(own, G) for own in directions], axis=0)
    off = np.sum((means - G.ravel()) ** 2, axis=1) / np.sum(G**2)
    error = off.std(ddof=1) / len(off) ** 0.5
    assert abs(off.mean() - theory.random_subspace(6, K, {(3, r): 1.0})) < 5 * error
    isotropic = theory.relative_variance(theory.independent(6, kurtosis=3), K)
    assert abs(off.mean() - isotropic) > 5 * error
    assert theory.random_subspace(6, K, {(3, 3): 1.0}) == isotropic


@pytest.mark.slow
def test_flipout_of_one_example_is_shared_signs(x64):
    """So it is of many without weights; of B examples alike with weights alone, all but B times less noise."""
    weights, others = jnp.asarray(G).reshape(1, 6), jnp.ones((1, 4))
    np.testing.assert_allclose(theory.flipout(weights, others), 10, rtol=1e-12)
    nothing = jnp.zeros((5, 0))
    np.testing.assert_allclose(theory.flipout(nothing, jnp.tile(others, (5, 1))), 4, rtol=1e-12)
    np.testing.assert_allclose(theory.flipout(jnp.tile(weights, (5, 1)), nothing), 1 + 5 / 5, rtol=1e-12)


@pytest.mark.slow
def test_node_variance_of_one_example_by_enumeration(x64):
    """Of all signs on three nodes: x_b (δᵀξ) ξ_a."""
    x, delta = jnp.array([[2.0, -1.0]]), np.array([0.5, -1.0, 2.0])
    credit = samples(all_signs(3), delta)
    estimates = np.einsum("b,ka->kba", x[0], credit)
    power = jnp.sum(jnp.asarray(delta)[None] ** 2, axis=1)
    predicted = theory.node_variance(x, jnp.asarray(delta)[None], power, 1, kurtosis=1)
    np.testing.assert_allclose(estimates.var(axis=0), predicted, rtol=1e-12)
    several = [jnp.tile(value, (4, *[1] * (value.ndim - 1))) for value in (x, jnp.asarray(delta)[None], power)]
    np.testing.assert_allclose(theory.node_variance(*several, 3, kurtosis=1), predicted / 12, rtol=1e-12)


def test_nodes_of_two_layers_by_enumeration(x64):
    """All signs on two examples' 3 + 2 nodes: E‖ĝ‖²/‖g‖² of both weights."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(2, 4)), rng.normal(size=(2, 3))]
    delta = [rng.normal(size=(2, 3)), rng.normal(size=(2, 2))]
    credit = samples(all_signs(5), np.concatenate([delta[0][0], delta[1][0]]))
    other = samples(all_signs(5), np.concatenate([delta[0][1], delta[1][1]]))
    both = np.stack([np.repeat(credit, 32, axis=0), np.tile(other, (32, 1))], axis=1)  # [signs of both, example, node]
    estimates = [np.einsum("nb,kna->kba", pre, of) / 2 for pre, of in zip(x, np.split(both, [3], axis=2), strict=True)]
    squares = sum(np.mean(np.sum(e**2, axis=(1, 2))) for e in estimates)
    exact = sum(np.sum((pre.T @ d / 2) ** 2) for pre, d in zip(x, delta, strict=True))
    layers = {f"layer{i}": (jnp.asarray(pre), jnp.asarray(d)) for i, (pre, d) in enumerate(zip(x, delta, strict=True))}
    assert float(theory.nodes(layers, kurtosis=1)) == pytest.approx(squares / exact, rel=1e-12)
    assert float(theory.nodes(layers, kurtosis=3)) > 1.01 * squares / exact


def test_nodes_where_norms_are_kept_are_independent_components(x64):
    """N takes the place of P; with norms that go apart, N times the arithmetic over the harmonic mean of ‖x‖²."""
    r = np.array([1.0, 2.0, 4.0, 8.0])
    layers = {
        str(k): (jnp.full((1, 5), (r_k / 5) ** 0.5), jnp.full((1, 3), (1 / r_k / 3) ** 0.5)) for k, r_k in enumerate(r)
    }
    means = r.mean() * (1 / r).mean()
    assert float(theory.nodes(layers, kurtosis=2)) - 1 == pytest.approx(12 * means, rel=1e-12)
    kept = {name: (jnp.ones((1, 5)), jnp.ones((1, 3))) for name in layers}
    for kurtosis in (1, 3):
        assert float(theory.nodes(kept, kurtosis=kurtosis)) == pytest.approx(theory.independent(12, kurtosis=kurtosis))


def test_parts_that_are_estimated_apart_by_enumeration(x64):
    """All signs on 2 and on 3 components, each judged by its own part of the gradient; the twin judges all by all."""
    parts = [np.array([0.5, -1.0]), np.array([2.0, 0.3, 0.1])]
    apart = sum(np.mean(np.sum(samples(all_signs(g.size), g) ** 2, axis=1)) for g in parts)
    s = theory.together([theory.independent(g.size, kurtosis=1) for g in parts], [np.sum(g**2) for g in parts])
    squares = sum(np.sum(g**2) for g in parts)
    assert s == pytest.approx(apart / squares, rel=1e-12)
    assert s < second_moment(all_signs(5), np.concatenate(parts)) - 0.5


BAD = [
    (lambda: theory.together([2.0], [1.0, 3.0]), "one number for each part, one part at least; got 1 and 2"),
    (lambda: theory.together([], []), "one part at least; got 0 and 0"),
    (lambda: theory.relative_variance(0.5, 1), "second_moment must be a finite number of at least 1, got 0.5"),
    (lambda: theory.relative_variance(6, 0), "K must be .* at least 1, got 0"),
    (lambda: theory.relative_variance(6, 9, order=8), "order must be .* at least 9, got 8"),
    (lambda: theory.squared_cosine(0), "P must be"),
    (lambda: theory.independent(6, kurtosis=0.9), "kurtosis must be .* at least 1, got 0.9"),
    (lambda: theory.low_rank(6, 0), "rank must be"),
    (lambda: theory.low_rank(6, 1, weights=1.5), "weights must be at most 1, the whole of the gradient's square"),
    (lambda: theory.rank_one_gaussian(0, 2), "m must be"),
    (lambda: theory.projected(3, 1, captured=1.5), "captured must be at most 1, the whole of the gradient's square"),
    (lambda: theory.squared_cosine(3, captured=-0.1), "captured must be a finite number of at least 0, got -0.1"),
    (lambda: theory.random_subspace(6, 1, {(2, 3): 0.5}), "m must be a finite number of at least 3, got 2"),
    (lambda: theory.random_subspace(6, 1, {(3, 1): 0.6, (3, 2): 0.6}), "shares must be at most 1"),
    (lambda: theory.flipout(jnp.ones((5, 6)), jnp.ones((1, 4))), "the same examples, got 5 and 1 of them"),
    (
        lambda: theory.node_variance(jnp.ones((5, 2)), jnp.ones((5, 3)), jnp.ones(1), 1, kurtosis=1),
        r"the same examples: \[B, inputs\], \[B, units\] and \[B\]; got \[5, 2\], \[5, 3\] and \[1\]",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_numbers_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
