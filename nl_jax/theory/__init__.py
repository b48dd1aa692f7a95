"""Closed forms that learning can be judged by: pure functions of arrays, one subject a file."""

from nl_jax.theory import delta_rule, hebbian, linear_neuron, mismatch, perceptron, temporal

__all__ = ["delta_rule", "hebbian", "linear_neuron", "mismatch", "perceptron", "temporal"]
