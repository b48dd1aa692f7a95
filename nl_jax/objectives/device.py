"""Hardware in the loop: a host function as part of a JAX program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from nl_jax._core.paths import path_name
from nl_jax._core.require import takes


def device(run: Callable[..., Any], like: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Turns a function that runs on the host (a measurement, a simulator, another process) into a JAX function.

    Compiled code then waits for the host; nothing else in nl_jax does. Without `like` the result is an objective,
    `objective(params, batch) -> losses`. It is a black box that can be trained by every estimator in weight space that
    takes no derivative, such as `nl.weight_perturbation` and `nl.evolution_strategy`.

    With `like` the result can be any function, such as a connection `connection(params, x)` in a call of `propagate`.
    The layers of a program then run on hardware, and noise can be measured layer by layer
    (`nl.activity_node_perturbation`). Its derivative is the model's, at the same arguments (physics-aware training,
    Wright et al. 2022). A layer's weights thus learn from its own inputs and the credit that the rule gives its
    pre-activation.

    Args:
      run: `run(*arrays) -> arrays`, called with NumPy arrays (trees of them) and never traced. It may keep a state and
        return different results for the same arguments. The order of calls from compiled code is undefined. In a
        callback, the threads of NumPy's matrix products compete with those of XLA: one thread
        (`threadpoolctl.threadpool_limits(1)`) was 8 times faster in `experiments.hardware`.
      like: a JAX function of the same arguments, whose result has the shapes and dtypes of that of `run`: an ideal
        model. By default the result is one float32 loss for each example of the last argument.

    Returns:
      A function of arrays that may be jitted, scanned and mapped; `jax.vmap` calls the host once per mapped element.

    Raises:
      ValueError: if an argument cannot be called. When run, an exception of `run`, or a result whose shapes differ from
        those of `like`, becomes an error of JAX's runtime that reports it.

    >>> import jax, jax.numpy as jnp, numpy as np, nl_jax as nl
    >>> def circuit(params, batch):  # 4 weights, which never leave NumPy
    ...     return np.sum((batch[0] @ params - batch[1]) ** 2, axis=1)
    >>> estimator = nl.weight_perturbation(device(circuit), num_samples=8, sigma=1e-2)
    >>> batch = jnp.ones([5, 2]), jnp.zeros([5, 2])
    >>> grads, _, info = jax.jit(estimator.estimate)(jax.random.key(0), (), jnp.ones([2, 2]), batch)
    >>> grads.shape, float(info.loss) > 7
    ((2, 2), True)
    """
    if not callable(run):
        raise ValueError(f"run must be a function of NumPy arrays, got {run!r}")
    if like is None:
        takes("run", run, 2, "a black box is run(params, batch) -> losses; for anything else give its model, like=")
        return lambda params, batch: _ask(run, _losses_of(batch), params, batch)
    if not callable(like):
        raise ValueError(f"like must be a JAX function of the same arguments as run, got {like!r}")

    @jax.custom_vjp
    def on_device(*arguments: Any) -> Any:
        return _ask(run, jax.eval_shape(like, *arguments), *arguments)

    def forward(*arguments: Any) -> tuple[Any, Any]:
        return on_device(*arguments), arguments

    def backward(arguments: Any, cotangent: Any) -> Any:
        return jax.vjp(like, *arguments)[1](cotangent)

    on_device.defvjp(forward, backward)
    return on_device


def _losses_of(batch: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((jnp.shape(jax.tree.leaves(batch)[0])[0],), jnp.float32)


def _ask(run: Callable[..., Any], shapes: Any, *arguments: Any) -> Any:
    def host(*arguments: Any) -> Any:
        found = run(*jax.tree.map(np.asarray, arguments))
        return _checked(found, shapes)

    return io_callback(host, shapes, *arguments)


def _checked(found: Any, shapes: Any) -> Any:
    """Returns the host's result as arrays of the expected dtypes; raises ValueError if it has the wrong form."""
    returned: Any = jax.tree.structure(found)
    if returned != jax.tree.structure(shapes):
        raise ValueError(
            f"the device returned {returned}, its model {jax.tree.structure(shapes)}: return the same tree of arrays"
        )

    def leaf(path: Any, promised: Any, given: Any) -> np.ndarray:
        if np.shape(given) != promised.shape:
            where = f" at {path_name(path)!r}" if path else ""
            raise ValueError(
                f"the device returned shape {np.shape(given)}{where}, and {promised.shape} was expected: one loss for "
                "each example, or what the model like= returns"
            )
        return np.asarray(given, promised.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes, found)
