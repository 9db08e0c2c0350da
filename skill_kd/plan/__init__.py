"""Memory, time and cost of a run, planned from the spec and the models' configs before any download."""

from __future__ import annotations

from skill_kd.plan.plan_result import Plan
from skill_kd.plan.planner import plan
from skill_kd.plan.sizing import Sizes, size

__all__ = ["Plan", "Sizes", "plan", "size"]
