"""Competition on the sphere, and links among its winners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax import rules

KEY = jax.random.key(0)


def test_prototypes_on_the_sphere_come_to_the_mean_directions(x64):
    """Three clusters of directions: w_j is the unit vector of its own wins' mean, as by k-means in numpy."""
    keys = jax.random.split(KEY, 3)
    centres = jnp.eye(4)[:3]
    own = jnp.repeat(jnp.arange(3), 50)
    directions = centres[own] + 0.2 * jax.random.normal(keys[0], (150, 4))
    x = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    rule, W = rules.spherical(), x[jnp.array([0, 60, 120])].T
    for _ in range(200):
        change, _ = rule.change((), {"weight": W}, x, x @ W, None)
        W = W + 0.3 * change["weight"]
    wins = np.argmax(x @ W, axis=1)
    means = np.stack([np.asarray(x)[wins == j].mean(axis=0) for j in range(3)], axis=1)
    np.testing.assert_allclose(jnp.linalg.norm(W, axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(W, means / np.linalg.norm(means, axis=0), atol=1e-6)
    np.testing.assert_array_equal(wins, own)


def test_nobody_wins_an_input_that_excites_no_unit():
    W = jnp.eye(3)
    for x in (jnp.zeros((2, 3)), -jnp.ones((2, 3))):
        change, _ = rules.spherical().change((), {"weight": W}, x, x @ W, None)
        np.testing.assert_array_equal(change["weight"], 0)


def test_links_count_who_comes_first_and_next(x64):
    x = jnp.array([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 2.0, 0.0]])
    C = jnp.zeros((4, 4))
    change, _ = rules.competitive_hebbian().change((), {"weight": C}, x, x, None)
    expected = np.zeros((4, 4))
    for first, second in ((0, 1), (3, 2), (1, 2)):
        expected[first, second] += 1 / 3
        expected[second, first] += 1 / 3
    np.testing.assert_allclose(change["weight"], expected)
    change, _ = rules.competitive_hebbian(neighbours=2).change((), {"weight": jnp.asarray(expected)}, x, x, None)
    for first, third in ((0, 2), (3, 1), (1, 0)):
        np.testing.assert_allclose(change["weight"][first, third], 1 / 3)
    with pytest.raises(ValueError, match=r"must be square, of more than 3 units, got shape \(4, 3\)"):
        rules.competitive_hebbian(neighbours=3).change((), {"weight": jnp.zeros((4, 3))}, x, x, None)


def test_links_of_prototypes_on_a_ring_are_the_ring(x64):
    """Martinetz and Schulten's claim: the links come to be the manifold's topology."""
    angles = jnp.linspace(0, 2 * jnp.pi, 12, endpoint=False)
    W = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    places = jax.random.uniform(KEY, (500,), float, 0, 2 * jnp.pi)
    x = jnp.stack([jnp.cos(places), jnp.sin(places)], axis=1)
    change, _ = rules.competitive_hebbian().change((), {"weight": jnp.zeros((12, 12))}, x @ W, x @ W, None)
    ring = np.eye(12, k=1) + np.eye(12, k=-1) + np.eye(12, k=11) + np.eye(12, k=-11)
    np.testing.assert_array_equal(change["weight"] > 0, ring > 0)


def test_standardised_patches_are_seen_by_their_form(x64):
    """By loops; and an image that is brighter or of more contrast gives the same answers, an even one none."""
    images = jax.random.uniform(KEY, (2, 6, 5, 3), float)
    joint = nl.connections.standardised_conv((3, 2), channels=4, stride=(2, 1), epsilon=1e-4).join((6, 5, 3), None)
    assert joint.shape == (2, 4, 4)
    params = joint.init(KEY, float)
    found = joint.apply(params, images)
    for i, j in np.ndindex(2, 4):
        patch = np.asarray(images[:, 2 * i : 2 * i + 3, j : j + 2]).reshape(2, -1)
        mean, variance = patch.mean(axis=1, keepdims=True), patch.var(axis=1, keepdims=True)
        p = (patch - mean) / np.sqrt(18 * (variance + 1e-4))
        np.testing.assert_allclose(found[:, i, j], p @ np.asarray(params["weight"]).reshape(18, 4), rtol=1e-9)
    np.testing.assert_allclose(joint.apply(params, 5 * images + 2), found, rtol=1e-2)
    np.testing.assert_allclose(joint.apply(params, jnp.full((1, 6, 5, 3), 0.7)), 0, atol=1e-7)
    (pre,) = nl.products.unfold(joint.apply, params, images)
    assert np.all(np.linalg.norm(pre, axis=1) <= 1)
    with pytest.raises(ValueError, match="epsilon must be"):
        nl.connections.standardised_conv(3, channels=2, epsilon=0)
