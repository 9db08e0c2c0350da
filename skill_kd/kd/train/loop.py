"""The training loop: one optimizer step, one stage, the whole run. A template puts the parts together and calls it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from ..config import Config, Sft, Stage
from ..dataset.batch import Row, collate
from ..dataset.encoding import Encoder
from ..dataset.training_data import TrainingData
from ..errors import StoppedBySignal
from ..files import write_json
from ..losses.estimators import effective_sample_size
from ..model.export import export_student
from ..model.sharding import Shards
from ..model.student import StudentWithLoss
from ..signals import StopRequest
from ..teacher.teacher import Teacher
from .checkpoints import Checkpoints, Progress
from .experience import (
    Experience,
    Sampling,
    Source,
    Term,
    corpus_source,
    data_source,
    keep_rows,
    kept_rows,
    own_best_samples,
    rows_source,
)
from .held_out import Figures, HeldOut
from .journal import Journal, short_table
from .objectives import Objective, build_objective, coverage_objective
from .roll_back import BadUpdate, check_loss, roll_back
from .stepper import Stepper

LEAST_SAMPLE_SIZE = 0.1
NOISY_WEIGHTS = (
    f"the importance weights leave an effective sample size below {LEAST_SAMPLE_SIZE} of the rollouts: the exact "
    "gradient is unbiased and very noisy; lower teacher_mix or rollout.max_new_tokens, or take estimator: paper"
)


@dataclass
class Run:
    """The parts that all stages share."""

    config: Config
    folder: Path
    accelerator: Accelerator
    student: PreTrainedModel
    shards: Shards | None
    """The student's, where it is split over the processes."""
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    policy: StudentWithLoss
    optimizer: torch.optim.Optimizer
    stepper: Stepper
    teacher: Teacher
    sampling: Sampling
    data: TrainingData
    teacher_source: Source
    held_out: HeldOut
    journal: Journal
    checkpoints: Checkpoints
    stop: StopRequest


# --- one optimizer step -----------------------------------------------------------------------------------------------


def optimizer_step(run: Run, terms: list[Term], update: int) -> Figures:
    """Sample the rows that are due, add up the gradients of all micro-batches, step once."""
    began, accelerator = time.perf_counter(), run.accelerator
    with accelerator.autocast():
        rows_by_term = [term.experience.batch(update, run.student) for term in terms]
    loss = float(accelerator.reduce(add_up_gradients(run, terms, rows_by_term), "sum"))
    grad_norm = run.stepper.norm()
    check_loss(update, loss, grad_norm, run.config.training.loss_limit)
    rate = run.optimizer.param_groups[0]["lr"]
    run.stepper.step()
    run.stop.agree()
    seconds = time.perf_counter() - began
    figures = {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate, "seconds": seconds}
    return figures | row_figures(run, rows_by_term[0], seconds)


def add_up_gradients(run: Run, terms: list[Term], rows_by_term: list[list[Row]]) -> Tensor:
    """Run every micro-batch forward and backward; return this process's loss, a scalar."""
    accelerator = run.accelerator
    run.policy.train()
    loss = torch.zeros((), device=accelerator.device)
    pieces = list(micro_batches(run, terms, rows_by_term))
    for number, (rows, objective, scale) in enumerate(pieces, start=1):
        with run.stepper.micro_batch(last=number == len(pieces)):
            batch = collate(rows, run.sampling.sampler.pad, accelerator.device)
            with accelerator.autocast():
                teacher = run.teacher.view(batch, objective.temperature) if objective.reads_teacher else None
            addend = scale * run.policy(batch, objective.loss, teacher, objective.temperature)
            run.stepper.backward(addend * accelerator.num_processes)
            loss += addend.detach()
    return loss


