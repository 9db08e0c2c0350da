"""The needs of each kind of stage and objective. This module imports no torch, so that spec and plan can use it."""

from __future__ import annotations

from typing import Any

TEXT_ALONE = frozenset({"sft", "sequence_kd"})
"""Objectives that learn from the text of responses, whoever wrote them."""


def reads_teacher(stage: object) -> bool:
    """Return True if a stage or an objective needs the teacher's probabilities, not only its text.

    ``stage`` has a ``kind``, and may have an ``objective``. It comes from a ``Spec`` or from a ``Config``.
    """
    objective: Any = getattr(stage, "objective", stage)
    return objective.kind not in TEXT_ALONE


def reads_answers(stage: object) -> bool:
    """Return True if a stage or an objective learns from the responses in the data. ``stage`` is as above."""
    objective: Any = getattr(stage, "objective", stage)
    return objective.kind == "sft" or getattr(objective, "responses", "teacher") == "data"
