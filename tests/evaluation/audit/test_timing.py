"""When updates get their news: of every rule for programs in time, and of rules that cheat."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward
from tests import problems
from tests.estimators.online import programs
from tests.registry import ESTIMATORS

# The rules here that are written out run the program by hand.
pytestmark = pytest.mark.filterwarnings("ignore:factory returned an estimator whose updates see")

STEPS = 7

RULES = {
    "backprop": nl.backprop,
    "backprop_recursion": nl.backprop_recursion,
    "lagrangian_backprop": nl.lagrangian_backprop,
    "feedback_alignment": nl.feedback_alignment,
    "truncated_backprop": functools.partial(nl.truncated_backprop, window=3),
    "rtrl": nl.rtrl,
    "snap": nl.snap,
    "uoro": nl.uoro,
    "e_prop": nl.e_prop,
    "rflo": nl.rflo,
    "three_factor": nl.three_factor,
    "reinforce": functools.partial(nl.reinforce, units=nl.units.gaussian(sigma=0.1)),
    "node_perturbation": functools.partial(nl.node_perturbation, num_samples=2),
    "weight_perturbation": nl.weight_perturbation,
    "forward_gradient (nodes)": functools.partial(nl.forward_gradient, space=nl.spaces.nodes),
    "forward_gradient (weights)": nl.forward_gradient,
}

PAGE = (Path(nl.__file__).parent.parent / "docs" / "audit.md").read_text()


@pytest.fixture(autouse=True, scope="module")
def fresh():
    """Programs of this module's precision."""
    programs.leaky.cache_clear()


def of(factory, problem=None):
    problem = problem or programs.leaky(STEPS)
    return nl.audit(factory, problem.objective, problem.params, problem.batch, loop="time").timing


