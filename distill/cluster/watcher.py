"""The actor that units report to; a file of its own, as what its process imports is all that it weighs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Watcher:
    """An actor that holds the last report of every unit."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def start(self, unit: str, where: str) -> None:
        """Note that a unit starts, perhaps again."""
        starts = self.reports.get(unit, {}).get("starts", 0) + 1
        self.reports[unit] = {"where": where, "starts": starts}

    def report(self, unit: str, progress: dict[str, Any]) -> None:
        """Note how far a unit is."""
        self.reports[unit] |= progress

    def fail(self, unit: str, message: str) -> None:
        """Note the first error of a unit's processes."""
        self.errors.setdefault(unit, message)

    def wrong(self, unit: str) -> str:
        """Return the error of a unit's processes; empty if they have none."""
        return self.errors.get(unit, "")

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Return all reports."""
        return self.reports
