"""Token ids: the real ones, the shared ones, and those that end a response."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..dataset.template_tokens import NO_OPTIONS, end_of_turn
from ..errors import BadInput

MEDIA = re.compile("image|audio|video|vision")
"""Names of placeholders for other inputs than text. Text-only models keep them in their tokenizer, without a row."""


def real_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Return the number of real token ids: an embedding may be larger than its tokenizer (padded) or smaller."""
    return min(len(tokenizer), int(model.config.get_text_config().vocab_size))


def shared_vocabulary(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, limit: int, whose: str = "the teacher"
) -> int:
    """Return the number of leading token ids on which both tokenizers agree, id by id, at most ``limit``.

    Raises:
        BadInput: they disagree on an id that both know; the message names the first one.
    """
    vocabulary = min(limit, len(student), len(teacher))
    ids = list(range(vocabulary))
    pairs = zip(student.convert_ids_to_tokens(ids), teacher.convert_ids_to_tokens(ids), strict=True)
    for token_id, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            raise BadInput(
                f"{whose} has another tokenizer: id {token_id} is {theirs!r} there and {ours!r} in the student. "
                "Objectives that read teacher probabilities need one vocabulary; take a teacher of the student's "
                "family, or objective kind: sequence_kd"
            )
    return vocabulary


def eos_ids(
    tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None, options: Mapping[str, Any] = NO_OPTIONS
) -> frozenset[int]:
    """Return every id that ends a response: EOS, those of the generation config, and the template's end of turn.

    A base model stops at EOS, and its chat template may end turns with another token. Both end a response.

    Args:
        settings: the model's generation config.
        options: ``data.chat_template_options``.
    """
    named = getattr(settings, "eos_token_id", None)
    listed = named if isinstance(named, list) else [] if named is None else [named]
    turn_end = end_of_turn(tokenizer, options)
    written = [] if turn_end is None else [turn_end]
    return frozenset(int(token_id) for token_id in (*listed, *written, tokenizer.eos_token_id))


def refuse_tokens_without_embedding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, whose: str) -> None:
    """Refuse a tokenizer with tokens that were added without resizing the model's embedding.

    Raises:
        BadInput: a token's id is not below the number of rows. The message has both sizes.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if _highest(tokenizer) < rows:
        return
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    lost = [number for number, token in sorted(beyond.items()) if not MEDIA.search(token)]
    if lost:
        raise BadInput(
            f"the tokenizer of '{whose}' has {len(tokenizer)} tokens, and its embedding has {rows} rows: "
            f"{beyond[lost[0]]!r} has id {lost[0]}; call resize_token_embeddings({lost[-1] + 1}) and save the model "
            "again, or remove the added tokens"
        )


def refuse_ids_beyond(
    vocabulary: int, rows: Iterable[Iterable[int]], tokenizer: PreTrainedTokenizerBase, whose: str
) -> None:
    """Refuse texts with tokens that a model does not know.

    Args:
        vocabulary: the model's ids are below this.
        rows: token ids of the texts.
        tokenizer: the tokenizer of the texts.
        whose: the model, for the message.

    Raises:
        BadInput: the message names the first such token and the sizes.
    """
    highest = -1 if _highest(tokenizer) < vocabulary else max((max(row, default=-1) for row in rows), default=-1)
    if highest >= vocabulary:
        raise BadInput(
            f"the data has the token {tokenizer.convert_ids_to_tokens(highest)!r}, id {highest} of "
            f"{len(tokenizer)} tokens, and {whose} has only the first {vocabulary}; remove the token from the data, or "
            "add it to that model too (resize_token_embeddings)"
        )


def _highest(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the highest id. Ids of added tokens may have gaps."""
    return max(len(tokenizer) - 1, *map(int, tokenizer.added_tokens_decoder))
