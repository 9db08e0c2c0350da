"""What the kinds of a spec's stages and objectives ask for; without torch, so that spec and plan read it here too."""

from __future__ import annotations

from typing import Any

TEXT_ALONE = frozenset({"sft", "sequence_kd"})
"""Objectives that learn from written responses, whoever wrote them."""


def reads_teacher(stage: object) -> bool:
    """Return whether a stage, or an objective, needs the teacher's probabilities, not only its text.

    ``stage`` has a ``kind`` and perhaps an ``objective``, as in the spec and in its ``Config``.
    """
    objective: Any = getattr(stage, "objective", stage)
    return objective.kind not in TEXT_ALONE
