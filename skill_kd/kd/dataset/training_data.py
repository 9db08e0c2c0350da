"""The data of a run, as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..config import Config, Data
from ..errors import BadInput
from ..kinds import reads_answers
from .bad_rows import BadRows
from .encoding import Encoded, Encoder
from .lengths import cut_responses, fit_prompts
from .reading import Example, input_hashes, read_corpus
from .split import load_split


@dataclass(frozen=True)
class TrainingData:
    """All data that training reads, as tokens."""

    examples: list[Example]
    prompts: list[Encoded]
    """One per example."""
    answered: list[Encoded | None]
    """Prompt and written response. None if the data has no response, or if no stage reads responses of the data."""
    held_out_examples: list[Example]
    held_out_prompts: list[Encoded]
    corpus: list[str] = field(default_factory=list)
    """Texts of ``data.pretraining``."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Hashes of the files that the data was read from, see ``input_hashes``."""

    def prompt_ids(self) -> Iterator[tuple[int, ...]]:
        """Yield the token ids of each prompt."""
        return (row.prompt for row in (*self.prompts, *self.held_out_prompts))

    def response_ids(self) -> Iterator[tuple[int, ...]]:
        """Yield the token ids of each written response."""
        return (row.response for row in self.answered if row is not None)


def load_training_data(config: Config, encoder: Encoder) -> TrainingData:
    """Read, split, encode and length-check the data of a run. Nothing is read again later.

    Raises:
        BadInput: the data cannot be used. The message says why and what to do.
    """
    data = config.data
    hashes = input_hashes(data)
    split = load_split(data, config.seed)
    corpus = read_corpus(data.pretraining) if data.pretraining else []
    # If a file has the same hash before and after reading, the hash is of the bytes that were read.
    now = input_hashes(data)
    for name, before in hashes.items():
        if now.get(name) != before:
            source = getattr(data, name.partition(".")[2])
            raise BadInput(f"{name}: '{source}' changed while it was read; start again when it is complete")

    answers = any(map(reads_answers, config.stages))
    train = _encoded(split.train, encoder, split.bad_train, data.max_prompt_tokens if answers else 0)
    held_out = _encoded(split.held_out, encoder, split.bad_held_out, 0)
    split.bad_train.check()
    split.bad_held_out.check()
    train = _fitting(train, data, "training prompts")
    held_out = _fitting(held_out, data, "held-out prompts")
    answered = cut_responses([row.answered for row in train], data.max_prompt_tokens + config.rollout.max_new_tokens)
    held_out = held_out[: config.checkpoint.measure_prompts]
    return TrainingData(
        [row.example for row in train],
        [row.prompt for row in train],
        answered,
        [row.example for row in held_out],
        [row.prompt for row in held_out],
        corpus,
        hashes,
    )


@dataclass(frozen=True)
class _EncodedRow:
    example: Example
    prompt: Encoded
    answered: Encoded | None


def _encoded(examples: list[Example], encoder: Encoder, bad: BadRows, answers_after: int) -> list[_EncodedRow]:
    """Encode the examples. Count those that the chat template refuses as bad rows.

    Answers are encoded after prompts of at most ``answers_after`` tokens. Longer prompts are left out later, and a
    template can take seconds to write hundreds of turns again for each answer.
    """
    rows = []
    for example in examples:
        try:
            prompt = encoder.prompt(example)
            answers = example.response is not None and len(prompt.prompt) <= answers_after
            rows.append(_EncodedRow(example, prompt, encoder.conversation(example) if answers else None))
        except BadInput as error:
            bad.add(example.place, str(error))
    return rows


def _fitting(rows: list[_EncodedRow], data: Data, what: str) -> list[_EncodedRow]:
    if not rows:
        raise BadInput(f"no {what} are left; the chat template refuses all of them")
    kept = fit_prompts([row.prompt for row in rows], data.max_prompt_tokens, data.long_prompts, what)
    return [rows[index] for index in kept]
