"""Memory, time and cost of a run before anything is downloaded: from the spec and the models' configs alone."""

from __future__ import annotations

from skill_kd.plan.planner import plan
from skill_kd.plan.result import Plan

__all__ = ["Plan", "plan"]
