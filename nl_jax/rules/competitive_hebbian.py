"""Competitive Hebbian learning (Martinetz and Schulten 1994)."""

import jax

from nl_jax.base import Array, Params
from nl_jax.checks import positive_integer
from nl_jax.rules.rule import Change, Rule, mean_outer, unsupervised


def competitive_hebbian(*, neighbours: int = 1) -> Rule:
    """Δc_ij = ⟨f_i n_j + n_i f_j⟩ − c_ij: units that answer an input best are joined (Martinetz and Schulten 1994).

    f marks the unit of the largest input x, n the next ones. Of prototypes that cover a manifold the connections C come
    to be its graph: c_ij is how often i and j are the two nearest. For a layer of lateral or associative connections,
    whose weight is square, [units, units], its inputs being the same units' answers. Biases stay.

    Args:
      neighbours: how many next ones count, at least 1; the paper's is 1.

    Raises:
      ValueError: if `neighbours` is not as described; when run, for a weight that is not square, or of too few units.
    """
    neighbours = positive_integer("neighbours", neighbours)

    def change(params: Params, x: Array, y: Array) -> Change:
        del y
        C = params["weight"]
        if C.shape[0] != C.shape[1] or C.shape[0] <= neighbours:
            raise ValueError(
                f"competitive_hebbian joins the units of one layer: its weight must be square, of more than "
                f"{neighbours} units, got shape {C.shape}"
            )
        order = jax.lax.top_k(x, neighbours + 1)[1]
        first = jax.nn.one_hot(order[:, 0], C.shape[0], dtype=x.dtype)
        following = jax.nn.one_hot(order[:, 1:], C.shape[0], dtype=x.dtype).sum(axis=1)
        joined = mean_outer(first, following)
        return {"weight": joined + joined.T - C}

    return unsupervised(change)
