"""A conversation as text. Student, teachers, evaluation and hand-off all use this one function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from .template_limits import TemplateOverLimit, check_length, template_limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = tuple[str, str]
"""(role, content)"""

BETWEEN = "\n\n"
"""Text between two turns that no answer separates, where no chat template says what to write."""


class TemplateRefusal(BadInput):
    """The chat template refuses a conversation. The message quotes the template's own words."""


def render(
    tokenizer: PreTrainedTokenizerBase, turns: Iterable[Turn], options: Mapping[str, Any], *, for_answer: bool
) -> str:
    """Return the text of a conversation, written by the tokenizer's chat template with ``options``.

    Without a template, the text is the contents of the turns. It starts with BOS if the tokenizer adds it. Each answer
    ends with EOS, and a blank line separates other turns, for example a system turn from a user's.

    Args:
        tokenizer: the tokenizer of the model that reads the text.
        turns: (role, content) of each turn.
        options: ``data.chat_template_options``.
        for_answer: True if the text ends where the assistant begins to answer.

    Raises:
        TemplateRefusal: the template does not accept the conversation, for example the order of its roles.
        TemplateOverLimit: the template takes too much time or memory, or writes too much.
    """
    turns = tuple(turns)
    if not tokenizer.chat_template:
        return _without_template(tokenizer, turns)
    messages = [{"role": role, "content": content} for role, content in turns]
    template = f"the chat template of '{tokenizer.name_or_path}'"
    try:
        with template_limits(template):
            text = str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=for_answer, **options)
            )
    except (ImportError, TemplateOverLimit):
        raise
    except Exception as error:  # a template calls functions of Python, which raise errors of any kind
        words = " ".join(str(error).split())[:300]
        raise TemplateRefusal(f"the chat template refuses the conversation: {words!r}") from error
    check_length(template, text, sum(len(content) for _, content in turns))
    return text


def _without_template(tokenizer: PreTrainedTokenizerBase, turns: tuple[Turn, ...]) -> str:
    begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    text = str(tokenizer.bos_token) if begins else ""
    for index, (role, content) in enumerate(turns):
        following = turns[index + 1][0] if index + 1 < len(turns) else "assistant"
        text += content
        if role == "assistant":
            text += str(tokenizer.eos_token)
        elif following != "assistant":
            text += BETWEEN
    return text
