"""Scalings of initial weights and multipliers: `scaling(inputs, units, layers) -> Scaling`.

A parameterisation divides a weight's size between the number that is learned and a constant in front of it, a W. The
function is the same; what an optimizer makes of it is not, and with Adam, whose steps do not depend on the gradient's
size, the constant decides how far one step moves the axons.
"""

import math
from collections.abc import Callable
from typing import NamedTuple


class Weight(NamedTuple):
    """The weight matrices of one kind of layer.

    Attributes:
      multiplier: a, the constant by which x W is multiplied.
      deviation: the standard deviation of an entry of W at first.
    """

    multiplier: float
    deviation: float


class Scaling(NamedTuple):
    """The weights of a residual network.

    Attributes:
      first: from the inputs to the first layer.
      block: of every layer with a skip connection.
      output: of the read-out.
    """

    first: Weight
    block: Weight
    output: Weight


ScalingFn = Callable[[int, int, int], Scaling]
"""`scaling(inputs, units, layers) -> Scaling`, for N₀ inputs, N units a layer and L layers of weights."""


def depth_mup(inputs: int, units: int, layers: int) -> Scaling:
    """a_1 = 1/√N₀, a_l = 1/√(N L), a_L = 1/N, all W ~ N(0, 1): μPC's depth-μP (Innocenti et al. 2025, table 1).

    At first axons have the same size at any width and depth. The paper trains with Adam and carries its learning rate
    from shallow to deep networks. But a step of Adam moves each entry of W by about η, so that L layers which agree
    move the last axons by η √(N L): by this count the best rate falls as 1/√L, as `experiments.predictive_depth` finds
    it to.

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
    """a = 1 and W ~ N(0, 1/fan in), whatever the depth: LeCun's scheme, under which every skip adds to the axons' size.

    Args:
      inputs: N₀.
      units: N, of each hidden layer.
      layers: L, of no influence here.

    >>> standard(inputs=4, units=16, layers=4).block
    Weight(multiplier=1.0, deviation=0.25)
    """
    del layers
    hidden = Weight(1.0, 1 / math.sqrt(units))
    return Scaling(Weight(1.0, 1 / math.sqrt(inputs)), hidden, hidden)
