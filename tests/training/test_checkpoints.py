"""What happens to a run with a checkpoint folder when its disk or its user fails it; SIGKILL: benchmarks.kills."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.training import checkpoints, files
from tests.training.problem import DATA, KEY, LEARNER, STEPS, fit, objective, same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole():
    """A run that nothing happened to."""
    return fit()


@pytest.fixture
def stopped(tmp_path):
    """A folder with saves at 10, 20, 30."""
    fit(tmp_path / "run", num_steps=30, every=10)
    return tmp_path / "run"


def _child(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.problem", str(folder)], stderr=subprocess.PIPE, text=True
    )


def _await(condition, child):
    deadline = time.monotonic() + 120
    while not condition():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _seals(folder):
    return sorted(int(path.stem) for path in (folder / "seals").glob("*.json"))


def test_sigterm_saves_says_how_to_go_on_and_exits_non_zero(tmp_path, whole):
    child = _child(tmp_path)
    _await(lambda: _seals(tmp_path), child)
    child.terminate()
    _, said = child.communicate(timeout=120)
    assert child.returncode == 143
    step = max(_seals(tmp_path))
    assert said.splitlines()[-1] == (
        f"SIGTERM: training stopped after step {step}, which is saved in {tmp_path}: repeat the same call to resume"
    )
    assert step < STEPS
    same(fit(tmp_path, every=20), whole)


def test_sigterm_is_a_documented_exception_and_the_old_handler_comes_back(tmp_path, whole, capsys):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(nl.Terminated) as caught:
            fit(
                tmp_path,
                every=100,
                log=lambda report: os.kill(os.getpid(), signal.SIGTERM) if report.step == 8 else None,
            )
        assert (caught.value.code, int(caught.value.state.step), len(caught.value.history.loss)) == (143, 8, 8)
        assert "repeat the same call to resume" in capsys.readouterr().err
        assert not heard
        signal.raise_signal(signal.SIGTERM)
        assert heard
    finally:
        signal.signal(signal.SIGTERM, before)
    same(fit(tmp_path, every=20), whole)


def test_a_finished_run_is_handed_back_and_a_longer_one_goes_on(stopped):
    told = []
    same(fit(stopped, num_steps=30, log=told.append), fit(num_steps=30))
    assert told == []
    same(fit(stopped, num_steps=40, every=20), fit(num_steps=40))
    with pytest.raises(ValueError, match="has 40 steps, more than num_steps=30: ask for at least as many"):
        fit(stopped, num_steps=30)


def test_only_the_newest_states_are_kept_and_all_of_the_history(tmp_path):
    fit(tmp_path, every=10)
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["40", "50", "60"]
    assert _seals(tmp_path) == [40, 50, 60]
    assert len(list((tmp_path / "history").iterdir())) == 6


def test_every_counts_steps_and_waits_for_the_end_of_a_dispatch(tmp_path):
    fit(tmp_path, num_steps=10, every=3)
    assert _seals(tmp_path) == [4, 6, 10]  # for steps 3, 6 and 9


def test_ctrl_c_saves_too(tmp_path, whole):
    def log(report):
        if report.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(nl.Interrupted, match=r"after step 8, which is saved in .*: repeat the same call to resume"):
        fit(tmp_path, log=log, every=100)
    same(fit(tmp_path, every=20), whole)


def test_a_run_that_log_stopped_is_finished(tmp_path):
    state, history = fit(tmp_path, log=lambda report: report.step >= 10)
    assert int(state.step) == len(history.loss) == 10
    same(fit(tmp_path), (state, history))


def test_what_is_not_finite_is_not_saved(tmp_path):
    wild = nl.learner(nl.backprop(objective), optax.sgd(1e38))
    start = wild.init(KEY, jnp.full((3, 1), 100.0))
    with pytest.raises(nl.Diverged, match="parameters are no longer finite after step 0"):
        nl.fit(wild, KEY, start, (jnp.ones((2, 3)), jnp.ones((2, 1))), num_steps=1, progress=False, checkpoint=tmp_path)
    assert _seals(tmp_path) == []


def test_a_full_disk(stopped, whole, monkeypatch):
    """What TensorStore says of a full disk, tried on a tmpfs of 3 MB, is long; the errno in it is what counts."""

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write", full)
        with pytest.raises(
            OSError, match=r"step 40 \(No space left on device\); the newest saved is step 30"
        ) as caught:
            fit(stopped, every=10)
    assert "\n" not in str(caught.value)
    tensorstore = "RESOURCE_EXHAUSTED: Error writing \"0\"\nFailed to write 7 bytes [os_error_code='28']"
    assert files.reason(ValueError(tensorstore)) == "No space left on device"
    same(fit(stopped, every=20), whole)


def test_a_write_that_the_kernel_refuses_orbax(stopped, whole):
    """No file may grow beyond what the records need, so that it is orbax that fails."""
    most = 1 + max(path.stat().st_size for path in (stopped / "history").iterdir())
    assert most < max(path.stat().st_size for path in (stopped / "steps" / "30").rglob("*"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(OSError, match=r"step 40 \(File too large\); the newest saved is step 30") as caught:
            fit(stopped, every=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    same(fit(stopped, every=20), whole)


def _damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damaged_files_of_the_newest_state(stopped, whole, how):
    files = sorted(path for path in (stopped / "steps" / "30").rglob("*") if path.is_file())
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        _damage(path, how)
        advice = rf"cannot be read \(.*\): remove {stopped}/steps/30 to go on from step 20$"
        with pytest.raises(OSError, match=advice) as caught:
            fit(stopped)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(content)
    _damage(files[-1], how)
    shutil.rmtree(stopped / "steps" / "30")
    same(fit(stopped, every=20), whole)


def test_a_damaged_history_costs_the_history_alone(stopped, whole):
    damaged = stopped / "history" / "10-20.npz"
    _damage(damaged, "truncated")
    with pytest.raises(OSError, match=r"remove it to go on without what was recorded until step 20$") as caught:
        fit(stopped)
    assert str(damaged) in str(caught.value)
    damaged.unlink()
    state, history = fit(stopped, every=20)
    same(state, whole[0])
    np.testing.assert_array_equal(history.loss, whole[1].loss[20:])


def test_a_damaged_description_is_made_anew(stopped, whole):
    _damage(stopped / "run.json", "truncated")
    with pytest.raises(OSError, match=r"run\.json cannot be read .*: remove this file if the folder is of this run$"):
        fit(stopped)
    (stopped / "run.json").unlink()
    same(fit(stopped, every=20), whole)


def test_the_only_state_damaged(tmp_path):
    fit(tmp_path, num_steps=10, every=10)
    _damage(tmp_path / "seals" / "10.json", "truncated")
    with pytest.raises(OSError, match=r"10\.json cannot be read .*: name another folder to begin anew$"):
        fit(tmp_path)


OTHER_NETWORK = LEARNER.init(KEY, jnp.zeros((4, 1)))
LATER = LEARNER.init(KEY, jnp.zeros((3, 1)))._replace(step=jnp.int32(5))
OTHER_OPTIMIZER = nl.learner(nl.backprop(objective), optax.sgd(0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": jax.random.key(3)}, r"another run: key is threefry2x32 \[0, 0\] there, threefry2x32 \[0, 3\] here"),
        ({"batch_size": 4}, "another run: data is batches of 8, shuffled, .* there, batches of 4, shuffled, .* here"),
        ({"data": (jnp.ones((9, 3)), jnp.ones((9, 1)))}, r"another run: data .* float32\[9, 3\]"),
        (
            {"state": OTHER_NETWORK},
            r"another network or optimizer: params is float32\[3,1\] there, float32\[4,1\] here",
        ),
        (
            {"learner": OTHER_OPTIMIZER, "state": OTHER_OPTIMIZER.init(KEY, jnp.zeros((3, 1)))},
            r"another network or optimizer: optimizer/0 is key<fry>\[\] there, missing here",
        ),
        (
            {"state": LEARNER.init(KEY, jnp.zeros((3, 1)))._replace(step=jnp.int32(5))},
            "another run: first step is 0 there, 5 here",
        ),
    ],
)
def test_a_folder_of_another_run(stopped, change, message):
    saved = sorted(path.relative_to(stopped) for path in stopped.rglob("*"))
    at = {"learner": LEARNER, "key": KEY, "state": LEARNER.init(KEY, jnp.zeros((3, 1))), "data": DATA, "batch_size": 8}
    with pytest.raises(ValueError, match=f"checkpoint folder {stopped} belongs to {message}") as caught:
        nl.fit(**{**at, **change}, num_steps=40, progress=False, checkpoint=stopped)
    assert "continue with the settings it began with, or name another folder" in str(caught.value)
    assert saved == sorted(path.relative_to(stopped) for path in stopped.rglob("*"))


@pytest.mark.parametrize(
    "record",
    [
        lambda state, info: info.loss,
        lambda state, info: (info.loss, info.loss),  # of the size of the default's
        lambda state, info: {"loss": info.loss, "steps": info.evaluations},
        lambda state, info: info._replace(loss=info.loss[None], residuals=(), failures=()),
    ],
    ids=["number", "dtype", "name", "shape"],
)
def test_other_records(stopped, record):
    with pytest.raises(ValueError, match="belongs to another run: record kept other values there"):
        fit(stopped, record=record)


def test_records_without_names(tmp_path, whole, monkeypatch):
    """As earlier versions saved them."""
    numbered = lambda records: {f"arr_{number}": x for number, x in enumerate(jax.tree.leaves(records))}
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_by_name", numbered)
        fit(tmp_path, num_steps=30, every=10)
    with pytest.raises(ValueError, match="belongs to another run: record kept other values there"):
        fit(tmp_path, record=lambda state, info: (info.loss, info.loss))
    same(fit(tmp_path, every=20), whole)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="exists but holds no run: name another folder"):
        fit(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_parameters_of_one_path_are_refused(tmp_path):
    """Each would be loaded as the other."""
    params = {"a": {"b": jnp.ones(2)}, "a/b": jnp.zeros(2)}
    learner = nl.learner(nl.backprop(lambda params, batch: batch * params["a"]["b"][0]), optax.sgd(0.1))
    with pytest.raises(ValueError, match="have the path 'params/a/b': rename the one"):
        nl.fit(learner, KEY, learner.init(KEY, params), jnp.ones(4), num_steps=1, checkpoint=tmp_path, progress=False)


def test_bad_settings(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="every=5 needs checkpoint"):
        fit(every=5)
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        fit(tmp_path, every=0)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(
        ImportError, match=r"checkpoint needs orbax: pip install 'nl_jax\[checkpoint\]', or leave it out"
    ):
        fit(tmp_path)


def test_records_of_any_dtype_come_back(tmp_path):
    def record(state, info):
        return {"half": info.loss.astype(jnp.bfloat16), "step": state.step, "weights": state.params}

    expected = fit(num_steps=8, record=record)
    fit(tmp_path, num_steps=4, record=record)
    same(fit(tmp_path, num_steps=8, record=record), expected)


def test_restarts_resume_alike(tmp_path):
    def score(params):
        return jnp.mean(objective(params, DATA))

    def run(folder=None, log=()):
        return nl.restarts(
            LEARNER, KEY, lambda key: jax.random.normal(key, (3, 1)), DATA, score=score, num_restarts=3, num_steps=12,
            batch_size=8, steps_per_dispatch=4, progress=False, checkpoint=folder, log=log,
        )  # fmt: skip

    def stop(report):
        if report.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(nl.Interrupted):
        run(tmp_path, stop)
    same(run(tmp_path)._asdict(), run()._asdict())
