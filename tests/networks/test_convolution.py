import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import nl_jax as nl
from nl_jax.networks.connections import convolution
from nl_jax.training import dispatch
from nl_jax.training.batching import shuffled
from tests.networks import adapted

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


LAST = "NHWC", "HWIO", "NHWC"


@pytest.mark.parametrize(
    ("images", "kernel", "settings"),
    [
        ((2, 3, 6, 5), (4, 3, 2, 3), {"strides": (1, 2), "padding": "SAME"}),
        ((2, 6, 5, 3), (2, 3, 3, 4), {"strides": (2, 1), "padding": "SAME_LOWER", "dimension_numbers": LAST}),
        (
            (6, 2, 3, 5),
            (2, 4, 3, 3),
            {"strides": (2, 1), "padding": [(1, 2), (0, 1)], "dimension_numbers": ("HNCW", "HOIW", "CWNH")},
        ),
        ((2, 3, 9), (4, 3, 4), {"strides": (2,), "padding": "SAME"}),
        ((2, 9, 3), (4, 3, 5), {"strides": (3,), "padding": [(2, 1)], "dimension_numbers": ("NHC", "HIO", "NHC")}),
        ((2, 3, 6, 5), (4, 3, 2, 3), {"strides": (1, 2), "padding": [(-1, 0), (1, 1)]}),
        ((2, 4, 6, 5), (4, 2, 2, 3), {"strides": (1, 2), "padding": "VALID", "feature_group_count": 2}),
        ((2, 3, 6, 5), (4, 3, 2, 3), {"strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 1)}),
        ((2, 3, 6, 5), (4, 3, 2, 3), {"strides": (1, 2), "padding": [(0, 0), (1, 0)], "lhs_dilation": (1, 2)}),
        ((2, 3, 6, 5, 4), (4, 3, 2, 3, 2), {"strides": (1, 2, 1), "padding": "VALID"}),
        ((4, 3, 6, 5), (4, 3, 2, 3), {"strides": np.array([1, 2]), "padding": "valid", "batch_group_count": 2}),
        ((2, 3, 6, 5), (4, 3, 9, 3), {"strides": (1, 1), "padding": "VALID"}),
        ((2, 3, 6, 5), (0, 3, 2, 3), {"strides": (1, 1), "padding": "VALID"}),
    ],
    ids=[
        *("2-D", "channels last", "any order", "1-D", "1-D, last", "cropped", "groups", "dilated", "spread", "3-D"),
        *("groups of images", "too small", "no output"),
    ],
)
@pytest.mark.parametrize("small", [0, 2**20])
def test_the_general_convolution_is_that_of_lax(monkeypatch, small, images, kernel, settings):
    monkeypatch.setattr(convolution, "_SMALL", small)
    x, weight, settings = random(0, *images), random(1, *kernel), dict(settings)
    strides, padding = settings.pop("strides"), settings.pop("padding")

    def of(convolve):
        apply = lambda x, weight: convolve(x, weight, strides, padding, **settings)
        return apply(x, weight), gradient(apply)(x, weight)

    found, expected = jax.jit(lambda: (of(nl.connections.conv_general_dilated), of(jax.lax.conv_general_dilated)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), found, expected)


@pytest.mark.parametrize("library", ["linen", "nnx", "own"])
def test_a_batch_of_any_size_is_exported(library):
    if library == "own":
        apply, weight = (lambda weight, x: convolution.convolve(x, weight, (1, 1), "SAME")), random(1, 3, 3, 2, 3)
    elif library == "linen":
        model = nl.from_flax(linen.Conv(3, (2, 2), strides=2))
        apply, weight = model.apply, model.init(KEY, random(0, 1, 4, 4, 2))
    else:
        model = nl.from_flax(nnx.Conv(2, 3, (2, 2), padding="CIRCULAR", rngs=nnx.Rngs(0)))
        apply, weight = model.apply, model.params
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), 4, 4, 2), "float32")
    exported = jax.export.export(jax.jit(apply))(weight, images)
    for batch in (2, 5):
        x = random(0, batch, 4, 4, 2)
        np.testing.assert_allclose(exported.call(weight, x), jax.jit(apply)(weight, x), atol=1e-5)


