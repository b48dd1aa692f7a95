"""docs/audit.md says what the code says."""

import functools
from pathlib import Path

import nl_jax as nl
from tests import problems, registry

PAGE = (Path(nl.__file__).parent.parent / "docs" / "audit.md").read_text()


def test_the_printed_tables_are_those_of_the_code():
    problem = problems.chain()
    for factory in (nl.backprop, functools.partial(nl.node_perturbation, num_samples=3)):
        audit = nl.audit(factory, problem.objective, problem.params, problem.batch)
        assert f"```\n{audit}\n```" in PAGE


def test_the_table_of_verdicts_holds_every_estimator():
    _, table = PAGE.split("| estimator | hidden layer | last layer |\n|---|---|---|\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[0].splitlines()]
    verdicts = {name: (hidden, last) for names, hidden, last in rows for name in names.split(", ")}
    assert verdicts == {name: entry.verdicts for name, entry in registry.ESTIMATORS.items()}
