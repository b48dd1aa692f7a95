"""The closed forms against the library's own iterations, on programs of one layer that must equal its parameter."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.estimators.lagrangian.extragradient import looking_ahead
from nl_jax.estimators.lagrangian.primal_dual import alternating
from nl_jax.estimators.lagrangian.saddle_point import Iterate
from nl_jax.propagation import feedforward
from nl_jax.theory import multipliers

TARGET = 1.5


def _run(make, loss, steps, start=0.0):
    """x − b after each step, and how far (x, λ) is from 0, for min loss(x) subject to x = b."""

    def objective(params, batch, propagate=feedforward):
        held = propagate("x", lambda b, batch: jnp.broadcast_to(b, batch.shape), lambda nu: nu, params, batch)
        return loss(held)

    iteration = make(objective)

    def step(at, _):
        at, _ = iteration(jnp.asarray(TARGET), jnp.zeros(1), at)
        return at, (at.axons["x"][0] - TARGET, at.multipliers["x"][0])

    @jax.jit
    def run():
        at = Iterate({"x": jnp.full(1, start)}, {"x": jnp.zeros(1)})
        return jax.lax.scan(step, at, length=steps)[1]

    return run()


@pytest.mark.slow
@pytest.mark.parametrize(("a", "c"), [(0.3, 0.4), (1.0, 1.0), (1.5, 2.0)])
def test_damped_multipliers_follow_the_flow_and_oscillate_below_the_threshold(a, c, x64):
    errors = []
    for eta in (0.02, 0.01):
        steps = round(20 / eta)
        make = lambda objective, eta=eta: alternating(objective, eta, eta, c)
        found, _ = _run(make, lambda x: 0.5 * a * x**2, steps, start=0.2)
        t = eta * np.arange(1.0, steps + 1)
        law = jax.jit(lambda t: multipliers.violation(t, curvature=a, damping=c, target=TARGET, start=0.2))
        expected = law(t)
        errors.append(np.max(np.abs(found - expected)))
    assert errors[1] < 0.02
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.05)  # of first order in η, and nothing else
    settled = np.abs(found) > 1e-12
    changes = np.count_nonzero(np.diff(np.sign(found[settled])))
    assert multipliers.oscillates(a, c) == (changes > 1)
    if not multipliers.oscillates(a, c):
        assert changes <= 1  # from this start the slow mode is crossed at most once


@pytest.mark.slow
def test_the_flow_solves_its_equation(x64):
    """u(0) and u̇(0) as given, and ü + (a + c)u̇ + u = 0, on both sides of the threshold and on it."""
    for a, c in ((0.3, 0.4), (1.0, 1.0), (1.5, 2.0)):
        u = lambda t, a=a, c=c: multipliers.violation(t, curvature=a, damping=c, target=TARGET, start=0.2)
        velocity = jax.grad(u)

        @jax.jit
        def of(t, a=a, c=c, u=u, velocity=velocity):
            terms = jax.vmap(jax.grad(velocity))(t) + (a + c) * jax.vmap(velocity)(t) + jax.vmap(u)(t)
            return terms, u(jnp.asarray(0.0)), velocity(jnp.asarray(1e-9))

        terms, at_first, speed = of(np.array([0.1, 1.0, 4.0]))
        np.testing.assert_allclose(terms, 0, atol=1e-12)
        np.testing.assert_allclose(at_first, 0.2 - TARGET)
        np.testing.assert_allclose(speed, -(a * 0.2 + c * (0.2 - TARGET)), rtol=1e-6)
        s = np.array(multipliers.characteristic_roots(a, c))
        np.testing.assert_allclose(s**2 + (a + c) * s + 1, 0, atol=1e-12)
        assert multipliers.oscillates(a, c) == bool(np.all(s.imag != 0))


def test_strong_damping_creeps_without_overflow():
    """Where e^{−γt} is 0 in float32 and cosh infinite: the slow rate alone is left."""
    slow, _ = multipliers.characteristic_roots(5.0, 6.0)
    t = np.array([10.0, 16.0, 20.0, 40.0], np.float32)
    u = np.asarray(jax.jit(lambda t: multipliers.violation(t, curvature=5.0, damping=6.0, target=1.0))(t))
    np.testing.assert_allclose(u[1:] / u[0], np.exp(slow.real * (t[1:] - t[0])), rtol=1e-4)


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_convergence_on_a_bilinear_program(eta, x64):
    """min 0.7x subject to x = b, whose multiplier is −0.7: extragradient shrinks (x, λ) by its factor, every step."""
    u, multiplier = _run(lambda o: looking_ahead(o, eta, 0.0), lambda x: 0.7 * x, 12, start=0.2)
    away = np.hypot(u, multiplier + 0.7)
    np.testing.assert_allclose(away[1:] / away[:-1], multipliers.extragradient_factor(1.0, step_size=eta), rtol=1e-9)


@pytest.mark.parametrize("c", [0.0, 0.5, 2.0])
def test_primal_dual_on_a_bilinear_program(c, x64):
    """The factor is the rate in the long run; undamped it is 1, and the iterates neither arrive nor leave."""
    settings = {"step_size": 0.4, "multiplier_step_size": 0.3, "damping": c}
    u, multiplier = _run(lambda o: alternating(o, *settings.values()), lambda x: 0.7 * x, 200, start=0.2)
    away = np.hypot(u, multiplier + 0.7)
    factor = multipliers.primal_dual_factor(1.0, **settings)
    scaled = away / factor ** np.arange(1, 201)
    assert 0.05 < np.min(scaled[20:]) <= np.max(scaled) < 5
    assert (factor == pytest.approx(1)) == (c == 0)


@pytest.mark.parametrize("singular_value", [0.1, 2.0, 5.0])
def test_default_steps_are_stable_in_trained_networks(singular_value):
    defaults = {name: p.default for name, p in inspect.signature(nl.primal_dual).parameters.items()}
    settings = {name: defaults[name] for name in ("step_size", "multiplier_step_size", "damping")}
    assert multipliers.primal_dual_factor(singular_value, **settings) < 1
    assert multipliers.primal_dual_factor(6.0, **settings) > 1  # what the docstring says of 5.6
