"""Rows of tokens, and padded batches of them: prompts padded on the left, responses on the right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..files import record
from ..losses.estimators import Responses
from ..losses.masking import position_ids
from ..seeds import seeded


@dataclass(frozen=True)
class Row:
    """A prompt and a response to learn from."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    scored: tuple[bool, ...]
    """The loss mask: True for the response tokens that are trained on."""
    source: Literal["student", "teacher", "data"]
    """The writer of the response."""
    behaviour_logp: tuple[float, ...] | None = None
    """Log-probability (nats) with which each token was sampled; None if the response was not sampled here."""
    student_logp: tuple[float, ...] | None = None
    """The student's own log-probabilities, if a teacher took part in the sampling."""
    teacher_states: Tensor | None = field(default=None, compare=False, repr=False)
    """The teacher's final hidden states [T, H] that predict the response, if they are already known."""

    @classmethod
    def of(cls, values: object) -> Row:
        """Read a row back from JSON.

        Raises:
            ValueError: the values are not those of a row. The message gives the reason.
        """
        read = record(cls, values)
        lists: dict[str, Any] = {name: tuple(each) for name, each in vars(read).items() if isinstance(each, list)}
        row = replace(read, **lists)
        known = (each for each in (row.scored, row.behaviour_logp, row.student_logp) if each is not None)
        if not row.prompt or not row.response or any(len(each) != len(row.response) for each in known):
            raise ValueError("a row has no prompt, no response, or not one value for each token of the response")
        if min(row.prompt + row.response) < 0:
            raise ValueError(f"token id {min(row.prompt + row.response)} is negative")
        return row

    def to_json(self) -> dict[str, Any]:
        """Return the values that ``of`` reads, without the teacher's hidden states, which can be recomputed."""
        return {name: value for name, value in vars(self).items() if name != "teacher_states"}

    @property
    def tokens(self) -> int:
        """Return the number of scored tokens."""
        return sum(self.scored)


@dataclass(frozen=True, kw_only=True)
class Batch(Responses):
    """Rows as tensors: their responses, with the prompts before them. L = P + T: all responses begin at column P.

    ``response_BT`` is 0 at padding. ``behaviour_logp_BT`` is float32, None unless it is known for every row.
    """

    ids_BL: Tensor
    attention_mask_BL: Tensor
    position_ids_BL: Tensor
    teacher_states_BTH: Tensor | None = None
    """The teacher's final hidden states, None unless they are known for every row."""

    @property
    def width(self) -> int:
        """Return T, the number of response columns."""
        return self.response_BT.shape[1]


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids (long) and a bool mask, [B, longest], padded on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def collate(rows: Sequence[Row], pad: int, device: torch.device) -> Batch:
    """Pad rows to one batch. The values of the padding are never read."""
    prompts_BP, prompt_mask_BP = pad_left([row.prompt for row in rows], pad)
    longest = max(len(row.response) for row in rows)

    def right(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor([*values, *[0] * (longest - len(values))], dtype=dtype)

    response_BT = torch.stack([right(row.response, torch.long) for row in rows])
    real_BT = torch.stack([right([1] * len(row.response), torch.bool) for row in rows])
    attention_BL = torch.cat([prompt_mask_BP, real_BT], dim=1).long()
    sampled = [row.behaviour_logp for row in rows if row.behaviour_logp is not None]
    states = [row.teacher_states.to(device) for row in rows if row.teacher_states is not None]
    behaviour_BT = torch.stack([right(logp, torch.float32) for logp in sampled]) if len(sampled) == len(rows) else None
    return Batch(
        ids_BL=torch.cat([prompts_BP, response_BT], dim=1).to(device),
        attention_mask_BL=attention_BL.to(device),
        position_ids_BL=position_ids(attention_BL).to(device),
        response_BT=response_BT.to(device),
        mask_BT=torch.stack([right(row.scored, torch.bool) for row in rows]).to(device),
        behaviour_logp_BT=behaviour_BT.to(device) if behaviour_BT is not None else None,
        from_data_B=torch.tensor([row.source == "data" for row in rows], device=device),
        teacher_states_BTH=pad_sequence(states, batch_first=True) if len(states) == len(rows) else None,
    )


def epoch_stream(size: int, seed_key: tuple[object, ...], start: int = 0) -> Iterator[int]:
    """Yield indices below ``size`` forever, in a new seeded order each epoch, from position ``start`` on.

    The stream depends only on the position, so a resumed run needs no other state.
    """
    epoch, offset = divmod(start, size)
    while True:
        order = torch.randperm(size, generator=seeded(*seed_key, epoch)).tolist()
        yield from order[offset:]
        epoch, offset = epoch + 1, 0
