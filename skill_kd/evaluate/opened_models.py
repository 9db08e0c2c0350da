"""Load the models, sample their responses, and read token probabilities. torch is imported inside the functions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from skill_kd.errors import MissingRequirementError, SkillKDError, UsageError, error_for
from skill_kd.evaluate.policy import GatePolicy
from skill_kd.report.shown_document import SIDES

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from skill_kd.kd.dataset.batch import Row
    from skill_kd.kd.dataset.encoding import Encoder
    from skill_kd.kd.dataset.reading import Example
    from skill_kd.kd.rollouts.sampler import Sampler
    from skill_kd.kd.teacher.writers import AnswerReader

ROWS = 8
"""Responses that both models read in one batch."""
POSITIONS = 16
"""Number of buckets of the curves over positions."""
BINS = 10
"""Number of confidence bins."""
TemplateOption = bool | int | float | str


@contextmanager
def plain_errors() -> Iterator[None]:
    """Convert the errors of ``skill_kd.kd`` into this package's errors, with the same messages."""
    try:
        from skill_kd.kd.errors import ScriptError
    except ImportError as error:
        raise MissingRequirementError(
            "evaluating models needs torch and transformers: pip install 'skill-kd[train,evaluate]'; "
            "saved generations need neither"
        ) from error
    try:
        yield
    except ScriptError as error:
        raise error_for(error.exit_code, str(error)) or SkillKDError(str(error)) from error


@dataclass(frozen=True)
class ModelSource:
    """A model to load."""

    model: str
    revision: str | None = None
    dtype: str = "float32"
    quantization: str | None = None
    trust_remote_code: bool = False
    template_options: Mapping[str, TemplateOption] = field(default_factory=dict)
    """Options of the chat template, as in ``data.chat_template_options``."""

    def key(self) -> dict[str, object]:
        """Return what the samples depend on: the settings, and the files of a model folder. Empty options are left out.

        Otherwise the samples of an earlier student would give a verdict to the one that replaced it.
        """
        key = {name: value for name, value in vars(self).items() if name != "template_options" or value}
        return {**key, "files": _files_hash(Path(self.model))} if Path(self.model).is_dir() else key


