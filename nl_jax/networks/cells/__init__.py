"""Cells: the layers of one step of a recurrent network.

A cell computes its weighted sums through `propagate`, so that every learning rule can reach them. Its leak, threshold
and reset are elementwise arithmetic in the program between the layers. Noise on a pre-activation therefore acts as an
input current, and a rule with one trace per weight (`nl.e_prop`) follows it through the unit's state.
"""

from nl_jax.networks.cells.cell import Cell
from nl_jax.networks.cells.rate import gru, leaky, rnn
from nl_jax.networks.cells.recurrent import every, last, mean
from nl_jax.networks.cells.spiking import lif, subtract, to_zero

__all__ = ["Cell", "every", "gru", "last", "leaky", "lif", "mean", "rnn", "subtract", "to_zero"]
