"""Takes the run's held-out measures of other folders, with the same prompts, teacher samples and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .model_folder import Answer, load


def measure(question: Any) -> Answer:
    """Take the run's held-out measures of several folders, with the same prompts, teacher samples and seeds."""
    from dataclasses import replace

    import torch

    from skill_kd.kd.config import Config
    from skill_kd.kd.dataset.training_data import load_training_data
    from skill_kd.kd.model.export import exported_encoder
    from skill_kd.kd.model.vocabulary import real_vocabulary
    from skill_kd.kd.rollouts.decoding import Decoding
    from skill_kd.kd.rollouts.sampler import Sampler, requests_for
    from skill_kd.kd.teacher.teacher import open_teacher
    from skill_kd.kd.train.held_out import HeldOut

    config = Config.of(question["spec"])
    first = Path(next(iter(question["folders"].values())))
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model, encoder = load(first, config.student.dtype), exported_encoder(first, config.data.chat_template_options)
    tokenizer = encoder.tokenizer
    data = load_training_data(config, encoder)
    vocabulary = real_vocabulary(tokenizer, model)
    rollout = config.rollout
    decoding = Decoding(rollout.max_new_tokens, 1.0, 1.0, encoder.eos_ids, vocabulary)
    sampler = Sampler(decoding, int(tokenizer.pad_token_id), device)
    teacher = open_teacher(config, tokenizer, sampler, encoder, data=data)
    sampler = replace(sampler, decoding=teacher.shared(decoding))
    requests = requests_for(data.held_out_prompts, (config.seed, "held_out"))
    held_out = HeldOut(teacher, sampler, data.held_out_examples, requests, config.training.batch_size)
    measures = {}
    for name, folder in question["folders"].items():
        model = load(Path(folder), config.student.dtype).to(device)
        measures[name], _ = held_out.measure(model)
    return {"measures": measures}