def _files_hash(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of a model's weights, config, tokenizer and template."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt") and path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Writer:
    """A loaded model with its tokenizer, ready to generate."""

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    sampler: Sampler

    def write(self, examples: Sequence[Example], count: int, seed: tuple[object, ...], first: int) -> list[list[Row]]:
        """Sample ``count`` responses for each example. The same ``seed`` and ``first`` give the same responses."""
        from skill_kd.kd.rollouts.sampler import SampleRequest

        prompts = [self.encoder.prompt(example) for example in examples]
        requests = [
            SampleRequest(prompt, (*seed, first + index), row)
            for index, prompt in enumerate(prompts)
            for row in range(count)
        ]
        rows = self.sampler.sample(self.model, requests, "student")
        return [rows[start : start + count] for start in range(0, len(rows), count)]

    def check_prompts(self, examples: Sequence[Example], source: Path) -> None:
        """Check that the chat template accepts the prompts of ``source``, before hours of sampling.

        Raises:
            UsageError: it refuses some. The message names the first row, and quotes the template.
        """
        if refused := self.encoder.refused(examples):
            example, reason = refused[0]
            raise UsageError(
                f"'{source}' {example.place}: {reason}; '{self.name}' refuses {len(refused)} of {len(examples)} "
                "prompts: leave those rows out"
            )

    def at(self, temperature: float) -> Writer:
        """Return the same writer at another temperature."""
        decoding = replace(self.sampler.decoding, temperature=temperature)
        return replace(self, sampler=replace(self.sampler, decoding=decoding))

    def within(self, vocabulary: int, eos_ids: frozenset[int]) -> Writer:
        """Return the same writer for ids below ``vocabulary``, which also stops at ``eos_ids``."""
        decoding = self.sampler.decoding
        ends = decoding.eos_ids | eos_ids
        sampler = replace(self.sampler, decoding=replace(decoding, vocabulary=vocabulary, eos_ids=ends))
        return replace(self, sampler=sampler)

    @cached_property
    def reader(self) -> AnswerReader:
        """Reads responses as those of a teacher: only the final part of an answer is judged."""
        from skill_kd.kd.teacher.writers import AnswerReader

        return AnswerReader(self.tokenizer, self.sampler.decoding.eos_ids)


def open_writer(source: ModelSource, max_new_tokens: int, device: torch.device) -> Writer:
    """Load a model for evaluation: frozen, in inference mode, sampling from the full distribution at temperature 1."""
    from skill_kd.kd.dataset.encoding import Encoder
    from skill_kd.kd.model import loading
    from skill_kd.kd.model.vocabulary import eos_ids, real_vocabulary
    from skill_kd.kd.rollouts.decoding import Decoding
    from skill_kd.kd.rollouts.sampler import Sampler

    loaded, tokenizer = loading.load_pair(source, source.model)
    options = source.template_options
    vocabulary, ends = real_vocabulary(tokenizer, loaded), eos_ids(tokenizer, loaded.generation_config, options)
    model = loaded.train(False).requires_grad_(False).to(device)
    sampler = Sampler(Decoding(max_new_tokens, 1.0, 1.0, ends, vocabulary), int(tokenizer.pad_token_id), device)
    return Writer(source.model, model, tokenizer, Encoder(tokenizer, ends, options), sampler)


def accepted_by(model: str, examples: Sequence[Example], options: Mapping[str, TemplateOption]) -> list[Example]:
    """Return the examples that the chat template of ``model`` accepts."""
    from skill_kd.kd.dataset.encoding import Encoder
    from skill_kd.kd.model.loading import load_tokenizer

    refused = Encoder(load_tokenizer(ModelSource(model), model), frozenset(), options).refused(examples)
    left_out = {id(example) for example, _ in refused}
    return [example for example in examples if id(example) not in left_out]


def accelerator() -> torch.device:
    """Return this machine's accelerator, or its CPU."""
    import torch

    return torch.accelerator.current_accelerator() or torch.device("cpu")


@dataclass(frozen=True)
class Comparable:
    """The token ids that two models share, or the reason why their probabilities cannot be compared."""

    vocabulary: int
    """Number of leading token ids that both share; 0 if probabilities cannot be compared."""
    why_not: str | None = None
    """The reason why probabilities cannot be compared, or None."""
    tokenizer: Literal["same", "different"] = "same"


def compared(student: Writer, teacher: Writer) -> Comparable:
    """Return the number of token ids that both models share. Both must also read the same prompts."""
    from skill_kd.kd.dataset.comparison import difference
    from skill_kd.kd.errors import BadInput
    from skill_kd.kd.model.vocabulary import shared_vocabulary

    limit = min(student.sampler.decoding.vocabulary, teacher.sampler.decoding.vocabulary)
    advice = "so token probabilities cannot be compared; use --policy text-only"
    try:
        vocabulary = shared_vocabulary(student.tokenizer, teacher.tokenizer, limit)
    except BadInput:
        return Comparable(0, f"the tokenizers differ, {advice}", "different")
    if max(student.sampler.decoding.eos_ids | teacher.sampler.decoding.eos_ids) >= vocabulary:
        return Comparable(0, f"the models do not share an end-of-sequence token, {advice}", "different")
    if found := difference(student.encoder, teacher.encoder):
        what = (
            f"the chat templates differ ({found.what} is {found.ours} for the student, {found.theirs} for the teacher)"
        )
        return Comparable(0, f"{what}, {advice}")
    return Comparable(vocabulary)


def together(student: Writer, teacher: Writer, vocabulary: int, examples: Sequence[Example]) -> tuple[Writer, Writer]:
    """Return both writers for the tokens that they share. Each stops where the other one does.

    Raises:
        BadInput: a prompt has a token that only one of them knows.
    """
    from skill_kd.kd.model.vocabulary import refuse_ids_beyond

    for writer, reader in ((student, teacher), (teacher, student)):
        prompts = (writer.encoder.prompt(example).prompt for example in examples)
        refuse_ids_beyond(vocabulary, prompts, writer.tokenizer, f"'{reader.name}'")
    ends = student.sampler.decoding.eos_ids | teacher.sampler.decoding.eos_ids
    return student.within(vocabulary, ends), teacher.within(vocabulary, ends)


def read(
    rows: Sequence[Row], student: Writer, teacher: Writer, vocabulary: int, policy: GatePolicy
) -> dict[str, list[list[float]]]:
    """Return the values of every row's tokens, by metric.

    Raises:
        UsageError: a model returns probabilities that are not finite.
    """
    from skill_kd.evaluate.probabilities import token_metrics
    from skill_kd.kd.dataset.batch import collate

    found: dict[str, list[list[float]]] = {}
    for start in range(0, len(rows), ROWS):
        batch = collate(rows[start : start + ROWS], student.sampler.pad, student.sampler.device)
        for name, value_BT in token_metrics(student.model, teacher.model, batch, vocabulary, policy.top_p).items():
            each = [value[: int(mask.sum())].tolist() for value, mask in zip(value_BT, batch.mask_BT, strict=True)]
            found.setdefault(name, []).extend(each)
    for who, metric in ((student, "student_entropy"), (teacher, "teacher_entropy"), (student, "forward_kl")):
        if not math.isfinite(sum(map(sum, found.get(metric, ())))):
            raise UsageError(
                f"'{who.name}' returns probabilities that are NaN or infinite: its weights are damaged, or its dtype "
                "overflows; try --dtype float32"
            )
    return found


def bucket(longest: int) -> int:
    """Return the number of positions in one bucket of a curve."""
    return -(-longest // POSITIONS)


def _of_length(length: int) -> Any:
    return Field(min_length=length, max_length=length)


Sum = Annotated[float, Field(ge=-1e15, le=1e15)]
"""A number with which all arithmetic stays finite."""


class TokenSums(TypedDict):
    """Sums and means over one prompt's rows, as stored in JSON."""

    tokens: int
    means: dict[str, Sum]
    """Mean of each metric over all tokens."""
    curve: Annotated[list[Annotated[list[Sum], _of_length(2)]], _of_length(POSITIONS)]
    """Sum of forward_kl and number of tokens, for each of ``POSITIONS`` buckets."""
    bins: dict[str, Annotated[list[Annotated[list[Sum], _of_length(3)]], _of_length(BINS)]]
    """By model: sum of confidence, number of correct predictions and number of tokens, for each of ``BINS`` bins."""


def summarized(found: dict[str, list[list[float]]], longest: int) -> TokenSums:
    """Return token means, sums by position bucket, and sums by confidence bin over one prompt's rows."""
    tokens = sum(map(len, found["forward_kl"]))
    width = bucket(longest)
    curve: list[list[float]] = [[0.0, 0] for _ in range(POSITIONS)]
    for row in found["forward_kl"]:
        for position, value in enumerate(row):
            curve[position // width][0] += value
            curve[position // width][1] += 1
    bins: dict[str, list[list[float]]] = {who: [[0.0, 0.0, 0] for _ in range(BINS)] for who in SIDES}
    for who, table in bins.items():
        pairs = zip(found[f"{who}_confidence"], found[f"{who}_right"], strict=True)
        for confidence, right in ((c, r) for row in pairs for c, r in zip(*row, strict=True)):
            place = table[min(BINS - 1, int(confidence * BINS))]
            place[0] += confidence
            place[1] += right
            place[2] += 1
    means = {name: sum(map(sum, rows)) / tokens for name, rows in found.items()}
    return {"tokens": tokens, "means": means, "curve": curve, "bins": bins}
