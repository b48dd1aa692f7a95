"""Competitive Hebbian learning (Martinetz and Schulten 1994)."""

import jax

from nl_jax._core.require import positive_integer
from nl_jax.base import Array, Params
from nl_jax.rules.rule import Change, Rule, mean_outer, unsupervised


def competitive_hebbian(*, neighbours: int = 1) -> Rule:
    """Joins the units that respond best to an input: Δc_ij = ⟨f_i n_j + n_i f_j⟩ − c_ij (Martinetz and Schulten 1994).

    f marks the unit with the largest input x, n the next largest. For prototypes that cover a manifold, the connections
    C converge to its graph: c_ij is how often i and j are the two nearest. The rule is for a layer of lateral or
    associative connections, whose weight is square, [units, units], and whose inputs are the same units' responses.
    Biases do not change.

    Args:
      neighbours: the number of next largest units that count, at least 1; the paper uses 1.

    Raises:
      ValueError: if `neighbours` is not as described; when run, if the weight is not square or has too few units.
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
