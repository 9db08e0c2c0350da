"""Counts the teacher's answers as text, and stops a run whose teacher gives too few that can be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..answers import Answer, Unusable
from ..errors import TrainingStopped

FIXES: Mapping[Unusable, str] = {
    Unusable.EMPTY: "check the teacher's chat template",
    Unusable.REASONING: (
        "raise rollout.max_new_tokens, or turn reasoning off, for example with "
        "data.chat_template_options: {enable_thinking: false}"
    ),
    Unusable.REFUSED: "remove those prompts, or use another teacher",
    Unusable.FILTERED: "remove those prompts, or turn the filter off",
    Unusable.TOOL_CALL: "serve the teacher without tools",
    Unusable.FAILED: "read the server's log",
}
LEAST_ASKED = 20
"""The share of unusable answers is taken of at least this many, so that one of the first few stops no run."""


class AnswerTally:
    """The number of answers of this process's teacher, and of those that cannot be used, by reason."""

    def __init__(self, most: float) -> None:
        self.most = most
        """Largest share of unusable answers, ``teacher.max_unusable``."""
        self.asked = self.reasoned = self.cut = 0
        """Numbers of all answers, and of those with text that had reasoning or that the length limit cut."""
        self.unusable: Counter[Unusable] = Counter()

    def add(self, answers: Sequence[Answer]) -> None:
        """Count answers.

        Raises:
            TrainingStopped: more than the allowed share cannot be used.
        """
        self.asked += len(answers)
        usable = [answer for answer in answers if answer.unusable is None]
        self.reasoned += sum(answer.reasoned for answer in usable)
        self.cut += sum(not answer.finished for answer in usable)
        self.unusable.update(answer.unusable for answer in answers if answer.unusable)
        if self.unusable.total() > self.most * max(self.asked, LEAST_ASKED):
            raise TrainingStopped(self.refusal())

    def refusal(self) -> str:
        """Return the counts and the fix as the message of an error."""
        fixes = "; ".join(FIXES[reason] for reason, _ in self.unusable.most_common(2))
        return f"{self._counts()}; {fixes}; or allow a larger share than {self.most:g} with teacher.max_unusable"

    def note(self) -> str | None:
        """Return the counts as a note, or None if all answers were used whole."""
        dropped = [f"{self._counts()}; those are not trained on"] if self.unusable else []
        reasoned = [f"{self.reasoned} of {self.asked} have reasoning, which is left out"] if self.reasoned else []
        cut = [
            f"{self.cut} of {self.asked} were cut by the length limit and teach no end; rollout.max_new_tokens sets it"
        ]
        told = dropped + reasoned + (cut if self.cut else [])
        return "teacher's answers: " + "; ".join(told) if told else None

    def _counts(self) -> str:
        reasons = ", ".join(f"{count} {reason.value}" for reason, count in self.unusable.most_common())
        return f"{self.unusable.total()} of {self.asked} answers of the teacher cannot be used ({reasons})"
