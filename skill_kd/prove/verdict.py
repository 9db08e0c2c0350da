"""The verdict of ``prove`` on a loss, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["exact", "step_size", "forward_kl", "on_policy_only", "zero", "wrong_sign", "not_finite", "biased"]
SENTENCES: dict[Kind, str] = {
    "exact": "exact: its expected gradient is that of KL(student ‖ teacher)",
    "step_size": "exact up to a constant step size: the gradient of KL(student ‖ teacher) times {step:.4g}",
    "forward_kl": "the direction is swapped: this is forward KL, KL(teacher ‖ student), not KL(student ‖ teacher)",
    "on_policy_only": "exact on the student's own samples, biased with teacher-mixed samples: its weights are wrong",
    "zero": "on the student's own samples its expected gradient is 0: the student learns nothing from it",
    "wrong_sign": "the sign is wrong: a step increases KL(student ‖ teacher)",
    "not_finite": "its gradient is not finite",
    "biased": "biased: its expected gradient is not that of KL(student ‖ teacher)",
}


@dataclass(frozen=True)
class Case:
    """One pair of random policies, sampled with one α."""

    teacher_mix: float
    seed: int
    error: float
    """‖g − e‖ / ‖e‖, with g the expected gradient of the loss and e the gradient of KL(q ‖ p)."""
    cosine: float
    """Cosine between g and e."""
    step: float
    """Step size at which e is closest to g, g·e / e·e."""
    left: float
    """Error that remains at the best step size, ‖g − step·e‖ / ‖e‖."""
    cosine_with_forward: float
    """Cosine between g and the gradient of KL(p ‖ q)."""
    at_teacher: float
    """Norm of the expected gradient if the student equals the teacher."""


@dataclass(frozen=True)
class Verdict:
    """The result of ``prove``."""

    loss: str
    kind: Kind
    says: str
    same_as: str | None
    """Known loss with the same expected gradients up to a step size, without gradients at masked positions."""
    nearest: str
    """Known loss with the most similar gradient direction, and the cosine."""
    masked_positions_matter: bool
    cases: tuple[Case, ...]

    @property
    def exact(self) -> bool:
        """True if the loss is safe to train with: exact, up to a constant step size."""
        return self.kind in {"exact", "step_size"}

    def table(self) -> str:
        """Return the verdict for people."""
        masked = "affect the gradient, but must not" if self.masked_positions_matter else "do not affect the gradient"
        same = self.same_as or "none of the known losses"
        head = [("loss", self.loss), ("verdict", self.says), ("same gradient as", same)]
        head += [("most similar to", self.nearest)] * (self.same_as is None) + [("masked positions", masked)]
        columns = ("teacher_mix", "error", "cosine", "cosine with forward KL", "step size", "gradient at q = p")
        rows = [columns, *(self._row(mix) for mix in dict.fromkeys(case.teacher_mix for case in self.cases))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*(f"{name:<18}{text}" for name, text in head), "", *lines])

    def _row(self, teacher_mix: float) -> tuple[str, ...]:
        cases = [case for case in self.cases if case.teacher_mix == teacher_mix]
        return (
            f"{teacher_mix:g}",
            f"{max(case.error for case in cases):.1e}",
            _span([case.cosine for case in cases]),
            _span([case.cosine_with_forward for case in cases]),
            _span([case.step for case in cases]),
            f"{max(case.at_teacher for case in cases):.1e}",
        )

    def to_json(self) -> dict[str, object]:
        """Return the verdict for programs; numbers that are not finite are null."""
        cases = [
            {name: value if abs(value) < math.inf else None for name, value in asdict(case).items()}
            for case in self.cases
        ]
        return {**asdict(self), "exact": self.exact, "cases": cases}


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} … {high}"
