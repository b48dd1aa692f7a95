"""Activation functions, with their derivative as a function of their value.

Seed 003 eq. 10: f'(ν) = df(x) with x = f(ν), so a backward sweep needs only the axons (activity) already
stored. Any plain function `jnp -> jnp` can be an activation too; `Activation` adds the derivative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.require import nonzero_number
from nl_jax.base import Array


@dataclass(frozen=True, repr=False)
class Activation:
    """An activation function x = f(ν) and its derivative as a function of x.

    Attributes:
      function: f, elementwise.
      derivative: df with df(f(ν)) = f'(ν) (seed 003 eq. 10), or None if the value does not determine it. When a layer
        is made, it is compared with automatic differentiation.
      surrogate: whether the derivative is a surrogate, chosen for learning; it is then not compared with f's.
      name: its name in a summary; by default the function's own.
    """

    function: Callable[[Array], Array]
    derivative: Callable[[Array], Array] | None = None
    surrogate: bool = False
    name: str = ""

    def __repr__(self) -> str:
        return self.name or named(self.function)

    def __call__(self, preactivation: Array) -> Array:
        """x = f(ν)."""
        return self.function(preactivation)


def named(function: Callable) -> str:
    """Returns a function's name, without an address.

    >>> named(jnp.tanh), named(lambda nu: nu), named(tanh(alpha=2))
    ('tanh', 'a lambda', 'tanh(alpha=2, beta=1)')
    """
    if isinstance(function, Activation):
        return repr(function)
    name = getattr(function, "__name__", type(function).__name__)
    return "a lambda" if name == "<lambda>" else name


def require_true_derivative(activation: Any, layer: str) -> None:
    """Raises ValueError unless a declared derivative agrees with automatic differentiation, on values from −2 to 2.

    Values at which either is not finite are skipped. Activations are skipped if they need a shape other than
    [batch, units], declare their derivative a surrogate, or have no derivative.
    """
    derivative = getattr(activation, "derivative", None)
    if derivative is None or getattr(activation, "surrogate", False):
        return

    def values() -> tuple[Array, Array, Array]:
        nu = jnp.asarray(_SAMPLE)
        x, true = jax.jvp(activation, (nu,), (jnp.ones_like(nu),))
        return x, true, jnp.asarray(derivative(x))

    try:
        with jax.ensure_compile_time_eval():
            found = values()
    except (TypeError, ValueError):  # of another shape, or without a derivative
        return
    try:
        x, true, declared = map(np.asarray, found)
    except jax.errors.TracerArrayConversionError:  # under vmap, functions with a derivative of their own stay traced
        x, true, declared = map(np.asarray, jax.jit(values).lower().compile()())
    apart = np.abs(declared - true)
    allowed = 1e-3 * (1 + np.abs(true))
    wrong = np.isfinite(apart) & (apart > allowed)
    if wrong.any():
        at = int(np.argmax(np.where(wrong, apart, 0)))
        raise ValueError(
            f"layer {layer!r}: the activation's derivative is {float(declared.ravel()[at]):.3g} at the value x = "
            f"{float(x.ravel()[at]):.3g}, where its function has {float(true.ravel()[at]):.3g}: declare f′ as a "
            "function of the value x = f(ν), or say surrogate=True if it is meant to be another"
        )


_SAMPLE = np.array([[-2.0, -1.3, -0.6, -0.2, 0.3, 0.7, 1.1, 1.9]], np.float32)


def identity() -> Activation:
    """Linear activation, f(ν) = ν, df = 1."""
    return Activation(lambda nu: nu, jnp.ones_like, name="identity")


def sigmoid() -> Activation:
    """Logistic sigmoid, f(ν) = 1 / (1 + e^{−ν}), df(x) = x (1 − x) (seed 000, seed 001 §1)."""
    return Activation(jax.nn.sigmoid, lambda x: x * (1 - x), name="sigmoid")


def tanh(*, alpha: float = 1, beta: float = 1) -> Activation:
    """Hyperbolic tangent, f(ν) = α tanh(βν), df(x) = αβ (1 − x²/α²) (seed 003 eq. 11).

    Args:
      alpha: α, the bound of |x|, a finite number other than 0; a negative one flips the sign of f.
      beta: β, a finite number other than 0; αβ is the slope at 0.

    Raises:
      ValueError: if α or β is not as described.

    >>> import jax.numpy as jnp
    >>> tanh().derivative(tanh()(jnp.zeros(2)))
    Array([1., 1.], dtype=float32)
    """
    alpha, beta = nonzero_number("alpha", alpha), nonzero_number("beta", beta)
    if alpha == beta == 1:  # nothing to multiply by
        return Activation(jnp.tanh, lambda x: 1 - x**2, name="tanh")
    return Activation(
        lambda nu: alpha * jnp.tanh(beta * nu), lambda x: alpha * beta * (1 - (x / alpha) ** 2),
        name=f"tanh(alpha={alpha:g}, beta={beta:g})",
    )  # fmt: skip


def exp(*, alpha: float = 1, beta: float = 1) -> Activation:
    """Exponential, f(ν) = α e^{βν}, df(x) = βx (seed 003 eq. 11, which writes f′ = βx with the value x = f).

    Args:
      alpha: α, the value at 0, a finite number other than 0; every x has its sign.
      beta: β, a finite number other than 0; below 0, |x| falls with ν.

    Raises:
      ValueError: if α or β is not as described.
    """
    alpha, beta = nonzero_number("alpha", alpha), nonzero_number("beta", beta)
    name = f"exp(alpha={alpha:g}, beta={beta:g})"
    return Activation(lambda nu: alpha * jnp.exp(beta * nu), lambda x: beta * x, name=name)


def tanh_by_sigmoid() -> Activation:
    """Hyperbolic tangent as f(ν) = 2σ(2ν) − 1 (seed 000, logistic sigmoid and hyperbolic tangent); df(x) = 1 − x²."""
    return Activation(lambda nu: 2 * jax.nn.sigmoid(2 * nu) - 1, lambda x: 1 - x**2, name="tanh_by_sigmoid")


def sigmoid_by_tanh() -> Activation:
    """Logistic sigmoid as f(ν) = (tanh(ν/2) + 1)/2 (seed 000, ibid.); df(x) = x (1 − x)."""
    return Activation(lambda nu: (jnp.tanh(nu / 2) + 1) / 2, lambda x: x * (1 - x), name="sigmoid_by_tanh")


def relu() -> Activation:
    """Rectified linear unit, f(ν) = Θ(ν) ν, df(x) = Θ(x > 0) (seed 003 eq. 11); the derivative at 0 is 0."""
    return Activation(jax.nn.relu, lambda x: (x > 0).astype(x.dtype), name="relu")


def sign(surrogate: Callable[[Array], Array] | None = None) -> Activation:
    """The perceptron's unit, f(ν) = −1, 0 or 1 (seed 000, nonlinear models; seed 001).

    Its derivative is 0 wherever it exists, which would silently stop learning. So either choose a
    surrogate, or differentiation raises an error. Perturbation estimators need no derivative.

    Args:
      surrogate: the derivative to use instead, as a function of the value; `jnp.ones_like` makes
        gradient descent on ½‖x − x̄‖² the perceptron rule. Without one, differentiating raises.

    Raises:
      ValueError: when differentiated without a surrogate.
    """

    def derivative(x: Array) -> Array:
        if surrogate is None:
            raise ValueError(
                "the sign unit has no useful derivative (it is 0 almost everywhere): use an estimator that "
                "needs none (weight_perturbation, node_perturbation) or choose one, sign(surrogate=jnp.ones_like)"
            )
        return surrogate(x)

    @jax.custom_jvp
    def function(nu: Array) -> Array:
        return jnp.sign(nu)

    @function.defjvp
    def _tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        x = function(*primals)
        return x, derivative(x) * tangents[0]

    return Activation(function, derivative, surrogate=True, name="sign")
