"""The Lagrangian with a penalty; what it is without, see tests/estimators/test_exact.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import clamp, record
from tests import problems


def _anywhere(problem):
    """Axons and multipliers that solve nothing."""
    shapes = jax.eval_shape(record(problem.objective), problem.params, problem.batch)[1]
    generator = np.random.default_rng(5)
    draw = lambda: {name: jnp.asarray(generator.normal(size=x.shape), x.dtype) for name, x in shapes.items()}
    return draw(), draw()


def test_penalty_gradients_are_those_at_shifted_multipliers(x64):
    """∂L_μ/∂(W, x) at λ is ∂L/∂(W, x) at λ + μ r; ∂L/∂λ is r, whatever the penalty."""
    problem = problems.tied()

    @jax.jit
    def gradients(penalty):
        axons, multipliers = _anywhere(problem)
        _, held = clamp(problem.objective)(problem.params, problem.batch, axons)
        predicted = {name: layer.predicted for name, layer in held.items()}
        shifted = {name: multipliers[name] + penalty * (axons[name] - predicted[name]) for name in axons}

        def of(evaluate, multipliers):
            total = lambda *at: jnp.sum(evaluate(*at, problem.batch))
            return jax.grad(total, argnums=(0, 1, 2))(problem.params, axons, multipliers)

        augmented = of(nl.lagrangian(problem.objective, penalty=penalty), multipliers)
        return augmented, of(nl.lagrangian(problem.objective), shifted), of(nl.lagrangian(problem.objective), {})

    augmented, plain, unmultiplied = gradients(jnp.asarray(2.5))
    chex.assert_trees_all_close(augmented, plain, rtol=1e-12, atol=1e-13)
    difference = jnp.linalg.norm(augmented[0]["gain"] - unmultiplied[0]["gain"])
    assert difference > 0.1  # and they are not those without multipliers


def test_multipliers_left_out_are_zero():
    problem = problems.chain()
    axons, multipliers = _anywhere(problem)
    some = {"hidden1": multipliers["hidden1"]}

    @jax.jit
    def both(axons):
        evaluate = nl.lagrangian(problem.objective, penalty=1.5)
        zero = some | {"output": jnp.zeros_like(axons["output"])}
        return [evaluate(problem.params, axons, given, problem.batch) for given in (some, zero)]

    chex.assert_trees_all_equal(*both(axons))


def test_what_does_not_fit_is_named():
    problem = problems.chain()
    axons, multipliers = _anywhere(problem)
    evaluate = nl.lagrangian(problem.objective)
    with pytest.raises(ValueError, match="multipliers: no layer is named 'ghost'; the layers are hidden1, output"):
        evaluate(problem.params, axons, {"ghost": multipliers["output"]}, problem.batch)
    with pytest.raises(ValueError, match=r"layer 'output': the multipliers have shape \(1, 3\), the axons \(6, 3\)"):
        evaluate(problem.params, axons, {"output": multipliers["output"][:1]}, problem.batch)
    with pytest.raises(ValueError, match="penalty must be a finite Python number of at least 0, got -1"):
        nl.lagrangian(problem.objective, penalty=-1)
