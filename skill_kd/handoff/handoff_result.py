"""The result of a hand-off, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skill_kd.handoff.student_folder import Check, failures

SHOWN = ("forward_kl", "reverse_kl", "held_out_nll", "student_entropy", "distinct_2", "length", "repetition", "ended")
"""Measures in the drift table. Forward KL, entropy and distinct bigrams show coverage."""
MARKS = {True: "ok", False: "FAILED", None: "-"}


@dataclass
class HandoffResult:
    """A verified student, and the files written to the run's ``handoff/``."""

    folder: Path
    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Edited files, which the hand-off left unchanged."""
    checks: list[Check] = field(default_factory=list)
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    """Held-out measures of ``student`` and ``finetuned``, on the run's prompts and teacher samples."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        fields = asdict(self)
        fields["figures"] = fields.pop("measures")
        return {**fields, "folder": str(self.folder)}

    def failed(self) -> list[str]:
        """Return one line for each check that failed."""
        return failures(self.checks)

    def table(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{MARKS[each['passed']]:<7} {each['name']:<18} {each['detail']}" for each in self.checks]
        lines += [f"note    {note}" for note in self.notes]
        lines += self._drift()
        lines += [f"{self.folder / name}" for name in self.written]
        lines += [f"{self.folder / name}  (edited, kept)" for name in self.kept]
        return "\n".join(lines)

    def _drift(self) -> list[str]:
        if "finetuned" not in self.measures:
            return []
        before, after = self.measures["student"], self.measures["finetuned"]
        names = [name for name in before if name in after and name.removesuffix("_topk") in SHOWN]
        rows = [(name, before[name], after[name], after[name] - before[name]) for name in names]
        lines = [f"{name:<18} {old:>9.3f} {new:>10.3f} {change:>+8.3f}" for name, old, new, change in rows]
        return [f"{'held out':<18} {'distilled':>9} {'fine-tuned':>10} {'change':>8}", *lines]
