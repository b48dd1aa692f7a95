"""Verdicts: of every estimator, of local rules, and of rules that cheat."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import nl_jax as nl
from nl_jax.propagation import Site, clamp, feedforward, inject, interpret, local, record
from tests import problems, registry


def of(factory, problem=None, **settings):
    problem = problem or problems.chain()
    return nl.audit(factory, problem.objective, problem.params, problem.batch, **settings)


def seen(row):
    """The columns that can reach the leaf."""
    return {column for column in row.sources if row.reach(column) == "yes"}


def named(row, column):
    return {source.name for source in row.sources[column]}


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.ESTIMATORS)
def test_every_estimator_is_judged_as_its_formula_says(name):
    audit = of(registry.ESTIMATORS[name].make)
    hidden, output = registry.ESTIMATORS[name].verdicts
    assert audit.verdicts == {
        **dict.fromkeys(("hidden1/bias", "hidden1/weight"), hidden),
        **dict.fromkeys(("output/bias", "output/weight"), output),
    }
    assert audit.verdict == max(hidden, output, key=len)


@pytest.mark.parametrize("name", registry.RULES)
def test_rules_are_local_and_supervised_ones_see_their_target(name):
    rule = registry.RULES[name]()
    join = nl.connections.lateral_dense() if name == "apex" else nl.connections.dense()
    network = nl.network(nl.Layer("input", 4), nl.Layer("hidden", 4, join), nl.Layer("output", 4, join))
    batch = jnp.ones((5, 4)), {name: jnp.ones((5, 4)) for name in ("hidden", "output")}
    params = network.init(jax.random.key(0))
    local = lambda forward: nl.local_learning(forward, rule)
    audit = nl.audit(local, network.apply, params, batch, inputs=lambda batch: batch[0])
    verdict = "sees the target" if rule.supervised else "local"
    assert {leaf: found for leaf, found in audit.verdicts.items() if leaf.endswith("weight")} == dict.fromkeys(
        ("hidden/weight", "output/weight"), verdict
    )


def test_what_backprop_reads_leaf_by_leaf():
    rows = of(nl.backprop).rows
    hidden = rows["hidden1/weight"]
    assert seen(hidden) == {"own pre", "own post", "other axons", "other weights", "target"}
    assert named(hidden, "other weights") == {"output/weight"}  # not the bias: ∂(Wx + b)/∂x = W
    assert named(hidden, "other axons") == {"output"}
    assert seen(rows["hidden1/bias"]) == seen(hidden) - {"own pre"}
    assert seen(rows["output/weight"]) == {"own pre", "own post", "target"}
    assert seen(rows["output/bias"]) == {"own post", "target"}


def test_what_perturbation_reads_leaf_by_leaf():
    weights = of(functools.partial(nl.weight_perturbation, num_samples=2)).rows
    assert all(seen(row) == {"noise", "loss"} for row in weights.values())
    nodes = of(functools.partial(nl.node_perturbation, num_samples=2)).rows
    for leaf, row in nodes.items():
        assert seen(row) == {"noise", "loss"} | ({"own pre"} if leaf.endswith("weight") else set())


def test_skip_connections():
    rows = of(nl.backprop, problems.skip()).rows
    above_low = {"high/weight", "output/high/weight", "output/low/weight"}
    assert named(rows["low/weight"], "other weights") == above_low
    assert named(rows["high/weight"], "other weights") == {"output/high/weight"}
    assert rows["output/input/weight"].verdict == "sees the target"
    assert of(functools.partial(nl.node_perturbation, num_samples=2), problems.skip()).verdict == "three-factor"


def test_convolution():
    rows = of(nl.backprop, problems.convolution()).rows
    assert named(rows["features/weight"], "other weights") == {"output/weight"}
    assert named(rows["features/weight"], "other axons") == {"pooled", "output"}  # where the maxima were
    assert of(functools.partial(nl.node_perturbation, num_samples=2), problems.convolution()).verdict == "three-factor"


def test_tied_weights_are_named_and_parameters_outside_layers_are_told():
    audit = of(functools.partial(nl.node_perturbation, num_samples=2), problems.tied())
    assert audit.rows["shared/weight"].layers == ("encode", "decode")
    assert audit.verdicts["shared/weight"] == "three-factor, shared by encode and decode"
    assert audit.verdicts["shared/bias"] == "three-factor"
    # Used between layers, it is credited through the weights it feeds; used after them, by the loss's derivative.
    assert audit.verdicts["gain"] == "reads other axons, weight transport"
    assert audit.verdicts["scale"] == "reads other axons, sees the target"
    assert audit.verdict == "reads other axons, weight transport, sees the target, shared weights"
    assert "gain belongs to no layer" in str(audit)
    backprop = of(nl.backprop, problems.tied())
    assert named(backprop.rows["shared/weight"], "other weights") == {"mix/weight", "scale"}


def test_parameters_that_layers_hold_of_their_own_accord():
    rows = of(functools.partial(nl.node_perturbation, num_samples=2), problems.closed_over()).rows
    assert rows["shift"].layers == rows["gain"].layers == ("hidden", "output")
    assert rows["shift"].verdict == "three-factor, shared by hidden and output"
    assert rows["gain"].verdict == "sees the target, shared by hidden and output"  # an activation's gets the derivative
    assert rows["hidden"].verdict == "three-factor"


def test_one_array_of_two_layers_is_shared_by_them():
    """The analysis is array by array: what is in one array is one source, and the verdict says so."""

    def forward(params, x, propagate=feedforward):
        lower, upper = params
        x = propagate("lower", lambda w, x: x @ w, jnp.tanh, lower, x)
        return propagate("upper", lambda w, x: x @ w, jnp.tanh, upper, x)

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    audit = nl.audit(nl.backprop, objective, jnp.ones((2, 3, 3)), (jnp.ones((4, 3)), jnp.ones((4, 3))))
    assert audit.verdicts == {"": "sees the target, shared by lower and upper"}


class Met(NamedTuple):
    """A layer that rules written by hand look at, with its axons."""

    site: Site
    inputs: tuple
    axons: jax.Array


def survey(program, given=None):
    """Runs the program and returns all there is to be seen of its layers."""

    def layer(site, own):
        axons = site.axons() if given is None else own
        return axons, Met(site, site.inputs, axons)

    return lambda params, inputs: interpret(program, layer)(params, inputs, given)


# Rules written by hand. Each is `change(sites, params, batch, key, state) -> {layer: weight change}`.


def rule(change, init=lambda key, params: (), remember=lambda params, batch, state: state):
    def factory(program):
        def estimate(key, state, params, batch):
            losses, sites = survey(program)(params, batch)
            changes = change({**sites, "loss": losses}, params, batch, key, state)
            grads = jax.tree.map(jnp.zeros_like, params)
            for layer, delta in changes.items():
                grads[layer]["weight"] = -delta
            return grads, remember(params, batch, state), nl.Info(jnp.mean(losses), jnp.int32(1))

        return nl.GradientEstimator(init, estimate)

    return factory


def hebb(sites, params, batch, key, state):
    return {name: site.inputs[0].T @ site.axons for name, site in layers(sites)}


def layers(sites):
    return [(name, site) for name, site in sites.items() if name != "loss"]


def oja(sites, params, batch, key, state):
    post = {name: site.axons for name, site in layers(sites)}
    return {
        name: change - params[name]["weight"] @ (post[name].T @ post[name])
        for name, change in hebb(sites, params, batch, key, state).items()
    }


def hidden_only(change):
    """Of one layer, made of the Hebbian change and what `change` adds to it."""

    def changed(sites, params, batch, key, state):
        own = hebb(sites, params, batch, key, state)["hidden1"]
        return {"hidden1": own + change(sites, params, batch, key, state)}

    return changed


def test_a_local_rule_is_local():
    assert seen(of(rule(hebb)).rows["hidden1/weight"]) == {"own pre", "own post"}
    audit = of(rule(oja))
    assert seen(audit.rows["output/weight"]) == {"own weight", "own pre", "own post"}
    assert seen(audit.rows["output/bias"]) == set()
    assert audit.verdict == "local"


def test_what_a_local_rule_is_said_not_to_see_cannot_change_it():
    problem = problems.chain()
    estimate = rule(oja)(problem.objective).estimate
    key, (inputs, targets) = jax.random.key(0), problem.batch
    moved = {**problem.params, "output": jax.tree.map(lambda w: w + 1, problem.params["output"])}
    before = estimate(key, (), problem.params, problem.batch)[0]["hidden1"]["weight"]
    after = estimate(jax.random.key(1), (), moved, (inputs, (targets + 1) % 3))[0]["hidden1"]["weight"]
    np.testing.assert_array_equal(before, after)


CHEATS = {
    "reads another layer's weight": (
        lambda sites, params, batch, key, state: params["output"]["weight"].sum(),
        "weight transport",
    ),
    "reads another layer's axons": (
        lambda sites, params, batch, key, state: sites["output"].axons.sum(),
        "reads other axons",
    ),
    "reads the input past its layer": (
        lambda sites, params, batch, key, state: batch[0].sum(),
        "reads other axons",
    ),
    "reads the target": (
        lambda sites, params, batch, key, state: batch[1].astype("float32").sum(),
        "sees the target",
    ),
    "asks whether the target": (
        lambda sites, params, batch, key, state: jax.lax.cond(batch[1][0] > 0, lambda: 1.0, lambda: 2.0),
        "sees the target",
    ),
    "counts up to the target": (
        lambda sites, params, batch, key, state: (
            jax.lax.while_loop(lambda i: i < batch[1][0], lambda i: i + 1, 0) * 1.0
        ),
        "sees the target",
    ),
    "sees the loss through a callback": (
        lambda sites, params, batch, key, state: jax.pure_callback(
            np.sum, jax.ShapeDtypeStruct((), "float32"), sites["loss"]
        ),
        "maybe three-factor",
    ),
    "has a callback": (
        lambda sites, params, batch, key, state: jax.pure_callback(
            np.sum, jax.ShapeDtypeStruct((), "float32"), params["output"]["weight"]
        ),
        "maybe weight transport",
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_rule_that_cheats_is_found_out(name):
    change, verdict = CHEATS[name]
    # float ← int is what the cheats do; promotion is not the matter here
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        audit = of(rule(hidden_only(change)))
    assert audit.verdicts["hidden1/weight"] == audit.verdict == verdict
    assert audit.verdicts["hidden1/bias"] == "local"


def test_a_layer_clamped_to_the_target_sees_it():
    """A mark stands for what the program puts there, and no more: what an estimator puts there is followed."""

    def clamped(objective):
        def estimate(key, state, params, batch):
            _, sites = survey(objective)(params, batch)
            given = {name: site.axons for name, site in sites.items()}
            given["output"] = jax.nn.one_hot(batch[1], 3)
            _, free = survey(objective, given=given)(params, batch)
            return (
                jax.tree.map(jnp.zeros_like, params)
                | {
                    "output": {
                        "weight": free["output"].inputs[0].T @ free["output"].axons,
                        "bias": jnp.sum(sites["output"].axons, axis=0),
                    }
                },
                state,
                nl.Info(jnp.float32(0), jnp.int32(1)),
            )

        return nl.GradientEstimator(lambda key, params: (), estimate)

    verdicts = of(clamped).verdicts
    assert verdicts["output/weight"] == "sees the target"
    assert verdicts["output/bias"] == "local"


def test_a_target_painted_on_the_input_is_seen_though_the_program_itself_put_it_there():
    """As in the forward-forward algorithm (Hinton 2022)."""
    problem = problems.chain()

    def painted(params, batch, propagate=feedforward):
        inputs, labels = batch
        marked = jnp.concatenate([inputs[:, :1], jax.nn.one_hot(labels, 3)], axis=1)
        return jnp.sum(problem.forward(params, marked, propagate), axis=1)

    assert of(rule(hebb)).verdict == "local"
    assert of(rule(hebb), problem._replace(objective=painted)).verdicts["hidden1/weight"] == "sees the target"
    assert of(rule(hebb), problem._replace(objective=painted)).verdicts["hidden1/bias"] == "local"


def test_a_program_run_with_weights_of_another_layer_reads_them():
    def twisted(objective):
        def estimate(key, state, params, batch):
            twist = jnp.sum(params["output"]["weight"])
            swapped = {**params, "hidden1": jax.tree.map(lambda w: w * twist, params["hidden1"])}
            _, sites = survey(objective)(swapped, batch)
            return hebbian(sites, params), state, nl.Info(jnp.float32(0), jnp.int32(1))

        return nl.GradientEstimator(lambda key, params: (), estimate)

    def hebbian(sites, params):
        weight = sites["hidden1"].inputs[0].T @ sites["hidden1"].axons
        return jax.tree.map(jnp.zeros_like, params) | {"hidden1": {**params["hidden1"], "weight": weight}}

    assert of(twisted).verdicts["hidden1/weight"] == "weight transport"


def test_what_a_state_remembers_counts_as_what_it_was_made_of():
    """The target arrives a step late, and another layer's weight with the initial state."""
    reads_state = hidden_only(lambda sites, params, batch, key, state: state[0])
    zero = lambda key, params: (jnp.float32(0), jnp.float32(0))
    late = lambda params, batch, state: (state[1], jnp.sum(batch[1]).astype("float32"))
    with jax.numpy_rank_promotion("allow"):
        assert of(rule(reads_state, zero)).verdict == "local"
        assert of(rule(reads_state, zero, late)).verdict == "sees the target"
        copied = lambda key, params: (params["output"]["weight"].sum(), jnp.float32(0))
        assert of(rule(reads_state, copied)).verdict == "weight transport"
        drawn = lambda key, params: (jax.random.normal(key), jnp.float32(0))
        assert seen(of(rule(reads_state, drawn)).rows["hidden1/weight"]) == {"own pre", "own post", "noise"}


