"""Verify a finished run's student, and hand it on to the fine-tuning step."""

from skill_kd.handoff.handoff_result import HandoffResult
from skill_kd.handoff.step import hand_on

__all__ = ["HandoffResult", "hand_on"]
