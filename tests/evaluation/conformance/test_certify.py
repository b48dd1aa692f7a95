"""The certificate, and the command that prints it."""

import functools
import json
import re

import jax.numpy as jnp
import pytest

import nl_jax as nl
from nl_jax.evaluation.conformance import Claims, certify, freedom
from nl_jax.evaluation.conformance.__main__ import main
from nl_jax.evaluation.conformance.certificate import Certificate, CheckResult


def broken(objective):
    def estimate(key, state, params, batch):
        raise KeyError("hidden")

    return nl.GradientEstimator(lambda key, params: (), estimate)


def test_what_raises_has_failed_and_says_with_what():
    certificate = certify(broken, num_keys=2, max_keys=2)
    assert not certificate.passed
    assert certificate.rows["shapes"].said == "KeyError: 'hidden'"
    assert "signatures" not in certificate.failures
    assert str(certificate).splitlines()[0] == "broken"
    assert str(certificate).splitlines()[-1].startswith("NOT certified: ")


@pytest.mark.parametrize(
    ("factory", "error", "said"),
    [
        (nl.reinforce, ValueError, r"factory must take one argument, got reinforce"),
        (lambda objective: objective, TypeError, r"must return a nl\.GradientEstimator"),
    ],
)
def test_what_is_no_factory_is_refused(factory, error, said):
    with pytest.raises(error, match=said):
        certify(factory)


def test_one_key_has_no_standard_error():
    with pytest.raises(ValueError, match="num_keys must be at least 2"):
        certify(nl.backprop, num_keys=1)


def test_no_two_columns_of_its_table_share_a_name():
    leaf = {"length": 1.0, "length_error": 0.1, "distance": 0.2, "biased": True, "zero": False}
    leaf |= {"visible_length": 0.3, "visible_distance": 0.4}
    rows = {"calibration": CheckResult("calibration", "failed", "off", {"leaves": {"weight": leaf}})}
    header, line = str(Certificate("some", rows)).splitlines()[2:4]
    names = re.split(r"\s{2,}", header.strip())
    assert names == ["leaf", "length of the mean", "length seen from", "off by", "bias seen from"]
    assert re.split(r"\s{2,}", line.strip()) == ["weight", "1.0000 ± 0.1000", "± 30.0%", "20.0%", "40.0%", "biased"]
    ends = [header.index(name) + len(name) for name in names[2:]]
    assert [line.index(value) + len(value) for value in ("± 30.0%", "20.0%", "40.0%")] == ends


class Settings:
    """A factory that is no function."""

    def __call__(self, objective):
        return broken(objective)


@pytest.mark.parametrize("factory", [Settings(), functools.partial(Settings())])
def test_a_factory_need_have_no_name(factory):
    assert certify(factory, num_keys=2, max_keys=2).subject == "Settings"


def test_a_certificate_that_cannot_be_saved_is_told_in_a_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(
            [
                "tests.evaluation.conformance.test_certify:broken",
                "--num-keys",
                "2",
                "--max-keys",
                "2",
                "--json",
                str(tmp_path),
            ]
        )
    said = capsys.readouterr()
    assert "NOT certified" in said.out
    assert f"--json {tmp_path} cannot be written to" in said.err


@pytest.mark.slow
def test_the_command_certifies(tmp_path, capsys):
    file = tmp_path / "certificate.json"
    assert main(["nl_jax:backprop", "--evaluations", "3", "--json", str(file)]) == 0
    printed, told = capsys.readouterr()
    assert [line.split(maxsplit=1)[1] for line in told.splitlines()] == list(json.loads(file.read_text())["checks"])
    assert printed.startswith("nl_jax:backprop\n")
    assert printed.endswith("\ncertified: 20 checks; no claim was made on derivatives, locality\n")
    saved = json.loads(file.read_text())
    assert saved["certified"]
    assert saved["checks"]["calibration"]["difference"] < 1e-12  # in float64
    assert jnp.asarray(0.0).dtype == jnp.float32  # and what follows is as it was


USUAL = ["--checks", "shapes", "calibration", "training", "derivatives", "locality"]


@pytest.mark.slow
def test_rules_in_time_are_certified_on_a_recurrent_network(capsys):
    assert main(["nl_jax:rtrl", "--recurrent", *USUAL]) == 0
    assert "certified: 5 checks" in capsys.readouterr().out
    assert main(["nl_jax:rtrl", *USUAL]) == 1
    assert "no loop named loop='time'" in " ".join(capsys.readouterr().out.split())


def test_a_verdict_that_no_audit_gives_is_told():
    claims = Claims(verdict="reads other axons, threefactor")
    row = certify(nl.backprop, claims, checks=[freedom.locality]).rows["locality"]
    assert row.outcome == "failed"
    assert "'threefactor' is not one of local, three-factor, reads other axons" in row.said


def test_the_command_fails_what_is_not_as_claimed(capsys):
    assert main(["nl_jax:backprop", "--gradient-free", "--verdict", "local", *USUAL]) == 1
    assert "NOT certified: 2 failed of 5 checks" in capsys.readouterr().out


@pytest.mark.slow
def test_too_few_draws_have_an_exit_status_of_their_own(capsys):
    arguments = ["nl_jax:weight_perturbation", "--num-keys", "50", "--max-keys", "50", "--checks", "calibration"]
    assert main(arguments) == 3
    assert "NOT certified: 1 not shown of 1 checks" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nl_jax", "nl_jax:nothing", "no.such.module:factory", "nl_jax:reinforce"])
def test_a_wrong_name_is_a_usage_error(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([name])
    assert f"error: {name}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no.such.module:factory", "module 'no.such.module' is neither in the working directory"),
        ("spsa.py:spsa", "nor on Python's path: write the module's name, such as spsa:spsa"),
        ("folder/spsa:spsa", "nor on Python's path: write the module's name, such as spsa:spsa"),
        (
            "nl_jax:backprop(c=1)",
            "module 'nl_jax' has no name 'backprop(c=1)'; for other settings give a factory a name",
        ),
    ],
)
def test_a_name_that_is_not_found_is_told_where_it_was_looked_for(name, said, capsys):
    with pytest.raises(SystemExit):
        main([name])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nl_jax", ":backprop"])
def test_half_a_name_is_told_how_to_write_it(name, capsys):
    with pytest.raises(SystemExit):
        main([name])
    assert "write it as module:factory" in capsys.readouterr().err