def test_feedback_alignment_sees_the_target_and_transports_no_weight():
    """δ = B (p − p̄) f' with a fixed random B in the place of Wᵀ (Lillicrap et al. 2016)."""

    def feedback(sites, params, batch, key, state):
        error = jax.nn.softmax(sites["output"].axons) - jax.nn.one_hot(batch[1], 3)
        delta = (error @ state) * (1 - sites["hidden1"].axons ** 2)
        return {"hidden1": -sites["hidden1"].inputs[0].T @ delta, "output": -sites["output"].inputs[0].T @ error}

    audit = of(rule(feedback, init=lambda key, params: jax.random.normal(key, (3, 5))))
    assert audit.verdicts["hidden1/weight"] == "reads other axons, sees the target"
    assert seen(audit.rows["hidden1/weight"]) == {"own pre", "own post", "noise", "other axons", "target"}
    assert audit.verdicts["output/weight"] == "sees the target"


def test_perturbed_runs_share_the_marks_of_clean_ones():
    """The axons of a perturbed layer are its own, with the noise that the estimator put in."""

    def perturbed(objective):
        def estimate(key, state, params, batch):
            clean = local(objective)(params, batch)
            noise = jax.tree.map(lambda nu: jax.random.normal(key, nu.shape), clean.responses)
            losses = inject(objective)(params, batch, noise)
            layers = clamp(objective)(params, batch, record(objective)(params, batch)[1])[1]
            grads = jax.tree.map(lambda w: w * jnp.mean(losses), params)
            return grads, state, nl.Info(jnp.mean(layers["output"].predicted), jnp.int32(3))

        return nl.GradientEstimator(lambda key, params: (), estimate)

    assert all(seen(row) == {"own weight", "loss"} for row in of(perturbed).rows.values())


