import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import functions, optimizers

MINIMA = {
    functions.rosenbrock: np.ones(5),
    functions.beale: np.array([3.0, 0.5]),
    functions.wood: np.ones(4),
    functions.powell_singular: np.zeros(4),
    functions.hilbert: np.ones(8),
}


def test_functions_have_their_minima(x64):
    assert {function.value for function in functions.FUNCTIONS.values()} == set(MINIMA)
    for function, x in MINIMA.items():
        value, gradient = jax.jit(jax.value_and_grad(function))(x)
        np.testing.assert_allclose(value, 0, atol=1e-25)
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


@jax.jit
def _at_starts():
    published = {
        functions.wood: [-3.0, -1.0, -3.0, -1.0],
        functions.powell_singular: [3.0, -1.0, 0.0, 1.0],
        functions.beale: [1.0, 1.0],
        functions.rosenbrock: [-1.2, 1.0],
    }
    ours = [of.value(jnp.array(of.start)) for of in functions.FUNCTIONS.values()]
    return ours, [function(jnp.array(start)) for function, start in published.items()]


def test_functions_have_the_published_values_at_the_usual_starts(x64):
    ours, found = _at_starts()
    assert np.min(ours) > 0
    np.testing.assert_allclose(found, [19192, 215, 14.203125, 24.2])


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_never_more_iterations_than_scipy(tmp_path, capsys):
    assert optimizers.main(["--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "optimizers.json").read_text())
    assert set(saved) == set(functions.FUNCTIONS)
    for name, of in saved.items():
        for by in optimizers.BETAS:
            assert of[by]["iterations"] <= of["scipy CG"]["iterations"], (name, by)
            assert of[by]["value"] < 1e-7, (name, by)
            assert of[by]["evaluations"] > of[by]["iterations"]
    shown = capsys.readouterr().out
    assert f"{saved['Wood']['Dai–Yuan']['iterations']} / {saved['Wood']['Dai–Yuan']['evaluations']}" in shown
    assert (tmp_path / "optimizers.png").stat().st_size > 10_000
