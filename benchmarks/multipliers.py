"""A step of the damped multipliers of `nl.primal_dual` in PyTorch, by mdmm and by cooper; modules are arguments.

Axons (activity) are parameters. Each layer's equation is an equality constraint with a multiplier for every unit and
example. Weights are held constant while axons and multipliers move. After these iterations, the gradient of the weights
is computed once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import pytorch
from benchmarks.problem import Problem


class Inner(NamedTuple):
    """Settings of the iterations, as in `nl.primal_dual`: η for both steps, c, K."""

    step_size: float
    damping: float
    num_steps: int


class Program:
    """The network with free axons: its weights, and the loss and residuals of a batch."""

    def __init__(self, torch: Any, on: Problem) -> None:
        self.torch = torch
        model = pytorch.twin(torch, on)
        self.linears = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
        self.weights = list(model.parameters())
        self.inputs, self.targets = (torch.tensor(np.asarray(part)) for part in on.data)
        self.hold(True)

    def hold(self, held: bool) -> None:
        """Excludes weights from differentiation if `held`, includes them otherwise."""
        for weight in self.weights:
            weight.requires_grad_(not held)

    def feedforward(self) -> list[Any]:
        """Fresh axons with the network's feedforward values."""
        axons, x = [], self.inputs
        with self.torch.no_grad():
            for layer in range(len(self.linears)):
                x = self.predicted(layer, x)
                axons.append(x)
        return [self.torch.nn.Parameter(x.clone()) for x in axons]

    def predicted(self, layer: int, x: Any) -> Any:
        """f(W x + b); the last layer is linear."""
        preactivation = self.linears[layer](x)
        return preactivation if layer == len(self.linears) - 1 else self.torch.tanh(preactivation)

    def residual(self, axons: list[Any], layer: int) -> Any:
        """x_l − f(W_l x_{l−1} + b_l)."""
        return axons[layer] - self.predicted(layer, axons[layer - 1] if layer else self.inputs)

    def loss(self, axons: list[Any]) -> Any:
        """Half the squared error, summed over examples."""
        return 0.5 * self.torch.sum((axons[-1] - self.targets) ** 2)

    def learn(self, differentiate: Callable[[], Any]) -> list[Any]:
        """Makes a descent step on the weights by the gradient that `differentiate` leaves in them; returns it."""
        self.hold(False)
        differentiate()
        grads = [weight.grad / len(self.targets) for weight in self.weights]
        self.hold(True)
        with self.torch.no_grad():
            for weight, grad in zip(self.weights, grads, strict=True):
                weight.sub_(pytorch.RATE * grad)
                weight.grad = None
        return grads

    def tree(self, grads: list[Any], on: Problem) -> dict[str, Any]:
        """Gradients as a tree like the problem's parameters."""
        arrays = [grad.numpy() for grad in grads]
        return {
            name: {"weight": weight.T, "bias": bias}
            for name, weight, bias in zip(on.params, arrays[::2], arrays[1::2], strict=True)
        }


def mdmm(torch: Any, library: Any, on: Problem, inner: Inner) -> tuple[Callable[[Any], Any], Program]:
    """Platt & Barr's simultaneous step, with damping c + η instead of c: ours uses λ after its update by η r."""
    program = Program(torch, on)

    class Layer(library.EqConstraint):  # the library's own constraint has only one multiplier for all its elements
        def __init__(self, fn: Callable[[], Any], like: Any) -> None:
            super().__init__(fn, 0.0, damping=inner.damping + inner.step_size)
            self.lmbda = torch.nn.Parameter(torch.zeros_like(like))

        def forward(self) -> Any:
            found = super().forward()
            return library.ConstraintReturn(found.value.sum(), found.fn_value, found.inf)

    def step(key: Any) -> Any:
        del key
        axons = program.feedforward()
        layers = [Layer(functools.partial(program.residual, axons, l), x) for l, x in enumerate(axons)]
        constrained = library.MDMM(layers)
        optimizer = constrained.make_optimizer(axons, optimizer=torch.optim.SGD, lr=inner.step_size)

        def differentiate() -> None:
            optimizer.zero_grad()
            constrained(program.loss(axons)).value.backward()

        for _ in range(inner.num_steps):
            differentiate()
            optimizer.step()
        return program.learn(differentiate)

    return step, program


def cooper(torch: Any, library: Any, on: Problem, inner: Inner) -> tuple[Callable[[Any], Any], Program]:
    """Alternating steps, multipliers first, on an augmented Lagrangian with c: the same as `nl.primal_dual`."""
    program = Program(torch, on)

    class Layers(library.ConstrainedMinimizationProblem):
        def __init__(self, axons: list[Any]) -> None:
            super().__init__()
            self.axons = axons
            for l, x in enumerate(axons):
                constraint = library.Constraint(
                    library.ConstraintType.EQUALITY,
                    library.formulations.AugmentedLagrangian,
                    library.multipliers.DenseMultiplier(num_constraints=x.numel()),
                    library.penalty_coefficients.DensePenaltyCoefficient(torch.full((x.numel(),), inner.damping)),
                )
                setattr(self, f"layer{l}", constraint)

        def compute_cmp_state(self) -> Any:
            residuals = [program.residual(self.axons, l).flatten() for l in range(len(self.axons))]
            states = map(library.ConstraintState, residuals)
            return library.CMPState(program.loss(self.axons), dict(zip(self.constraints(), states, strict=True)))

    def step(key: Any) -> Any:
        del key
        axons = program.feedforward()
        problem = Layers(axons)
        optimizer = library.optim.AlternatingDualPrimalOptimizer(
            problem,
            primal_optimizers=torch.optim.SGD(axons, lr=inner.step_size),
            dual_optimizers=torch.optim.SGD(problem.dual_parameters(), lr=inner.step_size, maximize=True),
        )
        for _ in range(inner.num_steps):
            optimizer.roll()
        return program.learn(optimizer.roll)

    return step, program
