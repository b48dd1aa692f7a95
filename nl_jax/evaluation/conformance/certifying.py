"""Runs all checks on one estimator."""

from collections.abc import Callable, Sequence

from nl_jax._core.require import positive_integer, takes
from nl_jax.evaluation.conformance import breadth, calibration, contract, freedom
from nl_jax.evaluation.conformance.certificate import Certificate, CheckResult
from nl_jax.evaluation.conformance.problem import MakeProblem, chain
from nl_jax.evaluation.conformance.subject import Claims, Factory, Subject, subject

Check = Callable[[Subject], CheckResult]

CHECKS: tuple[Check, ...] = (
    contract.signatures,
    contract.shapes,
    contract.info,
    contract.compilations,
    contract.reproducible,
    contract.eager,
    contract.randomness,
    contract.chunks,
    contract.bad_input,
    calibration.calibration,
    calibration.variance,
    breadth.training,
    breadth.loops,
    breadth.convolution,
    breadth.batch_norm,
    breadth.two_heads,
    breadth.half_precision,
    freedom.layers,
    freedom.derivatives,
    freedom.locality,
)
"""All checks. The functions' names are the names of the certificate's rows."""


def certify(
    factory: Factory,
    claims: Claims | None = None,
    *,
    problem: MakeProblem = chain,
    num_keys: int = 3000,
    max_keys: int = 400_000,
    checks: Sequence[Check] = CHECKS,
    tell: Callable[[CheckResult], None] | None = None,
) -> Certificate:
    """Runs the checks that every estimator of this library passes on any other estimator.

    The caller sets the precision: in float64 (`jax.enable_x64`) results are checked to 1e-7, in float32 to 3e-3.

    Each leaf's mean is compared with its gradient, with enough estimates to detect a bias of 2 % of the leaf's gradient
    in 19 of 20 cases. An unbiased estimator fails one such check in 10,000; see `nl.conformance.power`. If
    `max_keys` are too few for that, the check is "not shown" and the certificate says how many are needed.

    Args:
      factory: `factory(objective) -> estimator`. Settings named `num_samples` and `chunk` are tested if it has them.
      claims: the claims to check; by default that its mean is the gradient.
      problem: a problem from `nl.conformance.problem`: `chain`, a 4-5-3 tanh network with cross-entropy, or
        `recurrent`, two tanh units over four steps, for estimators that need a loop over time.
      num_keys: estimates drawn at a time, at least 2; reliable standard errors need a thousand or more.
      max_keys: estimates that each check may draw to show that there is no bias, at least `num_keys`.
      checks: the checks to run, from `nl.conformance.CHECKS`.
      tell: called with each result as soon as it is there, for progress.

    Returns:
      A `Certificate`; print it. A check that raises counts as failed, and its row reports the error.

    Raises:
      ValueError: for a factory that takes no objective, fewer than 2 keys, or a budget below them.
      TypeError: if the factory does not return an estimator.

    >>> import nl_jax as nl
    >>> from nl_jax.evaluation.conformance import Claims, calibration, certify, contract
    >>> some = [contract.info, contract.randomness, calibration.calibration]  # all, if left out
    >>> certificate = certify(nl.backprop, Claims(evaluations=3), checks=some)  # print(certificate)
    >>> certificate.passed, certificate.rows["randomness"].said
    (True, 'does not use its key')
    """
    takes(
        "factory", factory, 1,
        "hand in nl.backprop or functools.partial(nl.node_perturbation, num_samples=4), not the estimator",
    )  # fmt: skip
    if positive_integer("num_keys", num_keys) < 2:
        raise ValueError("num_keys must be at least 2: one estimate has no standard error")
    if positive_integer("max_keys", max_keys) < num_keys:
        raise ValueError(f"max_keys = {max_keys} is less than num_keys = {num_keys}: raise it, or lower num_keys")
    s = subject(factory, claims or Claims(), problem, num_keys, max_keys)
    rows: dict[str, CheckResult] = {}
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            rows[name] = check(s)
        except Exception as error:  # any error of the user's estimator is reported
            rows[name] = CheckResult(name, "failed", f"{type(error).__name__}: {error}")
        if tell is not None:
            tell(rows[name])
    function = getattr(factory, "func", factory)  # of functools.partial
    return Certificate(getattr(function, "__name__", type(function).__name__), rows)
