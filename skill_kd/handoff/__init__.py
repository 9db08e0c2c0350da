"""A finished run's student, verified and handed on to the fine-tuning step that follows."""

from skill_kd.handoff.handoff_result import HandoffResult
from skill_kd.handoff.step import hand_on

__all__ = ["HandoffResult", "hand_on"]
