"""TRL's trainer on given rows, against the built-in backend's loss on the same rows; and what it samples from."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import skill_kd_trl
import torch
from specs import OBJECTIVES, REPOSITORY, values
from tiny import make_model
from transformers import LlamaConfig

from skill_kd.kd.config import Config
from skill_kd.kd.dataset.batch import Row, collate
from skill_kd.kd.errors import Missing
from skill_kd.kd.model.loading import load_student, load_teacher
from skill_kd.kd.model.student import StudentWithLoss, response_logits
from skill_kd.kd.train.experience import Experience
from skill_kd.kd.train.objectives import build_objective
from skill_kd.spec.file import parse_spec

TEMPLATE = Path(skill_kd_trl.__file__).parent / "templates/trl_trainer.py"
EOS, OTHER = 2, 100
# Prompts of different lengths, a response that ends, one that ends at once, two that were cut by the length.
ROWS = [
    ((5, 6, 7, 8, 9), (20, 21, EOS)),
    ((30,), (EOS,)),
    ((11, 12), (40, 41, 42, 43, 44, 45, 46, 47)),
    ((60, 61, 62), (3,) * 8),
]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a template with a spec's values as its configuration."""

    def imported(template: Path, spec_values: dict[str, Any]) -> ModuleType:
        config = tmp_path / "spec.json"
        config.write_text(parse_spec(spec_values).model_dump_json())
        monkeypatch.setattr(sys, "argv", ["train.py", str(config)])
        found = importlib.util.spec_from_file_location(template.stem, template)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        monkeypatch.setitem(sys.modules, template.stem, module)
        found.loader.exec_module(module)
        return module

    return imported


@pytest.fixture
def template(load: Any) -> Any:
    return lambda spec_values: load(TEMPLATE, spec_values)


def trainer_of(module: ModuleType) -> Any:
    trainer = module.open_trainer(module.prepare(), module.Progress())
    trainer.model.train()
    return trainer


def first_update(trainer: Any) -> tuple[float, list[torch.Tensor]]:
    """Return loss and gradients of an update on ROWS, by TRL's own way from responses to a loss."""
    trainer._generate_single_turn = lambda *_: [list(response) for _, response in ROWS]
    generation_batch = [{"prompt": list(prompt)} for prompt, _ in ROWS]
    total = 0.0
    for _ in range(trainer.args.gradient_accumulation_steps):
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(generation_batch))
        loss.backward()
        total += float(loss.detach())
        trainer._step += 1
    return total, [weight.grad for weight in trainer.model.parameters()]


def expected_update(spec_values: dict[str, Any]) -> tuple[float, list[torch.Tensor]]:
    """Return loss and gradients as the built-in backend takes them."""
    config = Config.of(parse_spec(spec_values).model_dump(mode="json"))
    student, tokenizer = load_student(config.student, config.teacher)
    teacher, objective = load_teacher(config.teacher), build_objective(config.stages[0].objective)
    rows = [Row(prompt, response, (True,) * len(response), "student") for prompt, response in ROWS]
    batch = collate(rows, tokenizer.pad_token_id, torch.device("cpu"))
    temperature = objective.temperature
    with torch.no_grad():
        logits = response_logits(teacher.model, batch, teacher.vocabulary)
        teacher_logp = torch.log_softmax(logits / temperature, dim=-1)
    loss = StudentWithLoss(student, teacher.vocabulary)(
        batch, objective.loss, teacher_logp, temperature
    ) / objective.count(rows)
    loss.backward()
    return float(loss.detach()), [weight.grad for weight in student.parameters()]


