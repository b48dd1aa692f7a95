"""The universal approximation experiment, small: more units, less error."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.universal_approximation import __main__ as approximation
from experiments.universal_approximation import fitting

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where."""
    out = tmp_path_factory.mktemp("universal_approximation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximation, "TARGETS", {name: approximation.TARGETS[name] for name in ("smooth", "kink")})
        assert approximation.main(["--units", "1", "8", "--restarts", "2", "--updates", "100", "--out", str(out)]) == 0
    return out, {name: dict(np.load(out / f"{name}.npz")) for name in ("smooth", "kink")}


def test_the_error_falls_with_the_units(left):
    for data in left[1].values():
        np.testing.assert_array_equal(data["units"], [1, 8])
        for norm in ("sup", "rms"):
            assert data[norm].shape == (2, 2)
            assert data[norm][1].max() < data[norm][0].min() / 5


def test_errors_are_of_the_functions_themselves(left):
    data = left[1]["kink"]
    (x,) = data["x"].T
    np.testing.assert_allclose(x, np.linspace(0, 1, 2001))
    np.testing.assert_allclose(data["target"], np.abs(x - 0.5))
    for best, index, sup, rms in zip(data["best"], data["best_index"], data["sup"], data["rms"], strict=True):
        np.testing.assert_allclose(np.abs(best - data["target"]).max(), sup[index])
        np.testing.assert_allclose(np.mean((best - data["target"]) ** 2) ** 0.5, rms[index])


def test_folder(left):
    out, data = left
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["target"], line["units"]) for line in lines] == [
        ("smooth", 1),
        ("smooth", 8),
        ("kink", 1),
        ("kink", 8),
    ]
    np.testing.assert_allclose(lines[3]["sup"], data["kink"]["sup"][1])
    assert json.loads((out / "config.json").read_text())["config"]["restarts"] == 2
    assert (out / "universal_approximation.png").read_bytes().startswith(b"\x89PNG")


def test_descent_sees_the_whole_gradient(x64):
    """Held at its best, the read-out hides nothing: the gradient by hidden weights is that of solving anew."""
    made = fitting._approximation(1, 2, 10, 0.1)
    x = fitting.grid(1, 9)
    batch = x, jnp.sin(3 * x)
    params = made.init(jax.random.key(0))

    def loss(w):
        hidden = {"weight": w, "bias": params["hidden1"]["bias"]}
        return jnp.mean(made.objective(params | {"hidden1": hidden}, batch))

    w, step = params["hidden1"]["weight"], 1e-5 * jnp.array([[1.0, -2.0]])
    rise = (loss(w + step) - loss(w - step)) / 2
    assert jnp.abs(rise) > 1e-9
    np.testing.assert_allclose(jnp.sum(jax.grad(loss)(w) * step), rise, rtol=1e-5)


def test_grid_is_the_whole_cube():
    np.testing.assert_allclose(fitting.grid(2, 2), [[0, 0], [0, 1], [1, 0], [1, 1]])


def _fits(points: int) -> dict[int, fitting.Fit]:
    errors = {1: np.array([0.3, 0.2]), 4: np.array([0.01, 0.02])}
    return {M: fitting.Fit(e, e / 2, np.full(points, 0.4), int(e.argmin()), 3.0) for M, e in errors.items()}


def test_table_and_picture_show_the_best_run():
    fits = {"kink": _fits(2001), "surface": _fits(101**2)}
    rows = [line.split() for line in approximation.table(fits).splitlines()]
    assert rows[1] == ["kink", "1", "1.0e-01", "2.0e-01", "2.5e-01", "3.0e-01", "3.0e+00"]
    assert rows[4] == ["surface", "4", "5.0e-03", "1.0e-02", "1.5e-02", "2.0e-02", "3.0e+00"]
    kink, _, below, _ = approximation.plot(fits).axes
    x = np.linspace(0, 1, 2001)
    np.testing.assert_allclose(kink.lines[0].get_ydata(), np.abs(x - 0.5), atol=1e-6)
    np.testing.assert_allclose(kink.lines[1].get_ydata(), 0.4)
    for line, y in zip(below.lines, ([0.2, 0.01], [0.1, 0.005]), strict=True):
        np.testing.assert_allclose(line.get_xdata(), [1, 4])
        np.testing.assert_allclose(line.get_ydata(), y)


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    cases = {
        "--units must be rising numbers of at least 1, got (4, 2)": ["--units", "4", "2"],
        "--restarts must be at least 1, got 0": ["--restarts", "0"],
        "--updates must be at least 1": ["--updates", "-1"],
        "--learning-rate must be a finite number above 0": ["--learning-rate", "inf"],
    }
    for message, arguments in cases.items():
        assert approximation.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_what_was_done(tmp_path, monkeypatch, capsys):
    def interrupted(target, M, **settings):
        if M == 8:
            raise KeyboardInterrupt
        return _fits(2001)[M]

    monkeypatch.setattr(approximation, "fitted", interrupted)
    assert approximation.main(["--units", "1", "4", "8", "--out", str(tmp_path)]) == 130
    shown = capsys.readouterr()
    assert "what had been written is kept" in shown.err
    assert "smooth" in shown.out
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    np.testing.assert_array_equal(np.load(tmp_path / "smooth.npz")["units"], [1, 4])
    assert (tmp_path / "universal_approximation.png").exists()
