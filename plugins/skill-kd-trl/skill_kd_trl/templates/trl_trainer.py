"""Distill a teacher into a student with TRL's DistillationTrainer.

``CONFIG`` holds the settings of the run. ``prepare`` builds its parts. ``OnPolicyTrainer`` is TRL's trainer, which
samples, scores and steps. Some changes make its runs comparable with those of other backends: prompts as token ids, the
spec's normalizers, held-out measures, and failures that are reported in one line. Run it with ``python train.py``; stop
it with Ctrl-C and resume with ``python train.py --resume``.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl import DistillationConfig, DistillationTrainer

from skill_kd.kd.config import Config, Distill, output_folder
from skill_kd.kd.dataset.batch import Batch, epoch_stream
from skill_kd.kd.dataset.encoding import Encoded, Encoder
from skill_kd.kd.dataset.training_data import TrainingData
from skill_kd.kd.errors import BadInput, Missing, StoppedBySignal
from skill_kd.kd.files import write_json
from skill_kd.kd.losses.masking import position_ids
from skill_kd.kd.model.export import export_student
from skill_kd.kd.model.loading import load_student
from skill_kd.kd.model.student import StudentWithLoss
from skill_kd.kd.reporting import reporting
from skill_kd.kd.signals import StopRequest
from skill_kd.kd.teacher import teacher as teachers
from skill_kd.kd.train.checkpoint_files import STATE, refusing_code
from skill_kd.kd.train.checkpoints import Progress, read_progress
from skill_kd.kd.train.held_out_measures import HeldOutMeasures
from skill_kd.kd.train.journal import Journal
from skill_kd.kd.train.objectives import build_objective
from skill_kd.kd.train.roll_back import check_loss
from skill_kd.kd.train.setup import open_accelerator, open_parts
from skill_kd.kd.train.strategy import adamw

CONFIG = Config.read(sys.argv[1])  # kd: config
FOLDER = output_folder(__file__, sys.argv)
[STAGE] = [stage for stage in CONFIG.stages if isinstance(stage, Distill)]
OBJECTIVE = build_objective(STAGE.objective)
ROWS_AT_ONCE = CONFIG.training.batch_size // CONFIG.training.accumulate // CONFIG.launch.processes


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run."""

    accelerator: Accelerator
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    policy: StudentWithLoss
    teacher: teachers.Teacher
    teacher_model: PreTrainedModel
    data: TrainingData
    measures: HeldOutMeasures
    journal: Journal
    stop: StopRequest


def prepare() -> Run:
    """Load data and models, and make them fit TRL, which compares two models over all rows of their LM heads."""
    accelerator = open_accelerator(CONFIG, FOLDER)
    if accelerator.device.type == "cpu" and CONFIG.training.precision == "bf16":
        raise BadInput("training.precision: bf16, but this machine has no accelerator; set precision: fp32")
    if (started := accelerator.num_processes) != CONFIG.launch.processes:
        raise BadInput(
            f"launch.processes: {CONFIG.launch.processes}, but {started} started; use `skill-kd run` or launch.sh"
        )
    if CONFIG.rollout.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise Missing("rollout.engine: vllm is not installed; run pip install 'trl[vllm]', or drop the key")
    student, tokenizer = load_student(CONFIG.student, CONFIG.teacher)
    parts = open_parts(CONFIG, accelerator, student.to(accelerator.device), tokenizer)
    teacher = parts.teacher
    teacher_model = teacher.model.model if isinstance(teacher.model, teachers.HiddenStateTeacher) else teacher.model
    fit_vocabulary(student, teacher_model)
    for model in (student, teacher_model):
        count_positions_from_the_first_token(model)
    journal = Journal(FOLDER, accelerator, CONFIG)
    return Run(
        accelerator=accelerator,
        student=student,
        tokenizer=tokenizer,
        encoder=parts.encoder,
        policy=StudentWithLoss(student, teacher.vocabulary),
        teacher=teacher,
        teacher_model=teacher_model,
        data=parts.data,
        measures=HeldOutMeasures(
            held_out=parts.held_out,
            accelerator=accelerator,
            tokenizer=tokenizer,
            journal=journal,
            best_by=CONFIG.checkpoint.best_by,
        ),
        journal=journal,
        stop=StopRequest(),
    )


def fit_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Cut the teacher's head to the student's number of ids. The remaining ids were already compared."""
    ours, theirs = (model.config.get_text_config().vocab_size for model in (student, teacher))
    if theirs < ours:
        raise BadInput(
            f"the student's vocabulary has {ours} rows and the teacher's only {theirs}, but TRL compares all rows of "
            "the student; use a teacher with as many, or backend: transformers, which compares the shared tokens"
        )
    if theirs > ours:
        # Change the module in place: the teacher's logits are already taken from it.
        head = teacher.get_output_embeddings()
        head.weight = nn.Parameter(head.weight[:ours], requires_grad=False)
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias[:ours], requires_grad=False)
        head.out_features = teacher.config.get_text_config().vocab_size = ours


def count_positions_from_the_first_token(model: PreTrainedModel) -> None:
    """Score padded rows with the positions of sampling. TRL passes none, and some models then count the padding."""

    def fill_in(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if given.get("position_ids") is None and given.get("attention_mask") is not None:
            given["position_ids"] = position_ids(given["attention_mask"])
        return args, given

    without_adapters(model).base_model.register_forward_pre_hook(fill_in, with_kwargs=True)


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model inside its adapters, or the model itself if it has none."""
    plain: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain


