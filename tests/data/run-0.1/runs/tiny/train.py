# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0",
#     "transformers==5.23.0",
#     "accelerate==1.15.0",
#     "datasets==4.8.5",
#     "peft==0.21.2",
#     "safetensors==0.8.0",
#     "gguf==0.19.0",
#     "tqdm==4.70.1",
# ]
#
# [tool.skill-kd]
# version = "0.1.0"
# backend = "transformers"
# backend_version = "0.1.0"
# spec = "d1fda9d64401075286fbbeaed558fd13f86e193bb45cddc46082913d47d8b906"
# template = "ae7cbcade1b21033db8f811c1e97662eebdc33cd0c0e609a18d8b512f67f88d3"
# kd = "2874580ea6f149a2ac057c06c6bcc21c26c8f15b9e93417371bd28ca5b2de451"
# body = "4798183f37a6161911eaa4f637fb3a976ed34afaeb8b5618941bd01ff488d0ff"
# ///

"""Distil a teacher into a student, on transformers and accelerate.

``CONFIG`` says what it trains on and how. In the folder beside this file, ``runtime/opening.py`` puts the parts
together, ``runtime/training.py`` is the loop that trains them, and ``algorithms/`` has the losses and the sampler.
Run it with ``python train.py``; stop it with Ctrl-C and go on with ``python train.py --resume``.
"""

from __future__ import annotations

import sys

from kd.runtime.config import Config, output_folder
from kd.runtime.failures import reporting
from kd.runtime.loading import load_student
from kd.runtime.opening import open_accelerator, open_run
from kd.runtime.training import Run, train

CONFIG = Config(  # kd: config
    name="tiny",
    seed=42,
    backend="transformers",
    teacher=Config(
        model="teacher",
        revision=None,
        dtype="float32",
        quantization=None,
        cache_gb=4.0,
        trust_remote_code=False,
        served=None,
    ),
    student=Config(
        model="student",
        from_teacher=None,
        revision=None,
        dtype="float32",
        export_dtype="float32",
        quantization=None,
        trust_remote_code=False,
        lora=None,
    ),
    data=Config(
        train="train.jsonl",
        split="train",
        held_out=0.2,
        max_overlap=0.0,
        pretraining=None,
        chat_template_options=Config(),
        max_prompt_tokens=64,
        long_prompts="refuse",
        max_bad_rows=0.0,
    ),
    stages=(
        Config(
            kind="distill",
            objective=Config(
                kind="minillm",
                estimator="paper",
                teacher_mix=0.2,
                length_normalization=True,
                clip=0.2,
                pt_weight=0.0,
                coverage_weight=0.0,
            ),
            updates=12,
            learning_rate=None,
        ),
    ),
    rollout=Config(
        max_new_tokens=8,
        temperature=1.0,
        top_p=1.0,
        prompts=8,
        inner_epochs=2,
        engine="transformers",
        vllm_url=None,
    ),
    training=Config(
        learning_rate=0.001,
        warmup=0.03,
        schedule="cosine",
        batch_size=4,
        accumulate=1,
        max_grad_norm=1.0,
        on_bad_loss="stop",
        loss_limit=None,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        precision="fp32",
        gradient_checkpointing=False,
        compile_loss=False,
    ),
    checkpoint=Config(every=1, keep=1, best_by="reverse_kl", measure_prompts=2),
    trackers=(),
    launch=Config(nodes=1, processes=1, strategy="none", shard_teacher=False),
    evaluation=Config(prompts=None, samples=8, policy="assistant"),
    handoff=Config(
        to="unsloth",
        method="lora",
        data="train.jsonl",
        epochs=1.0,
        export=("merged", "lora"),
        responses_only=True,
        ollama=False,
    ),
)
FOLDER = output_folder(__file__, sys.argv)


def prepare() -> Run:
    """Load the student, or grow it from the teacher's layers, and put the run together around it."""
    accelerator = open_accelerator(CONFIG, FOLDER)
    # Of a student in shards the main process hands out the weights; the others need shapes alone.
    weights = accelerator.is_main_process or CONFIG.launch.strategy != "fsdp2"
    student, tokenizer = load_student(CONFIG.student, CONFIG.teacher, weights=weights)
    if CONFIG.training.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    return open_run(CONFIG, FOLDER, accelerator, student, tokenizer)


if __name__ == "__main__":
    with reporting():
        train(prepare(), resume="--resume" in sys.argv)
