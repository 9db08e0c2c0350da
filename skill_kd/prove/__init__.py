"""Proof by enumeration: is a loss's expected gradient that of KL(student ‖ teacher)? If not, what is it?

``enumeration`` computes expectations, ``known`` lists common losses, ``judging`` compares. All need torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from skill_kd.errors import MissingRequirementError
from skill_kd.prove.loading import load_loss
from skill_kd.prove.verdict import Verdict


def prove(loss: str, *, seeds: int = 4, teacher_mixes: Sequence[float] = (0.0, 0.2, 0.5)) -> Verdict:
    """Load the loss that ``module:function`` or ``path/to/file.py:function`` names, and judge it.

    Raises:
        UsageError: it cannot be loaded or called.
        MissingRequirementError: torch is not installed.
    """
    try:
        from skill_kd.prove.judging import judge
    except ModuleNotFoundError as error:
        raise MissingRequirementError(f"prove computes with torch ({error}); pip install torch") from error
    return judge(load_loss(loss), loss, seeds, teacher_mixes)
