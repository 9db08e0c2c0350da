"""ONE decision table: which objective for which need, and which remedy for which finding.

Read by `advise`, by `diagnose` and, as Markdown, by SKILL.md. A remedy is a proposal for a pilot, never a certainty.
"""

from skill_kd.guidance.advice import Advice, advise
from skill_kd.guidance.markdown import findings_markdown, objectives_markdown
from skill_kd.guidance.specs import pilot
from skill_kd.guidance.table import BY_KEY, CHOICES, FINDINGS, Budget, Choice, Finding, Knob, Matters, Remedy, Teacher

__all__ = [
    "BY_KEY", "CHOICES", "FINDINGS", "Advice", "Budget", "Choice", "Finding", "Knob", "Matters", "Remedy", "Teacher",
    "advise", "findings_markdown", "objectives_markdown", "pilot",
]  # fmt: skip
