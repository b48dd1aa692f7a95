import json

import numpy as np
import pytest

from experiments.optimizers import __main__ as optimizers

pytestmark = pytest.mark.usefixtures("lenient")


@pytest.mark.slow
def test_down_the_valleys(tmp_path, capsys):
    settings = ["--evaluations", "200", "--rates", "13", "--target", "1e-10", "--out", str(tmp_path)]
    assert optimizers.main(settings) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    straight, bent = ({line["optimizer"]: line for line in lines[i : i + 7]} for i in (0, 7))
    assert list(straight) == list(bent) == list(optimizers.OPTIMIZERS)
    family = ["Fletcher–Reeves", "Polak–Ribière", "Hestenes–Stiefel", "Dai–Yuan"]
    assert [straight[of]["steps"] for of in family] == [2] * 4  # two dimensions
    assert straight["steepest descent"]["steps"] > 50
    assert all(bent[of]["final_value"] < 1e-8 for of in family)
    assert bent["steepest descent"]["evaluations_to_target"] is None
    with np.load(tmp_path / "rosenbrock.npz") as arrays:
        for of, line in bent.items():
            points, values, spent = (arrays[f"{of} {part}"] for part in ("points", "values", "evaluations"))
            np.testing.assert_allclose(values, 100 * (points[:, 1] - points[:, 0] ** 2) ** 2 + (1 - points[:, 0]) ** 2)
            assert np.all(np.diff(spent) >= 1)
            assert spent[-1] <= 200
            np.testing.assert_allclose(values[-1], line["final_value"])
    shown = capsys.readouterr().out
    assert "steepest descent" in shown
    assert "never" in shown
    assert (tmp_path / "optimizers.png").stat().st_size > 20_000


def test_bad_settings_are_one_line(tmp_path, capsys):
    assert optimizers.main(["--condition", "0.5", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: --condition must be a finite number of at least 1, got 0.5\n"
    assert not (tmp_path / "out").exists()
