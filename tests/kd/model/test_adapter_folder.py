"""Adapters in place of a model: the base that they name is used, or they are refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model
from transformers import AutoTokenizer, PreTrainedModel

from skill_kd.backends.transformers import TransformersBackend
from skill_kd.errors import SkillKDError, UsageError
from skill_kd.evaluate import opened_models
from skill_kd.kd.config import Lora, Student, Teacher
from skill_kd.kd.errors import BadInput, Missing, ScriptError
from skill_kd.kd.model import merging
from skill_kd.kd.model.adapter_folder import adapter_in
from skill_kd.kd.model.loading import load_model, load_student, load_teacher, load_tokenizer
from skill_kd.plan.model_source import read_config
from skill_kd.spec import Spec

IDS = torch.tensor([[5, 9, 40, 80, 120, 7]])
SOURCE = Teacher(model="unused", dtype="float32")


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model and an adapter of it, whose weights are not zero, without a tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    base = make_model(folder / "base")
    adapted = get_peft_model(load_model(SOURCE, str(base)), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    adapted.save_pretrained(folder / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "merged")
    return folder


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    """A copy of the adapter."""
    return Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spec_of(model: Path, whose: str = "student") -> Spec:
    models = {"teacher": {"model": "org/teacher"}, "student": {"model": "org/student"}, whose: {"model": str(model)}}
    stages = [{"kind": "distill", "objective": {"kind": "reverse_kl"}}]
    return Spec.model_validate({"name": "x", **models, "data": {"train": "t.jsonl"}, "stages": stages})


def test_an_adapter_is_merged_into_the_base_that_it_names(made: Path) -> None:
    adapter, expected = str(made / "adapter"), logits(load_model(SOURCE, str(made / "merged")))
    student, tokenizer = load_student(Student(model=adapter), SOURCE)
    teacher = load_teacher(Teacher(model=adapter, dtype="float32"))
    writer = opened_models.open_writer(opened_models.ModelSource(adapter), 4, torch.device("cpu"))
    for model in (student, teacher.model, writer.model):
        assert torch.allclose(logits(model), expected, atol=1e-5)
        assert not any("lora" in name for name in model.state_dict())
    assert all(weight.requires_grad for weight in student.parameters())
    assert not hasattr(student, "peft_config")
    assert tokenizer.get_vocab() == load_tokenizer(SOURCE, str(made / "base")).get_vocab()
    assert read_config(adapter).parameters == read_config(str(made / "base")).parameters
    assert not TransformersBackend().check(spec_of(made / "adapter"))


def test_new_adapters_are_put_on_the_merged_model(made: Path) -> None:
    model, _ = load_student(Student(model=str(made / "adapter"), lora=Lora(r=2)), SOURCE)
    assert torch.allclose(logits(model), logits(load_model(SOURCE, str(made / "merged"))), atol=1e-5)


def test_an_adapter_may_have_a_tokenizer_of_its_own(made: Path, adapter: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(adapter)
    assert load_tokenizer(SOURCE, str(adapter)).chat_template == tokenizer.chat_template


def test_shapes_alone_are_those_of_the_base(made: Path) -> None:
    shapes = load_model(SOURCE, str(made / "adapter"), weights=False)
    assert {weight.device.type for weight in shapes.parameters()} == {"meta"}


@pytest.mark.parametrize("weights", [True, False])
def test_merged_weights_with_an_adapters_config_left_behind_are_loaded(
    weights: bool, made: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made / "merged", tmp_path / "merged"))
    for name in ("adapter_config.json", *(["adapter_model.safetensors"] if weights else [])):
        shutil.copyfile(made / "adapter" / name, folder / name)
    assert adapter_in(folder) is None
    assert torch.equal(logits(load_model(SOURCE, str(folder))), logits(load_model(SOURCE, str(made / "merged"))))
    assert read_config(str(folder)).layers == 2
    assert not TransformersBackend().check(spec_of(folder))


BROKEN: dict[str, tuple[Callable[[Path], None], type[ScriptError], str]] = {
    "no base": (lambda a: edit(a, base_model_name_or_path=None), BadInput, "names no base model; merge it"),
    "kind": (lambda a: edit(a, peft_type="PROMPT_TUNING"), BadInput, "peft_type 'PROMPT_TUNING', and only LORA"),
    "itself": (lambda a: edit(a, base_model_name_or_path=str(a)), BadInput, "names itself as its base"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), Missing, "neither adapter_model.safetensors"),
    "not JSON": (lambda a: (a / "adapter_config.json").write_text("{"), BadInput, "cannot read"),
    "gone": (lambda a: edit(a, base_model_name_or_path="/gone/base"), Missing, "/gone/base"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_adapter_that_cannot_be_used_is_refused_by_run_plan_and_validate(name: str, adapter: Path) -> None:
    spoil, kind, words = BROKEN[name]
    spoil(adapter)
    with pytest.raises(kind, match=words):
        load_model(SOURCE, str(adapter))
    with pytest.raises(SkillKDError, match=words):
        read_config(str(adapter))
    [problem] = TransformersBackend().check(spec_of(adapter, "teacher"))
    assert problem.startswith("teacher.model")
    assert words in problem


def test_adapters_that_name_each_other_are_refused(made: Path, adapter: Path) -> None:
    other = Path(shutil.copytree(adapter, adapter.parent / "other"))
    edit(adapter, base_model_name_or_path=str(other))
    edit(other, base_model_name_or_path=str(adapter))
    words = "one of 8 adapters that name each other as their base model; name a whole model"
    for load in (load_model, load_tokenizer):
        with pytest.raises(BadInput, match=words):
            load(SOURCE, str(adapter))
    with pytest.raises(UsageError, match=words):
        read_config(str(adapter))
    [problem] = TransformersBackend().check(spec_of(adapter))
    assert words in problem


def test_an_adapter_may_be_on_top_of_another(made: Path, adapter: Path) -> None:
    edit(adapter, base_model_name_or_path=str(made / "adapter"))
    load_model(SOURCE, str(adapter))
    assert read_config(str(adapter)).layers == 2


BOMBS: dict[str, dict[str, Any]] = {
    "rank": {"r": 10**7},
    "ranks": {"rank_pattern": {"q_proj": 10**7}},
    "targets": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"],
        "r": 4,
    },
    "all targets": {"target_modules": "all-linear", "r": 10**7},
    "parameters": {"target_parameters": ["q_proj.weight", "up_proj.weight"], "r": 10**7},
    "copies": {"modules_to_save": ["model", "layers", "self_attn", "mlp"]},
    "tokens": {"trainable_token_indices": [1] * 10_000},
}


@pytest.mark.parametrize("changes", BOMBS.values(), ids=BOMBS)
def test_a_config_that_describes_more_than_its_weights_is_refused_before_it_is_built(
    changes: dict[str, Any], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(adapter, **changes)
    monkeypatch.setattr("peft.get_peft_model", lambda *_: pytest.fail("it was built"))
    with pytest.raises(BadInput, match=r"describe [\d,]+ numbers, and its weights have [\d,]+; restore the config"):
        load_model(SOURCE, str(adapter))


ENDLESS = "(([a-z_]+)+\\.?)+!"


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 2}},
        {"alpha_pattern": {ENDLESS: 2}},
        {"layers_to_transform": [0], "layers_pattern": ENDLESS},
        {"modules_to_save": [ENDLESS]},
    ],
    ids=str,
)
def test_a_pattern_that_never_ends_is_refused(
    changes: dict[str, Any], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "SECONDS", 0.1)
    edit(adapter, **changes)
    with pytest.raises(BadInput, match=r"patterns in adapter_config.json .* take more than 0\.1 s; write the names"):
        load_model(SOURCE, str(adapter))


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_replication": [[0, 2], [0, 10**9]]},
        {"megatron_config": {"x": 1}, "megatron_core": "antigravity"},
        {"corda_config": {"covariance_file": "x.pt"}, "init_lora_weights": "corda"},
        {"init_lora_weights": "pissa_niter_999999999"},
        {"init_lora_weights": "loftq"},
    ],
    ids=str,
)
def test_a_config_that_asks_for_more_than_merging_is_refused(changes: dict[str, Any], adapter: Path) -> None:
    edit(adapter, **changes)
    with pytest.raises(BadInput, match=rf"{next(iter(changes))}: .* cannot be merged here; merge it into its base"):
        load_model(SOURCE, str(adapter))


@pytest.mark.parametrize("ranks", [{}, {"q_proj": 4}, {"layers.1.mlp.up_proj": 5}], ids=str)
@pytest.mark.parametrize("more", [{}, {"modules_to_save": ["embed_tokens"], "use_dora": True}], ids=str)
def test_adapters_of_all_kinds_are_merged(
    ranks: dict[str, int], more: dict[str, Any], made: Path, tmp_path: Path
) -> None:
    lora = LoraConfig(r=2, target_modules=r".*\.(q_proj|up_proj)", rank_pattern=ranks, init_lora_weights=False, **more)
    adapted = get_peft_model(load_model(SOURCE, str(made / "base")), lora)
    adapted.save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter", field_of_a_later_version={"x": 1})
    merged = load_model(SOURCE, str(tmp_path / "adapter"))
    assert torch.allclose(logits(merged), logits(adapted.merge_and_unload()), atol=1e-5)


def test_an_adapter_of_another_model_is_refused(made: Path, adapter: Path, tmp_path: Path) -> None:
    edit(adapter, base_model_name_or_path=str(make_model(tmp_path / "gpt2", "gpt2")))
    with pytest.raises(BadInput, match=r"adapter '.*' does not fit its base model '.*gpt2'"):
        load_model(SOURCE, str(adapter))


def test_an_adapter_needs_a_whole_model_to_be_quantized(made: Path) -> None:
    with pytest.raises(BadInput, match="quantization: 4bit needs a whole model; merge"):
        load_model(Teacher(model="unused", quantization="4bit"), str(made / "adapter"))
