"""What was checked, what came out, and whether that is well."""

import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Outcome = Literal["passed", "failed", "noted"]


class Row(NamedTuple):
    """One check.

    Attributes:
      check: its name.
      outcome: "noted" is a finding that nothing was claimed about.
      said: what was found, in words and figures.
      figures: the same as data.
    """

    check: str
    outcome: Outcome
    said: str
    figures: Mapping[str, Any] = MappingProxyType({})


class Certificate(NamedTuple):
    """All checks of one estimator, as a table (`str` or `print`) or data (`as_dict`).

    Attributes:
      subject: what was checked.
      rows: by check.
    """

    subject: str
    rows: dict[str, Row]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """The checks that failed."""
        return [name for name, row in self.rows.items() if row.outcome == "failed"]

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        lines = [self.subject]
        for name, row in self.rows.items():
            first, *more = textwrap.wrap(row.said, 90) or [""]
            lines.append(f"  {row.outcome:6}  {name:{width}}  {first}")
            lines += [" " * (width + 12) + line for line in more]
        failed, count = len(self.failures), len(self.rows)
        lines.append(f"NOT certified: {failed} of {count} checks failed" if failed else f"certified: {count} checks")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = {name: {"outcome": row.outcome, "said": row.said, **row.figures} for name, row in self.rows.items()}
        return {"subject": self.subject, "certified": self.passed, "checks": rows}