def test_a_callback_within_a_layer_is_the_layers_own_unless_it_has_side_effects():
    def verdict(callback):
        activation = lambda nu: callback(np.tanh, jax.ShapeDtypeStruct(nu.shape, nu.dtype), nu)
        network = nl.mlp([4, 5, 3], activation=activation)
        objective = nl.supervised(network.apply, nl.losses.cross_entropy)
        return of(rule(hebb), problems.chain()._replace(objective=objective)).verdict

    assert verdict(jax.pure_callback) == "local"
    assert verdict(io_callback) == "maybe reads other axons, maybe weight transport, maybe sees the target"


def test_forward_functions_and_networks_without_layers():
    network, inputs = nl.mlp([4, 5, 3], activation=nl.activations.tanh()), jnp.ones((6, 4))
    params = network.init(jax.random.key(0))
    alone = nl.audit(rule(hebb), network.apply, params, inputs, targets=lambda batch: ())
    assert alone.verdict == "local"

    def of_pair(forward):
        estimator = rule(hebb)(forward)
        return estimator._replace(estimate=lambda key, s, p, batch: estimator.estimate(key, s, p, batch[0]))

    assert nl.audit(of_pair, network.apply, params, (inputs, inputs), inputs=lambda batch: batch[0]).verdict == "local"

    layerless = nl.supervised(lambda params, x: x @ params["a"] @ params["b"], nl.losses.half_squared_error)
    batch = inputs, jnp.ones((6, 3))
    rows = nl.audit(nl.backprop, layerless, {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 3))}, batch).rows
    assert seen(rows["a"]) == {"own weight", "input", "other weights", "target"}
    assert rows["a"].layers == ()


