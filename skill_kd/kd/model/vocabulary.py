"""Token ids: the real ones, the shared ones, and those that end a response."""

from __future__ import annotations

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import BadInput


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


def eos_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> frozenset[int]:
    """Return every id that ends a response; the generation config may list several."""
    named = getattr(model.generation_config, "eos_token_id", None)
    listed = named if isinstance(named, list) else [] if named is None else [named]
    return frozenset(int(token_id) for token_id in (*listed, tokenizer.eos_token_id))
