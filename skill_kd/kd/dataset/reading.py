"""Training data: read, checked and counted before anything trains; prompts and conversations turned into token ids."""

from __future__ import annotations

import codecs
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..config import Config
from ..errors import BadInput, Missing
from ..seeds import seeded

Message = dict[str, str]
NAMED_BAD_ROWS = 3


@dataclass(frozen=True)
class Example:
    """One row of data. ``response`` is None where only a prompt was given."""

    messages: tuple[tuple[str, str], ...]
    """(role, content) of the conversation so far; a bare prompt is one user turn."""
    response: str | None

    @property
    def key(self) -> str:
        """What makes two prompts the same one: roles and texts, spacing aside."""
        return "\n".join(f"{role}:{' '.join(content.split())}" for role, content in self.messages)


@dataclass(frozen=True)
class Encoded:
    """A tokenized row. ``scored`` marks the response tokens a student is trained on: assistant turns, EOS included."""

    prompt: tuple[int, ...]
    response: tuple[int, ...] = ()
    scored: tuple[bool, ...] = ()

    def cut(self, limit: int) -> Encoded:
        """Return the row with as much of the response as leaves prompt and response at most ``limit`` tokens."""
        room = max(0, limit - len(self.prompt))
        return Encoded(self.prompt, self.response[:room], self.scored[:room])


# --- reading ----------------------------------------------------------------------------------------------------------


def read_examples(source: str, split: str, max_bad_rows: float) -> list[Example]:
    """Read prompts from a JSONL or Parquet file or a hub data set.

    Raises:
        BadInput: nothing usable, or a larger share than ``max_bad_rows`` is malformed; the first bad rows are named.
        Missing: the hub data set cannot be had.
    """
    examples: list[Example] = []
    bad: list[str] = []
    for place, row in _rows(source, split):
        try:
            examples.append(parse_example(row))
        except ValueError as error:
            bad.append(f"{place}: {error}")
    total = len(examples) + len(bad)
    if total == 0:
        raise BadInput(f"'{source}' is empty; each row needs 'prompt' or 'messages'")
    report = f"{len(bad)} of {total} rows of '{source}' cannot be used ({'; '.join(bad[:NAMED_BAD_ROWS])})"
    if not examples or len(bad) > max_bad_rows * total:
        raise BadInput(f"{report}; mend them, or allow a share with data.max_bad_rows")
    if bad:
        print(f"note: {report}", file=sys.stderr)  # noqa: T201
    return examples


def parse_example(row: object) -> Example:
    """Read one row: ``prompt`` (text) or ``messages`` ([{role, content}]), and optionally ``response`` (text).

    Raises:
        ValueError: saying what is wrong with the row.
    """
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")
    response = row.get("response")
    if response is not None and not (isinstance(response, str) and response.strip()):
        raise ValueError("'response' is empty or no text")
    # A table gives every row every column, so an absent field may be there as None.
    if row.get("messages") is not None:
        turns = _turns(row["messages"])
        if turns[-1][0] == "assistant" and response is None:
            return Example(turns[:-1], turns[-1][1])
    elif isinstance(row.get("prompt"), str) and row["prompt"].strip():
        turns = (("user", row["prompt"]),)
    else:
        raise ValueError("'prompt' is missing, empty or no text")
    if turns[-1][0] == "assistant":
        raise ValueError("'messages' ends with an assistant turn and 'response' gives another answer")
    return Example(turns, response)


def _turns(messages: object) -> tuple[tuple[str, str], ...]:
    listed = list(messages) if isinstance(messages, list | tuple) else []
    turns = []
    for message in listed:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in {"system", "user", "assistant"} or not isinstance(content, str) or not content.strip():
            raise ValueError("'messages' needs role (system, user, assistant) and non-empty content in each turn")
        turns.append((role, content))
    if not any(role == "user" for role, _ in turns):
        raise ValueError("'messages' has no user turn")
    return tuple(turns)


