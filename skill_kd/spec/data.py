"""The data: prompts, and responses where they exist."""

from __future__ import annotations

import keyword
import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from skill_kd.spec.section import Fraction, PositiveInt, Section, Text, refuse

TRAINER_OPTIONS = frozenset({"conversation", "messages", "tokenize", "add_generation_prompt", "chat_template"})
"""What the trainer tells a chat template itself."""


class Data(Section):
    """Prompts, and responses where they exist."""

    train: Text
    """JSONL or Parquet file, or hub id (``name@COMMIT`` pins it): ``prompt`` or ``messages``, perhaps ``response``."""
    split: Text = "train"
    """Split to read when ``train`` is a hub id."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Text = 0.05
    """Share of the training prompts set aside, or a file of its own."""
    max_overlap: Fraction = 0.0
    """Largest share of held-out prompts that may also be training prompts."""
    pretraining: Text | None = None
    """Corpus with a ``text`` field for the PT loss of MiniLLM."""
    chat_template_options: dict[Text, bool | int | float | str] = Field(default={})
    """What the chat template is told, for example ``enable_thinking: false`` for Qwen3, which thinks unless told."""
    max_prompt_tokens: PositiveInt = 256
    """Length of the longest prompt that is trained on, chat template included."""
    long_prompts: Literal["refuse", "drop"] = "refuse"
    """What to do when prompts are longer than ``max_prompt_tokens``; both say how many."""
    max_bad_rows: Fraction = 0.0
    """Largest share of unreadable rows that is skipped; above it the data is refused."""

    @model_validator(mode="after")
    def _options_are_the_template_s(self) -> Data:
        for name in self.chat_template_options:
            if not name.isidentifier() or keyword.iskeyword(name) or name in TRAINER_OPTIONS:
                raise refuse(f"chat_template_options: {name!r} is no name a chat template reads from here; drop it")
        return self

    @model_validator(mode="after")
    def _share_is_a_number(self) -> Data:
        if isinstance(self.held_out, str) and re.fullmatch(r"[\d.eE+-]+%?", self.held_out):
            raise refuse(f"held_out: {self.held_out!r} is text, so the name of a file; write a share as a bare 0.05")
        return self
