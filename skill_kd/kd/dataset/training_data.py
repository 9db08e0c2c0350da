"""The data of a run, as tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import Config
from ..errors import BadInput
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
    """Prompt and written response, None if the data has no response."""
    held_out_examples: list[Example]
    held_out_prompts: list[Encoded]
    corpus: list[str] = field(default_factory=list)
    """Texts of ``data.pretraining``."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Hashes of the files that the data was read from, see ``input_hashes``."""


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

    def fitting(examples: list[Example], what: str) -> tuple[list[Example], list[Encoded]]:
        encoded = [encoder.prompt(example) for example in examples]
        kept = fit_prompts(encoded, data.max_prompt_tokens, data.long_prompts, what)
        return [examples[index] for index in kept], [encoded[index] for index in kept]

    examples, prompts = fitting(split.train, "training prompts")
    held_out_examples, held_out_prompts = fitting(split.held_out, "held-out prompts")
    answered = [encoder.conversation(example) if example.response is not None else None for example in examples]
    answered = cut_responses(answered, data.max_prompt_tokens + config.rollout.max_new_tokens)
    measured = config.checkpoint.measure_prompts
    held_out = held_out_examples[:measured], held_out_prompts[:measured]
    return TrainingData(examples, prompts, answered, *held_out, corpus, hashes)