@pytest.mark.parametrize(
    ("image", "layer"),
    [
        ((3, 6), lambda key: eqx.nn.Conv1d(3, 4, 3, stride=2, padding="SAME", key=key)),
        ((3, 6, 5), lambda key: eqx.nn.Conv2d(3, 4, (2, 3), padding=((1, 0), (0, 2)), use_bias=False, key=key)),
        ((4, 6, 5), lambda key: eqx.nn.Conv2d(4, 4, 2, groups=2, key=key)),
        ((3, 6, 5), lambda key: eqx.nn.Conv2d(3, 4, 2, dilation=2, key=key)),
        ((3, 6, 5), lambda key: eqx.nn.Conv2d(3, 4, 3, padding=1, padding_mode="CIRCULAR", key=key)),
        ((3, 4, 5, 3), lambda key: eqx.nn.Conv3d(3, 2, 2, key=key)),
    ],
    ids=["1-D", "2-D", "groups", "dilated", "circular", "3-D"],
)
def test_equinox_layers_are_computed_as_by_equinox(image, layer):
    layer, x = layer(jax.random.key(2)), random(0, 2, *image)
    model = nl.from_equinox(layer)
    np.testing.assert_allclose(model.apply(model.params, x), jax.vmap(layer)(x), atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="products of patches are of CPUs")
def test_the_patches_of_an_equinox_batch_are_not_formed():
    """Its layers see one example, whose patches are small; those of the batch are nine times its size."""
    model = nl.from_equinox(eqx.nn.Conv2d(8, 8, 3, padding=1, key=KEY))
    images = jax.ShapeDtypeStruct((200, 8, 32, 32), "float32")
    compiled = jax.jit(model.apply).lower(model.params, images).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 200 * 8 * 32 * 32 * 4


def test_the_general_convolution_raises_what_lax_raises():
    with pytest.raises(ValueError, match="conv_general_dilated lhs feature dimension size"):
        nl.connections.conv_general_dilated(random(0, 2, 3, 6, 5), random(1, 4, 2, 2, 3), (1, 1), "SAME")


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
@pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])
def test_no_derivative_of_another_librarys_model_in_a_loop_is_slow(monkeypatch, library):
    monkeypatch.setattr(convolution, "_SMALL", 0)

    def in_loop(model, apply):
        loss = lambda params, batch: jnp.sum(nl.losses.cross_entropy(apply(params, batch[0]), batch[1]))
        descend = lambda _, params: jax.tree.map(jnp.subtract, params, jax.grad(loss)(params, model.batch))
        return jax.jit(lambda: jax.lax.fori_loop(0, 3, descend, model.params)).lower().compile()

    with jax.numpy_dtype_promotion("standard"):  # Flax divides floats by whole numbers
        model = adapted.adapted(f"{library}_convolution")
        ours, theirs = in_loop(model, model.apply), in_loop(model, model.original)
    assert not slow_convolutions(ours)
    if not slow_convolutions(theirs):
        pytest.skip("XLA's defect is mended in this version")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a defect of XLA's CPU compiler")
def test_a_dispatch_of_one_step_is_no_loop():
    """So that convolutions that a forward function calls by itself can be trained at full speed."""
    objective = nl.supervised(lambda weight, x: by_lax(x, weight, (1, 1), "SAME"), nl.losses.half_squared_error)
    learner = nl.learner(nl.backprop(objective), optax.sgd(0.1))
    plan = dispatch.Plan(learner, dispatch.without_residuals, shuffled, 4)
    weight, data = random(1, 3, 3, 2, 3), (random(0, 8, 6, 6, 2), random(2, 8, 6, 6, 3))
    of = lambda steps: dispatch.ONE.steps.lower(plan, steps, KEY, learner.init(KEY, weight), data, jnp.int32(0))
    assert not slow_convolutions(of(1).compile())
    if not slow_convolutions(of(2).compile()):
        pytest.skip("XLA's defect is mended in this version")