def _rows(source: str, split: str) -> Iterator[tuple[str, object]]:
    path = Path(source)
    if path.suffix in {".jsonl", ".json", ".ndjson"} or (path.is_file() and path.suffix != ".parquet"):
        yield from _jsonl_rows(path)
        return
    try:
        from datasets import load_dataset

        if path.suffix == ".parquet":
            if not path.is_file():
                raise BadInput(f"no data file '{source}'")
            rows = load_dataset("parquet", data_files=str(path), split="train")
        else:
            name, _, revision = source.partition("@")
            rows = load_dataset(name, split=split, revision=revision or None)
    except BadInput:
        raise
    except Exception as error:  # the hub client raises a dozen kinds
        reason = " ".join(str(error).split())[:300]
        if path.is_file():
            raise BadInput(f"cannot read data '{source}': {reason}") from error
        raise Missing(f"cannot load data '{source}' (no such file here, so a hub id): {reason}") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _jsonl_rows(path: Path) -> Iterator[tuple[str, object]]:
    try:
        # Bytes split on \n alone: text mode would also split on separators that JSON strings may hold.
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise BadInput(f"cannot read data '{path}': {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"line {number}", _parse_line(line)


def _parse_line(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except ValueError:
        return None


def read_corpus(source: str) -> list[str]:
    """Read the ``text`` fields of a pre-training corpus."""
    texts = [
        row["text"] for _, row in _rows(source, "train") if isinstance(row, dict) and isinstance(row.get("text"), str)
    ]
    if not texts:
        raise BadInput(f"data.pretraining '{source}' has no row with a 'text' field")
    return texts


def input_hashes(data: Config) -> dict[str, str]:
    """Return the SHA-256 of every local file that ``data`` names, by its field; a data set of the hub has none."""
    hashes = {}
    for name in ("train", "held_out", "pretraining"):
        source = getattr(data, name)
        if isinstance(source, str) and Path(source).is_file():
            with Path(source).open("rb") as file:
                hashes[f"data.{name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


# --- held-out prompts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Training examples and held-out examples."""

    train: list[Example]
    held_out: list[Example]


def load_split(data: Config, seed: int) -> Split:
    """Read the training data and set the held-out prompts apart: a share of it, or a file whose overlap is measured."""
    train = read_examples(data.train, data.split, data.max_bad_rows)
    if isinstance(data.held_out, str):
        held_out = read_examples(data.held_out, data.split, data.max_bad_rows)
        _refuse_overlap(train, held_out, data)
        return Split(train, held_out)
    by_key: dict[str, list[Example]] = {}
    for example in train:
        by_key.setdefault(example.key, []).append(example)
    groups = list(by_key.values())
    # Whole groups move, so a prompt given twice cannot stand on both sides.
    order = torch.randperm(len(groups), generator=seeded(seed, "held_out")).tolist()
    count = max(1, round(data.held_out * len(groups)))
    if count >= len(groups):
        raise BadInput(f"data.held_out: {data.held_out} of {len(groups)} different prompts leaves none to train on")
    chosen = set(order[:count])
    return Split(
        [example for index, group in enumerate(groups) if index not in chosen for example in group],
        [groups[index][0] for index in order[:count]],
    )


def _refuse_overlap(train: list[Example], held_out: list[Example], data: Config) -> None:
    known = {example.key for example in train}
    shared = sum(example.key in known for example in held_out)
    if shared > data.max_overlap * len(held_out):
        raise BadInput(
            f"{shared} of {len(held_out)} held-out prompts of '{data.held_out}' are also in '{data.train}', so the "
            "held-out figures would flatter; remove them, or allow a share with data.max_overlap"
        )


# --- tokens -----------------------------------------------------------------------------------------------------------


class Encoder:
    """Turns examples into token ids with the student's chat template, so that training sees what serving will send."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: frozenset[int],
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.options = options
        """What the chat template is told."""

    def prompt(self, example: Example) -> Encoded:
        """Encode the conversation up to the place where the assistant answers."""
        return Encoded(self._ids(self._render(example.messages, for_answer=True)))

    def conversation(self, example: Example) -> Encoded:
        """Encode prompt and answer; every assistant turn is scored through its end-of-sequence token, nothing else is.

        Some templates rewrite earlier turns once a later one follows (they drop the reasoning, say). Earlier answers
        then never stand in a real prompt as they were written, so only the last one is scored.
        """
        turns = (*example.messages, ("assistant", example.response or ""))
        answers = [index for index, (role, _) in enumerate(turns) if role == "assistant"]
        pieces = self._pieces(turns, answers) or self._pieces(turns, answers[-1:])
        if pieces is None:
            raise BadInput("the chat template changes the conversation when an answer is added; mend the template")
        ids = [token for tokens, _ in pieces for token in tokens]
        scored = [flag for tokens, is_answer in pieces for flag in self._flags(tokens, is_answer)]
        if not self.eos_ids.intersection(pieces[-1][0]):
            # A template that ends its turns with plain text alone would never teach the student to stop.
            ids.append(int(self.tokenizer.eos_token_id))
            scored.append(True)
        end = max((index for index, flag in enumerate(scored) if flag), default=-1) + 1
        first = len(pieces[0][0])
        return Encoded(tuple(ids[:first]), tuple(ids[first:end]), tuple(scored[first:end]))

    def _pieces(
        self, turns: tuple[tuple[str, str], ...], answers: list[int]
    ) -> list[tuple[tuple[int, ...], bool]] | None:
        """Cut the rendered conversation at the named answers, or return None where one is no continuation of the last.

        Pieces are tokenized apart, so that a response begins at the token boundary where sampling would begin.
        """
        pieces: list[tuple[tuple[int, ...], bool]] = []
        done = ""
        for index in answers:
            before = self._render(turns[:index], for_answer=True)
            through = self._render(turns[: index + 1], for_answer=False)
            if not (before.startswith(done) and through.startswith(before)):
                return None
            pieces += [(self._ids(before[len(done) :]), False), (self._ids(through[len(before) :]), True)]
            done = through
        return pieces

    def answer(self, prompt: Encoded, text: str) -> Encoded:
        """Append a response written as text, closed by the end-of-sequence token."""
        ids = (*self._ids(text), int(self.tokenizer.eos_token_id))
        return Encoded(prompt.prompt, ids, (True,) * len(ids))

    def _flags(self, tokens: tuple[int, ...], is_answer: bool) -> Iterator[bool]:
        ended = not is_answer
        for token in tokens:
            yield not ended
            ended = ended or token in self.eos_ids

    def _render(self, turns: Iterable[tuple[str, str]], *, for_answer: bool) -> str:
        turns = tuple(turns)
        if self.tokenizer.chat_template:
            messages: list[Message] = [{"role": role, "content": content} for role, content in turns]
            rendered: Any = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=for_answer, **self.options
            )
            return str(rendered)
        # Without a template the text itself is the prompt, begun as the tokenizer begins one; only EOS separates turns.
        begins = self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        eos, bos = str(self.tokenizer.eos_token), str(self.tokenizer.bos_token) if begins else ""
        return bos + "".join(content + (eos if role == "assistant" else "") for role, content in turns)

    def _ids(self, text: str) -> tuple[int, ...]:
        # A template writes its own special tokens; without one there are none to add between pieces.
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def fit_prompts(encoded: list[Encoded], limit: int, policy: str, what: str) -> list[int]:
    """Return the indices of prompts of at most ``limit`` tokens; longer ones are refused or dropped, and counted.

    Raises:
        BadInput: there are longer ones and ``policy`` is "refuse", or none is left.
    """
    kept = [index for index, row in enumerate(encoded) if len(row.prompt) <= limit]
    if len(kept) == len(encoded):
        return kept
    longest = max(len(row.prompt) for row in encoded)
    report = f"{len(encoded) - len(kept)} of {len(encoded)} {what} are longer than {limit} tokens (longest {longest})"
    if policy == "refuse" or not kept:
        raise BadInput(f"{report}; raise data.max_prompt_tokens, or set data.long_prompts: drop")
    print(f"note: {report} and are left out", file=sys.stderr)  # noqa: T201
    return kept


def cut_responses(rows: list[Encoded | None], limit: int) -> list[Encoded | None]:
    """Cut written responses where prompt and response exceed ``limit`` tokens, and count them.

    The end of a cut one, EOS included, is gone, so it does not teach the student to stop there.
    """
    fitting = [row and row.cut(limit) for row in rows]
    cut = sum(before != after for before, after in zip(rows, fitting, strict=True))
    if cut:
        written = sum(row is not None for row in rows)
        print(  # noqa: T201
            f"note: {cut} of {written} written responses are cut: with their prompts they exceed {limit} tokens "
            "(data.max_prompt_tokens + rollout.max_new_tokens)",
            file=sys.stderr,
        )
    return fitting


@dataclass(frozen=True)
class TrainingData:
    """Everything training reads, as tokens."""

    examples: list[Example]
    prompts: list[Encoded]
    """One for each example."""
    answered: list[Encoded | None]
    """Prompt and written response, None where the data gives none."""
    held_out_examples: list[Example]
    held_out_prompts: list[Encoded]
    corpus: list[str] = field(default_factory=list)
    """Texts of ``data.pretraining``."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Of the files that all this was read from, see ``input_hashes``."""


def load_training_data(config: Config, encoder: Encoder) -> TrainingData:
    """Read, split, encode and length-check the data of a run; nothing of it is read again later.

    Raises:
        BadInput: naming what is wrong with the data and what to do.
    """
    data = config.data
    hashes = input_hashes(data)
    split = load_split(data, config.seed)
    corpus = read_corpus(data.pretraining) if data.pretraining else []
    # Whoever read them, bytes that hash alike before and after were those that were read.
    now = input_hashes(data)
    for name, before in hashes.items():
        if now.get(name) != before:
            source = getattr(data, name.partition(".")[2])
            raise BadInput(f"{name}: '{source}' changed while it was read; start again when it is written")

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
