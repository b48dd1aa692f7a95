"""Parts of the parameters, chosen by path; used by `nl.train_only`, `nl.partition` and `nl.alternating`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from nl_jax._core.paths import by_path, first_matches, matching, replaced
from nl_jax._core.require import takes_propagate
from nl_jax.base import Array, Batch, Objective, Params, Propagate
from nl_jax.propagation import feedforward


class Part(NamedTuple):
    """Some of the parameters, to be trained while the others stay fixed.

    Attributes:
      params: the chosen leaves by path, such as {"adapter/down": …}; parameters for learners and estimators.
      objective: `objective(params, batch)`, the given objective as a function of these parameters only.
      whole: `whole(params)` returns all parameters, with these in their places.
    """

    params: dict[str, Array]
    objective: Objective
    whole: Callable[[Mapping[str, Array]], Params]


def train_only(objective: Objective, params: Params, *patterns: str) -> Part:
    """Chooses the parameters to train, such as adapters beside frozen weights; nothing is allocated for the others.

    Estimators, optimizers, checkpoints and training logs see the chosen leaves only. The others are constants of the
    objective, which compiled programs read in place. They may have any dtype, such as int8, and are not copied.

    Args:
      objective: a per-example objective of all the parameters.
      params: all the parameters.
      patterns: which to train (shell style: *, ?, [ab]), matched against a leaf's path, such as "*/adapter/*".

    Returns:
      A `Part`.

    Raises:
      ValueError: if there is no pattern, one matches no leaf, or a chosen leaf is not a floating-point array.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> def objective(params, batch):
    ...     x, y = batch
    ...     weight = params["frozen"] * 0.1 + params["adapter"]["up"] @ params["adapter"]["down"]
    ...     return jnp.sum((x @ weight - y) ** 2, axis=-1)
    >>> params = {"frozen": jnp.ones([8, 8], jnp.int8), "adapter": {"up": jnp.zeros([8, 1]), "down": jnp.ones([1, 8])}}
    >>> part = train_only(objective, params, "adapter/*")
    >>> learner = nl.seeded(nl.weight_perturbation(part.objective, num_samples=4), 1e-3)
    >>> state = learner.init(jax.random.key(0), part.params)
    >>> state, info = jax.jit(learner.step)(jax.random.key(1), state, (jnp.eye(8), jnp.eye(8)))
    >>> sorted(state.params), part.whole(state.params)["frozen"].dtype.name
    (['adapter/down', 'adapter/up'], 'int8')
    """
    leaves = by_path(params)
    if not patterns:
        raise ValueError(f"patterns must name the parameters to train; the paths are {', '.join(leaves)}")
    for pattern in patterns:
        if not matching(leaves, pattern):
            layer = matching(leaves, f"{pattern}/*")
            remedy = f"write '{pattern}/*' for all of this layer" if layer else f"the paths are {', '.join(leaves)}"
            raise ValueError(f"pattern {pattern!r} matches no parameter; {remedy}")
    places = first_matches(leaves, patterns)
    chosen = {path: x for path, x in leaves.items() if path in places}
    for path, leaf in chosen.items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"parameter {path!r} cannot be trained, its dtype is {jnp.result_type(leaf)}: patterns must match "
                "floating-point parameters only"
            )
    return Part(chosen, restricted(objective, params), lambda share: replaced(params, share))


def restricted(objective: Objective, params: Params) -> Objective:
    """Returns the objective as a function of some parameters, by path, with the others held at `params`."""
    if takes_propagate(objective):

        def layered(share: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
            return objective(replaced(params, share), batch, propagate=propagate)

        return layered

    return lambda share, batch: objective(replaced(params, share), batch)
