"""`python -m nl_jax.conformance module:factory`: certifies an estimator and prints the certificate."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import jax

from nl_jax.conformance.certify import certify
from nl_jax.conformance.problem import chain, recurrent
from nl_jax.conformance.subject import Claims, Factory


def main(arguments: list[str] | None = None) -> int:
    """Prints the certificate; 0 if all checks passed, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m nl_jax.conformance", description=__doc__)
    parser.add_argument("factory", help="module:factory, with factory(objective) -> estimator; nl_jax:backprop")
    parser.add_argument("--biased", action="store_true", help="its mean is not claimed to be the gradient")
    parser.add_argument("--gradient-free", action="store_true", help="it takes no derivative of layers or losses")
    parser.add_argument("--evaluations", type=int, help="what one estimate costs, in evaluations of the objective")
    parser.add_argument("--verdict", help='what nl.audit finds, such as "three-factor"')
    parser.add_argument("--recurrent", action="store_true", help="certify on a recurrent network; for rules in time")
    parser.add_argument("--num-keys", type=int, default=3000, help="estimates that means are taken of (%(default)s)")
    parser.add_argument("--json", type=Path, help="a file for the certificate as data")
    args = parser.parse_args(arguments)
    claims = Claims(not args.biased, args.gradient_free, args.evaluations, args.verdict)
    try:
        with jax.enable_x64(True):  # where σ can be small, and algebra is told from rounding
            problem = recurrent if args.recurrent else chain
            certificate = certify(_found(args.factory), claims, problem=problem, num_keys=args.num_keys)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(f"{args.factory}: {error}")
    print(certificate._replace(subject=args.factory))
    if args.json is not None:
        try:
            args.json.write_text(json.dumps(certificate.as_dict(), indent=2))
        except OSError as error:
            parser.error(f"--json {args.json} cannot be written to: {error.strerror}")
    return 0 if certificate.passed else 1


def _found(name: str) -> Factory:
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise ValueError("write it as module:factory, such as nl_jax:backprop")
    sys.path.insert(0, "")  # modules where the command is given
    return getattr(importlib.import_module(module), attribute)


if __name__ == "__main__":
    sys.exit(main())
