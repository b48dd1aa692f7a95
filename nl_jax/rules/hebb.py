"""Hebb's rule (Hebb 1949; seed 000, PCA networks)."""

from nl_jax.rules.rule import Rule, mean_outer, unsupervised


def hebb() -> Rule:
    """Hebb's rule, ΔW = ⟨x yᵀ⟩: connections between co-active units grow (Hebb 1949; seed 000, PCA networks).

    The rule is unstable: for linear units, every eigen-component of the inputs' covariance grows as e^{λ_i t}, the
    first one fastest; see `nl_jax.theory.hebbian.hebb_flow`. Biases do not change.

    >>> import jax.numpy as jnp
    >>> hebb().change((), {"weight": jnp.ones([2, 1])}, jnp.array([[1.0, 2.0]]), jnp.array([[3.0]]), None)[0]
    {'weight': Array([[3.],
           [6.]], dtype=float32)}
    """
    return unsupervised(lambda params, x, y: {"weight": mean_outer(x, y)})