def row_figures(run: Run, rows: list[Row], seconds: float) -> Figures:
    """Return what the rows of a step tell: tokens and rate over all processes, this one's mean length, its weights."""
    device = run.accelerator.device
    tokens = int(run.accelerator.reduce(torch.tensor(sum(row.tokens for row in rows), device=device), "sum"))
    length = sum(len(row.response) for row in rows) / len(rows)
    figures = {"tokens": tokens, "tokens_per_second": tokens / seconds, "length": length}
    log_weight_B1 = [
        [sum(row.student_logp) - sum(row.behaviour_logp)] for row in rows if row.student_logp and row.behaviour_logp
    ]
    if log_weight_B1:
        figures["effective_sample_size"] = effective_sample_size(torch.tensor(log_weight_B1))
    return figures


def micro_batches(
    run: Run, terms: list[Term], rows_by_term: list[list[Row]]
) -> Iterator[tuple[list[Row], Objective, float]]:
    """Cut each term's rows into ``accumulate`` pieces; the scale holds its weight and its normalizer over all rows.

    Rows of like length share a piece: a piece is as wide as its longest row, and only the sum of the losses counts.
    """
    for term, rows in zip(terms, rows_by_term, strict=True):
        objective = term.experience.objective
        count = run.accelerator.reduce(torch.tensor(objective.count(rows), device=run.accelerator.device), "sum")
        size = math.ceil(len(rows) / run.config.training.accumulate)
        by_length = sorted(rows, key=lambda row: len(row.prompt) + len(row.response)) if size < len(rows) else rows
        for start in range(0, len(rows), size):
            yield by_length[start : start + size], objective, term.weight / max(1, int(count))


# --- one stage --------------------------------------------------------------------------------------------------------


def stage_terms(run: Run, stage: Stage) -> list[Term]:
    """What a stage minimises: its objective, and for MiniLLM the PT loss and the coverage term if they have weight."""
    if stage.kind == "self_train":
        rows_file = run.folder / "self_train.json"
        if not rows_file.exists():
            with run.sampling.gathered():
                rows = own_best_samples(
                    run.config, stage, run.student, run.teacher, run.data.prompts, run.sampling.sampler
                )
            keep_rows(rows_file, rows)
        own = rows_source(kept_rows(rows_file))
        return [Term(Experience(run.config, stage.kind, build_objective(Sft()), own, run.sampling))]
    objective = build_objective(stage.objective)
    source = data_source(run.data) if objective.responses == "data" else run.teacher_source
    terms = [Term(Experience(run.config, stage.kind, objective, source, run.sampling))]
    if objective.pt_weight:
        corpus = corpus_source(run.data.corpus, run.encoder, run.config.rollout.max_new_tokens)
        likelihood = build_objective(Sft())
        terms.append(Term(Experience(run.config, "pretraining", likelihood, corpus, run.sampling), objective.pt_weight))
    if objective.coverage_weight:
        covering = Experience(run.config, "coverage", coverage_objective(), run.teacher_source, run.sampling)
        terms.append(Term(covering, objective.coverage_weight))
    return terms


def train_stage(run: Run, progress: Progress, pending: list[list[Row]]) -> None:
    """Run one stage from where ``progress`` stands; measure and keep a checkpoint every so often and at its end."""
    stage = run.config.stages[progress.stage]
    terms = stage_terms(run, stage)
    terms[0].experience.batches = [run.sampling.share(batch) for batch in pending]
    updates = stage.updates if stage.kind == "distill" else terms[0].experience.updates(stage.epochs)
    scheduler = begin_schedule(run, stage.learning_rate, updates, progress.update)
    with run.journal.bar_of(stage.kind, updates, progress.update):
        while progress.update < updates:
            try:
                figures = optimizer_step(run, terms, progress.update)
            except BadUpdate as bad:
                if run.config.training.on_bad_loss == "stop":
                    raise
                go_back(run, progress, bad, min(updates, terms[0].experience.next_round(bad.update)))
                scheduler = begin_schedule(run, stage.learning_rate, updates, progress.update)
            else:
                scheduler.step()
                progress.update += 1
                tell(run, terms, stage.kind, progress.update, figures)
                keep_checkpoint(run, progress, terms, due=progress.update == updates)
            if run.stop.agreed:
                raise StoppedBySignal(run.stop.agreed)


