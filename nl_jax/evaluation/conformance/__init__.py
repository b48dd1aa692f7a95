"""Certifies that an estimator meets the contract and its own claims.

python -m nl_jax.evaluation.conformance module:factory
"""

from nl_jax._core.deprecation import renamed as _renamed
from nl_jax.evaluation.conformance.certificate import Certificate, CheckResult
from nl_jax.evaluation.conformance.certifying import CHECKS, certify
from nl_jax.evaluation.conformance.subject import Claims

__all__ = ["CHECKS", "Certificate", "CheckResult", "Claims", "certify"]

__getattr__ = _renamed(__name__, {"Row": "CheckResult"})
