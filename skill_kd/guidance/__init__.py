"""The decision table: an objective for each need, and remedies for each finding.

`advise` and `diagnose` use it, and SKILL.md shows it as Markdown. A remedy is a proposal for a pilot, not a certainty.
"""

from skill_kd.guidance.advice import Advice, advise
from skill_kd.guidance.markdown import findings_markdown, objectives_markdown
from skill_kd.guidance.specs import pilot
from skill_kd.guidance.table import BY_KEY, CHOICES, FINDINGS, Budget, Choice, Finding, Knob, Matters, Remedy, Teacher

__all__ = [
    "BY_KEY", "CHOICES", "FINDINGS", "Advice", "Budget", "Choice", "Finding", "Knob", "Matters", "Remedy", "Teacher",
    "advise", "findings_markdown", "objectives_markdown", "pilot",
]  # fmt: skip
