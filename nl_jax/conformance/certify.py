"""All checks on one estimator."""

from nl_jax.checks import positive_integer, takes
from nl_jax.conformance import calibration, contract, freedom
from nl_jax.conformance.certificate import Certificate, Row
from nl_jax.conformance.problem import MakeProblem, chain
from nl_jax.conformance.subject import Claims, Factory, subject

CHECKS = (
    contract.signatures,
    contract.shapes,
    contract.info,
    contract.compilations,
    contract.reproducible,
    contract.randomness,
    contract.chunks,
    contract.bad_input,
    calibration.calibration,
    calibration.variance,
    calibration.loops,
    freedom.layers,
    freedom.derivatives,
    freedom.locality,
)


def certify(
    factory: Factory, claims: Claims | None = None, *, problem: MakeProblem = chain, num_keys: int = 3000
) -> Certificate:
    """Runs the checks that every estimator of this library passes, on anyone's.

    Precision is that of the caller: in float64 (`jax.enable_x64`) the algebra is judged to 1e-7, in float32 to 3e-3.

    Args:
      factory: `factory(objective) -> estimator`. Settings named `num_samples` and `chunk` are tried out if it has them.
      claims: what to hold it to; by default that its mean is the gradient.
      problem: on what, of `nl_jax.conformance.problem`: `chain`, a 4-5-3 tanh network with cross-entropy, or
        `recurrent`, two tanh units over four steps, for estimators that need a loop over time.
      num_keys: estimates that means are taken of, at least 2.

    Returns:
      A `Certificate`; print it. A check that raises has failed, and says with what.

    Raises:
      ValueError: for a factory that takes no objective, or fewer than 2 keys.
      TypeError: if the factory does not return an estimator.

    >>> import nl_jax as nl
    >>> from nl_jax.conformance import Claims, certify
    >>> certificate = certify(nl.backprop, Claims(evaluations=3))  # print(certificate)
    >>> certificate.passed, certificate.rows["randomness"].said
    (True, 'does not use its key')
    """
    takes("factory", factory, 1, "hand in nl.backprop or functools.partial(nl.node_perturbation, …), not the estimator")
    if positive_integer("num_keys", num_keys) < 2:
        raise ValueError("num_keys must be at least 2: one estimate has no standard error")
    s = subject(factory, claims or Claims(), problem, num_keys)
    rows: dict[str, Row] = {}
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            rows[name] = check(s)
        except Exception as error:  # whatever someone's estimator raises is what is to be told
            rows[name] = Row(name, "failed", f"{type(error).__name__}: {error}")
    function = getattr(factory, "func", factory)  # of functools.partial
    return Certificate(getattr(function, "__name__", type(function).__name__), rows)
