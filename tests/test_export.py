"""Estimators can be compiled for accelerators, which need not be here: they are exported for them.

One of each kind is exported, of those that share an engine the one with the most operations of its own; the source of
all is searched for calls to the host.
"""

import ast
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback

import nl_jax as nl
from tests import problems
from tests.estimators.online import programs
from tests.registry import ESTIMATORS

PLATFORMS = "cpu", "cuda", "tpu"
KEY = jax.random.key(0)

KINDS = (
    "backprop_recursion", "error_predictive_coding", "extragradient", "admm", "equilibrium_propagation",
    "dual_propagation", "feedback_weight_mirror", "target_propagation", "weight_running_mean",
    "weight_flipout_antithetic", "subspace_inputs", "evolution_strategy", "node_orthogonal", "node_activity",
    "forward_low_rank", "reinforce", "partition",
)  # fmt: skip
IN_TIME = {factory.__name__: factory for factory in (nl.snap, nl.uoro, nl.e_prop, nl.three_factor)}
CASES = {
    **{name: (ESTIMATORS[name].make, problems.chain) for name in KINDS},
    **{name: (make, functools.partial(programs.leaky, x64=False)) for name, make in IN_TIME.items()},
    "local_learning": (lambda _: nl.local_learning(problems.chain().forward, nl.rules.sanger()), problems.chain),
}
"""How to make each, and on what problem."""


def exported(make, problem):
    """The estimate for all platforms; nothing is compiled or run."""
    estimator = make(problem.objective)
    state = jax.eval_shape(estimator.init, KEY, problem.params)
    return jax.export.export(jax.jit(estimator.estimate), platforms=PLATFORMS)(
        KEY, state, problem.params, problem.batch
    )


def calls_to_the_host(module: str) -> list[str]:
    """What in a StableHLO module waits for the host, such as `xla_ffi_python_cpu_callback`."""
    named = re.findall(r"custom_call @(\w+)|\bstablehlo\.(send|recv|infeed|outfeed)\b", module)
    return [target or operation for target, operation in named if operation or "callback" in target]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_estimators_export_for_accelerators(name):
    make, problem = CASES[name]
    found = exported(make, problem())
    assert found.platforms == PLATFORMS
    assert not calls_to_the_host(found.mlir_module())


def host_calls(source: str) -> list[str]:
    """What in a source calls the host from compiled code: `jax.debug.print` and what is called a callback."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute | ast.Name)]
    return [name for name in map(ast.unparse, nodes) if name.endswith(("callback", "debug.print"))]


def test_no_source_calls_the_host():
    """But for `nl.device`, an objective whose whole purpose it is."""
    root = Path(nl.__file__).parent
    for room in ("estimators", "rules", "propagation", "_core"):
        for path in (root / room).rglob("*.py"):
            assert not host_calls(path.read_text()), path
    assert host_calls((root / "objectives" / "device.py").read_text()) == ["io_callback"]
    assert host_calls("print(x); jax.debug.print(x)") == ["jax.debug.print"]


SHAPE = jax.ShapeDtypeStruct((3,), "float32")
TWINS = {
    "print": lambda x: jax.debug.print("{}", x),
    "callback": lambda x: jax.debug.callback(np.sin, x),
    "pure callback": lambda x: jax.pure_callback(np.sin, SHAPE, x),
    "callback with effects": lambda x: io_callback(np.sin, SHAPE, x),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_call_to_the_host_is_seen_and_cannot_be_exported(name):
    """The twins of the tests above."""
    run = jax.jit(TWINS[name])
    assert calls_to_the_host(run.lower(jnp.ones(3)).as_text())
    with pytest.raises((NotImplementedError, TypeError)):  # of some, jax 0.10 fails to say so
        jax.export.export(run, platforms=PLATFORMS)(jnp.ones(3))


def test_what_fails_in_an_exported_step_is_known_outside():
    problem = problems.one_layer()
    learner = nl.learner(nl.primal_dual(problem.objective, step_size=2.0, num_steps=50), optax.sgd(0.1, momentum=0.9))
    at = KEY, learner.init(KEY, problem.params), problem.batch
    state, info = jax.export.export(jax.jit(learner.step), platforms=PLATFORMS)(*at).call(*at)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(state.params))
    with pytest.raises(FloatingPointError, match=r"diverged at step_size=2\.0: choose a smaller one"):
        nl.raise_if_failed(info.failures)
