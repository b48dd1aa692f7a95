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
    own = np.repeat(np.arange(3), 50)
    directions = np.eye(4)[own] + 0.2 * np.random.default_rng(0).normal(size=(150, 4))
    x = directions / np.linalg.norm(directions, axis=1, keepdims=True)

    @jax.jit
    def learned(x, W):
        def step(_, W):
            change, _ = rules.spherical().change((), {"weight": W}, x, x @ W, None)
            return W + 0.3 * change["weight"]

        return jax.lax.fori_loop(0, 200, step, W)

    W = np.asarray(learned(x, x[[0, 60, 120]].T))
    wins = np.argmax(x @ W, axis=1)
    means = np.stack([x[wins == j].mean(axis=0) for j in range(3)], axis=1)
    np.testing.assert_allclose(np.linalg.norm(W, axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(W, means / np.linalg.norm(means, axis=0), atol=1e-6)
    np.testing.assert_array_equal(wins, own)


def test_nobody_wins_an_input_that_excites_no_unit():
    change = jax.jit(lambda x: rules.spherical().change((), {"weight": jnp.eye(3)}, x, x, None)[0]["weight"])
    for x in (np.zeros((2, 3), np.float32), -np.ones((2, 3), np.float32)):
        np.testing.assert_array_equal(change(x), 0)


def test_links_count_who_comes_first_and_next(x64):
    x = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 2.0, 0.0]])
    changes = jax.jit(
        lambda C: [rules.competitive_hebbian(neighbours=n).change((), {"weight": C}, x, x, None)[0] for n in (1, 2)]
    )
    change, _ = changes(np.zeros((4, 4)))
    expected = np.zeros((4, 4))
    for first, second in ((0, 1), (3, 2), (1, 2)):
        expected[first, second] += 1 / 3
        expected[second, first] += 1 / 3
    np.testing.assert_allclose(change["weight"], expected)
    _, change = changes(expected)
    for first, third in ((0, 2), (3, 1), (1, 0)):
        np.testing.assert_allclose(change["weight"][first, third], 1 / 3)
    with pytest.raises(ValueError, match=r"must be square, of more than 3 units, got shape \(4, 3\)"):
        rules.competitive_hebbian(neighbours=3).change((), {"weight": np.zeros((4, 3))}, x, x, None)


def test_links_of_prototypes_on_a_ring_are_the_ring(x64):
    """Martinetz and Schulten's claim: the links come to be the manifold's topology."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    W = np.stack([np.cos(angles), np.sin(angles)])
    places = np.random.default_rng(0).uniform(0, 2 * np.pi, 500)
    x = np.stack([np.cos(places), np.sin(places)], axis=1)
    changed = jax.jit(lambda y: rules.competitive_hebbian().change((), {"weight": jnp.zeros((12, 12))}, y, y, None)[0])
    change = jax.device_get(changed(x @ W))
    ring = np.eye(12, k=1) + np.eye(12, k=-1) + np.eye(12, k=11) + np.eye(12, k=-11)
    np.testing.assert_array_equal(change["weight"] > 0, ring > 0)


def test_standardised_patches_are_seen_by_their_form(x64):
    """By loops; and an image that is brighter or of more contrast gives the same answers, an even one none."""
    images = np.random.default_rng(0).uniform(size=(2, 6, 5, 3))
    joint = nl.connections.standardised_conv((3, 2), channels=4, stride=(2, 1), epsilon=1e-4).join((6, 5, 3), None)
    assert joint.shape == (2, 4, 4)

    @jax.jit
    def run(images):
        params, even = joint.init(KEY, float), jnp.full((1, 6, 5, 3), 0.7)
        answers = [joint.apply(params, x) for x in (images, 5 * images + 2, even)]
        return params, answers, nl.products.unfold(joint.apply, params, images)

    params, (found, brighter, even), (pre,) = jax.device_get(run(images))
    for i, j in np.ndindex(2, 4):
        patch = np.asarray(images[:, 2 * i : 2 * i + 3, j : j + 2]).reshape(2, -1)
        mean, variance = patch.mean(axis=1, keepdims=True), patch.var(axis=1, keepdims=True)
        p = (patch - mean) / np.sqrt(18 * (variance + 1e-4))
        np.testing.assert_allclose(found[:, i, j], p @ np.asarray(params["weight"]).reshape(18, 4), rtol=1e-9)
    np.testing.assert_allclose(brighter, found, rtol=1e-2)
    np.testing.assert_allclose(even, 0, atol=1e-7)
    assert np.all(np.linalg.norm(pre, axis=1) <= 1)
    with pytest.raises(ValueError, match="epsilon must be"):
        nl.connections.standardised_conv(3, channels=2, epsilon=0)
