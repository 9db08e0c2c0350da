"""The data section: prompts, and responses if there are any."""

from __future__ import annotations

import keyword
import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from skill_kd.spec.section import Fraction, PositiveInt, Section, Text, refuse

TRAINER_OPTIONS = frozenset({"conversation", "messages", "tokenize", "add_generation_prompt", "chat_template"})
"""Arguments of a chat template that the trainer sets itself."""


class Data(Section):
    """Prompts, and responses if there are any."""

    train: Text
    """JSONL or Parquet file, or ``owner/name@COMMIT`` on the hub: ``prompt`` or ``messages``, optional ``response``."""
    split: Text = "train"
    """Split to read when ``train`` is a hub id."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Text = 0.05
    """Share of the training prompts to set aside, or the path of a separate file."""
    max_overlap: Fraction = 0.0
    """Largest share of held-out prompts that may also be training prompts."""
    pretraining: Text | None = None
    """Corpus with a ``text`` field, for MiniLLM's PT loss."""
    chat_template_options: dict[Text, bool | int | float | str] = Field(default={})
    """Options of the chat template for all models, such as ``enable_thinking: false`` for Qwen3, which else thinks."""
    max_prompt_tokens: PositiveInt = 256
    """Longest prompt to train on, including the chat template."""
    long_prompts: Literal["refuse", "drop"] = "refuse"
    """Refuse prompts longer than ``max_prompt_tokens``, or drop them; both report the number."""
    max_bad_rows: Fraction = 0.0
    """Largest share of rows to skip that are unreadable or that the chat template refuses; more are an error."""

    @model_validator(mode="after")
    def _options_are_the_template_s(self) -> Data:
        for name in self.chat_template_options:
            if not name.isidentifier() or keyword.iskeyword(name) or name in TRAINER_OPTIONS:
                raise refuse(f"chat_template_options: {name!r} cannot be passed to a chat template; drop it")
        return self

    @model_validator(mode="after")
    def _share_is_a_number(self) -> Data:
        if isinstance(self.held_out, str) and re.fullmatch(r"[\d.eE+-]+%?", self.held_out):
            raise refuse(f"held_out: {self.held_out!r} is text, which names a file; write a share without quotes: 0.05")
        return self
