"""Run in a process of eight CPU devices: python -m tests.estimators.devices. Prints JSON."""

import contextlib
import functools
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_ENABLE_X64"] = "true"  # the losses' differences are compared, which lose half of all digits
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nl_jax as nl
from benchmarks.devices import exchanged

KEY = jax.random.key(8)


def estimates(devices: int) -> dict[str, Any]:
    """Divided estimates: how far they are from undivided ones, and bytes by collective, by name."""
    network = nl.mlp([120, 200, 4], activation=nl.activations.tanh())  # a weight of two blocks, and small ones
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params = jax.jit(network.init, static_argnums=1)(KEY, jnp.float64)
    batch = np.random.default_rng(8).normal(size=(8, 120)), np.arange(8) % 4
    law, found = {name: getattr(nl.directions, name)() for name in ("rademacher", "rank_one")}, {}

    @functools.cache
    def undivided(make: Any) -> Any:
        """Of one device, once for all divisions of an estimator."""
        grads, _, info = jax.jit(make().estimate)(KEY, (), params, batch)
        return jax.tree.map(np.asarray, grads), float(info.loss)

    def case(name: str, make: Any, kind: AxisType = AxisType.Auto, batch_axis: int = 1, within: str = "") -> None:
        shape, names = (devices // batch_axis, batch_axis), ("samples", "batch")
        mesh = jax.make_mesh(shape, names, axis_types=(kind, kind))
        sharding = NamedSharding(mesh, PartitionSpec("samples"))
        everywhere, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([], ["batch"]))
        at = jax.device_put(KEY, everywhere), (), jax.device_put(params, everywhere), jax.device_put(batch, rows)
        estimate = make(sharding=sharding).estimate
        if within == "shard_map":
            none = PartitionSpec()
            estimate = jax.shard_map(estimate, mesh=mesh, in_specs=none, out_specs=none, check_vma=False)
        with jax.set_mesh(mesh) if within == "set_mesh" else contextlib.nullcontext():
            compiled = jax.jit(estimate).lower(*at).compile()
            grads, _, info = compiled(*at)
        expected, loss = undivided(make.undivided if isinstance(make, Weights) else make)
        gap = jax.tree.map(lambda a, b: float(np.max(np.abs(np.asarray(a) - b))), grads, expected)
        size = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(expected))
        loss_gap = abs(float(info.loss) - loss)
        found[name] = {"gap": max(*jax.tree.leaves(gap), loss_gap) / size, "bytes": exchanged(compiled.as_text())}

    class Weights(NamedTuple):
        """A factory of weight perturbations. `sum_updates` is a matter of devices: the undivided one has none."""

        name: str
        summed: bool | None
        samples: int = 8

        @property
        def undivided(self) -> Any:
            return self._replace(summed=None)

        def __call__(self, sharding: Any = None) -> Any:
            return nl.weight_perturbation(
                objective, num_samples=self.samples, directions=law[self.name], sharding=sharding,
                sum_updates=self.summed,
            )  # fmt: skip

    def strategy(sharding: Any = None) -> Any:
        return nl.evolution_strategy(objective, num_samples=8, sharding=sharding, sum_updates=sharding and False)

    nodes = functools.partial(nl.node_perturbation, objective, num_samples=8)
    forward = functools.partial(nl.forward_gradient, objective, num_samples=8, space=nl.spaces.nodes)
    case("weights, rademacher, scalars, K = 8", Weights("rademacher", False))
    case("weights, rademacher, sum, K = 16", Weights("rademacher", True, 16))
    case("weights, rank one, sum, K = 8", Weights("rank_one", True))
    case("weights, rademacher, by default, K = 8", Weights("rademacher", None))
    case("weights, rank one, by default, K = 8", Weights("rank_one", None))
    case("evolution strategy", strategy)
    drawn = functools.partial(nl.reinforce, objective, units=nl.units.gaussian(sigma=0.1), num_samples=8)
    case("reinforce", drawn)
    case("nodes", nodes)
    case("nodes, forward gradient", forward, AxisType.Explicit)
    case("within set_mesh", Weights("rademacher", True), within="set_mesh")
    case("within shard_map", Weights("rademacher", True), within="shard_map")
    if devices % 2 == 0:
        case("two axes, weights", Weights("rademacher", True), AxisType.Explicit, 2)
        case("two axes, nodes", nodes, AxisType.Auto, 2)
    return found


def laid_out(devices: int) -> dict[str, Any]:
    """Noise of parameters that lie over devices: whether it is that of whole ones, and bytes by collective, by name.

    Shapes and divisions: by blocks, by pieces of blocks, by pieces beside a last block that is narrower, by inputs
    (which XLA divides), and by leading axes.
    """
    mesh, found = jax.make_mesh((devices,), ("model",), axis_types=(AxisType.Auto,)), {}
    law = nl.directions.gaussian()
    for shape, axes in [
        ((256, 1024), (None, "model")), ((120, 200), (None, "model")), ((1024, 1072), (None, "model")),
        ((256, 512), ("model", None)), ((2**17,), ("model",)), ((devices, 256, 256), ("model", None, None)),
        ((2, devices, 64, 320), (None, "model", None, None)),
    ]:  # fmt: skip
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        weight = np.random.default_rng(8).normal(size=shape)

        def moved(sharding: NamedSharding | None, weight: jax.Array) -> jax.Array:
            noise = law.draw(KEY, jnp.int32(3), jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=sharding))
            noise = jax.tree.map(lambda x: jnp.expand_dims(x, 0), noise)
            return noise.added(weight, jnp.ones((1, 1)))

        whole = jax.jit(functools.partial(moved, None))(weight)
        compiled = jax.jit(functools.partial(moved, sharding)).lower(jax.device_put(weight, sharding)).compile()
        divided = compiled(jax.device_put(weight, sharding))
        found[f"{shape} by {axes}"] = {
            "noise gap": float(np.max(np.abs(np.asarray(divided) - np.asarray(whole)))),
            "moved": float(np.max(np.abs(np.asarray(whole) - weight))),
            "bytes": exchanged(compiled.as_text()),
            "stays": divided.sharding.is_equivalent_to(sharding, len(shape)),
            "temporaries": compiled.memory_analysis().temp_size_in_bytes / weight.nbytes,
        }
    return found


