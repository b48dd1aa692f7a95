"""Objectives: a forward function and a loss, as one function that returns a loss per example.

`supervised` compares outputs with targets; `bandit` only receives a reward. `reconstruction`, `denoising` and
`forward_forward` need no labels. `local_losses` gives each block of a network its own losses. Random changes that are
drawn again for every step (a corruption, a wrong label) are functions `(key, batch) -> batch` for `nl.augment_batches`.
`device` calls a function on the host, such as hardware.
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
