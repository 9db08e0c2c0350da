"""Builds the parts of a run around a student that the template has loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import Config, SelfTrain
from ..dataset.encoding import Encoder
from ..dataset.training_data import TrainingData, load_training_data
from ..errors import BadInput
from ..files import refuse_unsafe
from ..model.families import check_family
from ..model.loading import check_context
from ..model.vocabulary import eos_ids, real_vocabulary, refuse_ids_beyond
from ..rollouts.decoding import Decoding
from ..rollouts.sampler import Sampler, requests_for
from ..signals import StopRequest
from ..teacher.responses import TeacherResponses
from ..teacher.state_cache import TeacherStateCache, TeacherStateFiller
from ..teacher.teacher import Teacher, open_teacher
from .checkpoints import Checkpoints
from .experience import PromptSource, Sampling
from .held_out import HeldOut
from .held_out_measures import HeldOutMeasures
from .journal import Journal
from .loop import Run
from .objectives import build_objective
from .strategy import Strategy, WrappedStudent

WRITTEN = (
    *("checkpoints", "student", "partial-student", "teacher_states"),
    *("metrics.jsonl", "summary.json", "self_train.json"),
)
"""Files and folders of a run that a trainer writes, by their names in its folder."""


@dataclass(frozen=True)
class Parts:
    """The parts that every trainer needs, even if it has its own loop."""

    encoder: Encoder
    data: TrainingData
    teacher: Teacher
    sampler: Sampler
    """Samples only tokens that student and teacher share."""
    held_out: HeldOut
    rows_at_once: int
    """Number of rows of a micro-batch on one process."""


def open_accelerator(config: Config, folder: Path) -> Accelerator:
    """Find the devices, and seed torch's global random generator.

    Raises:
        BadInput: the batch does not divide over the started processes.
        OSError: a path of ``WRITTEN`` is a symbolic link.
    """
    refuse_unsafe(*(folder / name for name in WRITTEN))
    torch.manual_seed(config.seed)
    accelerator = Accelerator(
        # Without this, several processes on a machine without accelerators would not find each other.
        cpu=torch.accelerator.current_accelerator() is None,
        mixed_precision="bf16" if config.training.precision == "bf16" else "no",
        log_with=list(config.trackers) or None,
        project_dir=folder,
    )
    training, processes = config.training, accelerator.num_processes
    if training.batch_size % (training.accumulate * processes):
        raise BadInput(
            f"training.batch_size {training.batch_size} is not divisible by accumulate {training.accumulate} × "
            f"{processes} started processes; start {config.launch.processes} processes, as in launch.processes"
        )
    return accelerator


def open_parts(
    config: Config, accelerator: Accelerator, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Parts:
    """Load the data and the teacher, and check that the student fits both.

    Raises:
        ScriptError: the data, the teacher or its tokenizer cannot be used. The message names the cause and the fix.
    """
    rollout, training = config.rollout, config.training
    check_family(student.config.to_dict(), "the student")
    check_context(student, config.data.max_prompt_tokens + rollout.max_new_tokens, "the student")
    options = config.data.chat_template_options
    encoder = Encoder(tokenizer, eos_ids(tokenizer, student.generation_config, options), options)
    data = load_training_data(config, encoder)
    vocabulary = real_vocabulary(tokenizer, student)
    decoding = Decoding(rollout.max_new_tokens, rollout.temperature, rollout.top_p, encoder.eos_ids, vocabulary)
    sampler = Sampler(decoding, int(tokenizer.pad_token_id), accelerator.device)
    over = accelerator if config.launch.shard_teacher and accelerator.num_processes > 1 else None
    refuse_ids_beyond(vocabulary, data.prompt_ids(), tokenizer, "the student")
    teacher = open_teacher(config, tokenizer, sampler, encoder, over, data)
    teacher.check_prompts(data.examples, config.data.train)
    held_out_file = config.data.held_out if isinstance(config.data.held_out, str) else config.data.train
    teacher.check_prompts(data.held_out_examples, held_out_file)
    if _learns_from_data(config):
        refuse_ids_beyond(teacher.vocabulary, data.response_ids(), tokenizer, "the teacher or the student")
    sampler = replace(sampler, decoding=teacher.shared(decoding))
    encoder = Encoder(tokenizer, sampler.decoding.eos_ids, options)
    rows_at_once = training.batch_size // training.accumulate // accelerator.num_processes
    held_out_requests = requests_for(data.held_out_prompts, (config.seed, "held_out"))
    held_out = HeldOut(teacher, sampler, data.held_out_examples, held_out_requests, rows_at_once)
    return Parts(encoder, data, teacher, sampler, held_out, rows_at_once)


def _learns_from_data(config: Config) -> bool:
    objectives = [build_objective(stage.objective) for stage in config.stages if not isinstance(stage, SelfTrain)]
    return any(objective.responses == "data" and objective.on_policy < 1 for objective in objectives)


def open_run(
    config: Config,
    folder: Path,
    accelerator: Accelerator,
    strategy: Strategy,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Run:
    """Build the run around a student. It raises what ``open_parts`` and ``Strategy.wrap`` raise."""
    parts = open_parts(config, accelerator, student, tokenizer)
    wrapped = strategy.wrap(student, parts.teacher.vocabulary)
    journal = Journal(folder, accelerator, config)
    requests = requests_for(parts.data.prompts, (config.seed, "teacher"))
    responses = TeacherResponses(parts.teacher, parts.data.examples, requests, parts.sampler.decoding)
    return Run(
        config=config,
        folder=folder,
        accelerator=accelerator,
        student=wrapped,
        encoder=parts.encoder,
        data=parts.data,
        teacher_source=PromptSource(parts.data.prompts, responses),
        sampling=_sampling(config, folder, accelerator, parts, wrapped),
        measures=HeldOutMeasures(
            held_out=parts.held_out,
            accelerator=accelerator,
            tokenizer=tokenizer,
            journal=journal,
            best_by=config.checkpoint.best_by,
        ),
        journal=journal,
        checkpoints=Checkpoints(folder, accelerator, config.checkpoint.keep, wrapped.state, parts.data.hashes),
        stop=StopRequest(),
    )


def _sampling(
    config: Config, folder: Path, accelerator: Accelerator, parts: Parts, student: WrappedStudent
) -> Sampling:
    teacher, sampler = parts.teacher, parts.sampler
    cache = (
        TeacherStateCache(folder / "teacher_states", teacher.model, config.teacher.cache_gb) if teacher.model else None
    )
    annotate = TeacherStateFiller(teacher, sampler.pad, accelerator.device, parts.rows_at_once, cache)
    process, processes = accelerator.process_index, accelerator.num_processes
    return Sampling(sampler, teacher, process, processes, annotate, student.gathered)
