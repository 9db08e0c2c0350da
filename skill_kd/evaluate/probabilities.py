"""Exact metrics at every response position, over the whole vocabulary, with bounded memory.

Both models read a response in segments with their caches. Each token passes once through each model, and only one
segment's logits exist at a time. Shape letters: B rows, T response positions, S positions of a segment, N positions
of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from skill_kd.kd.dataset.batch import Batch

LOGITS = 2**25
"""Largest number of one model's logits that exist at once: 128 MiB in float32.

One position of all rows may exceed it. Half of this number makes segments so short that full passes take longer; twice
this number is not faster.
"""
BLOCK, CPU_BLOCK = 2**24, 2**19
"""Probabilities of one model processed at once. The smaller block fits a CPU's L2 cache and is 5 times faster."""


def segments(model: nn.Module, batch: Batch, vocabulary: int, size: int) -> Iterator[Tensor]:
    """Yield logits_BSV that predict the response tokens, ``size`` positions at a time."""
    from skill_kd.kd.model.cached import CachedModel

    start = batch.ids_BL.shape[1] - batch.width
    cached, seen = CachedModel(model), 0
    for begin in range(0, batch.width, size):
        end = min(begin + size, batch.width)
        through = start - 1 + end
        read = cached.read(batch.ids_BL[:, seen:through], batch.attention_mask_BL[:, :through], end - begin)
        seen = through
        yield read.logits[..., :vocabulary]


def token_metrics(
    student: nn.Module, teacher: nn.Module, batch: Batch, vocabulary: int, top_p: float
) -> dict[str, Tensor]:
    """Return metrics [B, T] by name, in float64 on the CPU; 0 where the batch's mask is False.

    ``forward_kl``: KL(teacher ‖ student). ``reverse_kl``: KL(student ‖ teacher). These and the entropies are in nats.
    ``coverage``: the teacher's probability in the student's nucleus; ``coverage_own``: in its own. ``precision`` and
    ``precision_own``: the same with the roles swapped. ``…_confidence``: the likeliest token's probability.
    ``…_right``: 1 if the likeliest token is the actual token, else 0.
    """
    import torch

    size = max(1, LOGITS // (len(batch.ids_BL) * vocabulary))
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        both = zip(segments(student, batch, vocabulary, size), segments(teacher, batch, vocabulary, size), strict=True)
        for number, (student_logits, teacher_logits) in enumerate(both):
            here = slice(number * size, (number + 1) * size)
            ids_BS, mask_BS = batch.response_BT[:, here], batch.mask_BT[:, here]
            for name, value_BS in _of_segment(student_logits, teacher_logits, ids_BS, mask_BS, top_p).items():
                parts.setdefault(name, []).append(value_BS.double().cpu())
    return {name: torch.cat(each, dim=1) for name, each in parts.items()}


def _of_segment(
    student_logits: Tensor, teacher_logits: Tensor, ids_BS: Tensor, mask_BS: Tensor, top_p: float
) -> dict[str, Tensor]:
    import torch

    block = CPU_BLOCK if student_logits.device.type == "cpu" else BLOCK
    size = max(1, block // student_logits.shape[-1])
    parts = [torch.split(each.flatten(0, 1), size) for each in (student_logits, teacher_logits, ids_BS, mask_BS)]
    found: dict[str, list[Tensor]] = {}
    for student_NV, teacher_NV, ids_N, mask_N in zip(*parts, strict=True):
        for name, value in _of_block(student_NV[mask_N], teacher_NV[mask_N], ids_N[mask_N], top_p).items():
            found.setdefault(name, []).append(value.new_zeros(mask_N.shape).masked_scatter_(mask_N, value))
    return {name: torch.cat(each).view_as(ids_BS) for name, each in found.items()}


def _of_block(student_logits_NV: Tensor, teacher_logits_NV: Tensor, ids_N: Tensor, top_p: float) -> dict[str, Tensor]:
    from skill_kd.kd.losses import divergences

    student, teacher = divergences.log_probs(student_logits_NV), divergences.log_probs(teacher_logits_NV)
    found = {
        "forward_kl": divergences.forward_kl(student, teacher),
        "reverse_kl": divergences.reverse_kl(student, teacher),
        "student_entropy": divergences.entropy(student),
        "teacher_entropy": divergences.entropy(teacher),
    }
    student_p, teacher_p = student.exp(), teacher.exp()
    found["coverage"], found["precision_own"] = mass_in_nucleus(student_p, (teacher_p, student_p), top_p)
    found["precision"], found["coverage_own"] = mass_in_nucleus(teacher_p, (student_p, teacher_p), top_p)
    for name, logp in (("student", student), ("teacher", teacher)):
        best = logp.max(dim=-1)
        found[f"{name}_confidence"] = best.values.exp()
        found[f"{name}_right"] = (best.indices == ids_N).float()
    return found


def mass_in_nucleus(of: Tensor, masses: tuple[Tensor, ...], top_p: float) -> list[Tensor]:
    """Return, for each of ``masses`` (probabilities [..., V]), its probability [...] inside the nucleus of ``of``.

    The nucleus is the smallest set of likeliest tokens whose probability reaches ``top_p``, as in the sampler. It also
    includes every token as likely as the last one.
    """
    import torch

    ranked = _ascending(of)
    mass = ranked.cumsum(dim=-1)
    last = torch.searchsorted(mass, mass[..., -1:] - top_p, right=True).clamp(max=of.shape[-1] - 1)
    inside = torch.ge(of, ranked.gather(-1, last), out=torch.empty_like(of))  # 1.0 or 0.0
    return [torch.linalg.vecdot(inside, each) for each in masses]


def _ascending(values: Tensor) -> Tensor:
    import numpy as np
    import torch

    if values.device.type == "cpu":  # torch also sorts the indices, which takes ten times as long
        return torch.from_numpy(np.sort(values.numpy()))
    return values.sort().values
