"""The certificate: checks, outcomes and figures."""

import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Outcome = Literal["passed", "failed", "not shown", "refused", "noted"]


class CheckResult(NamedTuple):
    """The result of one check.

    Attributes:
      check: its name.
      outcome: "passed", "failed" or one of three others. "noted" is a finding about which nothing was claimed. "not
        shown" is a claim without evidence against it, but with too few draws to find such evidence. "refused" is a
        problem that the estimator does not support.
      said: the finding in words and figures.
      figures: the finding as data; `figures["leaves"]`, if present, holds figures by leaf and is printed as a table.
    """

    check: str
    outcome: Outcome
    said: str
    figures: Mapping[str, Any] = MappingProxyType({})


class Certificate(NamedTuple):
    """All checks of one estimator; available as a table (`str` or `print`) or data (`as_dict`).

    Attributes:
      subject: the name of the estimator.
      rows: a row for each check.
    """

    subject: str
    rows: dict[str, CheckResult]

    @property
    def passed(self) -> bool:
        """Whether no check failed or had too few draws."""
        return not self.failures and not self.not_shown

    @property
    def failures(self) -> list[str]:
        """The checks that failed."""
        return self._named("failed")

    @property
    def not_shown(self) -> list[str]:
        """The checks that found nothing wrong but had too few draws: more keys are needed."""
        return self._named("not shown")

    @property
    def refused(self) -> list[str]:
        """The problems that the estimator does not support."""
        return self._named("refused")

    def _named(self, outcome: Outcome) -> list[str]:
        return [name for name, row in self.rows.items() if row.outcome == outcome]

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        lines = [self.subject]
        for name, row in self.rows.items():
            first, *more = [*(textwrap.wrap(row.said, 90) or [""]), *_table(row.figures.get("leaves", {}))]
            lines.append(f"  {row.outcome:9}  {name:{width}}  {first}")
            lines += [" " * (width + 15) + line for line in more]
        count = len(self.rows)
        verdicts = [f"{len(self.failures)} failed"] * bool(self.failures)
        verdicts += [f"{len(self.not_shown)} not shown"] * bool(self.not_shown)
        verdict = f"NOT certified: {', '.join(verdicts)} of" if verdicts else "certified:"
        unclaimed = [name for name in self._named("noted") if name in ("calibration", "derivatives", "locality")]
        lines.append(f"{verdict} {count} checks" + f"; no claim was made on {', '.join(unclaimed)}" * bool(unclaimed))
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        rows = {name: {"outcome": row.outcome, "said": row.said, **row.figures} for name, row in self.rows.items()}
        return {"subject": self.subject, "certified": self.passed, "checks": rows}


def _table(leaves: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Formats a line for each leaf with draws: the mean's length and distance, and the smallest visible biases."""
    drawn = {name: leaf for name, leaf in leaves.items() if "visible_length" in leaf}
    if not drawn:
        return []
    width = max(map(len, ["leaf", *drawn]))
    lines = [f"{'leaf':{width}}  length of the mean  length seen from   off by  bias seen from"]
    for name, leaf in drawn.items():
        length = "the gradient is 0" if leaf["zero"] else f"{leaf['length']:.4f} ± {leaf['length_error']:.4f}"
        seen = "" if leaf["zero"] else f"± {leaf['visible_length']:.1%}"
        lines.append(
            f"{name:{width}}  {length:18}  {seen:>16}  {leaf['distance']:>7.1%}  {leaf['visible_distance']:>14.1%}"
            + "  biased" * leaf["biased"]
        )
    return lines