# --- TRL's trainer ----------------------------------------------------------------------------------------------------


class Prompts:
    """Prompts in training order, which is the same for every backend."""

    def __init__(self, prompts: Sequence[Encoded], order: Sequence[int]) -> None:
        self.prompts, self.order = prompts, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"prompt": list(self.prompts[self.order[index]].prompt)}


class OnPolicyTrainer(DistillationTrainer):  # type: ignore[misc]
    """TRL's loop and, except for MiniLLM, its loss: forward KL (beta 0), Jensen-Shannon, reverse KL (beta 1)."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        size = STAGE.updates * CONFIG.training.batch_size
        order = list(islice(epoch_stream(len(run.data.prompts), (CONFIG.seed, STAGE.kind, "order")), size))
        super().__init__(
            model=run.student,
            teacher_model=run.teacher_model,
            args=arguments(run.student.config, run.teacher.vocabulary, run.accelerator.device),
            train_dataset=Prompts(run.data.prompts, order),
            eval_dataset=Prompts(run.data.held_out_prompts, range(len(run.data.held_out_prompts))),
            processing_class=run.tokenizer,
            callbacks=[Reporter(run, progress)],
            # TRL's own optimizer would not decay norms and biases.
            optimizers=(adamw(run.student, CONFIG.training, STAGE.learning_rate), None),
        )
        self.remove_callback(PrinterCallback)

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the prompts unchanged: they are already encoded as in serving."""
        return prompts, None, {}

    def _send_telemetry(self) -> None:
        """Send nothing about this run."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        """Return TRL's loss times T², as the spec defines it, in the spec's precision.

        Without ``autocast``, TRL's forward passes ignore ``bf16`` and run in the precision of the weights.
        """
        with self.accelerator.autocast():
            loss = super().compute_loss(model, inputs, **options)
        scaled = CONFIG.rollout.temperature**2 * loss
        return (scaled, None) if return_outputs else scaled

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Take our held-out measure. The trainer keeps the weights with the lowest metric."""
        self.progress.update = self.state.global_step
        self.control.should_evaluate = False
        return {"eval_held_out": self.run.measures.take(self.run.student, self.progress, STAGE.kind)}


class MiniLLMTrainer(OnPolicyTrainer):
    """The same loop with MiniLLM's loss."""

    def _compute_loss(
        self, _student: PreTrainedModel, inputs: dict[str, Tensor], num_items_in_batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of a micro-batch, and 0 for the sum of entropies and the count that TRL logs."""
        mask_BT = inputs["completion_mask"].bool()
        attention_BL = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        batch = Batch(
            ids_BL=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            attention_mask_BL=attention_BL,
            position_ids_BL=position_ids(attention_BL),
            response_BT=inputs["completion_ids"],
            mask_BT=mask_BT,
            behaviour_logp_BT=None,  # the student sampled at most one step ago: all weights are 1
            from_data_B=torch.zeros(len(mask_BT), dtype=torch.bool, device=mask_BT.device),
        )
        total = self.run.policy(batch, OBJECTIVE.loss, self.run.teacher.view(batch), OBJECTIVE.temperature)
        # Like TRL's own count, this is divided by the number of processes, over which gradients are averaged.
        rollouts = CONFIG.training.batch_size / self.accelerator.num_processes
        nothing = torch.zeros((), device=total.device)
        return total / (rollouts if OBJECTIVE.loss.normalizer == "rollouts" else num_items_in_batch), nothing, nothing


def arguments(student: PreTrainedConfig, vocabulary: int, device: torch.device) -> DistillationConfig:
    """Translate the spec to TRL's arguments. Every TRL default that differs from the spec's is set."""
    rollout, training, checkpoint = CONFIG.rollout, CONFIG.training, CONFIG.checkpoint
    rows = student.get_text_config().vocab_size
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0}.get(STAGE.objective.kind, getattr(STAGE.objective, "beta", 1.0))
    return DistillationConfig(
        output_dir=str(FOLDER / "checkpoints"),
        seed=CONFIG.seed,
        use_cpu=device.type == "cpu",
        bf16=training.precision == "bf16",
        beta=beta,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        max_completion_length=rollout.max_new_tokens,
        generation_kwargs=only_tokens(vocabulary, rows),
        use_vllm=rollout.engine == "vllm",
        vllm_mode="server" if rollout.vllm_url else "colocate",
        vllm_server_base_url=rollout.vllm_url,
        shuffle_dataset=False,
        per_device_train_batch_size=ROWS_AT_ONCE,
        gradient_accumulation_steps=training.accumulate,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        max_steps=STAGE.updates,
        lr_scheduler_type="cosine" if training.schedule == "cosine" else "constant_with_warmup",
        warmup_steps=round(training.warmup * STAGE.updates),
        max_grad_norm=training.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        eval_strategy="steps",
        eval_steps=checkpoint.every,
        save_strategy="steps",
        save_steps=checkpoint.every,
        save_total_limit=checkpoint.keep,
        load_best_model_at_end=True,
        metric_for_best_model="held_out",
        greater_is_better=False,
    )


def only_tokens(vocabulary: int, rows: int) -> dict[str, list[int]]:
    """Return the option of transformers or vLLM that keeps padding rows of the embedding from being sampled."""
    if rows == vocabulary:
        return {}
    if CONFIG.rollout.engine == "vllm":
        return {"allowed_token_ids": list(range(vocabulary))}
    return {"suppress_tokens": list(range(vocabulary, rows))}


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Records each update as the built-in backend does. Stops on a signal or on a bad loss."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress, self.began = run, progress, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the timer. The time of an update includes sampling."""
        self.began = time.perf_counter()

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """After a signal, write a checkpoint and stop."""
        self.run.stop.agree()
        if self.run.stop.agreed:
            control.should_save = control.should_training_stop = True

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        """Record one optimizer step, before its checkpoint is written."""
        if "loss" not in logs:
            return
        loss, grad_norm = float(logs["loss"]), float(logs["grad_norm"])
        check_loss(state.global_step - 1, loss, grad_norm, CONFIG.training.loss_limit)
        seconds, length = time.perf_counter() - self.began, logs["completions/mean_length"]
        tokens = round(length * CONFIG.training.batch_size)
        figures = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": logs["learning_rate"],
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "length": length,
        }
        self.run.journal.update(STAGE.kind, state.global_step, figures)

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Complete TRL's checkpoint. A checkpoint without this file is torn."""
        self.progress.update, self.progress.best = state.global_step, best(state)
        self.progress.best_figure = state.best_metric
        if state.is_world_process_zero:
            write_json(FOLDER / "checkpoints" / f"checkpoint-{state.global_step}" / STATE, asdict(self.progress))


