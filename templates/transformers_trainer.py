"""Distil a teacher into a student, on transformers and accelerate.

``CONFIG`` says what it trains on and how; ``open_run`` puts the parts together; the loop that trains them is
``training.py`` in the folder beside this file, with the losses, the sampler and the rest. Run it with
``python train.py``; stop it with Ctrl-C and go on with ``python train.py --resume``.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from accelerate import Accelerator

from skill_kd.algorithms.sampling import Decoding
from skill_kd.runtime.checkpoints import Checkpoints
from skill_kd.runtime.config import Config, output_folder
from skill_kd.runtime.data import Encoder, load_training_data
from skill_kd.runtime.experience import Sampling, Source
from skill_kd.runtime.failures import StopRequest, reporting
from skill_kd.runtime.loading import check_context, eos_ids, load_student, real_vocabulary
from skill_kd.runtime.measure import HeldOut
from skill_kd.runtime.policy import Policy
from skill_kd.runtime.progress import Journal
from skill_kd.runtime.rollouts import Sampler, draws_for
from skill_kd.runtime.states import Annotator, StatesCache
from skill_kd.runtime.teachers import TeacherResponses, open_teacher
from skill_kd.runtime.training import Run, train

CONFIG = Config.read(sys.argv[1])  # kd: config
FOLDER = output_folder(__file__, sys.argv)


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
    encoder = Encoder(tokenizer, eos_ids(tokenizer, student), vars(CONFIG.data.chat_template_options))
    data = load_training_data(CONFIG, encoder)

    vocabulary = real_vocabulary(tokenizer, student)
    decoding = Decoding(rollout.max_new_tokens, rollout.temperature, rollout.top_p, encoder.eos_ids, vocabulary)
    sampler = Sampler(decoding, int(tokenizer.pad_token_id), accelerator.device)
    teacher = open_teacher(CONFIG, tokenizer, sampler, encoder)
    sampler = replace(sampler, decoding=replace(decoding, vocabulary=teacher.vocabulary))

    policy = Policy(student, teacher.vocabulary, training.compile_loss)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, training.learning_rate, training.betas, weight_decay=training.weight_decay)
    policy, optimizer = accelerator.prepare(policy, optimizer)

    rows_at_once = training.batch_size // training.accumulate // accelerator.num_processes
    measured = draws_for(data.held_out_prompts, (CONFIG.seed, "held_out"))
    written = draws_for(data.prompts, (CONFIG.seed, "teacher"))
    cache = StatesCache(FOLDER / "teacher_states", teacher.model, CONFIG.teacher.cache_gb) if teacher.model else None
    annotate = Annotator(teacher, sampler.pad, accelerator.device, rows_at_once, cache)
    responses = TeacherResponses(teacher, data.examples, written, sampler.decoding)
    return Run(
        CONFIG,
        FOLDER,
        accelerator,
        student,
        tokenizer,
        encoder,
        policy,
        optimizer,
        teacher,
        Sampling(sampler, teacher, accelerator.process_index, accelerator.num_processes, annotate),
        data,
        Source(data.prompts, responses),
        HeldOut(teacher, sampler, data.held_out_examples, measured, rows_at_once),
        journal,
        Checkpoints(FOLDER, accelerator, CONFIG.checkpoint.keep),
        StopRequest(),
    )


if __name__ == "__main__":
    with reporting():
        train(open_run(), resume="--resume" in sys.argv)
