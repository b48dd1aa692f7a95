import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.networks.connections import convolution
from nl_jax.training import dispatch
from nl_jax.training.batching import shuffled

KEY = jax.random.key(0)


def random(number, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, number), shape)


def by_lax(x, weight, strides, padding):
    return jax.lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def gradient(convolve, *settings):
    loss = lambda x, weight: jnp.sum(jnp.sin(convolve(x, weight, *settings)))
    return jax.grad(loss, (0, 1))


@pytest.mark.parametrize("small", [0, 2**20])
@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        ((2, 3), (1, 2), "SAME"),
        ((3, 1), (2, 3), "VALID"),
        ((3, 2), (3, 1), ((2, 3), (1, 0))),
        ((6, 5), (1, 1), "VALID"),
    ],
)
def test_values_and_derivatives_of_all_kinds_are_those_of_lax(monkeypatch, small, kernel, strides, padding):
    monkeypatch.setattr(convolution, "_SMALL", small)
    x, weight, dx, dweight = (
        random(0, 2, 6, 5, 2),
        random(1, *kernel, 2, 3),
        random(2, 2, 6, 5, 2),
        random(3, 2, *kernel, 2, 3),
    )

    def of(convolve):
        apply = lambda x, weight: jnp.sin(convolve(x, weight, strides, padding))
        back = gradient(convolve, strides, padding)
        return (
            apply(x, weight),
            back(x, weight),
            jax.jvp(apply, (x, weight), (dx, dweight[0])),
            jax.jvp(lambda weight: apply(x, weight), (weight,), (dweight[0],)),
            jax.jvp(back, (x, weight), (dx, dweight[0])),
            jax.vmap(apply, (None, 0))(x, dweight),
            jax.vmap(back, (None, 0))(x, dweight),
        )

    found, expected = jax.jit(lambda: (of(convolution.convolve), of(by_lax)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), found, expected)


def test_dtypes_must_agree_as_those_of_lax_must():
    for size in (4, 400):
        with pytest.raises(TypeError, match="same dtypes, got uint8, float32"):
            jax.eval_shape(
                lambda x, weight: convolution.convolve(x, weight, (1, 1), "VALID"),
                jax.ShapeDtypeStruct((8, size, size, 3), "uint8"), jax.ShapeDtypeStruct((3, 3, 3, 4), "float32"),
            )  # fmt: skip


def slow_convolutions(compiled):
    """The layouts in a compiled program that XLA's CPU compiler computes by plain loops."""
    return set(re.findall(r"dim_labels=([\w>-]+)", compiled.as_text())) - {"b01f_01io->b01f"}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a defect of XLA's CPU compiler")
def test_no_derivative_in_a_loop_is_slow(monkeypatch):
    monkeypatch.setattr(convolution, "_SMALL", 0)
    x, weight = random(0, 4, 6, 6, 2), random(1, 3, 3, 2, 3)

    def in_loop(convolve):
        back = gradient(convolve, (1, 1), "SAME")
        descend = lambda _, at: jax.tree.map(jnp.subtract, at, back(*at))
        return jax.jit(lambda: jax.lax.fori_loop(0, 3, descend, (x, weight))).lower().compile()

    assert not slow_convolutions(in_loop(convolution.convolve))
    if not slow_convolutions(in_loop(by_lax)):
        pytest.skip("XLA's defect is mended in this version")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a defect of XLA's CPU compiler")
def test_a_dispatch_of_one_step_is_no_loop():
    """So that a user's own convolutions can be trained at full speed."""
    objective = nl.supervised(lambda weight, x: by_lax(x, weight, (1, 1), "SAME"), nl.losses.half_squared_error)
    learner = nl.learner(nl.backprop(objective), optax.sgd(0.1))
    plan = dispatch.Plan(learner, dispatch.without_residuals, shuffled, 4)
    weight, data = random(1, 3, 3, 2, 3), (random(0, 8, 6, 6, 2), random(2, 8, 6, 6, 3))
    of = lambda steps: dispatch.ONE.steps.lower(plan, steps, KEY, learner.init(KEY, weight), data, jnp.int32(0))
    assert not slow_convolutions(of(1).compile())
    if not slow_convolutions(of(2).compile()):
        pytest.skip("XLA's defect is mended in this version")
