"""Exact figures of every response position, over the whole vocabulary, with flat memory.

Both models read a response in segments with their caches, so each token passes once through each model and only one
segment's logits exist at a time. Shape letters: B rows, T response positions, S positions of a segment, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from skill_kd.runtime.batching import Batch

LOGITS = 2**24
"""Logits of one model that exist at once, at most, unless a single position of all rows has more: 64 MiB in float32."""
LIKELIEST = 256
"""Tokens among which the nucleus is looked for first; only positions with a wider one are sorted whole."""


def segments(model: nn.Module, batch: Batch, vocabulary: int, size: int) -> Iterator[Tensor]:
    """Yield logits_BSV that predict the response tokens, ``size`` positions at a time."""
    start = batch.ids_BL.shape[1] - batch.width
    cache, seen = None, 0
    for begin in range(0, batch.width, size):
        end = min(begin + size, batch.width)
        through = start - 1 + end
        output = model(
            input_ids=batch.ids_BL[:, seen:through],
            attention_mask=batch.attention_mask_BL[:, :through],
            position_ids=batch.position_ids_BL[:, seen:through],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=end - begin,
        )
        cache, seen = output.past_key_values, through
        yield output.logits[..., :vocabulary]


def figures(student: nn.Module, teacher: nn.Module, batch: Batch, vocabulary: int, top_p: float) -> dict[str, Tensor]:
    """Return named figures [B, T] in float64 on the CPU; the batch's mask says which positions are real.

    ``forward_kl`` KL(teacher ‖ student), ``reverse_kl`` KL(student ‖ teacher) and entropies, in nats.
    ``coverage`` the teacher's mass in the student's nucleus, ``coverage_own`` in its own; ``precision`` and
    ``precision_own`` the same with the roles swapped. ``…_confidence`` the likeliest token's probability and
    ``…_right`` whether it is the one that stands there.
    """
    import torch

    size = max(1, LOGITS // (len(batch.ids_BL) * vocabulary))
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        both = zip(segments(student, batch, vocabulary, size), segments(teacher, batch, vocabulary, size), strict=True)
        for number, (student_logits, teacher_logits) in enumerate(both):
            ids_BS = batch.response_BT[:, number * size : (number + 1) * size]
            for name, value_BS in _of_segment(student_logits, teacher_logits, ids_BS, top_p).items():
                parts.setdefault(name, []).append(value_BS.double().cpu())
    return {name: torch.cat(each, dim=1) for name, each in parts.items()}


def _of_segment(student_logits: Tensor, teacher_logits: Tensor, ids_BS: Tensor, top_p: float) -> dict[str, Tensor]:
    from skill_kd.algorithms import divergences

    student, teacher = divergences.log_probs(student_logits), divergences.log_probs(teacher_logits)
    found = {
        "forward_kl": divergences.forward_kl(student, teacher),
        "reverse_kl": divergences.reverse_kl(student, teacher),
        "student_entropy": divergences.entropy(student),
        "teacher_entropy": divergences.entropy(teacher),
    }
    found["coverage"], found["precision_own"] = mass_in_nucleus(student, (teacher, student), top_p)
    found["precision"], found["coverage_own"] = mass_in_nucleus(teacher, (student, teacher), top_p)
    for name, logp in (("student", student), ("teacher", teacher)):
        best = logp.max(dim=-1)
        found[f"{name}_confidence"] = best.values.exp()
        found[f"{name}_right"] = (best.indices == ids_BS).float()
    return found


def mass_in_nucleus(of_BSV: Tensor, masses_BSV: tuple[Tensor, ...], top_p: float) -> list[Tensor]:
    """Return, for each of ``masses`` (log-probabilities), its probability [B, S] inside the nucleus of ``of``.

    The nucleus is the smallest set of likeliest tokens whose probability reaches ``top_p``, as the sampler cuts it.
    """
    import torch

    vocabulary = of_BSV.shape[-1]

    def inside(of: Tensor, masses: tuple[Tensor, ...], width: int) -> tuple[Tensor, list[Tensor]]:
        ranked, order = of.topk(width, dim=-1)
        share = ranked.exp()
        before = share.cumsum(dim=-1) - share
        whole = share.sum(dim=-1) >= top_p
        return whole, [torch.where(before < top_p, mass.gather(-1, order).exp(), 0.0).sum(dim=-1) for mass in masses]

    whole, found = inside(of_BSV, masses_BSV, min(LIKELIEST, vocabulary))
    wide = ~whole
    if vocabulary > LIKELIEST and bool(wide.any()):
        _, rest = inside(of_BSV[wide], tuple(mass[wide] for mass in masses_BSV), vocabulary)
        for value, exact in zip(found, rest, strict=True):
            value[wide] = exact
    return found
