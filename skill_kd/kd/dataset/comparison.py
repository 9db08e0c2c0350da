"""Two renderings compared: a teacher must read the prompts of its student in the format that it knows."""

from __future__ import annotations

from dataclasses import dataclass

from .encoding import Encoder
from .reading import Example
from .rendering import TemplateRefusal

_QUESTION = ("user", "The quick brown fox jumps over the lazy dog, and 12 times 12 makes 144.")
PROBES = {
    "a prompt": Example((_QUESTION,), None),
    "a prompt after a system turn": Example((("system", "Answer in one sentence."), _QUESTION), None),
    "a second prompt": Example((_QUESTION, ("assistant", "It does."), ("user", "And 13 times 13?")), None),
}
"""Conversations that templates often render differently."""
LONGEST = 300
"""Characters of a rendering that a message quotes."""


@dataclass(frozen=True)
class Difference:
    """A conversation that two encoders render differently, with both texts."""

    what: str
    ours: str
    theirs: str


def difference(ours: Encoder, theirs: Encoder) -> Difference | None:
    """Return the first conversation of ``PROBES`` that two encoders render differently, or None.

    Token ids are compared. A conversation that both chat templates refuse does not count.
    """
    for what, probe in PROBES.items():
        our_ids, their_ids = _ids(ours, probe), _ids(theirs, probe)
        if our_ids != their_ids:
            return Difference(what, _shown(ours, our_ids), _shown(theirs, their_ids))
    return None


def _ids(encoder: Encoder, probe: Example) -> tuple[int, ...] | None:
    try:
        return encoder.prompt(probe).prompt
    except TemplateRefusal:
        return None


def _shown(encoder: Encoder, ids: tuple[int, ...] | None) -> str:
    if ids is None:
        return "nothing (it refuses the roles)"
    text = str(encoder.tokenizer.decode(ids))
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")