def _table():
    _, table = PAGE.split("| rule | when | memory |\n|---|---|---|\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[0].splitlines()]
    return {name: (when, memory) for names, when, memory in rows for name in names.split(", ")}


def test_the_table_holds_every_rule():
    assert set(_table()) == set(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_the_table_is_true(name):
    assert tuple(of(RULES[name])) == _table()[name]


# Rules written by hand: `change(xs, errors, trace, last)`, the first three of each step, [steps, batch, …].


def rule(change, state=lambda params: (), remember=lambda state, trace: state):
    """An estimator whose update of the hidden weights is made of each step's error and input, in a loop of its own."""

    def factory(objective):
        def estimate(key, state, params, batch):
            xs, targets = programs.by_step(programs.Problem(objective, params, batch, None))
            hidden = params["hidden"]["weight"]

            def run(h, slices):
                x, target = slices
                h = 0.7 * h + jnp.tanh(x @ hidden)
                return h, (h, jnp.sum(h, axis=1) - jnp.sum(target, axis=1))

            last, (trace, errors) = jax.lax.scan(run, jnp.zeros((4, 3)), (xs, targets))
            delta = change(xs, errors, trace, last)
            grads = jax.tree.map(jnp.zeros_like, params)
            grads["hidden"]["weight"] = delta
            return grads, remember(state, trace), nl.Info(jnp.mean(objective(params, batch)), jnp.int32(1))

        return nl.GradientEstimator(lambda key, params: state(params), estimate)

    return factory


def learned(xs, errors, more=None):
    """Σ_t x_t e_t in a loop that goes forward; `more` is added to the errors."""

    def step(total, slices):
        x, e = slices
        return total + jnp.einsum("ni,n,j->ij", x, e if more is None else e + more, jnp.ones(3)), None

    return jax.lax.scan(step, jnp.zeros((2, 3)), (xs, errors))[0]


ONLINE, ACAUSAL = "online", "acausal"
FORGED = {
    "honest": (rule(lambda xs, e, h, last: learned(xs, e)), ONLINE),
    "peeks at the next error": (
        rule(lambda xs, e, h, last: learned(xs, jnp.concatenate([e[1:], e[:1]]))),
        ACAUSAL,
    ),
    "rolls": (rule(lambda xs, e, h, last: learned(xs, jnp.roll(e, -1, axis=0))), ACAUSAL),
    "flips time and goes forward": (rule(lambda xs, e, h, last: learned(xs[::-1], e[::-1])), ACAUSAL),
    "takes the last state into each step": (rule(lambda xs, e, h, last: learned(xs, e, last[:, 0])), ACAUSAL),
    "takes the sum of all errors": (rule(lambda xs, e, h, last: learned(xs, e, e.sum(axis=0))), ACAUSAL),
    "sums from the end": (rule(lambda xs, e, h, last: learned(xs, jax.lax.cumsum(e, reverse=True))), ACAUSAL),
    "sorts": (rule(lambda xs, e, h, last: learned(xs, jnp.sort(e, axis=0))), ACAUSAL),
    "reshapes the steps": (
        rule(lambda xs, e, h, last: learned(xs, e.T.reshape(STEPS, 4))),
        ACAUSAL,
    ),
    "joins steps anew": (
        rule(lambda xs, e, h, last: learned(xs, jnp.concatenate([e[2:], e[:2]], axis=0))),
        ACAUSAL,
    ),
    "looks a step up": (
        rule(
            lambda xs, e, h, last: jax.lax.fori_loop(0, STEPS, lambda t, d: d + e[STEPS - 1 - t, 0], jnp.zeros((2, 3)))
        ),
        ACAUSAL,
    ),
    "adds up products of the same step": (rule(lambda xs, e, h, last: jnp.einsum("tni,tnj->ij", xs, h)), ONLINE),
    "goes through windows in reverse": (
        rule(
            lambda xs, e, h, last: jax.lax.scan(
                lambda d, t: (d + xs[t].T @ h[t], None), jnp.zeros((2, 3)), jnp.arange(3), reverse=True
            )[0]
        ),
        ACAUSAL,
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_rule_that_cheats_is_found_out(name):
    factory, when = FORGED[name]
    assert of(factory).when == when


def test_a_trace_that_is_kept_is_found():
    """Stacked by a loop, or kept in the state for the next estimate."""
    assert of(rule(lambda xs, e, h, last: learned(xs, e))).memory == "grows"  # the errors of all steps
    keeping = rule(
        lambda xs, e, h, last: jnp.zeros((2, 3)),
        state=lambda params: jnp.zeros((STEPS, 4, 3)),
        remember=lambda state, trace: trace,
    )
    assert of(keeping).memory == "grows"
    forgetting = rule(lambda xs, e, h, last: jnp.zeros((2, 3)) + last[0, 0])
    assert of(forgetting).memory == "constant"


def test_a_trace_written_into_the_carry_is_found():
    def hoarding(objective):
        def estimate(key, state, params, batch):
            jax.eval_shape(objective, params, batch)  # the audit refuses an estimator that never runs its program
            xs, _ = programs.by_step(programs.Problem(objective, params, batch, None))

            def step(carry, x):
                t, kept = carry
                return (t + 1, kept.at[t].set(x @ params["hidden"]["weight"])), None

            (_, kept), _ = jax.lax.scan(step, (jnp.int32(0), jnp.zeros((STEPS, 4, 3))), xs)
            grads = jax.tree.map(jnp.zeros_like, params)
            grads["hidden"]["weight"] = jnp.einsum("tni,tnj->ij", xs, kept)
            return grads, state, nl.Info(jnp.float32(0), jnp.int32(1))

        return nl.GradientEstimator(lambda key, params: (), estimate)

    assert of(hoarding).memory == "grows"


def test_an_error_that_comes_at_the_end_alone_is_no_present_error():
    """The loss of the mean output is known when all is over: what a step contributes reads it."""
    network = nl.recurrent(nl.cells.leaky(3, rate=0.5), 2, 4, read=nl.cells.mean)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    batch = jnp.ones((5, STEPS, 2)), jnp.arange(5) % 4
    problem = programs.Problem(objective, network.init(jax.random.key(0)), batch, None)
    assert of(nl.rtrl, problem).when == "acausal"
    several = functools.partial(nl.three_factor, num_samples=3)  # trials side by side
    assert of(several, problem).when == "online, judged at the end"


@pytest.mark.slow
def test_it_is_asked_with_a_loop_and_told_apart_axes():
    problem = programs.leaky(STEPS)
    at = problem.objective, problem.params, problem.batch
    audit = nl.audit(nl.rtrl, *at, loop="time")
    assert "when: online; memory: constant with the steps" in str(audit)
    assert audit.as_dict()["timing"] == {"when": "online", "memory": "constant"}
    without = nl.audit(nl.backprop, *at)
    assert without.timing is None
    assert "when" not in str(without)
    with pytest.raises(ValueError, match="the program has no loop named loop='tim', its loops are 'time'"):
        nl.audit(nl.backprop, *at, loop="tim")
    square = programs.leaky(4)  # as many steps as examples
    with pytest.raises(ValueError, match="the loop has 4 steps, which must be a size of its own"):
        nl.audit(nl.backprop, square.objective, square.params, square.batch, loop="time")
    chain = problems.chain()
    with pytest.raises(ValueError, match="its loops are none"):
        nl.audit(nl.backprop, chain.objective, chain.params, chain.batch, loop="time")


NAMES = (
    *("backprop", "fixed_prediction", "primal_dual", "equilibrium_propagation", "feedback_random"),
    *("node_clean", "weight_clean", "partition", "target_propagation"),
)
"""One of each verdict and of each family."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_verdicts_of_locality_are_those_of_the_unrolled_program(name):
    """But that steps of a loop over time are not said to share their weights."""
    recurrent = problems.recurrent()
    found, apart = (
        nl.audit(ESTIMATORS[name].make, p.objective, p.params, p.batch).verdict
        for p in (recurrent, problems.unrolled(recurrent))
    )
    assert apart == f"{found}, shared weights"


def test_a_plain_program_is_the_same_to_the_audit_with_or_without_a_loop_of_its_own():
    def forward(params, x, propagate=feedforward):
        step = lambda x, _, propagate: (propagate("unit", lambda w, x: x @ w, jnp.tanh, params, x), None)
        return nl.scan("time", step, x, None, propagate, length=3)[0]

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    batch = jnp.ones((5, 2)), jnp.ones((5, 2))
    audit = nl.audit(functools.partial(nl.node_perturbation, num_samples=2), objective, jnp.eye(2), batch)
    assert audit.verdict == "three-factor"
