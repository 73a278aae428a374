"""``lumitok doctor``."""

from __future__ import annotations

from lumitok.cli.tables import console, table


def doctor() -> None:
    """Say what this machine has, and which weights."""
    from lumitok.pipelines.doctor import examine

    findings = examine()
    machine, versions = table("machine", ""), table("package", "version")
    for name, value in findings.machine.items():
        machine.add_row(name, value)
    for name, value in findings.versions.items():
        versions.add_row(name, value)
    weights = table("weights", "at hand", "MB", "licence", "from")
    for row in sorted(findings.weights, key=lambda row: not row.at_hand):
        at_hand = "yes" if row.at_hand else "no"
        weights.add_row(row.name, at_hand, f"{row.size / 1e6:.0f}", row.licence, row.source)
    printer = console()
    for part in (machine, versions, weights):
        printer.print(part)
        printer.print()
