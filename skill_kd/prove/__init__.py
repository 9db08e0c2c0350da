"""Proof by enumeration: compare a loss's expected gradient with that of KL(student ‖ teacher) and of known losses.

``enumeration`` computes expectations, ``known`` lists common losses, ``judging`` compares. All three need torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from skill_kd.errors import MissingRequirementError
from skill_kd.prove.loading import load_loss
from skill_kd.prove.verdict import Verdict


def prove(loss: str, *, seeds: int = 4, teacher_mixes: Sequence[float] = (0.0, 0.2, 0.5)) -> Verdict:
    """Load a loss by ``module:function`` or ``path/to/file.py:function``, and judge it.

    Raises:
        UsageError: the loss cannot be loaded or called.
        MissingRequirementError: torch is not installed.
    """
    try:
        from skill_kd.prove.judging import judge
    except ModuleNotFoundError as error:
        raise MissingRequirementError(f"prove needs torch ({error}); pip install torch") from error
    return judge(load_loss(loss), loss, seeds, teacher_mixes)
