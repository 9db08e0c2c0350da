"""``loss_numbers.py FILE FUNCTION DIRECTION``: compare a loss on random logits with its definition; exit code 1 if they
differ.

The function takes student_logits [B, T, V], teacher_logits [B, T, V] and mask [B, T], and returns the mean over the
tokens of the mask, in nats.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from skill_kd.prove.loading import load_loss

Rows = list[list[list[float]]]


def reference(student: Rows, teacher: Rows, mask: list[list[bool]], direction: str) -> float:
    """Compute the definition, one token at a time, without torch."""
    total, count = 0.0, 0
    for student_row, teacher_row, mask_row in zip(student, teacher, mask, strict=True):
        for s, t, here in zip(student_row, teacher_row, mask_row, strict=True):
            if here:
                q, p = probabilities(s), probabilities(t)
                first, second = (q, p) if direction == "reverse" else (p, q)
                total += sum(a * math.log(a / b) for a, b in zip(first, second, strict=True))
                count += 1
    return total / count


def probabilities(logits: list[float]) -> list[float]:
    """Softmax."""
    weights = [math.exp(each) for each in logits]
    return [each / sum(weights) for each in weights]


def main(file: str, function: str, direction: str) -> int:
    """Compare on five draws, of which one has an almost empty mask."""
    loss = load_loss(f"{file}:{function}")
    for seed in range(5):
        draw = random.Random(seed)
        rows = [[[[draw.gauss(0, 1.5) for _ in range(7)] for _ in range(4)] for _ in range(3)] for _ in range(2)]
        mask = [[draw.random() < (0.1 if seed == 4 else 0.6) for _ in range(4)] for _ in range(3)]
        mask[0][0] = True
        tensors = [torch.tensor(each, dtype=torch.float64) for each in rows]
        student = tensors[0].requires_grad_()
        got = loss(student, tensors[1], torch.tensor(mask))  # type: ignore[call-arg]
        truth = reference(rows[0], rows[1], mask, direction)
        if got.shape != () or not math.isclose(got.item(), truth, rel_tol=1e-5):
            print(f"seed {seed}: {got.tolist()}, and {direction} KL is {truth}")
            return 1
        gradient = torch.autograd.grad(got, student)[0] if got.requires_grad else None
        if gradient is None or bool(gradient[~torch.tensor(mask)].any()):
            print(f"seed {seed}: no gradient, or gradient outside the mask")
            return 1
    print("five draws agree with the definition")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
