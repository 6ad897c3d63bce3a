"""What a check says, and when it stops a job."""

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Finding(NamedTuple):
  """One line of the check.

  Attributes:
    level: how bad it is.
    check: what was looked at.
    detail: what was found, and what to do about it.
  """

  level: Literal["ok", "warning", "error"]
  check: str
  detail: str


class PreflightError(ValueError):
  """Checkpoints that cannot be merged; says the first error."""


def require(findings: Sequence[Finding]) -> None:
  """Raises PreflightError with the first error, if there is one."""
  for finding in findings:
    if finding.level == "error":
      raise PreflightError(f"{finding.check}: {finding.detail}")


def table(findings: Sequence[Finding]) -> str:
  """The findings as aligned text."""
  width = max(len(finding.check) for finding in findings)
  marks = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
  return "\n".join(f"{marks[f.level]}  {f.check:<{width}}  {f.detail}" for f in findings)
