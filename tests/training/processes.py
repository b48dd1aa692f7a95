"""One run over processes joined by `jax.distributed`, as a program: see `main`. Prints JSON."""

import hashlib
import json
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

import nl_jax as nl
from benchmarks.processes import join

STEPS = 12


def digest(params):
    """Of all bits."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))).hexdigest()


def first_params(network):
    return network.init(jax.random.key(6))


def make_network():
    return nl.mlp([300, 250, 4], activation=nl.activations.tanh())  # a weight of two blocks


def run(folder, number=0, dies_at=None):
    """From the last whole record in the folder to the end; returns the first step's number and the parameters.

    Process 0 writes the log. A process with `dies_at` kills itself (SIGKILL) after that step.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("samples",))
    network = make_network()
    estimator = nl.weight_perturbation(
        nl.supervised(network.apply, nl.losses.cross_entropy), num_samples=4, baseline=nl.baselines.antithetic(),
        sharding=NamedSharding(mesh, PartitionSpec("samples")),
    )  # fmt: skip
    params = first_params(network)
    inputs, labels = np.asarray(jax.random.normal(jax.random.key(5), (20, 300))), np.arange(20, dtype=np.int32) % 4
    log = nl.TrainingLog(folder, estimator, params, (inputs, labels)) if number == 0 else None

    # How far the log goes is asked of process 0 alone, which may have it longer than another sees it.
    begin = log.steps if log else 0
    if jax.process_count() > 1:
        begin = int(multihost_utils.broadcast_one_to_all(np.int32(begin)))
    params = nl.replay(params, folder, steps=begin)

    def dying(report):
        if report.step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    everywhere = NamedSharding(mesh, PartitionSpec())
    data = tuple(jax.make_array_from_callback(x.shape, everywhere, lambda part, x=x: x[part]) for x in (inputs, labels))
    learner = nl.seeded(estimator, 0.05)
    state, _ = nl.fit(
        learner, jax.random.key(7), learner.init(jax.random.key(0), params)._replace(step=jnp.int32(begin)), data,
        num_steps=STEPS - begin, steps_per_dispatch=2, log=[log, dying] if log else dying, progress=False,
    )  # fmt: skip
    return begin, state.params


def main(folder, dies_at, *of):
    """Joins the processes, which has to come before the first key or network, and trains."""
    join(*of)
    begin, params = run(folder, jax.process_index(), int(dies_at) or None)
    print(json.dumps({"began_at": begin, "params": digest(params)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
