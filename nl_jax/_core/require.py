"""Checks of arguments: every error names the argument, its value and the remedy."""

import inspect
import math
import operator
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.paths import path_name
from nl_jax.base import Array, Factory, GradientEstimator, Key, Objective, Params, SampleFn


def is_size(value: Any) -> bool:
    """Whether `value` is a whole number of at least 1; integer scalars of NumPy and JAX count."""
    return (_index(value) or 0) >= 1


def positive_integer(name: str, value: Any) -> int:
    """Returns `value` as an int; raises ValueError unless it is a whole number of at least 1."""
    return _integer(name, value, 1)


def nonnegative_integer(name: str, value: Any) -> int:
    """Returns `value` as an int; raises ValueError unless it is a whole number of at least 0."""
    return _integer(name, value, 0)


def _integer(name: str, value: Any, least: int) -> int:
    """Returns `value` as an int; raises ValueError unless it is a whole number of at least `least`."""
    found = _index(value)
    if found is None or found < least:
        traced = ": nl.sweep cannot try such numbers, and optax.inject_hyperparams needs them in static_args"
        remedy = traced if _is_traced(value) else ""
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}{remedy}")
    return found


def _index(value: Any) -> int | None:
    """Returns a whole number as an int; None for all else, traced numbers included."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _is_traced(value: Any) -> bool:
    """Whether a number's value is not known yet."""
    try:
        float(value)
    except jax.errors.ConcretizationTypeError:
        return True
    except (TypeError, ValueError):
        pass
    return False


def positive_count(name: str, value: Any) -> Any:
    """Checks `value` as `positive_integer` does, unless it is an array, so that one program serves any number."""
    return value if isinstance(value, jax.Array) else positive_integer(name, value)


def positive_number(name: str, value: Any) -> float:
    """Returns `value` as a float; raises ValueError unless it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a finite Python number above 0, got {value!r}")
    return float(value)


def positive_hyperparameter(name: str, value: Any) -> Any:
    """Checks `value` as `positive_number` does; returns a scalar array as it is.

    `nl.sweep` and optax's wrappers pass such arrays; their values are unknown while tracing.
    """
    return _one_number(name, value) if isinstance(value, jax.Array) else positive_number(name, value)


def nonzero_hyperparameter(name: str, value: Any) -> Any:
    """Checks `value` as `nonzero_number` does; returns a scalar array as it is."""
    return _one_number(name, value) if isinstance(value, jax.Array) else nonzero_number(name, value)


def _one_number(name: str, value: Array) -> Array:
    if value.shape:
        raise ValueError(f"{name} must be one number, got an array of shape {value.shape}: nl.sweep tries many numbers")
    return value


def nonnegative_number(name: str, value: Any) -> float:
    """Returns `value` as a float; raises ValueError unless it is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be a finite Python number of at least 0, got {value!r}")
    return float(value)


def fraction(name: str, value: Any, *, or_zero: bool = False) -> float:
    """Returns `value` as a float; raises ValueError unless it is a number above 0, or 0 with `or_zero`, and below 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1 or not (value or or_zero):
        raise ValueError(f"{name} must be {'at least' if or_zero else 'above'} 0 and below 1, got {value!r}")
    return float(value)


def nonzero_number(name: str, value: Any) -> float:
    """Returns `value` as a float; raises ValueError unless it is a finite number other than 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value == 0:
        raise ValueError(f"{name} must be a finite Python number other than 0, got {value!r}")
    return float(value)


def gradient_transformation(optimizer: optax.GradientTransformation) -> None:
    """Raises ValueError unless `optimizer` is an optax optimizer."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax optimizer such as optax.sgd(0.1), got {optimizer!r}")


def is_key(x: Any) -> bool:
    """Whether `x` is a typed key, or an array of them."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def typed_key(key: Key) -> None:
    """Raises ValueError unless `key` is a typed key, as made by `jax.random.key`."""
    if not is_key(key):
        got = f"{type(key).__name__} of dtype {key.dtype}" if hasattr(key, "dtype") else repr(key)[:200]
        raise ValueError(f"key must be a typed key made by jax.random.key(seed), got {got}")


def no_keys(name: str, tree: Any) -> None:
    """Raises ValueError that names the first leaf of `tree` that is a typed key, which NumPy cannot hold."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_key(leaf):
            where = f" at {path_name(path)!r}" if path else ""
            raise ValueError(f"{name} keeps a typed key{where}: keep its numbers, jax.random.key_data(key)")


def concrete(name: str, tree: Any) -> None:
    """Raises ValueError if a leaf of a training run's `tree` has no value yet, as in `jax.jit` and `jax.vmap`."""
    for leaf in jax.tree.leaves(tree):
        try:
            getattr(leaf, "committed", None)
        except jax.errors.ConcretizationTypeError:
            raise ValueError(
                f"{name} is being traced, and a training run cannot be part of jax.jit, jax.vmap or jax.grad: take "
                "nl.restarts for many runs at once, or scan learner.step"
            ) from None