def test_what_a_layers_functions_say_of_themselves_comes_along():
    class Wide:
        wide = True

        def __call__(self, params, x):
            return x @ params

    connection, activation = Wide(), nl.activations.tanh()

    def forward(params, x, propagate=feedforward):
        return propagate("only", connection, activation, params, x)

    def asking(forward):
        def estimate(key, state, params, batch):
            (site,) = survey(forward)(params, batch)[1].values()
            assert site.site.connection.wide
            assert site.site.activation.derivative is activation.derivative
            return params, state, nl.Info(jnp.float32(0), jnp.int32(1))

        return nl.GradientEstimator(lambda key, params: (), estimate)

    audit = nl.audit(asking, forward, jnp.ones((3, 2)), jnp.ones((4, 3)), targets=lambda batch: ())
    assert seen(audit.rows[""]) == {"own weight"}


def test_targets_are_what_one_says():
    problem = problems.chain()
    assert of(nl.backprop, problem, targets=lambda batch: ()).verdicts["output/weight"] == "reads other axons"
    named = lambda params, batch, propagate=feedforward: problem.objective(params, (batch["x"], batch["y"]), propagate)
    at = named, problem.params, dict(zip("xy", problem.batch, strict=True))
    assert nl.audit(nl.backprop, *at, targets=lambda batch: batch["y"]).verdicts == of(nl.backprop).verdicts
    with pytest.raises(ValueError, match=r"batch is no pair \(inputs, targets\) but dict: say which part of it"):
        nl.audit(nl.backprop, *at)
    with pytest.raises(ValueError, match="two parameters have the path 'a/b'"):
        nl.audit(nl.backprop, problem.objective, {"a": {"b": 1.0}, "a/b": 2.0}, problem.batch)
    with pytest.raises(ValueError, match="factory must take one argument"):
        of(nl.backprop(problem.objective))