SOFT = {"kind": "reverse_kl", "temperature": 2.0}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), SOFT], ids=[*OBJECTIVES, "softened"])
def test_loss_and_gradient_are_those_of_the_built_in_backend(
    objective: dict[str, Any], kind: str, models: Path, tmp_path: Path, template: Any
) -> None:
    if kind == "gpt2":  # learned positions: a padded row that counts its padding is another row
        make_model(tmp_path / "teacher", kind="gpt2", layers=3, seed=0)
        make_model(tmp_path / "student", kind="gpt2", layers=2, seed=1)
        models = tmp_path
    spec = values(models, objective, rollout={"temperature": objective.get("temperature", 1.0)})
    expected_loss, expected_gradient = expected_update(spec)
    for accumulate in (1, 2):
        spec["training"]["accumulate"] = accumulate
        loss, gradient = first_update(trainer_of(template(spec)))
        assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-5)
        for ours, theirs in zip(gradient, expected_gradient, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_mixed_precision_is_the_one_the_loss_is_taken_in(models: Path, template: Any) -> None:
    trainer = trainer_of(template(values(models, {"kind": "reverse_kl"})))
    seen: list[torch.dtype] = []
    trainer.model.base_model.layers[0].mlp.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    trainer.accelerator.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    first_update(trainer)
    assert set(seen) == {torch.bfloat16}


def test_each_update_trains_on_the_prompts_it_has_under_the_built_in_backend(models: Path, load: Any) -> None:
    spec = values(models, {"kind": "reverse_kl"})
    built_in = load(REPOSITORY / "templates/transformers_trainer.py", spec).prepare()
    objective = build_objective(built_in.config.stages[0].objective)
    experience = Experience(built_in.config, "distill", objective, built_in.teacher_source, built_in.sampling)
    trainer = trainer_of(load(TEMPLATE, spec))
    for update, batch in enumerate(islice(trainer.get_train_dataloader(), 3)):
        rows = experience.batch(update, built_in.student.model)
        assert [tuple(each["prompt"]) for each in batch] == [row.prompt for row in rows]


# --- what is sampled --------------------------------------------------------------------------------------------------


def sampled(trainer: Any, count: int = 200) -> list[list[int]]:
    return trainer._generate_single_turn([[5, 6, 7]] * count, None, {})  # type: ignore[no-any-return]


def test_the_first_token_is_drawn_from_the_distribution_that_is_scored(models: Path, template: Any) -> None:
    trainer = trainer_of(template(values(models, {"kind": "reverse_kl"}, rollout={"max_new_tokens": 1})))
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    drawn = torch.tensor(sampled(trainer, 4000)).flatten().bincount(minlength=300) / 4000
    # Total variation of 4000 draws from this distribution over 300 tokens is below 0.15 but once in very many times.
    assert 0.5 * (drawn - expected).abs().sum() < 0.15


def test_sampling_settings_that_come_with_a_model_do_not_reach_training(
    models: Path, tmp_path: Path, template: Any
) -> None:
    make_model(tmp_path / "student", layers=2, seed=1)
    path = tmp_path / "student/generation_config.json"
    settings = json.loads(path.read_text()) | {"suppress_tokens": list(range(3, 300)), "min_p": 0.9}
    path.write_text(json.dumps(settings))
    student = {"model": str(tmp_path / "student")}
    trainer = trainer_of(template(values(models, {"kind": "reverse_kl"}, student=student)))
    assert max(token for response in sampled(trainer, 20) for token in response) >= 3


def test_every_end_of_sequence_token_ends_a_response_and_is_part_of_it(
    models: Path, tmp_path: Path, template: Any
) -> None:
    make_model(tmp_path / "student", layers=2, seed=1)
    path = tmp_path / "student/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [EOS, OTHER]}))
    student = {"model": str(tmp_path / "student")}
    rollout = {"max_new_tokens": 60}
    trainer = trainer_of(template(values(models, {"kind": "reverse_kl"}, student=student, rollout=rollout)))
    responses = sampled(trainer)
    assert {response[-1] for response in responses if len(response) < 60} == {EOS, OTHER}
    assert not any({EOS, OTHER} & set(response[:-1]) for response in responses)


def test_rows_that_pad_the_embedding_are_never_drawn(tmp_path: Path, template: Any) -> None:
    make_model(tmp_path / "teacher", layers=2, seed=0, vocabulary=640)
    make_model(tmp_path / "student", layers=2, seed=1, vocabulary=600)
    trainer = trainer_of(template(values(tmp_path, {"kind": "reverse_kl"})))
    assert max(token for response in sampled(trainer) for token in response) < 300
    assert trainer.teacher_model.config.vocab_size == 600  # TRL demands equal numbers


def test_vllm_samples_if_the_spec_says_so_and_from_the_same_tokens(models: Path, load: Any) -> None:
    spec = values(models, {"kind": "reverse_kl"}, rollout={"engine": "vllm"})
    module = load(TEMPLATE, spec)
    assert module.only_tokens(300, 304) == {"allowed_token_ids": list(range(300))}
    assert module.only_tokens(304, 304) == {}
    arguments = module.arguments(LlamaConfig(vocab_size=304), 300, torch.device("cpu"))
    assert (arguments.use_vllm, arguments.generation_kwargs) == (True, module.only_tokens(300, 304))
    assert (arguments.vllm_mode, arguments.vllm_server_base_url) == ("colocate", None)


class Server:
    """In the place of TRL's client of a vLLM server, which asks for a CUDA device."""

    def __init__(self, **options: Any) -> None:
        self.options, self.synchronised = options, 0

    def sync_weights(self) -> None:
        self.synchronised += 1

    def generate(self, prompts: list[list[int]], **_: Any) -> tuple[None, list[list[int]], None, None]:
        return None, [[20, 21, EOS] for _ in prompts], None, None


SERVED = {"engine": "vllm", "vllm_url": "http://127.0.0.1:9"}


@pytest.fixture
def has_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "vllm" or found(name, *rest))
    monkeypatch.setattr("trl.trainer.distillation_trainer.is_vllm_available", lambda: True)


def test_a_vllm_server_samples_with_the_weights_of_the_step(
    models: Path, template: Any, has_vllm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl.trainer.distillation_trainer.VLLMGeneration", Server)
    trainer = trainer_of(template(values(models, {"kind": "reverse_kl"}, rollout=SERVED)))
    server = trainer.vllm_generation
    assert (server.options["mode"], server.options["server_base_url"]) == ("server", SERVED["vllm_url"])
    assert (server.options["temperature"], server.options["max_completion_length"]) == (1.0, 8)
    trainer.train()
    assert server.synchronised == trainer.state.global_step == 3


def test_a_vllm_server_that_cannot_be_had_is_missing(
    models: Path, template: Any, has_vllm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(**_: Any) -> None:
        raise ConnectionError("The vLLM server can't be reached")

    monkeypatch.setattr("trl.trainer.distillation_trainer.VLLMGeneration", unreachable)
    module = template(values(models, {"kind": "reverse_kl"}, rollout=SERVED))
    with pytest.raises(Missing, match=r"rollout\.vllm_url: The vLLM server can't be reached"):
        trainer_of(module)
