"""Scalings of initial weights and multipliers: `scaling(inputs, units, layers) -> Scaling`.

A parameterisation splits a weight into a constant and a learned number, a W. The network's function is the same, but
its training is not: Adam's steps do not depend on the gradient's size, so the constant sets how far one step moves the
axons (activity).
"""

import math
from collections.abc import Callable
from typing import NamedTuple


class Weight(NamedTuple):
    """The weight matrices of one kind of layer.

    Attributes:
      multiplier: a, the constant that multiplies x W.
      deviation: the initial standard deviation of an entry of W.
    """

    multiplier: float
    deviation: float


class Scaling(NamedTuple):
    """The weights of a residual network.

    Attributes:
      first: the weight from the inputs to the first layer.
      block: the weight of every layer with a skip connection.
      output: the weight of the read-out.
    """

    first: Weight
    block: Weight
    output: Weight


ScalingFn = Callable[[int, int, int], Scaling]
"""`scaling(inputs, units, layers) -> Scaling`, for N₀ inputs, N units per layer and L layers of weights."""


def depth_mup(inputs: int, units: int, layers: int) -> Scaling:
    """Depth-μP of μPC: a_1 = 1/√N₀, a_l = 1/√(N L), a_L = 1/N, all W ~ N(0, 1) (Innocenti et al. 2025, table 1).

    Axons initially have the same size at any width and depth. The paper trains with Adam and transfers its learning
    rate from shallow to deep networks. But a step of Adam moves each entry of W by about η, so L layers that move in
    agreement change the last axons by η √(N L). This predicts that the best rate falls as 1/√L, as
    `experiments.predictive_depth` finds.

    Args:
      inputs: N₀.
      units: N, of each hidden layer.
      layers: L, the number of weight matrices.

    >>> depth_mup(inputs=4, units=16, layers=4).block
    Weight(multiplier=0.125, deviation=1.0)
    """
    return Scaling(
        Weight(1 / math.sqrt(inputs), 1.0), Weight(1 / math.sqrt(units * layers), 1.0), Weight(1 / units, 1.0)
    )


def standard(inputs: int, units: int, layers: int) -> Scaling:
    """LeCun's scheme, a = 1 and W ~ N(0, 1/fan in) at any depth: every skip connection makes the axons larger.

    Args:
      inputs: N₀.
      units: N, of each hidden layer.
      layers: L, not used.

    >>> standard(inputs=4, units=16, layers=4).block
    Weight(multiplier=1.0, deviation=0.25)
    """
    del layers
    hidden = Weight(1.0, 1 / math.sqrt(units))
    return Scaling(Weight(1.0, 1 / math.sqrt(inputs)), hidden, hidden)
