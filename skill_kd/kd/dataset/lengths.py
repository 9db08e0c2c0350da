"""Length limits: prompts and responses that are too long are refused, dropped or cut, and counted."""

from __future__ import annotations

import sys

from ..errors import BadInput
from .encoding import Encoded


def fit_prompts(encoded: list[Encoded], limit: int, policy: str, what: str) -> list[int]:
    """Return the indices of prompts of at most ``limit`` tokens. Longer ones are refused or dropped, and counted.

    Raises:
        BadInput: some are longer and ``policy`` is "refuse", or none is left.
    """
    kept = [index for index, row in enumerate(encoded) if len(row.prompt) <= limit]
    if len(kept) == len(encoded):
        return kept
    longest = max(len(row.prompt) for row in encoded)
    report = f"{len(encoded) - len(kept)} of {len(encoded)} {what} are longer than {limit} tokens (longest {longest})"
    if policy == "refuse" or not kept:
        raise BadInput(f"{report}; raise data.max_prompt_tokens, or set data.long_prompts: drop")
    print(f"note: {report}; they are left out", file=sys.stderr)  # noqa: T201
    return kept


def cut_responses(rows: list[Encoded | None], limit: int) -> list[Encoded | None]:
    """Cut written responses if prompt and response exceed ``limit`` tokens, and count them.

    A cut response has no EOS, so it does not teach the student to stop there.
    """
    fitting = [row and row.cut(limit) for row in rows]
    cut = sum(before != after for before, after in zip(rows, fitting, strict=True))
    if cut:
        written = sum(row is not None for row in rows)
        print(  # noqa: T201
            f"note: {cut} of {written} responses in the data are cut: with their prompts they exceed {limit} tokens "
            "(data.max_prompt_tokens + rollout.max_new_tokens)",
            file=sys.stderr,
        )
    return fitting
