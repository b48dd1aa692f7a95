"""Certifies that an estimator meets the contract and its own claims.

python -m nl_jax.conformance module:factory
"""

from nl_jax.conformance.certificate import Certificate, Row
from nl_jax.conformance.certify import certify
from nl_jax.conformance.subject import Claims

__all__ = ["Certificate", "Claims", "Row", "certify"]
