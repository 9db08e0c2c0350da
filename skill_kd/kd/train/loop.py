"""The training loop: one update, one stage, the whole run. A template builds the parts and calls ``train``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..config import Config, Sft, Stage, Training
from ..dataset.batch import Row, collate
from ..dataset.encoding import Encoder
from ..dataset.training_data import TrainingData
from ..errors import BadInput, StoppedBySignal
from ..files import write_json
from ..losses.estimators import effective_sample_size
from ..model.export import export_student
from ..signals import StopRequest
from .checkpoints import REMOVE, Checkpoints, Progress
from .experience import (
    Experience,
    PromptSource,
    Sampling,
    Term,
    corpus_source,
    data_source,
    refuse_unknown_ids,
)
from .held_out import Figures
from .held_out_measures import HeldOutMeasures
from .journal import Journal
from .objectives import Objective, build_objective, coverage_objective
from .roll_back import BadUpdate, check_loss, roll_back
from .self_training import own_samples_source
from .strategy import WrappedStudent

LEAST_SAMPLE_SIZE = 0.1
"""A smaller effective sample size, as a share of the rollouts, causes a warning."""
NOISY_WEIGHTS = (
    f"the importance weights leave an effective sample size below {LEAST_SAMPLE_SIZE} of the rollouts: the exact "
    "gradient is unbiased but very noisy; lower teacher_mix or rollout.max_new_tokens, or take estimator: paper"
)

MicroBatch = tuple[list[Row], Objective, float]
"""The rows of one forward and backward pass, their objective, and a factor for their summed loss."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts that all stages share."""

    config: Config
    folder: Path
    accelerator: Accelerator
    student: WrappedStudent
    encoder: Encoder
    data: TrainingData
    teacher_source: PromptSource
    """The training prompts with the teacher's responses."""
    sampling: Sampling
    """How rollouts are sampled, and which rows of a batch belong to this process."""
    measures: HeldOutMeasures
    journal: Journal
    checkpoints: Checkpoints
    stop: StopRequest


# --- one update -------------------------------------------------------------------------------------------------------


def optimizer_step(
    accelerator: Accelerator,
    student: WrappedStudent,
    sampling: Sampling,
    training: Training,
    terms: list[Term],
    update: int,
) -> Figures:
    """Sample the rows of this update, add up the gradients of all micro-batches, and step once.

    Raises:
        BadUpdate: the loss or the gradient is not finite, or the loss exceeds its limit. No step was taken.
    """
    began = time.perf_counter()
    with accelerator.autocast():
        rows_by_term = [term.experience.batch(update, student.model) for term in terms]
    pieces = list(micro_batches(accelerator, terms, rows_by_term, training.accumulate))
    loss = float(accelerator.reduce(add_up_gradients(accelerator, student, sampling, pieces), "sum"))
    grad_norm = student.stepper.norm()
    check_loss(update, loss, grad_norm, training.loss_limit)
    rate = student.optimizer.param_groups[0]["lr"]
    student.stepper.step()
    seconds = time.perf_counter() - began
    figures = {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate, "seconds": seconds}
    return figures | row_figures(accelerator, rows_by_term[0], seconds)


def micro_batches(
    accelerator: Accelerator, terms: list[Term], rows_by_term: list[list[Row]], accumulate: int
) -> Iterator[MicroBatch]:
    """Cut each loss term's rows into ``accumulate`` micro-batches. The factor is the term's weight / its normalizer.

    The normalizer counts the rows of all processes. Rows of similar length share a micro-batch, which is padded to its
    longest row. The order of rows does not matter, since their losses are summed.
    """
    for term, rows in zip(terms, rows_by_term, strict=True):
        objective = term.experience.objective
        count = accelerator.reduce(torch.tensor(objective.count(rows), device=accelerator.device), "sum")
        size = math.ceil(len(rows) / accumulate)
        by_length = sorted(rows, key=lambda row: len(row.prompt) + len(row.response)) if size < len(rows) else rows
        for start in range(0, len(rows), size):
            yield by_length[start : start + size], objective, term.weight / max(1, int(count))


