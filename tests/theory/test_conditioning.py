"""Speed by condition number, against descent walked by `optax.sgd` and the Hessian of autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.theory import conditioning

pytestmark = pytest.mark.usefixtures("x64")

N, D = 40, 3
MOST_STEPS = 1500
NETWORK = nl.network(nl.Layer("input", D), nl.Layer("output", 1, nl.connections.dense()))
OBJECTIVE = nl.supervised(NETWORK.apply, nl.losses.half_squared_error)


hessian = jax.jit(conditioning.hessian)


def inputs() -> np.ndarray:
    """Correlated, of different variances and a mean."""
    mix = np.array([[1.0, 0.8, -0.3], [0.2, 1.5, 0.6], [-0.4, 0.1, 0.5]])
    return np.random.default_rng(0).normal(size=(N, D)) @ mix + np.array([0.5, -1.0, 0.3])


def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Of weights and bias in one vector, [D + 1]."""
    params = {"output": {"weight": w[:D, None], "bias": w[D:]}}
    return jnp.mean(OBJECTIVE(params, (x, y)))


def walk(x, y, start, rate, num_steps) -> np.ndarray:
    """The loss before every step of `optax.sgd`, [num_steps]."""
    return np.asarray(_walk(x, y, start, rate))[:num_steps]


@jax.jit
def _walk(x, y, start, rate):
    learner = nl.learner(nl.backprop(lambda w, batch: jnp.broadcast_to(loss(w, *batch), (N,))), optax.sgd(rate))
    key = jax.random.key(0)
    step = lambda state, _: learner.step(key, state, (x, y))
    return jax.lax.scan(step, learner.init(key, start), length=MOST_STEPS)[1].loss


@pytest.fixture(scope="module")
def solved():
    """x, targets of a linear map w*, w*, and the Hessian's eigenvalues and eigenvectors."""
    with jax.enable_x64(True):
        x, w = inputs(), np.array([1.0, -1.0, 0.5, 0.3])
        return x, (x @ w[:D] + w[D])[:, None], w, *np.linalg.eigh(hessian(x))


def test_hessian(solved):
    x, y, w, *_ = solved
    np.testing.assert_allclose(hessian(x), jax.jit(jax.hessian(loss))(w, x, y), rtol=1e-12, atol=1e-13)


def test_every_mode_decays_as_said(solved):
    x, y, w, curvatures, modes = solved
    errors = np.array([1.0, -2.0, 0.5, 3.0])
    rate = 1.3 / float(curvatures[-1])
    walked = walk(x, y, w + modes @ errors, rate, 30)
    np.testing.assert_allclose(conditioning.excess_loss(curvatures, errors, rate, range(30)), walked, rtol=1e-11)
    slower = conditioning.excess_loss(curvatures, errors, 0.9 * rate, range(30))
    assert np.max(np.abs(slower / walked - 1)) > 0.1


def test_the_best_rate_is_the_best(solved):
    """Along the slowest and the fastest mode a step leaves ((κ − 1)/(κ + 1))² of the loss; other rates leave more."""
    x, y, w, curvatures, modes = solved
    kappa, rate = conditioning.condition_number(curvatures), conditioning.best_rate(curvatures)
    assert 50 < kappa < 5000
    for mode in (modes[:, 0], modes[:, -1]):
        walked = walk(x, y, w + mode, rate, 20)
        np.testing.assert_allclose(walked[1:] / walked[:-1], ((kappa - 1) / (kappa + 1)) ** 2, rtol=1e-10)
        np.testing.assert_allclose(conditioning.contraction(rate, curvatures) ** 2, walked[1] / walked[0], rtol=1e-10)
    others = conditioning.contraction(rate * np.array([0.5, 0.99, 1.01, 1.5]), curvatures)
    assert np.all(others > conditioning.contraction(rate, curvatures))
    assert conditioning.contraction(2 / curvatures[-1], curvatures) == pytest.approx(1)


@pytest.mark.parametrize("start", [[1.0, 0, 0, 0], [0.1, -1, 2, 1]], ids=["worst", "another"])
def test_steps_to_a_thousandth(solved, start):
    x, y, w, curvatures, modes = solved
    said = conditioning.steps(conditioning.condition_number(curvatures), 1000.0)
    walked = walk(x, y, w + modes @ np.array(start), conditioning.best_rate(curvatures), said + 3)
    taken = int(np.argmax(walked <= walked[0] / 1000))
    assert taken == said if start[0] == 1 else 0 < taken < said


def test_white_inputs_are_learned_from_in_one_step(solved):
    x, _, w, *_ = solved
    x = x - np.mean(x, axis=0, keepdims=True)
    white = np.linalg.qr(x)[0] * N**0.5
    curvatures = np.linalg.eigvalsh(hessian(white))
    np.testing.assert_allclose(curvatures, conditioning.uncorrelated(D, mean=0.0, deviation=1.0), rtol=1e-12)
    walked = walk(white, (white @ w[:D] + w[D])[:, None], np.zeros(D + 1), conditioning.best_rate(curvatures), 2)
    assert walked[1] < 1e-25 < walked[0]
    assert conditioning.steps(1.0, 1000.0) == 1


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.0, 0.2), (1.5, 1.0), (-0.4, 3.0)])
def test_uncorrelated_inputs(mean, deviation, solved):
    x = solved[0] - np.mean(solved[0], axis=0, keepdims=True)
    x = mean + deviation * N**0.5 * np.linalg.qr(x)[0]
    curvatures = conditioning.uncorrelated(D, mean=mean, deviation=deviation)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian(x)), curvatures, rtol=1e-10)
    assert (conditioning.condition_number(curvatures) == pytest.approx(1)) == ((mean, deviation) == (0, 1))


def test_a_mean_costs_its_square():
    kappa = conditioning.condition_number(conditioning.uncorrelated(100, mean=1.0, deviation=1.0))
    assert kappa == pytest.approx(102**2, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conditioning.hessian(jnp.ones(3)), r"x must be of shape \[N, D\], got \[3\]"),
        (lambda: conditioning.condition_number([0.0, 1.0]), "curvatures must be one or more finite numbers above 0"),
        (lambda: conditioning.best_rate([]), "curvatures must be one or more finite numbers above 0"),
        (lambda: conditioning.contraction(0.1, [1.0, np.inf]), "curvatures must be one or more finite numbers above 0"),
        (lambda: conditioning.steps(0.5, 2.0), "condition must be a finite number of at least 1, got 0.5"),
        (lambda: conditioning.steps(2.0, 1.0), "reduction must be above 1, got 1"),
        (lambda: conditioning.excess_loss([1.0, 2.0], [1.0], 0.1, 1), r"got \[2\] and \[1\]"),
        (lambda: conditioning.uncorrelated(0, mean=0.0, deviation=1.0), "D must be a finite number of at least 1"),
        (lambda: conditioning.uncorrelated(2, mean=np.nan, deviation=1.0), "mean must be a finite number, got nan"),
        (lambda: conditioning.uncorrelated(2, mean=0.0, deviation=0.0), "deviation must be above 0, got 0"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
