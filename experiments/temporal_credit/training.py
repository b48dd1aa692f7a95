"""Training of small recurrent networks at several learning rates and from several initialisations at once.

Unlike `nl.sweep`, it keeps each block's mean loss, and gives all rules the same batches and initialisations.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness import temporal_networks
from experiments.harness.temporal_networks import Make, Net
from experiments.harness.temporal_tasks import Task

BLOCKS = 20  # of updates, over which losses are averaged
CLIP = 1.0  # largest norm of a gradient, as is usual in recurrent networks
EXACT_UPDATES = 20  # over which RTRL is compared with backprop through time


class Trained(NamedTuple):
    """Results of one rule at every rate and from every initialisation; errors that are not finite are NaN.

    Attributes:
      rates: learning rates tried.
      validation: error after the last update, [rates, seeds].
      test: the same on the test set.
      updates: number of updates at the end of each block.
      loss: mean training loss in each block, [rates, seeds, blocks].
      evaluations: of the objective, per update.
      seconds: for everything, including compilation.
      units: of the network.
    """

    rates: list[float]
    validation: np.ndarray
    test: np.ndarray
    updates: np.ndarray
    loss: np.ndarray
    evaluations: int
    seconds: float
    units: int = 0

    @property
    def best(self) -> int:
        """Index of the rate with the lowest mean validation error; rates with a diverged run are avoided."""
        mean = self.validation.mean(axis=1)
        return int(np.argmin(np.where(np.isfinite(mean), mean, np.inf)))


def train(
    make: Make, net: Net, task: Task, *, rates: Sequence[float], seeds: int, updates: int, batch_size: int
) -> Trained:
    """Trains by Adam with cosine decay, from the same initialisations and with the same batches for every rule.

    Raises:
      KeyboardInterrupt: on Ctrl-C, between blocks.
    """
    began = time.perf_counter()
    estimator = make(temporal_networks.objective(net, task))
    train_set, validation, test = (jax.tree.map(jnp.asarray, tuple(split)) for split in task[1:4])
    error = temporal_networks.error(net, task)

    def learner(rate: Any) -> nl.Learner:
        falling = optax.cosine_decay_schedule(1.0, updates)
        optimizer = optax.chain(
            optax.clip_by_global_norm(CLIP), optax.scale_by_adam(), optax.scale_by_learning_rate(rate),
            optax.scale_by_schedule(falling),
        )  # fmt: skip
        return nl.learner(estimator, optimizer)

    def begin(seed: jax.Array) -> nl.LearnerState:
        keys = jax.random.split(_key(seed))
        return learner(1.0).init(keys[0], net.init(keys[1]))

    @functools.partial(jax.jit, static_argnums=4)
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, None, None))
    def block(rate: jax.Array, seed: jax.Array, state: nl.LearnerState, first: Any, steps: int) -> Any:
        def one(state: nl.LearnerState, t: jax.Array) -> tuple[nl.LearnerState, Any]:
            keys = jax.random.split(jax.random.fold_in(_key(seed), t))
            index = jax.random.randint(keys[0], (batch_size,), 0, len(task.train.targets))
            state, info = learner(rate).step(keys[1], state, jax.tree.map(lambda x: x.at[index].get(), train_set))
            return state, (info.loss, info.evaluations)

        state, (losses, evaluations) = jax.lax.scan(one, state, first + jnp.arange(steps, dtype=jnp.int32))
        return state, jnp.mean(losses), evaluations[0]

    @jax.jit
    @jax.vmap
    def errors(params: Any) -> tuple[jax.Array, jax.Array]:
        return error(params, validation), error(params, test)

    rate = jnp.repeat(jnp.asarray(rates), seeds)
    seed = jnp.tile(jnp.arange(seeds, dtype=jnp.int32), len(rates))
    states = jax.jit(jax.vmap(begin))(seed)
    per_block = -(-updates // BLOCKS)
    means, ends, spent = [], [], np.ones(1)
    with tqdm(total=updates, unit="update", leave=False) as bar:
        for first in range(0, updates, per_block):
            steps = min(per_block, updates - first)
            states, mean, spent = jax.device_get(block(rate, seed, states, np.int32(first), steps))
            means.append(mean)
            ends.append(first + steps)
            bar.update(steps)
    shape = len(rates), seeds
    found = [np.where(np.isfinite(e), e, np.nan).reshape(shape) for e in map(np.asarray, errors(states.params))]
    loss = np.stack(means, axis=-1).reshape(*shape, -1)
    seconds = time.perf_counter() - began
    return Trained(list(rates), found[0], found[1], np.array(ends), loss, int(spent[0]), seconds)


def difference_to_backprop(make: Make, net: Net, task: Task, *, rate: float, batch_size: int) -> float:
    """Largest relative difference of training losses from those of backprop through time, in double precision."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(float), net.init(_key(0)))
        wanted = EXACT_UPDATES * batch_size
        data = [np.resize(x, (wanted, *x.shape[1:])) for x in task.train]
        batches = tuple(
            jnp.asarray(x, None if np.issubdtype(x.dtype, np.integer) else float).reshape(-1, batch_size, *x.shape[1:])
            for x in data
        )
        objective = temporal_networks.objective(net, task)
        curves = [_losses(one(objective), params, batches, rate) for one in (nl.backprop, make)]
    return float(np.max(np.abs(curves[1] - curves[0]) / np.abs(curves[0])))


def _losses(estimator: nl.GradientEstimator, params: Any, batches: Any, rate: float) -> np.ndarray:
    learner = nl.learner(estimator, optax.adam(rate))

    @jax.jit
    def run(state: nl.LearnerState) -> jax.Array:
        def one(state: nl.LearnerState, batch: Any) -> tuple[nl.LearnerState, jax.Array]:
            state, info = learner.step(_key(0), state, batch)
            return state, info.loss

        return jax.lax.scan(one, state, batches)[1]

    return np.asarray(run(learner.init(_key(0), params)))


def temporary_bytes(make: Make, net: Net, task: Task, steps: int, batch_size: int) -> int:
    """Temporary bytes of one compiled estimate on sequences of `steps` steps; nothing is run."""
    estimator = make(temporal_networks.objective(net, task))
    key = _key(0)
    params = net.init(key)
    inputs = jax.ShapeDtypeStruct((batch_size, steps, task.channels), jnp.float32)
    targets = jax.ShapeDtypeStruct((batch_size,), task.train.targets.dtype)
    lowered = jax.jit(estimator.estimate).lower(key, estimator.init(key, params), params, (inputs, targets))
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    return int(memory.temp_size_in_bytes)


def audited(make: Make, net: Net, task: Task) -> dict[str, str]:
    """The audit's findings about a rule: what its updates see, when, and with what memory."""
    params = net.init(_key(0))
    batch = jnp.zeros((5, 7, task.channels)), jnp.zeros(5, task.train.targets.dtype)
    found = nl.audit(make, temporal_networks.objective(net, task), params, batch, loop="time")
    assert found.timing is not None
    return {"sees": found.verdict, "when": found.timing.when, "memory": found.timing.memory}


def _key(seed: Any) -> jax.Array:
    return jax.random.key(seed)
