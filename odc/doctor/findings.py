"""What is said of one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, ADVICE, PROBLEM = "ok", "advice", "problem"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do."""

    name: str
    status: str  # "ok", "advice" (it works, but could be better) or "problem"
    found: str
    remedy: str = ""

    def describe(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)


def told(findings: Sequence[Finding]) -> str:
    """Return the lines for a terminal, and a last one that counts."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        remedy = f": {finding.remedy}" if finding.remedy else ""
        lines.append(f"{finding.status:8}{finding.name:{width}}  {finding.found}{remedy}")
    problems, advice = (sum(f.status == status for f in findings) for status in (PROBLEM, ADVICE))
    many = f"{problems} problem{'s' * (problems != 1)}" if problems else "no problems"
    return "\n".join([*lines, "", f"{many}, {advice or 'no'} advice"])


def size(number: float) -> str:
    """Return a number of bytes as a person reads it."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def duration(seconds: float) -> str:
    """Return a time as a person reads it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