def test_shapes_are_enough_and_nothing_is_run():
    problem = problems.chain()
    params, batch = jax.eval_shape(lambda: (problem.params, problem.batch))
    assert nl.audit(nl.backprop, problem.objective, params, batch) == of(nl.backprop)


def test_the_table_the_data_and_the_figure_hold_every_cell():
    with jax.numpy_rank_promotion("allow"):
        audit = of(rule(hidden_only(CHEATS["has a callback"][0])))
    head, *lines = str(audit).splitlines()
    columns = [word.strip() for word in head.split("  ") if word]
    assert columns[0] == "leaf"
    cells = dict(zip(columns, [word.strip() for word in lines[1].split("  ") if word], strict=True))
    assert cells["leaf"] == "hidden1/weight"
    assert cells["own post"] == "yes"
    assert cells["other weights"] == "maybe"
    assert cells["target"] == "·"
    assert lines[-2:] == [
        "maybe: the audit cannot look inside pure_callback; its outputs may depend on all its inputs",
        "verdict: maybe weight transport",
    ]
    saved = json.loads(json.dumps(audit.as_dict()))
    assert saved["verdict"] == audit.verdict
    leaf = saved["leaves"]["hidden1/weight"]
    assert leaf["layers"] == ["hidden1"]
    assert leaf["sources"]["other weights"] == [{"name": "output/weight", "through": "pure_callback"}]
    assert leaf["sources"]["own pre"] == [{"name": "hidden1", "through": None}]

    (axes,) = audit.plot().axes
    (mesh,) = axes.collections
    shade = np.asarray(mesh.get_array()).reshape(4, 10)
    for y, row in enumerate(audit.rows.values()):
        for x, label in enumerate(axes.get_xticklabels()):
            assert ("no", "maybe", "yes")[int(shade[y, x])] == row.reach(label.get_text())
    assert [text.get_text() for text in axes.texts] == ["?"]


def test_a_long_list_is_shortened_in_the_table_alone():
    audit = of(nl.backprop, problems.skip())
    (line,) = (line for line in str(audit).splitlines() if line.startswith("low/weight"))
    assert "high/weight +2" in line
    assert " high, output " in line  # two are both named
    assert len(audit.as_dict()["leaves"]["low/weight"]["sources"]["other weights"]) == 3


def _writing(leak):
    """An estimator whose output layer's update is `leak(program, params, batch)`."""

    def factory(program):
        def estimate(key, state, params, batch):
            grads = jax.tree.map(jnp.zeros_like, params)
            grads["output"]["weight"] += leak(program, params, batch)
            return grads, state, nl.Info(jnp.float32(0), jnp.int32(1))

        return nl.GradientEstimator(lambda key, params: (), estimate)

    return factory


def test_axons_that_carry_a_weight_are_no_axons():
    def leak(program, params, batch):
        received = {}

        def carrying(name, connection, activation, params, *inputs):
            axons = activation(connection(params, *inputs))
            received[name] = inputs[0]
            return jnp.broadcast_to(params["weight"][0], axons.shape) if name == "hidden1" else axons

        program(params, batch, propagate=carrying)
        return received["output"].sum()

    assert of(_writing(leak)).verdicts["output/weight"] == "weight transport"


