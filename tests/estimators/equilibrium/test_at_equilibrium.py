"""Where a linear chain comes to rest can be worked out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward

identity = lambda nu: nu


def chain(params, u, propagate=feedforward):
    low = propagate("low", lambda a, u: a * u, identity, params["a"], u)
    return propagate("high", lambda w, x: w * x, identity, params["w"], low)


def with_a_layer_between(params, u, propagate=feedforward):
    low = propagate("low", lambda a, u: a * u, identity, params["a"], u)
    relayed = propagate("relay", lambda _, x: x, identity, (), low)
    return propagate("high", lambda w, x: w * x, identity, params["w"], relayed)


@pytest.mark.parametrize("forward", [chain, with_a_layer_between])
def test_outputs_and_their_derivatives_in_closed_form(forward, x64):
    """x = au + γwy, y = wx: y = wau/(1 − γw²), by both ways of autodiff. A layer without weights changes nothing."""
    gamma, u = 0.8, jnp.array([[1.5]])
    rest = nl.at_equilibrium(forward, feedback_strength=gamma, tolerance=1e-14)

    def output(params):
        return rest(params, u)[0, 0]

    def closed_form(params):
        return params["w"] * params["a"] * u[0, 0] / (1 - gamma * params["w"] ** 2)

    @jax.jit
    def both(params):
        of = lambda f: (f(params), jax.grad(f)(params), jax.jvp(f, (params,), (params,))[1])
        return of(output), of(closed_form)

    ours, theirs = both({"a": jnp.array(0.7), "w": jnp.array(0.6)})
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_bad_programs_are_refused():
    with pytest.raises(ValueError, match="at_equilibrium needs to reach the layers"):
        nl.at_equilibrium(lambda params, inputs: inputs)