def add_up_gradients(
    accelerator: Accelerator, student: WrappedStudent, sampling: Sampling, pieces: list[MicroBatch]
) -> Tensor:
    """Run every micro-batch forward and backward, and return this process's loss, a scalar."""
    student.policy.train()
    loss = torch.zeros((), device=accelerator.device)
    for number, (rows, objective, scale) in enumerate(pieces, start=1):
        with student.stepper.micro_batch(last=number == len(pieces)):
            batch = collate(rows, sampling.sampler.pad, accelerator.device)
            with accelerator.autocast():
                teacher = sampling.teacher.view(batch, objective.temperature) if objective.reads_teacher else None
            addend = scale * student.policy(batch, objective.loss, teacher, objective.temperature)
            # ``backward`` averages over the processes, but the loss is their sum.
            student.stepper.backward(addend * accelerator.num_processes)
            loss += addend.detach()
    return loss


def row_figures(accelerator: Accelerator, rows: list[Row], seconds: float) -> Figures:
    """Return tokens and tokens per second of all processes, and mean length and effective sample size of this one."""
    tokens = int(accelerator.reduce(torch.tensor(sum(row.tokens for row in rows), device=accelerator.device), "sum"))
    length = sum(len(row.response) for row in rows) / len(rows)
    figures = {"tokens": tokens, "tokens_per_second": tokens / seconds, "length": length}
    log_weight_B1 = [
        [sum(row.student_logp) - sum(row.behaviour_logp)] for row in rows if row.student_logp and row.behaviour_logp
    ]
    if log_weight_B1:
        figures["effective_sample_size"] = effective_sample_size(torch.tensor(log_weight_B1))
    return figures


# --- one stage --------------------------------------------------------------------------------------------------------


def train_stage(run: Run, progress: Progress, pending: list[list[Row]]) -> None:
    """Run one stage from ``progress`` to its end. ``pending`` are rollouts of all processes that it still uses."""
    stage, student, training = run.config.stages[progress.stage], run.student, run.config.training
    terms = stage_terms(run, stage)
    experience = terms[0].experience
    experience.batches = [run.sampling.share(batch) for batch in pending]
    updates = stage.updates if stage.kind == "distill" else experience.updates(stage.epochs)
    rate = stage.learning_rate or training.learning_rate
    scheduler = begin_schedule(student.optimizer, training, rate, updates, progress.update)
    with run.journal.bar_of(stage.kind, updates, progress.update):
        while progress.update < updates:
            try:
                figures = optimizer_step(run.accelerator, student, run.sampling, training, terms, progress.update)
            except BadUpdate as bad:
                if training.on_bad_loss == "stop":
                    raise
                go_back(run, progress, bad, min(updates, experience.next_round(bad.update)))
                scheduler = begin_schedule(student.optimizer, training, rate, updates, progress.update)
            else:
                run.stop.agree()
                scheduler.step()
                progress.update += 1
                log_update(run.journal, experience.objective, stage.kind, progress.update, figures)
                keep_checkpoint(run, progress, experience, due=progress.update == updates)
            if run.stop.agreed:
                raise StoppedBySignal(run.stop.agreed)


def stage_terms(run: Run, stage: Stage) -> list[Term]:
    """Return the loss terms of a stage: its objective, and MiniLLM's pretraining and coverage losses if enabled."""
    config, sampling = run.config, run.sampling
    sft = build_objective(Sft())
    if stage.kind == "self_train":
        file = run.folder / "self_train.json"
        own = own_samples_source(config, stage, run.student, sampling, run.data.prompts, file)
        return [Term(Experience(config, stage.kind, sft, own, sampling))]
    objective = build_objective(stage.objective)
    source = data_source(run.data) if objective.responses == "data" else run.teacher_source
    terms = [Term(Experience(config, stage.kind, objective, source, sampling))]
    if objective.pt_weight:
        corpus = corpus_source(run.data.corpus, run.encoder, config.rollout.max_new_tokens)
        terms.append(Term(Experience(config, "pretraining", sft, corpus, sampling), objective.pt_weight))
    if objective.coverage_weight:
        covering = Experience(config, "coverage", coverage_objective(), run.teacher_source, sampling)
        terms.append(Term(covering, objective.coverage_weight))
    return terms


