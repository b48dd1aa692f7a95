"""Dependence analysis: a planted leak is found wherever it hides, and "no" is never wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from nl_jax._core import dependence
from nl_jax._core.dependence import EVERYTHING, Flow, mark, mark_tangent, sources_of_outputs

NAMES = ("x", "secret", "third", "fourth")
X, SECRET = jnp.array([0.3, -0.2]), jnp.array([0.7, 0.4])


def sources(program, *arguments, cut=lambda name, arriving: arriving | {Flow(name)}):
    """What each output depends on, arguments being called x, secret, third …"""
    of_arguments = [frozenset({Flow(name)}) for name in NAMES[: len(arguments)]]
    flows = sources_of_outputs(jax.make_jaxpr(program)(*arguments), of_arguments, cut)
    return [{source if through is None else (source, through) for source, through in found} for found in flows]


def rotated(step):
    """(a, b, c) ← (b, c, leak): what c gets reaches a in the third round alone."""
    return lambda carry, leak: (carry[1], carry[2], step(leak))


def scan_carry(x, secret):
    body = rotated(jnp.sin)
    return jax.lax.scan(lambda carry, _: (body(carry, secret), None), (x, x, x), length=4)[0][0]


def scan_slices(x, secret):
    return jax.lax.scan(lambda carry, s: (carry + s, carry), x[0], secret)[1]


def while_carry(x, secret):
    body = rotated(jnp.sin)
    return jax.lax.while_loop(lambda c: c[0].sum() < 9, lambda c: body(c, secret), (x, x, x))[0]


def while_predicate(x, secret):
    return jax.lax.while_loop(lambda y: y.sum() < secret.sum(), lambda y: y + 1, x)


def while_predicate_carried(x, secret):
    """The predicate asks what was carried three rounds before; the output is carried beside it."""
    body = rotated(jnp.sin)
    loop = jax.lax.while_loop(lambda c: c[1][0].sum() < 1, lambda c: (c[0] + 1, body(c[1], secret)), (x, (x, x, x)))
    return loop[0]


def fori_bound(x, secret):
    return jax.lax.fori_loop(0, secret[0].astype(int), lambda i, y: y * 2, x)


def cond_predicate(x, secret):
    return jax.lax.cond(secret[0] > 0, lambda: x, lambda: -x)


def cond_branch(x, secret):
    return jax.lax.cond(x[0] > 0, lambda: x, lambda: secret)


def switch_branch(x, secret):
    return jax.lax.switch(jnp.int32(x[0]), [lambda: x, lambda: x, lambda: secret])


@jax.custom_vjp
def smuggling(x, secret):
    del secret
    return x


smuggling.defvjp(lambda x, secret: (x, secret), lambda secret, ct: (ct + secret, None))


def custom_vjp_backward(x, secret):
    return jax.grad(lambda x: smuggling(x, secret).sum())(x)


@jax.custom_jvp
def bending(x, secret):
    del secret
    return x


@bending.defjvp
def _bend(primals, tangents):
    return primals[0], tangents[0] * primals[1]


def custom_jvp_tangent(x, secret):
    return jax.jvp(lambda x: bending(x, secret), (x,), (jnp.ones_like(x),))[1]


def custom_vjp_forward(x, secret):
    f = jax.custom_vjp(lambda x, secret: x + secret)
    f.defvjp(lambda x, secret: (x, None), lambda _, ct: (ct, ct))
    return f(x, secret)


def custom_jvp_forward(x, secret):
    f = jax.custom_jvp(lambda x, secret: x + secret)
    f.defjvps(lambda t, _, *__: t, None)
    return f(x, secret)


def nested_jit(x, secret):
    return jax.jit(lambda x, y: jax.jit(lambda a, b: (b, a * y))(x, x)[1])(x, secret)


def closed_over_by_jit(x, secret):
    return jax.jit(lambda x: x + secret)(x)


def mapped(x, secret):
    return jax.vmap(lambda a, b: jax.lax.cond(b > 0, lambda: a, lambda: 2 * a))(x, secret)


def checkpointed(x, secret):
    return jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sin(x * secret).sum())(x))(x)


def sharded(x, secret):
    mesh, spec = jax.make_mesh((1,), ("i",), (jax.sharding.AxisType.Auto,)), jax.sharding.PartitionSpec("i")
    f = jax.shard_map(lambda x, s: x + jax.lax.psum(s, "i"), mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    return f(x, secret)


def custom_vmapped(x, secret):
    product = jax.custom_batching.custom_vmap(lambda x, secret: x * secret)
    product.def_vmap(lambda size, mapped, x, secret: (product(x, secret), True))
    return product(x, secret)


def gathered(x, secret):
    return x[jnp.argmax(secret)]


def scattered(x, secret):
    return x.at[jnp.argmax(secret)].add(1.0)


def sorted_together(x, secret):
    return jax.lax.sort((secret, x), num_keys=1)[1]


LEAKS = [
    scan_carry, scan_slices, while_carry, while_predicate, while_predicate_carried, fori_bound, cond_predicate,
    cond_branch, switch_branch, custom_vjp_backward, custom_jvp_tangent, custom_vjp_forward, custom_jvp_forward,
    nested_jit, closed_over_by_jit, mapped, checkpointed, sharded, custom_vmapped, gathered, scattered, sorted_together,
]  # fmt: skip


@pytest.mark.parametrize("program", LEAKS, ids=lambda f: f.__name__)
def test_a_planted_leak_is_found(program):
    (found,) = sources(program, X, SECRET)
    assert "secret" in found


def test_what_cannot_arrive_is_not_found():
    """Array by array, the analysis is exact enough to tell these apart."""
    assert sources(
        lambda x, s: (jnp.zeros_like(s), x.shape[0] * x, jax.jit(lambda a, b: (b, a))(x, s)[1]), X, SECRET
    ) == [
        set(),
        {"x"},
        {"x"},
    ]
    carried = lambda x, s: jax.lax.scan(lambda c, _: ((c[0] * 2, c[1] + 1), c[1]), (x, s), length=3)
    assert sources(carried, X, SECRET) == [{"x"}, {"secret"}, {"secret"}]
    assert sources(lambda x, s: jax.lax.optimization_barrier((x, s)), X, SECRET) == [{"x"}, {"secret"}]
    assert sources(lambda x, s: jax.grad(lambda x, s: (3 * x + jnp.sin(s)).sum())(x, s), X, SECRET) == [set()]
    assert sources(lambda x, s: jax.vmap(jnp.dot, (0, None))(x, x), X, SECRET) == [{"x"}]
    assert sources(lambda x, s: (jnp.max(x), jnp.cumsum(x), jax.nn.softmax(x)), X, SECRET) == [{"x"}] * 3


def test_opaque_primitives_say_maybe_and_are_named():
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert sources(lambda x, s: x + jax.pure_callback(np.sin, shape, s), X, SECRET) == [
        {"x", ("secret", "pure_callback")}
    ]
    assert sources(lambda x, s: jnp.sin(jax.pure_callback(np.sin, shape, x)), X, SECRET) == [{("x", "pure_callback")}]
    solved = lambda x, s: jax.lax.custom_linear_solve(lambda v: 2 * v, s, lambda _, b: b / 2)
    assert sources(solved, X, SECRET) == [{("secret", "custom_linear_solve")}]


def test_what_a_side_effect_returns_may_be_anything():
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert sources(lambda x, s: io_callback(np.sin, shape, x), X, SECRET) == [{(EVERYTHING, "io_callback")}]

    def through_a_mutable_array(x, secret):
        kept = jax.new_ref(x)
        jax.jit(lambda kept: kept.__setitem__(..., secret))(kept)
        return kept[...], jax.freeze(kept)

    for found in sources(through_a_mutable_array, X, SECRET):
        assert EVERYTHING in {source for source, _ in found}


def test_a_mark_is_seen_instead_of_what_it_marks():
    cut = lambda name, arriving: frozenset({Flow(name)})
    hidden = lambda x, s: x * jnp.tanh(mark("m", s))
    assert sources(hidden, X, SECRET, cut=cut) == [{"x", "m"}]
    assert sources(jax.jit(hidden), X, SECRET, cut=cut) == [{"x", "m"}]
    assert sources(jax.vmap(hidden), X, SECRET, cut=cut) == [{"x", "m"}]
    looped = lambda x, s: jax.lax.fori_loop(0, 2, lambda i, x: hidden(x, s), x)
    assert sources(looped, X, SECRET, cut=cut) == [{"x", "m"}]
    gradient = jax.grad(lambda x, s: hidden(x, s).sum(), argnums=(0, 1))
    assert sources(gradient, X, SECRET, cut=cut) == [{"m"}, {"x", "m"}]


def test_a_marked_tangent_is_cut_forward_alone():
    cut = lambda name, arriving: frozenset({Flow(name)})

    @jax.custom_jvp
    def marked(x):
        return x

    marked.defjvp(lambda primals, tangents: (marked(*primals), mark_tangent("rate", *tangents)))
    f = lambda w, x: marked(jnp.sin(w * x))
    forward = lambda x, w: jax.jvp(lambda w: f(w, x), (w,), (jnp.ones_like(w),))[1]
    backward = lambda x, w: jax.grad(lambda w: f(w, x).sum())(w)
    pushed = lambda x, w: jax.vmap(jax.linearize(lambda w: f(w, x), w)[1])(jnp.ones((3, 2)))
    for program in (forward, jax.jit(forward), jax.vmap(forward), pushed):
        assert sources(program, X, SECRET, cut=cut) == [{"rate"}]
    branched = lambda x, w: jax.grad(lambda w: jax.lax.cond(x[0] > 0, lambda: f(w, x).sum(), lambda: 0.0))(w)
    for program in (backward, jax.jit(backward), branched, jax.vmap(lambda x, w: backward(x[None], w[None])[0])):
        assert sources(program, X, SECRET, cut=cut) == [{"x", "secret"}]
    twice = lambda x, w: jax.jvp(lambda w: backward(x, w), (w,), (jnp.ones_like(w),))[1]
    assert sources(twice, X, SECRET, cut=cut) == [{"x", "secret"}]
    np.testing.assert_array_equal(backward(X, SECRET), jax.grad(lambda w: jnp.sin(w * X).sum())(SECRET))


# Random programs: whatever is said not to arrive must not, to the last bit.


def random_program(seed):
    """A program of four arrays, a dozen random steps, and its last outputs."""
    rng = np.random.default_rng(seed)

    def pick(count):
        return rng.integers(0, 10**6, count).tolist()

    plan = [(rng.choice(len(STEPS)), pick(3)) for _ in range(9)]

    def program(*arguments):
        values = [*arguments, jnp.ones(2)]
        for step, picked in plan:
            # Mostly of late values, so that dependence runs deep.
            values.append(STEPS[step](*(values[-1 - i % len(values)] for i in picked)))
        return tuple(values[-6:])

    return program


STEPS = [
    lambda a, b, c: a * b - c,
    lambda a, b, c: jnp.where(a > b, c, -c),
    lambda a, b, c: jnp.zeros_like(a) + jnp.cos(b),
    lambda a, b, c: jax.lax.scan(lambda s, x: ((s[1], s[2], jnp.sin(x) * s[0]), s[0]), (a, b, a), c[None])[0][2],
    lambda a, b, c: jax.lax.scan(lambda s, _: ((s[1], s[0]), None), (a, b), length=2)[0][1],
    lambda a, b, c: jax.lax.while_loop(lambda s: s[0] < jnp.tanh(c).sum(), lambda s: (s[0] + 1, s[1] - b), (0.0, a))[1],
    lambda a, b, c: jax.lax.cond(a[0] > 0.1, lambda: jnp.sin(b), lambda: b + 1),
    lambda a, b, c: jax.lax.cond(c[0] > 0.1, lambda: a, lambda: b),
    lambda a, b, c: custom_vjp_backward(a, jnp.sin(b)),
    lambda a, b, c: custom_jvp_tangent(a, jnp.cos(b)),
    lambda a, b, c: jax.jit(lambda x, y: (y, jnp.tanh(x)))(a, b)[1],
    lambda a, b, c: jax.grad(lambda x: (jax.checkpoint(jnp.sin)(x * b) + c).sum())(a),
    lambda a, b, c: jax.vmap(lambda x, y: jnp.maximum(x, y))(a, b),
    lambda a, b, c: jnp.ones_like(c) * a.shape[0],
]  # fmt: skip


SEEDS = range(25)


@functools.cache
def in_truth(seed):
    """A random program, arguments, and by argument whether moving it changes each output."""
    program, arguments = random_program(seed), list(np.random.default_rng(seed).normal(size=(4, 2)).astype("f"))
    run = jax.jit(program)
    before = run(*arguments)
    changed = np.zeros((len(NAMES), len(before)), bool)
    for i in range(len(NAMES)):
        for move in (0.37, -1.3, 2.9):
            moved = [a + np.float32(move) if i == j else a for j, a in enumerate(arguments)]
            changed[i] |= [not np.array_equal(a, b) for a, b in zip(before, run(*moved), strict=True)]
    return program, arguments, changed


def answers():
    """(is it said to depend, does it) for every source and output of all random programs."""
    said = []
    for program, arguments, _ in map(in_truth, SEEDS):
        found = sources(program, *arguments)
        said.append([[name in of_output for of_output in found] for name in NAMES])
    return np.array(said), np.array([in_truth(seed)[2] for seed in SEEDS])


@pytest.mark.slow
def test_no_is_never_wrong_and_yes_is_seldom():
    said, real = answers()
    assert not (real & ~said).any()
    assert 0.2 < said.mean() < 0.8  # neither everything nor nothing
    assert real.sum() > 0.6 * said.sum()


def without_predicate(self, equation, inputs):
    branches = [self.run(branch, inputs[1:]) for branch in equation.params["branches"]]
    return [frozenset.union(*outputs) for outputs in zip(*branches, strict=True)]


def without_test(self, equation, inputs):
    params = equation.params
    body = params["body_jaxpr"]
    return self.loop(body, params["body_nconsts"], len(body.out_avals), inputs[params["cond_nconsts"] :])


def one_round(self, equation, inputs):
    return self.run(equation.params["jaxpr"], inputs)


@pytest.mark.parametrize(("name", "rule"), [("cond", without_predicate), ("while", without_test), ("scan", one_round)])
def test_an_unsound_analysis_is_caught(monkeypatch, name, rule):
    monkeypatch.setitem(dependence._ENTERED, name, rule)
    said, real = answers()
    assert (real & ~said).any()