def layers_laid_out(devices: int) -> dict[str, Any]:
    """Steps of descent in place with layers that lie over devices, beside those of whole ones, by name."""
    network = nl.mlp([128, 512, 512, 4], activation=nl.activations.tanh())  # one block, four blocks, and small
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params = jax.jit(network.init, static_argnums=1)(KEY, float)
    batch = np.random.default_rng(8).normal(size=(8, 128)), np.arange(8) % 4
    none, found = PartitionSpec(), {}
    for law, kind in [("rademacher", AxisType.Auto), ("rank_one", AxisType.Auto), ("rademacher", AxisType.Explicit)]:
        mesh = jax.make_mesh((devices // 2, 2), ("samples", "model"), axis_types=(kind, kind))
        # As layers are laid out in turns: one by its units, the next by its inputs. Explicit axes ask the program to
        # say what becomes of a sum over divided inputs.
        inputs = PartitionSpec("model", None) if kind == AxisType.Auto else none
        specs = {
            "hidden1": {"weight": PartitionSpec(None, "model"), "bias": PartitionSpec("model")},
            "hidden2": {"weight": inputs, "bias": none}, "output": {"weight": none, "bias": none},
        }  # fmt: skip
        shardings = jax.tree.map(lambda spec, mesh=mesh: NamedSharding(mesh, spec), specs)

        def learner(directions: Any = getattr(nl.directions, law)(), **settings: Any) -> nl.Learner:
            return nl.seeded(nl.weight_perturbation(objective, num_samples=4, directions=directions, **settings), 0.05)

        known = shardings if kind == AxisType.Auto else None
        with jax.set_mesh(mesh) if kind == AxisType.Explicit else contextlib.nullcontext():
            here = functools.partial(jax.device_put, device=NamedSharding(mesh, none))
            samples = NamedSharding(mesh, PartitionSpec("samples")) if known else None  # see docs/scaling.md
            ours = learner(params_sharding=known, sharding=samples)
            state = ours.init(KEY, jax.device_put(params, shardings))
            at = here(KEY), state._replace(step=here(state.step)), here(batch)
            step = jax.jit(ours.step).lower(*at).compile()
            forward = jax.jit(objective).lower(at[1].params, at[2]).compile()
            state, _ = step(*at)
        alone = learner()
        expected, _ = jax.jit(alone.step)(KEY, alone.init(KEY, params), batch)
        gaps = jax.tree.map(lambda a, b: np.max(np.abs(np.asarray(a) - np.asarray(b))), state.params, expected.params)
        found[f"layers, {law}, {kind.name}"] = {
            "step gap": float(max(jax.tree.leaves(gaps))),
            "bytes": exchanged(step.as_text()),
            "forward": exchanged(forward.as_text()),
        }
    return found


def runs(devices: int, settings: Sequence[tuple[int, int, str, AxisType]]) -> dict[str, Any]:
    """Three steps of descent in place: rates, some of the parameters and bytes by collective, by name."""
    found = {}
    for width, samples, law, kind in settings:
        mesh = jax.make_mesh((devices,), ("samples",), axis_types=(kind,))
        network = nl.mlp([120, width, 4], activation=nl.activations.tanh())
        objective = nl.supervised(network.apply, nl.losses.cross_entropy)
        estimator = nl.weight_perturbation(
            objective, num_samples=samples, directions=getattr(nl.directions, law)(),
            sharding=NamedSharding(mesh, PartitionSpec("samples")),
        )  # fmt: skip
        learner = nl.seeded(estimator, 0.05)
        everywhere = NamedSharding(mesh, PartitionSpec())
        batch = jax.device_put((np.random.default_rng(8).normal(size=(6, 120)), np.arange(6) % 4), everywhere)
        first = jax.jit(lambda init=network.init, learner=learner: learner.init(KEY, init(KEY, float)))
        state = jax.device_put(first(), everywhere)
        step = jax.jit(learner.step).lower(KEY, state, batch).compile()
        for _ in range(3):
            state, info = step(KEY, state, batch)
        leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.params)]
        found[f"{law} {width} {samples}"] = {
            "rates": np.asarray(info.update.rates)[:, 0].tolist(), "params": np.concatenate(leaves)[::50].tolist(),
            "bytes": exchanged(step.as_text()),
        }  # fmt: skip
    return found


SMALL = [(20, 8, "rank_one", AxisType.Auto)]
OTHERS = [(200, 8, "rademacher", AxisType.Auto), (20, 16, "rank_one", AxisType.Explicit)]


def main() -> None:
    of_devices = {devices: runs(devices, SMALL + OTHERS * (devices in (1, 4))) for devices in (1, 2, 4, 8)}
    print(json.dumps({"runs": of_devices, "estimates": estimates(4) | laid_out(4) | layers_laid_out(4)}))


if __name__ == "__main__":
    main()
