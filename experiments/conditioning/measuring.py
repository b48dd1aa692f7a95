"""Trains linear units and a network on inputs that were prepared in four ways."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.conditioning.linear_descent import Descent, descend
from experiments.harness.sweep import Scores, Sets, scores, sweep

# (mean, standard deviation) pairs that whitened images are shifted and scaled to.
GIVEN = (
    *((mean, 1.0) for mean in (0.0, 0.03, 0.1, 0.3, 1.0)),
    *((0.0, deviation) for deviation in (0.1, 0.3, 3.0, 10.0)),
)
RAW, CENTRED, STANDARDISED, WHITENED = PREPROCESSINGS = "raw", "centred", "standardised", "whitened"


def preprocessings(x: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Returns preprocessing functions from the mean and covariance of x, [images, pixels], which has full rank."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    variances, modes = np.linalg.eigh(np.cov(x.T, bias=True))
    whitening = modes / np.sqrt(variances) @ modes.T  # symmetric, so that each pixel changes little
    return {
        RAW: lambda x: x,
        CENTRED: lambda x: x - mean,
        STANDARDISED: lambda x: (x - mean) / deviation,
        WHITENED: lambda x: (x - mean) @ whitening,
    }


def linear_descents(raw: Sets, reduction: float) -> tuple[dict[str, Descent], dict[tuple[float, float], Descent]]:
    """Returns descents on the training images, by preprocessing and by the moments given to whitened images."""
    images, labels = raw.train
    inputs = {name: prepare(images) for name, prepare in preprocessings(images).items()}
    with jax.enable_x64(True), tqdm(total=len(inputs) + len(GIVEN), unit="descent") as bar:

        def measured(x: np.ndarray) -> Descent:
            found = descend(x, labels, reduction)
            bar.update()
            return found

        linear = {name: measured(x) for name, x in inputs.items()}
        return linear, {(mean, deviation): measured(mean + deviation * inputs[WHITENED]) for mean, deviation in GIVEN}


def network_scores(
    raw: Sets, moments: Sequence[int], *, hidden: Sequence[int], rates: Sequence[float], seeds: int, batch_size: int
) -> dict[str, Scores]:
    """Returns the scores of a network on every set of images, by preprocessing."""
    network = nl.mlp([raw.train[0].shape[1], *hidden, 10], activation=nl.activations.tanh())
    estimator = nl.backprop(nl.supervised(network.apply, nl.losses.cross_entropy))
    learner, measure = lambda rate: nl.learner(estimator, optax.sgd(rate)), scores(network.apply)
    found = {}
    for name, prepare in preprocessings(raw.train[0]).items():
        print(f"network, {name} inputs")
        sets = Sets(*((prepare(images).astype(np.float32), labels) for images, labels in raw))
        found[name] = sweep(
            learner, network.init, measure, sets,
            rates=rates, seeds=seeds, batch_size=batch_size, moments=moments,
        )  # fmt: skip
    return found
