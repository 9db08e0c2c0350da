"""The log-probabilities that a server lists for a prompt, in vLLM's form (``prompt_logprobs``), checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Missing
from ..losses.divergences import LOG_ZERO

POSITIVE_NOISE = 1e-3
"""Largest log-probability (nats) that rounding can give: 16-bit logits err by less near 0."""
MASS_NOISE = 1e-2
"""A sum of probabilities may exceed 1 by this much: log-probabilities that were rounded to 16 bits err by less."""
PADDED_ROWS = 2048
"""Ids that a teacher may list beyond the student's vocabulary: embeddings are padded, by 1069 rows in gpt-oss."""
ENTRY_BYTES = 256
"""Enough bytes for one listed token: id, log-probability, rank and text take about 70."""


@dataclass(frozen=True)
class Scored:
    """One token that the server lists for a position. ``text`` is None if the server does not send it."""

    logp: float
    text: str | None


def read_prompt_logprobs(listed: Any, ids: Sequence[int], vocabulary: int, source: str) -> list[dict[int, Scored]]:
    """Return the tokens that the server lists, by token id, for each position of ``ids`` but the first.

    ``source`` names the server in messages.

    Raises:
        Missing: the positions are absent or not ours, or a value cannot be a log-probability. The message gives the
            position and the value.
    """
    try:
        positions = [_scored(position) for position in listed[1:]]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Missing(
            f"{source} answers without choices[0].prompt_logprobs, as vLLM gives them; "
            "serve the teacher with vLLM, or set top_logprobs: 0 and kind: sequence_kd"
        ) from error
    at_ids = list(zip(ids[1:], positions, strict=False))
    if len(positions) != len(ids) - 1 or any(token not in named for token, named in at_ids):
        raise Missing(
            f"{source} gives prompt_logprobs that do not belong to their positions "
            "(they may be shifted by one); serve the teacher with vLLM, or set top_logprobs: 0 and "
            "kind: sequence_kd"
        )
    for place, named in enumerate(positions, start=1):
        if wrong := _wrong(named, vocabulary):
            raise Missing(
                f"{source}: prompt_logprobs at position {place} of {len(ids)} {wrong}; serve the teacher with vLLM, "
                "without options that change its log-probabilities, or set top_logprobs: 0 and kind: sequence_kd"
            )
    # A server may write a probability of 0 as -inf.
    return [
        {token: Scored(max(each.logp, LOG_ZERO), each.text) for token, each in named.items()} for named in positions
    ]


def _scored(position: dict[str, dict[str, Any]]) -> dict[int, Scored]:
    texts = {token: each.get("decoded_token") for token, each in position.items()}
    return {
        int(token): Scored(float(each["logprob"]), text if isinstance(text := texts[token], str) else None)
        for token, each in position.items()
    }


def _wrong(named: dict[int, Scored], vocabulary: int) -> str | None:
    """Return what is wrong with the tokens of a position, or None."""
    for token, each in named.items():
        if not 0 <= token < vocabulary + PADDED_ROWS:
            return f"lists token {token}, and the student's vocabulary has {vocabulary}"
        if math.isnan(each.logp) or each.logp > POSITIVE_NOISE:
            return f"gives token {token} the log-probability {each.logp:g}, which is not 0 or less"
    mass = math.fsum(math.exp(each.logp) for each in named.values())
    return f"gives probabilities that sum to {mass:.4g}, more than 1" if mass > 1 + MASS_NOISE else None
