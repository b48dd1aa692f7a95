"""The flows beside their equations of motion, and the rules' small steps beside the flows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from nl_jax import rules
from nl_jax.theory import hebbian

hebb_flow, oja_flow, subspace_flow = map(jax.jit, (hebbian.hebb_flow, hebbian.oja_flow, hebbian.subspace_flow))

pytestmark = pytest.mark.usefixtures("x64")

INPUTS = np.random.default_rng(1).normal(size=(40, 5)) * np.array([1.5, 1.2, 1.0, 0.7, 0.4])
START = np.random.default_rng(2).normal(size=(5, 2)) / 3


def covariance():
    return INPUTS.T @ INPUTS / len(INPUTS)


def projection(W):
    return W @ W.T


@jax.jit
def oja_columns(C, W0, t):
    return jnp.stack([oja_flow(C, w, t) for w in W0.T], axis=1)


MOTION = {
    hebb_flow: lambda C, W: C @ W,
    oja_columns: lambda C, W: C @ W - W @ np.diag(np.diag(W.T @ C @ W)),
    subspace_flow: lambda C, P: C @ P + P @ C - 2 * P @ C @ P,
}


@functools.partial(jax.jit, static_argnums=0)
def moving(flow, C, W0, t):
    return jax.jvp(functools.partial(flow, C, W0), (t,), (1.0,))


@pytest.mark.parametrize("flow", MOTION)
def test_flows_solve_their_equations_from_where_they_start(flow):
    C, W0 = covariance(), START
    start = projection(W0) if flow is subspace_flow else W0
    np.testing.assert_allclose(flow(C, W0, 0.0), start, atol=1e-13)
    for t in (0.0, 0.7, 3.0):
        now, velocity = moving(flow, C, W0, t)
        np.testing.assert_allclose(velocity, MOTION[flow](C, np.asarray(now)), rtol=1e-10, atol=1e-12)


def test_flows_are_the_formulas_they_are_written_after():
    C, W0, t = covariance(), START, 1.3
    growth, squared = scipy.linalg.expm(C * t), scipy.linalg.expm(2 * C * t)
    w = W0[:, 0]
    np.testing.assert_allclose(hebb_flow(C, W0, t), growth @ W0, rtol=1e-10)
    np.testing.assert_allclose(oja_flow(C, w, t), growth @ w / np.sqrt(1 + w @ (squared - np.eye(5)) @ w), rtol=1e-10)
    inner = np.linalg.inv(np.eye(2) + W0.T @ (squared - np.eye(5)) @ W0)
    np.testing.assert_allclose(subspace_flow(C, W0, t), growth @ W0 @ inner @ W0.T @ growth, rtol=1e-10, atol=1e-13)


def test_one_unit_of_the_subspace_rule_is_oja():
    C, w = covariance(), START[:, 0]
    there = oja_flow(C, w, 2.0)
    np.testing.assert_allclose(subspace_flow(C, w[:, None], 2.0), np.outer(there, there), rtol=1e-10, atol=1e-13)


def test_flows_end_in_the_principal_components():
    _, V = np.linalg.eigh(covariance())
    for t in (1e3, 1e6):
        end = oja_flow(covariance(), START[:, 0], t)
        np.testing.assert_allclose(abs(V[:, -1] @ end), 1, rtol=1e-12)
        np.testing.assert_allclose(subspace_flow(covariance(), START, t), projection(V[:, -2:]), atol=1e-12)


def test_each_eigen_component_grows_by_itself():
    lam, V = np.linalg.eigh(covariance())
    grown = V.T @ np.asarray(hebb_flow(covariance(), START, 2.0))
    np.testing.assert_allclose(grown, np.exp(2 * lam)[:, None] * (V.T @ START), rtol=1e-10, atol=1e-13)


@functools.cache
def stepper(make):
    rule = make()

    @jax.jit
    def walk(x, W0, step_size, steps):
        def step(_, W):
            change, _ = rule.change((), {"weight": W}, x, x @ W, None)
            return W + step_size * change["weight"]

        return jax.lax.fori_loop(0, steps, step, W0)

    return walk


def distance(make, flow, steps):
    """How far `steps` steps of a rule, to time 1 in all, end from a flow."""
    end = stepper(make)(INPUTS, START, 1 / steps, steps)
    end = projection(np.asarray(end)) if flow is subspace_flow else np.asarray(end)
    return float(np.linalg.norm(end - flow(covariance(), START, 1.0)))


FOLLOWS = {rules.hebb: hebb_flow, rules.oja: oja_columns, rules.subspace: subspace_flow}


@pytest.mark.parametrize("make", FOLLOWS)
def test_small_steps_follow_the_flow(make):
    """By Euler's method: half the step, half the error; and not that of another rule."""
    errors = [distance(make, FOLLOWS[make], steps) for steps in (400, 800, 1600)]
    assert errors[-1] < 3e-3
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, rtol=0.02)
    for other in set(FOLLOWS) - {make}:
        assert distance(other, FOLLOWS[make], 1600) > 0.05