def arrays(name: str, tree: Any) -> None:
    """Raises ValueError that names the first leaf of `tree` that is not an array or number, such as a function."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "shape") and not isinstance(leaf, bool | int | float | complex):
            raise ValueError(
                f"{name} has a leaf {path_name(path)!r} that is no array, {leaf!r}: divide the model into arrays and "
                "the rest, by eqx.partition(model, eqx.is_inexact_array) or nnx.split(model), and train the arrays"
            )


def floating(params: Params) -> None:
    """Raises ValueError that names the first leaf of `params` that is not a floating-point array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"params leaf {path_name(path)!r} is {leaf if dtype is None else dtype}, not a floating-point array; "
                "only such leaves can be learned: close the forward function over everything else"
            )


def per_example(losses: Array) -> Array:
    """Returns `losses`; raises ValueError unless they are floating-point, shape [batch], at least one example."""
    shape = jnp.shape(losses)
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(
            f"an objective must return one loss per example, shape [batch] with batch of at least 1; "
            f"got shape {shape}: do not average over the batch, the estimator does; nl.supervised(forward, loss) makes "
            "an objective of a forward function"
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"an objective must return floating-point losses, got {losses.dtype}: cast them to float32")
    return losses


def takes(name: str, function: Any, count: int, remedy: str) -> None:
    """Raises ValueError unless `function` takes `count` arguments; the usual cause is a factory that was not called."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError as error:
        what = "one argument" if count == 1 else f"{count} arguments"
        why = f", {error}" if callable(function) and str(error).startswith("missing") else ""  # an argument, by name
        raise ValueError(f"{name} must take {what}, got {_shown(function)}{why}: {remedy}") from None
    except ValueError:  # it has no signature
        return


def gradient_estimator(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is an estimator; the usual cause is a factory that was not called."""
    if not isinstance(value, GradientEstimator):
        raise ValueError(
            f"{name} must be a GradientEstimator such as nl.backprop(objective), not nl.backprop; got {_shown(value)}"
        )


def sample_function(estimator: Any, remedy: str) -> SampleFn:
    """Returns the estimator's `sample`; raises ValueError unless it is an estimator that has one."""
    gradient_estimator("estimator", estimator)
    if estimator.sample is None:
        raise ValueError(
            "estimator must have a `sample` function, as nl.weight_perturbation, nl.evolution_strategy and "
            f"nl.forward_gradient in weights have: {remedy}"
        )
    return estimator.sample


def estimator_of(name: str, factory: Factory, objective: Objective) -> GradientEstimator:
    """Returns the estimator that a factory makes of the objective; raises ValueError unless it makes one."""
    remedy = "hand in nl.backprop or functools.partial(nl.node_perturbation, num_samples=32), not the estimator"
    takes(name, factory, 1, remedy)
    made = factory(objective)
    if not isinstance(made, GradientEstimator):
        raise ValueError(f"{name} must make a GradientEstimator of an objective, it makes {_shown(made)}: {remedy}")
    return made


def _shown(value: Any) -> str:
    if isinstance(value, GradientEstimator):
        return "a GradientEstimator"
    return getattr(value, "__name__", None) or repr(value)[:200]


def sampler(name: str, value: Any) -> None:
    """Raises ValueError unless `value` can be a sampler of directions."""
    takes(name, value, 3, "a sampler (key, index, template) -> direction, such as nl.directions.gaussian()")


LAYERLESS = "backprop, weight_perturbation, forward_gradient(space=nl.spaces.weights)"


def takes_propagate(function: Any) -> bool:
    """Whether `function` declares an argument named `propagate`."""
    try:
        return "propagate" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins and some callables have no signature
        return False


def loop_name(name: str, value: Any) -> None:
    """Raises ValueError unless `value` can be the name of a program's loop over time."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be the name of the program's loop over time, such as 'time', got {value!r}")


def layered(estimator: str, objective: Any) -> None:
    """Raises ValueError unless `objective` takes `propagate`, which `estimator` needs to reach its layers."""
    if not takes_propagate(objective):
        raise ValueError(
            f"{estimator} needs to reach the layers of the network, but the objective "
            f"{getattr(objective, '__name__', objective)!r} takes no argument `propagate`. Write the forward "
            f"function as forward(params, x, propagate=feedforward) with one propagate call a layer "
            f"(nl.mlp and nl.network do, nl.from_flax and nl.from_equinox make one of a model), or use an estimator "
            f"that needs no layers: {LAYERLESS}"
        )