def go_back(run: Run, progress: Progress, bad: BadUpdate, behind: int) -> None:
    """Roll back, behind the rows of a bad update, and tell it."""
    source = roll_back(run.checkpoints, run.optimizer, progress, bad, behind)
    stage = run.config.stages[progress.stage].kind
    run.journal.rolled_back(stage, bad.update, behind, source, str(bad).partition(";")[0])


def tell(run: Run, terms: list[Term], stage: str, update: int, figures: Figures) -> None:
    """Record an update, and once that its weights leave little to learn from."""
    run.journal.update(stage, update, figures)
    in_rollouts = terms[0].experience.objective.loss.normalizer == "rollouts"
    if in_rollouts and figures.get("effective_sample_size", 1.0) < LEAST_SAMPLE_SIZE:
        run.journal.note_once(NOISY_WEIGHTS)


def keep_checkpoint(run: Run, progress: Progress, terms: list[Term], due: bool) -> None:
    """Measure and save where that is due, at the end of a stage and every so often; save where a signal came."""
    pending = terms[0].experience.pending(progress.update)
    if due or progress.update % run.config.checkpoint.every == 0:
        with run.sampling.gathered():
            figure = measure(run, progress, run.config.stages[progress.stage].kind)
        run.checkpoints.save(progress, pending, figure)
    elif run.stop.agreed:
        run.checkpoints.save(progress, pending)


def begin_schedule(run: Run, learning_rate: float | None, updates: int, done: int) -> LambdaLR:
    """Start a stage with fresh moments and its own schedule, or stand again where a resumed stage stood."""
    optimizer, training = run.optimizer, run.config.training
    if done == 0:
        optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = learning_rate or training.learning_rate
    name = "cosine" if training.schedule == "cosine" else "constant_with_warmup"
    scheduler: LambdaLR = get_scheduler(name, optimizer, round(training.warmup * updates), updates)
    for _ in range(done):
        scheduler.step()
    return scheduler


def measure(run: Run, progress: Progress, moment: str) -> float:
    """Take the held-out measure, tell it, and return the figure by which the best weights are chosen."""
    with run.accelerator.autocast():
        figures, rows = run.held_out.measure(run.student)
    run.journal.figures("held_out", moment, progress.update, figures)
    run.journal.note(f"{moment} {progress.update}: {short_table(figures)}")
    samples = run.held_out.completions(rows, run.tokenizer)
    run.journal.event("sample", stage=moment, update=progress.update, samples=samples)
    progress.measures[f"{moment}:{progress.update}"] = figures
    progress.samples[f"{moment}:{progress.update}"] = samples
    # A served teacher leaves a lower bound of a KL, or, giving text only, the likelihood of its responses to go by.
    best_by = run.config.checkpoint.best_by
    return figures.get(best_by, figures.get(f"{best_by}_topk", figures["held_out_nll"]))


# --- the whole run ----------------------------------------------------------------------------------------------------


def train(run: Run, resume: bool) -> None:
    """Train every stage, from the start or from the newest checkpoint, and export the best student."""
    newest = run.checkpoints.newest() if resume else None
    progress, pending = run.checkpoints.load(newest) if newest else (Progress(), [])
    if newest:
        run.journal.note(f"going on from checkpoint {newest.name}")
    else:
        with run.sampling.gathered():
            measure(run, progress, "before")
    while progress.stage < len(run.config.stages):
        train_stage(run, progress, pending)
        progress.stage, progress.update, pending = progress.stage + 1, 0, []
    run.checkpoints.load_best(progress)
    run.accelerator.wait_for_everyone()
    student = run.student if run.shards is None else run.shards.whole()
    if student is not None and run.accelerator.is_main_process:
        if run.sampling.annotate is not None:
            run.sampling.annotate.forget()
        dtype = run.config.student.export_dtype
        export_student(student, run.tokenizer, run.encoder.eos_ids, run.folder / "student", dtype)
        final = {"best": progress.best, "measures": progress.measures, "samples": progress.samples}
        write_json(run.folder / "summary.json", final)
    run.journal.event("done", best=progress.best, student=str(run.folder / "student"))
    run.journal.close()
