"""Networks as parts of networks, as tables and as drawings."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import nl_jax as nl

KEY = jax.random.key(0)
c = nl.connections


@pytest.mark.slow
def test_a_network_in_a_network_is_its_layers():
    inner = nl.network(
        nl.Layer("in", 4), nl.Layer("a", 3, c.dense(), nl.activations.tanh()),
        nl.Layer("b", 2, [c.dense(), c.dense("in")]),
    )  # fmt: skip
    whole = nl.network(nl.Layer("input", 5), nl.Layer("low", 4, c.dense()), inner, nl.Layer("out", 1, c.dense("a")))
    flat = nl.network(
        nl.Layer("input", 5), nl.Layer("low", 4, c.dense()), nl.Layer("a", 3, c.dense(), nl.activations.tanh()),
        nl.Layer("b", 2, [c.dense(), c.dense("low")]), nl.Layer("out", 1, c.dense("a")),
    )  # fmt: skip
    params, x = whole.init(KEY), jnp.ones((2, 5))
    chex.assert_trees_all_equal(params, flat.init(KEY))
    np.testing.assert_array_equal(whole.apply(params, x), flat.apply(params, x))


def test_parts_of_one_kind_have_names():
    part = nl.mlp([4, 3, 4], activation=nl.activations.tanh())
    whole = nl.network(part.named("eye"), part.named("brain"), nl.Layer("out", 2, [c.dense(), c.dense("eye.hidden1")]))
    assert list(whole.shapes) == ["eye.input", "eye.hidden1", "eye.output", "brain.hidden1", "brain.output", "out"]
    with pytest.raises(ValueError, match=r'two layers are named .hidden1.*network\.named\("name"\)'):
        nl.network(part, part)
    with pytest.raises(ValueError, match=r"whose input is 'input' reads shape \(4,\), and layer 'x' .* \(5,\)"):
        nl.network(nl.Layer("x", 5), part)
    with pytest.raises(ValueError, match="name must be a non-empty string, got ''"):
        part.named("")


def test_two_connections_from_one_source_add_up(x64):
    net = nl.network(nl.Layer("in", 3), nl.Layer("out", 2, [c.dense(), c.dense(bias=False)]))
    params, x = net.init(KEY, float), jax.random.normal(KEY, (4, 3))
    own = params["out"]
    expected = x @ (own["in"]["weight"] + own["in_2"]["weight"]) + own["in"]["bias"][None]
    np.testing.assert_allclose(net.apply(params, x), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="two connections whose parameters are called 'in_2'"):
        nl.network(nl.Layer("in", 3), nl.Layer("in_2", 3, c.dense()),
                   nl.Layer("out", 2, [c.dense("in_2"), c.dense("in"), c.dense("in")]))  # fmt: skip


HIERARCHY = nl.network(
    nl.Layer("image", (6, 6, 1)),
    nl.batch_norm(nl.Layer("low", None, c.conv(3, channels=4, bias=False), nl.activations.relu())),
    nl.Layer("pool", None, c.max_pool(2)), nl.Layer("flat", None, c.flatten()),
    nl.mlp([16, 10, 5], activation=nl.activations.tanh(alpha=2)).named("head"),
    nl.batch_norm(nl.Layer("answer", 3, [c.dense(), c.dense(bias=False), c.dense("flat", bias=False)])),
)  # fmt: skip


@pytest.mark.slow
def test_the_summary_counts_all_parameters():
    text = str(HIERARCHY)
    assert text == HIERARCHY.summary()
    print(text)
    total = sum(leaf.size for leaf in jax.tree.leaves(HIERARCHY.init(KEY)))
    assert re.search(rf"^total +{total:,}$", text, re.MULTILINE)
    counts = [int(line.split()[-1].replace(",", "")) for line in text.splitlines()[2:-1]]
    assert sum(counts) == total
    assert "conv ← image, batch_norm" in text
    assert "tanh(alpha=2, beta=1)" in text
    assert text.count("dense ← head.output") == 2


@pytest.mark.parametrize("shown", [HIERARCHY, HIERARCHY.layers, c.dense("low"), nl.activations.sign(), nl.cells.lif(3)])
def test_nothing_is_shown_by_its_address(shown):
    assert "0x" not in repr(shown)
    assert "0x" not in str(shown)


def test_a_diagram_has_a_circle_a_unit(tmp_path):
    from matplotlib.patches import Circle

    net = nl.network(nl.Layer("in", 4), nl.Layer("a", 9, c.dense()), nl.Layer("b", 2, [c.dense("a"), c.dense("in")]))
    canvas = net.diagram(title="A skip")
    (axes,) = canvas.axes
    circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert len(circles) == 4 + 5 + 2  # of nine units four, dots and the last
    assert len(axes.lines) == 4 * 5 + 5 * 2 + 1  # and the skip
    said = {text.get_text() for text in axes.texts}
    assert {"in\n4", "a\n9\nidentity", "⋮", "dense ← in"} <= said
    canvas.savefig(tmp_path / "net.png")
    HIERARCHY.diagram().savefig(tmp_path / "hierarchy.png")
    with pytest.raises(ValueError, match="units must be at least 3, got 2"):
        net.diagram(units=2)


def test_a_diagram_shows_values():
    from matplotlib.patches import Circle

    net = nl.network(nl.Layer("in", 2), nl.Layer("a", 9, c.dense()))
    axes = Figure().subplots()
    values = np.array([0.5, -1.0, 0.0, 0.25, 7.0, 7.0, 7.0, 7.0, 0.125])  # of nine units five are drawn
    assert net.diagram(values={"a": values / 2}, axes=axes) is axes.figure
    said = [text.get_text() for text in axes.texts]
    assert said[1:6] == ["0.25", "−0.50", "0.0", "0.12", "0.062"]
    colours = [patch.get_facecolor() for patch in axes.patches if isinstance(patch, Circle)][2:]
    red, blue = (np.array([colour[i] for colour in colours]) for i in (0, 2))
    np.testing.assert_array_equal(np.sign(np.round(red - blue, 2)), [1, -1, 0, 1, 1])
    with pytest.raises(ValueError, match="values: no layer is named 'b'; the layers are in, a"):
        net.diagram(values={"b": values})
    with pytest.raises(ValueError, match=r"values\['a'\] must be one example's, of shape \(9,\), got \(1, 9\)"):
        net.diagram(values={"a": values[None]})


def test_a_wrong_derivative_is_told_where_its_layer_is_made():
    wrong = nl.activations.Activation(jnp.tanh, lambda x: 1 - x)
    with pytest.raises(
        ValueError, match=r"layer 'hidden1': the activation's derivative is 1\.96 at the value x = -0\.964"
    ):
        nl.mlp([2, 3, 1], activation=wrong)
    on_purpose = nl.activations.Activation(jnp.tanh, jnp.ones_like, surrogate=True)
    nl.mlp([2, 3, 1], activation=on_purpose)


EXACT = {
    "identity": nl.activations.identity(), "sigmoid": nl.activations.sigmoid(), "tanh": nl.activations.tanh(),
    "tanh, scaled": nl.activations.tanh(alpha=-2, beta=9), "exp": nl.activations.exp(alpha=-1, beta=30),
    "tanh by sigmoid": nl.activations.tanh_by_sigmoid(), "sigmoid by tanh": nl.activations.sigmoid_by_tanh(),
    "relu": nl.activations.relu(),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_true_derivatives_pass_and_their_doubles_do_not(name):
    true = EXACT[name]
    nl.Layer("a", 3, c.dense(), true)
    double = nl.activations.Activation(true.function, lambda x: 2 * true.derivative(x))
    with pytest.raises(ValueError, match="layer 'a': the activation's derivative"):
        nl.Layer("a", 3, c.dense(), double)


@pytest.mark.slow
def test_a_network_may_be_made_inside_vmap_and_is_checked_there():
    keys = jax.random.split(jax.random.key(0), 3)
    made = lambda activation: lambda key: nl.mlp([2, 3, 2], activation=activation).init(key)
    params = jax.vmap(made(nl.activations.relu()))(keys)
    assert params["hidden1"]["weight"].shape == (3, 2, 3)
    wrong = nl.activations.Activation(jax.nn.relu, lambda x: 2 * (x > 0).astype(x.dtype))
    with pytest.raises(ValueError, match="layer 'hidden1': the activation's derivative is 2 at"):
        jax.vmap(made(wrong))(keys)