def begin_schedule(
    optimizer: torch.optim.Optimizer, training: Training, rate: float, updates: int, done: int
) -> LambdaLR:
    """Return the stage's schedule of the learning rate. At the start of a stage, clear AdamW's moments.

    ``rate`` is the highest learning rate. The schedule resumes after the ``done`` updates that were made.
    """
    if done == 0:
        optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate
    name = "cosine" if training.schedule == "cosine" else "constant_with_warmup"
    scheduler: LambdaLR = get_scheduler(name, optimizer, round(training.warmup * updates), updates)
    for _ in range(done):
        scheduler.step()
    return scheduler


def go_back(run: Run, progress: Progress, bad: BadUpdate, next_update: int) -> None:
    """Roll back, and record it. Training resumes at update ``next_update``, after the rows of the bad round."""
    source = roll_back(run.checkpoints, run.student.optimizer, progress, bad, next_update)
    stage = run.config.stages[progress.stage].kind
    run.journal.rolled_back(stage, bad.update, next_update, source, str(bad).partition(";")[0])


def log_update(journal: Journal, objective: Objective, stage: str, update: int, figures: Figures) -> None:
    """Record an update, and warn once if the effective sample size is small."""
    journal.update(stage, update, figures)
    if objective.loss.normalizer == "rollouts" and figures.get("effective_sample_size", 1.0) < LEAST_SAMPLE_SIZE:
        journal.note_once(NOISY_WEIGHTS)


def keep_checkpoint(run: Run, progress: Progress, experience: Experience, due: bool) -> None:
    """Measure and save if ``due`` or at the spec's interval. At other updates, save only after a signal."""
    pending = experience.pending(progress.update)
    if due or progress.update % run.config.checkpoint.every == 0:
        figure = measure(run, progress, run.config.stages[progress.stage].kind)
        run.checkpoints.save(progress, pending, figure)
    elif run.stop.agreed:
        run.checkpoints.save(progress, pending)


def measure(run: Run, progress: Progress, moment: str) -> float:
    """Take the held-out measures of the whole student, and return the one that chooses the best checkpoint."""
    with run.student.gathered():
        return run.measures.take(run.student.model, progress, moment)


# --- the whole run ----------------------------------------------------------------------------------------------------


def train(run: Run, resume: bool) -> None:
    """Train every stage, from the start or from the newest checkpoint, and export the best student."""
    newest = run.checkpoints.newest() if resume else None
    progress, pending = run.checkpoints.load(newest) if newest else (Progress(), [])
    if newest:
        refuse_other_run(run, newest, progress, pending)
        run.journal.note(f"resuming from checkpoint {newest.name}")
    else:
        measure(run, progress, "before")
    while progress.stage < len(run.config.stages):
        train_stage(run, progress, pending)
        progress.stage, progress.update, pending = progress.stage + 1, 0, []
    run.checkpoints.load_best(progress)
    run.accelerator.wait_for_everyone()
    export_best(run, progress)
    run.journal.event("done", best=progress.best, student=str(run.folder / "student"))
    run.journal.close()


def refuse_other_run(run: Run, checkpoint: Path, progress: Progress, pending: list[list[Row]]) -> None:
    """Refuse a checkpoint that does not fit the stages, the batches or the vocabulary of this run.

    Raises:
        BadInput: it does not. The message names the checkpoint.
    """
    refuse_unknown_ids(checkpoint, chain.from_iterable(pending), run.student.model, run.sampling.teacher)
    sizes = {len(batch) for batch in pending}
    if progress.stage >= len(run.config.stages) or sizes - {run.config.training.batch_size}:
        raise BadInput(f"checkpoint '{checkpoint}' is of another run: it has other stages or batches; {REMOVE}")


def export_best(run: Run, progress: Progress) -> None:
    """Write the student and the summary on the main process. All processes call it."""
    student = run.student.whole()
    if student is None:
        return
    if run.sampling.annotate is not None:
        run.sampling.annotate.forget()  # deletes the teacher's hidden states on disk
    encoder, dtype = run.encoder, run.config.student.export_dtype
    export_student(student, encoder.tokenizer, encoder.eos_ids, run.folder / "student", dtype)
    final = {"best": progress.best, "measures": progress.measures, "samples": progress.samples}
    write_json(run.folder / "summary.json", final)
