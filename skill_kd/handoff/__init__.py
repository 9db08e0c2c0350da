"""Verify the student of a finished run, and write the fine-tuning step for it."""

from skill_kd.handoff.handoff_result import HandoffResult
from skill_kd.handoff.step import hand_off

__all__ = ["HandoffResult", "hand_off"]
