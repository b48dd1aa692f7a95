"""`python -m nl_jax.evaluation.conformance module:factory`: certifies an estimator and prints the certificate."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import jax

from nl_jax.evaluation.conformance.certificate import CheckResult
from nl_jax.evaluation.conformance.certifying import CHECKS, certify
from nl_jax.evaluation.conformance.problem import chain, recurrent
from nl_jax.evaluation.conformance.subject import Claims, Factory


def main(arguments: list[str] | None = None) -> int:
    """Prints the certificate; returns 0 if all checks passed, 1 if one failed, 3 if one had too few draws."""
    parser = argparse.ArgumentParser(
        prog="python -m nl_jax.evaluation.conformance",
        description=__doc__,
        epilog="exit code: 0 if all checks passed, 1 if one failed, 3 if one had too few draws",
    )
    parser.add_argument("factory", help="module:factory, with factory(objective) -> estimator, such as nl_jax:backprop")
    parser.add_argument("--biased", action="store_true", help="its mean is not claimed to be the gradient")
    parser.add_argument("--gradient-free", action="store_true", help="it takes no derivative of layers or losses")
    parser.add_argument("--evaluations", type=int, help="what one estimate costs, in evaluations of the objective")
    parser.add_argument("--verdict", help="what nl.audit finds: local, three-factor, sees the target, …")
    parser.add_argument("--recurrent", action="store_true", help="certify on a recurrent network; for rules in time")
    parser.add_argument("--num-keys", type=int, default=3000, help="estimates drawn at a time (%(default)s)")
    parser.add_argument(
        "--max-keys", type=int, help="estimates that a check may draw to show that there is no bias (400,000)"
    )
    parser.add_argument(
        "--checks",
        nargs="+",
        choices=[check.__name__ for check in CHECKS],
        help="which to run, all by default: %(choices)s",
        metavar="CHECK",
    )
    parser.add_argument("--json", type=Path, help="a file for the certificate as data")
    args = parser.parse_args(arguments)
    claims = Claims(not args.biased, args.gradient_free, args.evaluations, args.verdict)
    chosen = [check for check in CHECKS if args.checks is None or check.__name__ in args.checks]
    budget = {} if args.max_keys is None else {"max_keys": args.max_keys}
    try:
        with jax.enable_x64(True):  # allows small σ, and separates algebraic errors from rounding
            problem = recurrent if args.recurrent else chain
            certificate = certify(
                _found(args.factory),
                claims,
                problem=problem,
                num_keys=args.num_keys,
                checks=chosen,
                tell=_tell,
                **budget,
            )
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(f"{args.factory}: {error}")
    print(certificate._replace(subject=args.factory))
    if args.json is not None:
        try:
            args.json.write_text(json.dumps(certificate.as_dict(), indent=2))
        except OSError as error:
            parser.error(f"--json {args.json} cannot be written to: {error.strerror}")
    return 1 if certificate.failures else 3 if certificate.not_shown else 0


def _tell(result: CheckResult) -> None:
    """Shows the progress; the certificate itself is printed at the end, to the standard output."""
    print(f"{result.outcome:9}  {result.check}", file=sys.stderr, flush=True)


def _found(name: str) -> Factory:
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise ValueError("write it as module:factory, such as nl_jax:backprop")
    sys.path.insert(0, "")  # finds modules in the working directory
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # the module is there, and lacks one that it imports
            raise
        remedy = ": write the module's name, such as spsa:spsa" if module.endswith(".py") or "/" in module else ""
        raise ValueError(
            f"module {module!r} is neither in the working directory {Path.cwd()} nor on Python's path{remedy}"
        ) from None
    if not hasattr(found, attribute):
        raise ValueError(
            f"module {module!r} has no name {attribute!r}; for other settings give a factory a name in the module, "
            "such as small = functools.partial(my_estimator, sigma=1e-3)"
        )
    factory: Factory = getattr(found, attribute)
    return factory


if __name__ == "__main__":
    # Compiling some 150 programs is most of the time: without most optimisations it takes half, and they run no slower.
    jax.config.update("jax_disable_most_optimizations", True)
    sys.exit(main())
