"""Distil a teacher into a student, on transformers and accelerate.

Reads from top to bottom: configuration, the parts of a run, one optimizer step, one stage, the whole run. ``CONFIG``
says what it trains on and how; the losses, the sampler and the rest are in the folder beside this file. Run it with
``python train.py``; stop it with Ctrl-C and go on with ``python train.py --resume``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from skill_kd.algorithms.sampling import Decoding
from skill_kd.runtime.batching import Row, collate
from skill_kd.runtime.checkpoints import Checkpoints, Progress
from skill_kd.runtime.config import Config, output_folder
from skill_kd.runtime.data import Encoder, TrainingData, load_training_data, read_corpus
from skill_kd.runtime.experience import (
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
from skill_kd.runtime.export import export_student, write_json
from skill_kd.runtime.failures import StoppedBySignal, StopRequest, TrainingStopped, reporting
from skill_kd.runtime.loading import check_context, eos_ids, load_student, real_vocabulary
from skill_kd.runtime.measure import Figures, HeldOut
from skill_kd.runtime.objectives import Objective, build_objective, coverage_objective
from skill_kd.runtime.policy import Policy
from skill_kd.runtime.progress import Journal, short_table
from skill_kd.runtime.rollouts import Sampler, draws_for
from skill_kd.runtime.teachers import Teacher, TeacherResponses, open_teacher

CONFIG = Config.read(sys.argv[1])  # kd: config
FOLDER = output_folder(__file__, sys.argv)
SELF_TRAINING_ROWS = FOLDER / "self_train.json"


@dataclass
class Run:
    """The parts that all stages share."""

    accelerator: Accelerator
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    policy: Policy
    optimizer: torch.optim.Optimizer
    teacher: Teacher
    sampling: Sampling
    data: TrainingData
    teacher_source: Source
    held_out: HeldOut
    journal: Journal
    checkpoints: Checkpoints
    stop: StopRequest


def open_run() -> Run:
    """Load data and models, and wrap them for the devices at hand."""
    rollout, training = CONFIG.rollout, CONFIG.training
    accelerator = Accelerator(
        # Without this, several processes on a machine without accelerators would not find each other.
        cpu=torch.accelerator.current_accelerator() is None,
        mixed_precision="bf16" if training.precision == "bf16" else "no",
        log_with=list(CONFIG.trackers) or None,
        project_dir=FOLDER,
    )
    torch.manual_seed(CONFIG.seed)
    journal = Journal(FOLDER, accelerator, CONFIG)

    student, tokenizer = load_student(CONFIG.student, CONFIG.teacher)
    check_context(student, CONFIG.data.max_prompt_tokens + rollout.max_new_tokens, "the student")
    if training.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    encoder = Encoder(tokenizer, eos_ids(tokenizer, student))
    data = load_training_data(CONFIG, encoder)

    vocabulary = real_vocabulary(tokenizer, student)
    decoding = Decoding(rollout.max_new_tokens, rollout.temperature, rollout.top_p, encoder.eos_ids, vocabulary)
    sampler = Sampler(decoding, int(tokenizer.pad_token_id), accelerator.device)
    teacher = open_teacher(CONFIG, tokenizer, sampler, encoder)
    sampler = replace(sampler, decoding=replace(decoding, vocabulary=teacher.vocabulary))

    policy = Policy(student, teacher.vocabulary)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, training.learning_rate, training.betas, weight_decay=training.weight_decay)
    policy, optimizer = accelerator.prepare(policy, optimizer)

    rows_at_once = training.batch_size // training.accumulate // accelerator.num_processes
    measured = draws_for(data.held_out_prompts, (CONFIG.seed, "held_out"))
    written = draws_for(data.prompts, (CONFIG.seed, "teacher"))
    responses = TeacherResponses(teacher, data.examples, written, sampler.decoding)
    return Run(
        accelerator,
        student,
        tokenizer,
        encoder,
        policy,
        optimizer,
        teacher,
        Sampling(sampler, teacher, accelerator.process_index, accelerator.num_processes),
        data,
        Source(data.prompts, responses),
        HeldOut(teacher, sampler, data.held_out_examples, measured, rows_at_once),
        journal,
        Checkpoints(FOLDER, accelerator, CONFIG.checkpoint.keep),
        StopRequest(),
    )


# --- one optimizer step -----------------------------------------------------------------------------------------------


def optimizer_step(run: Run, terms: list[Term], update: int) -> Figures:
    """Sample the rows that are due, add up the gradients of all micro-batches, step once."""
    began, accelerator = time.perf_counter(), run.accelerator
    with accelerator.autocast():
        rows_by_term = [term.experience.batch(update, run.student) for term in terms]
    run.policy.train()
    loss = torch.zeros((), device=accelerator.device)
    pieces = list(micro_batches(run, terms, rows_by_term))
    for number, (rows, objective, scale) in enumerate(pieces, start=1):
        # Gradients of all processes are averaged once, at the last micro-batch.
        with nullcontext() if number == len(pieces) else accelerator.no_sync(run.policy):
            batch = collate(rows, run.sampling.sampler.pad, accelerator.device)
            with accelerator.autocast():
                teacher_logp = run.teacher.logp(batch, objective.temperature) if objective.reads_teacher else None
            addend = scale * run.policy(batch, objective.loss, teacher_logp, objective.temperature)
            accelerator.backward(addend * accelerator.num_processes)
            loss += addend.detach()
    grad_norm = float(accelerator.clip_grad_norm_(run.policy.parameters(), CONFIG.training.max_grad_norm))
    total_loss = float(accelerator.reduce(loss, "sum"))
    if not (math.isfinite(total_loss) and math.isfinite(grad_norm)):
        raise TrainingStopped(
            f"update {update}: loss {total_loss}, gradient norm {grad_norm}; the weights before it are kept in "
            "checkpoints/. Lower training.learning_rate, or look at the data of this update"
        )
    run.optimizer.step()
    run.optimizer.zero_grad()
    main_rows = rows_by_term[0]
    seconds = time.perf_counter() - began
    tokens = accelerator.reduce(torch.tensor(sum(row.tokens for row in main_rows), device=accelerator.device), "sum")
    return {
        "loss": total_loss,
        "grad_norm": grad_norm,
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "seconds": seconds,
        "tokens": int(tokens),
        "tokens_per_second": int(tokens) / seconds,
        "length": sum(len(row.response) for row in main_rows) / len(main_rows),
    }


def micro_batches(
    run: Run, terms: list[Term], rows_by_term: list[list[Row]]
) -> Iterator[tuple[list[Row], Objective, float]]:
    """Cut each term's rows into ``accumulate`` pieces; the scale holds its weight and its normaliser over all rows."""
    for term, rows in zip(terms, rows_by_term, strict=True):
        objective = term.experience.objective
        count = run.accelerator.reduce(torch.tensor(objective.count(rows), device=run.accelerator.device), "sum")
        size = math.ceil(len(rows) / CONFIG.training.accumulate)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], objective, term.weight / max(1, int(count))


