"""Run in a process of several CPU devices: python -m tests.estimators.devices <devices>. Prints JSON."""

import json
import os
import re
import sys

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_ENABLE_X64"] = "true"  # the losses' differences are compared, which lose half of all digits
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nl_jax as nl

KEY = jax.random.key(8)


def gathered(text: str) -> dict[str, int]:
    """Bytes by collective in a compiled program's text: those of its result."""
    found: dict[str, int] = {}
    for dtype, shape, name in re.findall(r"= (\w+)\[([\d,]*)\]\S* (all-\w+|collective-\w+|reduce-scatter)\(", text):
        size = int(np.prod([int(n) for n in shape.split(",") if n], initial=1)) * int(re.sub(r"\D", "", dtype)) // 8
        found[name] = found.get(name, 0) + size
    return found


def main(devices: int) -> None:
    results = {}
    for width, samples, law, kind in [
        (20, 8, "rank_one", AxisType.Auto), (200, 8, "gaussian", AxisType.Auto),
        (20, 16, "rank_one", AxisType.Explicit),
    ]:  # fmt: skip
        mesh = jax.make_mesh((devices,), ("samples",), axis_types=(kind,))
        network = nl.mlp([120, width, 4], activation=nl.activations.tanh())
        objective = nl.supervised(network.apply, nl.losses.cross_entropy)
        estimator = nl.weight_perturbation(
            objective, num_samples=samples, directions=getattr(nl.directions, law)(),
            sharding=NamedSharding(mesh, PartitionSpec("samples")),
        )  # fmt: skip
        learner = nl.seeded(estimator, 0.05)
        everywhere = NamedSharding(mesh, PartitionSpec())
        batch = jax.device_put((jax.random.normal(KEY, (6, 120)), jnp.arange(6) % 4), everywhere)
        state = jax.device_put(learner.init(KEY, network.init(KEY, float)), everywhere)
        step = jax.jit(learner.step).lower(KEY, state, batch).compile()
        for _ in range(3):
            state, info = step(KEY, state, batch)
        leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.params)]
        results[f"{law} {width} {samples}"] = {
            "rates": np.asarray(info.update.rates)[:, 0].tolist(), "params": np.concatenate(leaves)[::50].tolist(),
            "bytes": gathered(step.as_text()),
        }  # fmt: skip
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]))
