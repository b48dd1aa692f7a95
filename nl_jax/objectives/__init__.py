"""Objectives: a forward function and a loss, as one function that returns a loss per example.

`supervised` compares with targets, `bandit` with nothing: a reward is returned, and that is all. `reconstruction`,
`denoising` and `forward_forward` need no labels. `local_losses` gives each block of a network losses of its own. What
is drawn anew for every step (a corruption, a wrong label) is a function `(key, batch) -> batch` for `nl.augmented`.
`device` asks a function on the host, such as hardware.
"""

from nl_jax.objectives.bandit import bandit, graded, greedy
from nl_jax.objectives.corruption import gaussian_noise, masking_noise
from nl_jax.objectives.device import device
from nl_jax.objectives.forward_forward import contrast, forward_forward, goodness, overlay, predict
from nl_jax.objectives.local_losses import BlockPart, LocalLosses, local_losses
from nl_jax.objectives.self_supervised import denoising, reconstruction
from nl_jax.objectives.supervised import supervised

__all__ = [
    "BlockPart",
    "LocalLosses",
    "bandit",
    "contrast",
    "denoising",
    "device",
    "forward_forward",
    "gaussian_noise",
    "goodness",
    "graded",
    "greedy",
    "local_losses",
    "masking_noise",
    "overlay",
    "predict",
    "reconstruction",
    "supervised",
]