def best(state: Any) -> str | None:
    """Return the name of the best checkpoint so far."""
    return Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None


# --- the whole run ----------------------------------------------------------------------------------------------------


def newest_checkpoint() -> Path | None:
    """Return the newest whole checkpoint, if this run resumes from one."""
    whole = [path.parent for path in (FOLDER / "checkpoints").glob(f"checkpoint-*/{STATE}")]
    newest = max(whole, key=lambda path: int(path.name.split("-")[-1]), default=None)
    return newest if "--resume" in sys.argv else None


def open_trainer(run: Run, progress: Progress) -> OnPolicyTrainer:
    """Return the trainer of the spec's objective."""
    # A model's own sampling settings (a penalty, a ban) would make it sample from another distribution.
    run.student.generation_config = GenerationConfig(
        bos_token_id=run.tokenizer.bos_token_id,
        eos_token_id=sorted(run.encoder.eos_ids),
        pad_token_id=run.tokenizer.pad_token_id,
    )
    trainer = MiniLLMTrainer if STAGE.objective.kind == "minillm" else OnPolicyTrainer
    if CONFIG.rollout.vllm_url is None:
        return trainer(run, progress)
    try:
        return trainer(run, progress)
    except (ConnectionError, RuntimeError) as error:
        raise Missing(f"rollout.vllm_url: {' '.join(str(error).split())[:400]}") from error


def main() -> None:
    """Train, from the start or from the newest checkpoint, and export the best student."""
    # TRL calls functions that transformers has renamed, and every reload logs that tied weights are saved once.
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    run, newest = prepare(), newest_checkpoint()
    progress = read_progress(newest / STATE)[0] if newest else Progress()
    generation_config = run.student.generation_config
    trainer = open_trainer(run, progress)
    if newest:
        run.journal.note(f"resuming from checkpoint {newest.name}")
    else:
        run.measures.take(run.student, progress, "before")
    with run.journal.bar_of(STAGE.kind, STAGE.updates, progress.update), refusing_code(newest or FOLDER):
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if run.stop.agreed and trainer.state.global_step < STAGE.updates:
        raise StoppedBySignal(run.stop.agreed)
    trainer.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        student = trainer.accelerator.unwrap_model(run.student, keep_fp32_wrapper=False)
        # Sampling has replaced the generation config, also in the model inside the adapters.
        student.generation_config = without_adapters(student).generation_config = generation_config
        export_student(student, run.tokenizer, run.encoder.eos_ids, FOLDER / "student", CONFIG.student.export_dtype)
        final = {"best": best(trainer.state), "measures": progress.measures, "samples": progress.samples}
        write_json(FOLDER / "summary.json", final)
    run.journal.event("done", best=best(trainer.state), student=str(FOLDER / "student"))
    run.journal.close()


if __name__ == "__main__":
    with reporting():
        main()