@pytest.mark.filterwarnings("ignore:factory returned an estimator whose updates see")
def test_marks_cannot_be_forged_by_a_known_name():
    def leak(program, params, batch):
        jax.eval_shape(program, params, batch)  # the audit refuses an estimator that never runs its program
        named = [jax.ad_checkpoint.checkpoint_name(batch[1], name) for name in ("loss", "nl_jax mark: loss")]
        return sum(named).sum().astype(jnp.float32)

    assert of(_writing(leak)).verdicts["output/weight"] == "sees the target"


def test_a_factory_that_ignores_its_objective_is_refused():
    problem = problems.chain()
    made = nl.node_perturbation(problem.objective, num_samples=2)
    with pytest.raises(ValueError, match=r"does not run the objective it was given: write functools\.partial"):
        of(lambda objective: made)


def _rewarded(estimator, objective):
    """The changes of a rule, times the mean loss."""

    def estimate(key, state, params, batch):
        grads, state, info = estimator.estimate(key, state, params, batch)
        loss = jnp.mean(objective(params, batch))
        return jax.tree.map(lambda change: change * loss, grads), state, info

    return estimator._replace(estimate=estimate)


def test_no_honest_estimator_is_warned_of_where_the_input_counts_for_nothing():
    """A layer of a bias alone, and a loss that is linear in it: its gradient sees the target, and no layer."""

    def bias_alone(params, x, propagate=feedforward):
        return propagate("output", lambda b, x: jnp.zeros((len(x), 3)) + b[None], lambda nu: nu, params, x)

    linear = nl.supervised(bias_alone, lambda outputs, targets: jnp.sum(outputs * targets, axis=1))
    audit = nl.audit(nl.backprop, linear, jnp.ones(3), (jnp.ones((5, 4)), jnp.ones((5, 3))))
    assert audit.verdict == "sees the target"


def test_a_layer_whose_input_is_a_tuple_is_refused():
    paired = lambda w, x, propagate=feedforward: propagate("sum", lambda w, xs: xs[0] @ w, jnp.tanh, w, (x, x))
    with pytest.raises(ValueError, match="layer 'sum': each input must be one array, got tuple"):
        nl.audit(nl.backprop, nl.supervised(paired, nl.losses.half_squared_error), jnp.eye(3), (jnp.ones((2, 3)),) * 2)


def test_an_estimator_of_another_program_is_warned_of():
    """Its layers have no marks: the verdict would be that of a program without layers."""
    problem = problems.chain()
    forward, rule = problem.forward, nl.rules.hebb()
    closed = lambda objective: nl.local_learning(forward, rule, objective=objective)
    with pytest.warns(UserWarning, match=r"run another program.*nl\.local_learning, rule=.* inputs=lambda batch"):
        assert of(closed).verdict != "local"
    rewarded = lambda objective: _rewarded(nl.local_learning(forward, rule), objective)
    with pytest.warns(UserWarning, match="run another program"):
        of(rewarded)
    given = lambda forward: nl.local_learning(forward, rule)
    first = lambda batch: batch[0]
    assert nl.audit(given, forward, problem.params, problem.batch, inputs=first).verdict == "local"
    with pytest.raises(ValueError, match="got local_learning, missing a required argument: 'rule': hand in"):
        of(nl.local_learning)
    said = r"failed: a network takes an array of inputs[^\n]*\nIf program is a forward function, say .* inputs=lambda"
    with pytest.raises(ValueError, match=said):
        nl.audit(given, forward, problem.params, problem.batch)


def test_layers_of_one_name_are_refused():
    def twice(params, batch, propagate=nl.propagation.feedforward):
        for _ in range(2):
            batch = propagate("layer", lambda w, x: x @ w, jnp.tanh, params, batch)
        return batch[:, 0]

    with pytest.raises(ValueError, match="layer 'layer' is propagated twice in one run"):
        nl.audit(nl.backprop, twice, jnp.ones((3, 3)), jnp.ones((4, 3)), targets=lambda batch: ())


@pytest.mark.parametrize("targets", [lambda b: b[1] == 7, lambda b: b[1] - 1, lambda b: b[1][:2], lambda b: 3])
def test_targets_are_leaves_of_the_batch(targets):
    with pytest.raises(ValueError, match="targets must return leaves of the batch as they are"):
        of(nl.backprop, targets=targets)
