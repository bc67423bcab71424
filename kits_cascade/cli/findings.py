"""What is printed of cases that need a look: by name, each with its reason, on the error stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kits_cascade.cli.root import errors
from kits_cascade.words import some

if TYPE_CHECKING:
    from kits_cascade.evaluation.pairs import Finding

_MOST_NAMED = 10


def print_findings(findings: tuple[Finding, ...]) -> None:
    """Every error by a line of its own; missing and extra cases by name, shortened where they are many."""
    for kind, word in (("missing", "without a prediction"), ("extra", "without a truth")):
        names = [finding.case for finding in findings if finding.kind == kind]
        if names:
            where = " (see evaluation.json)" if len(names) > _MOST_NAMED else ""
            errors.print(f"{kind}: {len(names)} {word}: {some(names, _MOST_NAMED)}{where}", markup=False)
    for finding in findings:
        if finding.kind == "error":
            errors.print("not scored:", str(finding), style="bold red", markup=False)


def print_reasons(title: str, reasons: dict[str, str], style: str) -> None:
    """Cases that need a look, each with the reason, on the error stream."""
    if reasons:
        errors.print(f"{title} ({len(reasons)}):", style=style, markup=False)
        for name, reason in reasons.items():
            errors.print(f"  {name}: {reason}", markup=False)
