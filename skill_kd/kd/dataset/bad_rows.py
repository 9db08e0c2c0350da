"""The rows of one source that cannot be used, counted against ``data.max_bad_rows``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from ..errors import BadInput

NAMED = 3
"""Number of reasons, and of rows for each reason, that a message lists."""


@dataclass
class BadRows:
    """The rows of one source that cannot be used, and why."""

    source: str
    allowed: float
    """Largest share of bad rows."""
    total: int = 0
    """Number of rows, good ones included."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """The places of the bad rows, such as ``line 3``, by reason."""
    reported: int = 0
    """Number of bad rows that a note has already counted."""

    def add(self, place: str, reason: str) -> None:
        """Count one more bad row."""
        self.places.setdefault(reason, []).append(place)

    @property
    def count(self) -> int:
        """Return the number of bad rows."""
        return sum(map(len, self.places.values()))

    def check(self) -> None:
        """Print a note about bad rows if there are new ones.

        Raises:
            BadInput: the share of bad rows is too large, or no row is left. The message names the first bad rows.
        """
        report = f"{self.count} of {self.total} rows of '{self.source}' cannot be used ({self._named()})"
        if self.count == self.total or self.count > self.allowed * self.total:
            raise BadInput(f"{report}; fix them, or allow a share with data.max_bad_rows")
        if self.count > self.reported:
            print(f"note: {report}", file=sys.stderr)  # noqa: T201
        self.reported = self.count

    def _named(self) -> str:
        reasons = []
        for reason, places in list(self.places.items())[:NAMED]:
            more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
            reasons.append(f"{', '.join(places[:NAMED])}{more}: {reason}")
        return "; ".join(reasons)
