"""A diagnosis as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from skill_kd.diagnose.changes.change_signs import Sign
from skill_kd.diagnose.changes.change_statistics import FEWEST_WINDOWS
from skill_kd.diagnose.changes.detectors import VERSION
from skill_kd.diagnose.changes.scan import Scan
from skill_kd.diagnose.changes.series import Point
from skill_kd.diagnose.report.log_findings import LogFinding, Phrase
from skill_kd.diagnose.report.pilot import Pilot
from skill_kd.diagnose.report.text import REPLAY, cause, terminal
from skill_kd.guidance import BY_KEY


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of one or more logs."""

    scan: Scan
    points: tuple[Point, ...]
    """One for each window."""
    findings: tuple[LogFinding, ...]
    """Strongest first."""
    explained: tuple[Sign, ...]
    """Changes that a change of something else explains."""
    notes: tuple[str, ...]
    seen: dict[str, float | None]
    """Smallest step that would have been detected, by detector."""
    pilot: Pilot | None = None
    replay: str | None = None
    """File of the replay plan."""
    baseline: Scan | None = None

    @property
    def by_day(self) -> bool:
        """True if windows are days."""
        return isinstance(self.scan.windows.unit, str)

    @property
    def status(self) -> str:
        """``findings``, ``nothing found``, or ``too little data`` to find anything."""
        if self.findings:
            return "findings"
        enough = len(self.points) >= FEWEST_WINDOWS or self.baseline is not None
        return "nothing found" if enough and self.scan.rows >= 200 else "too little data"

    def when(self, at: int) -> str:
        """Return the name of a window: its ISO date, or its first line."""
        return when(self.points[at].start, self.by_day)

    def to_json(self) -> dict[str, object]:
        """Return all of it as values for JSON. Dates are ISO 8601, and unknown numbers are null."""
        windows = self.scan.windows
        return {
            "status": self.status,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": {
                "formats": self.scan.formats,
                "lines": self.scan.lines,
                "answers": self.scan.rows,
                "bad": self.scan.bad,
                "drops": dict(self.scan.drops),
                "baseline_answers": self.baseline.rows if self.baseline else None,
            },
            "window": {"unit": "day" if self.by_day else "line", "width": windows.width},
            "findings": [self._finding(each) for each in self.findings],
            "explained": [self._sign(each) for each in self.explained],
            "would_be_seen": self.seen,
            "windows": [{"start": when(each.start, self.by_day), **each.to_json()} for each in self.points],
            "notes": list(self.notes),
            "replay": {"plan": REPLAY, "file": self.replay},
            "pilot": _pilot(self.pilot),
        }

    def _finding(self, finding: LogFinding) -> dict[str, object]:
        entry = BY_KEY[finding.key]
        return {
            "finding": finding.key,
            "seen": entry.seen,
            "means": entry.means,
            "since": self.when(finding.at) if finding.at is not None else None,
            "likely_cause": self._cause(finding),
            "signs": [self._sign(each) for each in finding.signs],
            "could_be": list(finding.could_be),
            "remedies": [{"do": each.do, "takes": each.cost, "evidence": each.evidence} for each in entry.remedies],
            "against": entry.against,
            "openings": [_phrase(each) for each in finding.openings],
            "clusters": [_phrase(each) for each in finding.clusters],
            "examples": list(finding.examples),
        }

    def _cause(self, finding: LogFinding) -> dict[str, object] | None:
        if (deployment := finding.deployment) is None:
            return None
        return {
            "factor": VERSION,
            "version": deployment.version,
            "instead_of": deployment.instead_of,
            "deployed": self.when(deployment.at),
            "sentence": cause(self, deployment, finding.signs),
        }

    def _sign(self, sign: Sign) -> dict[str, object]:
        return {
            "detector": sign.detector.key,
            "verdict": sign.verdict,
            "since": self.when(sign.at) if sign.at is not None else None,
            "before": finite(sign.before),
            "after": finite(sign.after),
            "difference": finite(sign.difference),
            "interval": [finite(sign.low), finite(sign.high)],
            "effect": finite(sign.effect),
            "p": sign.p,
            "answers": list(sign.answers),
            "explained_by": list(sign.explained_by),
        }

    def table(self) -> str:
        """Return the diagnosis as text for a terminal."""
        return terminal(self)


def when(start: int, by_day: bool) -> str:
    """Return the name of a window's start."""
    return (date(1970, 1, 1) + timedelta(days=start)).isoformat() if by_day else f"line {start + 1}"


def finite(value: float | None) -> float | None:
    """Return the number, or None if JSON cannot hold it."""
    return value if value is not None and math.isfinite(value) else None


def _phrase(phrase: Phrase) -> dict[str, object]:
    text = {"text": phrase.text} if phrase.text is not None else {}
    return {"id": phrase.id, "before": phrase.before, "after": phrase.after, "topics": phrase.topics, **text}


def _pilot(pilot: Pilot | None) -> dict[str, object] | None:
    if pilot is None:
        return None
    change = {"path": pilot.path, "before": pilot.before, "after": pilot.after}
    return {"finding": pilot.finding, **change, "files": [str(file) for file in pilot.files]}
