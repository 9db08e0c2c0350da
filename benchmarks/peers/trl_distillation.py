"""TRL's DistillationTrainer as its users call it: on-policy, beta = 1 (reverse KL), generation by transformers.

A peer of ``end_to_end.py``, which does not need skill-kd. The settings decide about gradient checkpointing, which TRL
turns on by default, because the others do not use it.

    python trl_distillation.py settings.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer


class Clock(TrainerCallback):  # type: ignore[misc]
    """Writes one line for each update: its seconds, sampling included, and the response tokens it trained on."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows = path, rows
        self.began = self.seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start before the responses are sampled."""
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop after the optimizer's step."""
        self.seconds = time.perf_counter() - self.began

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        """Write the line."""
        if "loss" in logs:
            tokens = round(logs["completions/mean_length"] * self.rows)
            line = {"event": "update", "seconds": self.seconds, "tokens": tokens, "loss": logs["loss"]}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def main() -> None:
    """Train for as many updates as the settings say, and write the student."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(sys.argv[1]).parent
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(settings[name], dtype=torch.float32) for name in ("student", "teacher")
    )
    arguments = DistillationConfig(
        output_dir=str(out / "trl"),
        seed=settings["seed"],
        use_cpu=True,
        bf16=False,
        beta=1.0,
        max_completion_length=settings["new_tokens"],
        per_device_train_batch_size=settings["rows"],
        gradient_accumulation_steps=1,
        gradient_checkpointing=settings["gradient_checkpointing"],
        max_steps=settings["updates"],
        learning_rate=settings["learning_rate"],
        adam_beta1=settings["betas"][0],
        adam_beta2=settings["betas"][1],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=arguments,
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": text}]} for text in settings["prompts"]]
        ),
        processing_class=AutoTokenizer.from_pretrained(settings["student"], padding_side="left"),
        callbacks=[Clock(out / "metrics.jsonl", settings["rows"])],
    )
    trainer.train()
    trainer.save_model(str(out / "student"))


if __name__ == "__main__":
    main()