# --- one stage --------------------------------------------------------------------------------------------------------


def stage_terms(run: Run, stage: Config) -> list[Term]:
    """What a stage minimises: its objective, and for MiniLLM the PT loss and the coverage term if they have weight."""
    if stage.kind == "self_train":
        if not SELF_TRAINING_ROWS.exists():
            rows = own_best_samples(CONFIG, stage, run.student, run.teacher, run.data.prompts, run.sampling.sampler)
            keep_rows(SELF_TRAINING_ROWS, rows)
        own = rows_source(kept_rows(SELF_TRAINING_ROWS))
        return [Term(Experience(CONFIG, stage.kind, build_objective(Config(kind="sft")), own, run.sampling))]
    objective = build_objective(stage.objective)
    source = data_source(run.data) if objective.responses == "data" else run.teacher_source
    terms = [Term(Experience(CONFIG, stage.kind, objective, source, run.sampling))]
    if objective.pt_weight:
        corpus = corpus_source(read_corpus(CONFIG.data.pretraining), run.encoder, CONFIG.rollout.max_new_tokens)
        likelihood = build_objective(Config(kind="sft"))
        terms.append(Term(Experience(CONFIG, "pretraining", likelihood, corpus, run.sampling), objective.pt_weight))
    if objective.coverage_weight:
        covering = Experience(CONFIG, "coverage", coverage_objective(), run.teacher_source, run.sampling)
        terms.append(Term(covering, objective.coverage_weight))
    return terms


def train_stage(run: Run, progress: Progress, pending: list[list[Row]]) -> None:
    """Run one stage from where ``progress`` stands; measure and keep a checkpoint every so often and at its end."""
    stage = CONFIG.stages[progress.stage]
    terms = stage_terms(run, stage)
    terms[0].experience.batches = pending
    updates = stage.updates if stage.kind == "distill" else terms[0].experience.updates(stage.epochs)
    scheduler = begin_schedule(
        run.optimizer, stage.learning_rate or CONFIG.training.learning_rate, updates, progress.update
    )
    with run.journal.bar_of(stage.kind, updates, progress.update):
        while progress.update < updates:
            figures = optimizer_step(run, terms, progress.update)
            scheduler.step()
            progress.update += 1
            run.journal.update(stage.kind, progress.update, figures)
            if progress.update == updates or progress.update % CONFIG.checkpoint.every == 0:
                figure = measure(run, progress, stage.kind)
                run.checkpoints.save(progress, terms[0].experience.pending(progress.update), figure)
            elif run.stop.number:
                run.checkpoints.save(progress, terms[0].experience.pending(progress.update))
            if run.stop.number:
                raise StoppedBySignal(run.stop.number)


def begin_schedule(optimizer: torch.optim.Optimizer, rate: float, updates: int, done: int) -> LambdaLR:
    """Start a stage with fresh moments and its own schedule, or stand again where a resumed stage stood."""
    if done == 0:
        optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate
    name = "cosine" if CONFIG.training.schedule == "cosine" else "constant_with_warmup"
    scheduler: LambdaLR = get_scheduler(name, optimizer, round(CONFIG.training.warmup * updates), updates)
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
    best_by = CONFIG.checkpoint.best_by
    return figures.get(best_by, figures.get(f"{best_by}_topk", figures["held_out_nll"]))


# --- the whole run ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Train every stage, from the start or from the newest checkpoint, and export the best student."""
    run = open_run()
    newest = run.checkpoints.newest() if "--resume" in sys.argv else None
    progress, pending = run.checkpoints.load(newest) if newest else (Progress(), [])
    if newest:
        run.journal.note(f"going on from checkpoint {newest.name}")
    else:
        measure(run, progress, "before")
    while progress.stage < len(CONFIG.stages):
        train_stage(run, progress, pending)
        progress.stage, progress.update, pending = progress.stage + 1, 0, []
    run.checkpoints.load_best(progress)
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        export_student(run.student, run.tokenizer, run.encoder.eos_ids, FOLDER / "student")
        final = {"best": progress.best, "measures": progress.measures, "samples": progress.samples}
        write_json(FOLDER / "summary.json", final)
    run.journal.event("done", best=progress.best, student=str(FOLDER / "student"))
    run.accelerator.end_training()


if __name__ == "__main__":
    with reporting():
        main()
