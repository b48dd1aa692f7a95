"""Cells: the layers of one step of a recurrent network.

A cell's weighted sums go through `propagate`, so that every rule reaches them. What it does with them besides, its
leak, threshold and reset, is arithmetic of the program between its layers, unit by unit: noise on a pre-activation acts
as an input current would, and a rule with a trace for each weight (`nl.e_prop`) follows it through the unit's state.
"""

from nl_jax.networks.cells.cell import Cell
from nl_jax.networks.cells.rate import gru, leaky, rnn
from nl_jax.networks.cells.recurrent import every, last, mean
from nl_jax.networks.cells.spiking import lif, subtract, to_zero

__all__ = ["Cell", "every", "gru", "last", "leaky", "lif", "mean", "rnn", "subtract", "to_zero"]
