"""The benchmarks' problem in PyTorch; the module is an argument, since it may not be installed."""

import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from benchmarks.problem import Problem

RATE = 1e-6  # learning rate of MeZO, so small that weights updated in place hardly change


def module() -> Any:
    """The module `torch`; None, with a printed reason, if it cannot be compared."""
    if jax.default_backend() != "cpu":
        print("PyTorch is compared on CPUs only: left out")
        return None
    return report.peer("torch")


def twin(torch: Any, of: Problem) -> Any:
    """A fresh copy of the network with the same initial weights."""
    layers: list[Any] = []
    for layer in of.params.values():
        linear = torch.nn.Linear(*layer["weight"].shape)
        linear.weight.data = torch.tensor(np.asarray(layer["weight"]).T.copy())
        linear.bias.data = torch.tensor(np.asarray(layer["bias"]))
        layers += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])  # the last layer is linear


def tensors(torch: Any, of: Problem) -> tuple[Any, Any]:
    """The data, with labels in the dtype that torch requires."""
    inputs, labels = (torch.tensor(np.asarray(part)) for part in of.data)
    return inputs, labels.long()


def backprop(torch: Any, on: Problem) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """A forward and backward pass, and a function that maps its result to a tree like the problem's parameters."""
    model, (inputs, labels) = twin(torch, on), tensors(torch, on)
    linears = [layer for layer in model if isinstance(layer, torch.nn.Linear)]

    def backward(key: Any) -> Any:
        del key
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        return [(linear.weight.grad, linear.bias.grad) for linear in linears]

    def gradient(found: Any) -> Any:
        return {
            name: {"weight": jnp.asarray(weight.numpy().T), "bias": jnp.asarray(bias.numpy())}
            for name, (weight, bias) in zip(on.params, found, strict=True)
        }

    return backward, gradient


def mezo(torch: Any, on: Problem) -> Callable[[Any], Any]:
    """A step of MeZO on the problem."""
    return mezo_step(torch, twin(torch, on), *tensors(torch, on))


def mezo_step(torch: Any, model: Any, inputs: Any, labels: Any, sigma: float = 1e-3) -> Callable[[Any], Any]:
    """A step of Algorithm 1 of Malladi et al. (2023), which keeps only the seed of the noise."""
    parameters, seeds = list(model.parameters()), itertools.count()

    def perturb(seed: int, scale: float) -> None:
        noise = torch.Generator().manual_seed(seed)
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=scale)

    def step(key: Any) -> float:
        del key
        seed = next(seeds)
        with torch.inference_mode():
            perturb(seed, sigma)
            above = torch.nn.functional.cross_entropy(model(inputs), labels).item()
            perturb(seed, -2 * sigma)
            below = torch.nn.functional.cross_entropy(model(inputs), labels).item()
            perturb(seed, sigma)
            perturb(seed, -RATE * (above - below) / (2 * sigma))
        return (above + below) / 2

    return step


def with_threads(torch: Any, function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The function with one thread and with all: both are timed, and the faster of each round counts for PyTorch.

    Its threads wait for each other in a spin loop. On an idle machine two threads are 1.6 times as fast as one. Beside
    another busy process they were measured to be up to 80 times slower, which says nothing about PyTorch.
    """

    def limited(threads: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            torch.set_num_threads(threads)
            return function(*arguments)

        return call

    return [limited(threads) for threads in _threads()]


def title(torch: Any) -> str:
    """Version and number of threads, for tables."""
    return f"PyTorch {torch.__version__}, eager, {' or '.join(map(str, _threads()))} threads"


def _threads() -> list[int]:
    return sorted({1, os.cpu_count() or 1})
