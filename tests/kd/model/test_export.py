"""The exported student is a folder that others can load, and that is the student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import EOS, UNK, build_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from skill_kd.kd.errors import TrainingStopped
from skill_kd.kd.model import export
from skill_kd.kd.model.export import export_student

PROBE = torch.tensor([[5, 9, 30, 12, 7]])


def read(path: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_the_folder_gives_the_students_logits_and_pads_with_another_token_than_eos(kind: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(pad=EOS)
    model = build_model(kind, layers=2, vocabulary=len(tokenizer), tokenizer=tokenizer)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ends = frozenset({tokenizer.eos_token_id, 5})
    export_student(model, tokenizer, ends, tmp_path / "student", "float32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student").train(False)
    assert torch.allclose(loaded(PROBE).logits, model(PROBE).logits, atol=1e-5)
    again = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert again.pad_token_id not in ends
    assert again.chat_template == tokenizer.chat_template
    assert loaded.generation_config.eos_token_id == sorted(ends)
    assert tokenizer.pad_token == EOS
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_tokenizer_with_one_special_token_gets_a_pad_of_its_own(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat=False, pad="<|endoftext|>", special=("<|endoftext|>",))
    model = build_model("gpt2", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    export_student(model, tokenizer, frozenset({tokenizer.eos_token_id}), tmp_path / "student", "float32")
    again = AutoTokenizer.from_pretrained(tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert again.pad_token_id not in {None, again.eos_token_id}
    assert loaded.get_input_embeddings().weight.shape[0] == len(again)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16])
def test_the_folder_holds_16_bit_weights_and_the_student_keeps_its_own(
    trained_in: torch.dtype, dtype: str, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    model = build_model("llama", layers=2, vocabulary=len(tokenizer), tokenizer=tokenizer)
    export.cast(model, trained_in)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    export_student(model, tokenizer, frozenset({tokenizer.eos_token_id}), tmp_path / "student", dtype)
    written = load_file(tmp_path / "student" / "model.safetensors")
    assert {weight.dtype for weight in written.values()} == {getattr(torch, dtype)}
    assert all(torch.equal(weight, before[name].to(weight.dtype)) for name, weight in written.items())
    assert read(tmp_path / "student" / "config.json")["dtype"] == dtype
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_weight_beyond_float16_stops_the_export(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = 1e6
    with pytest.raises(TrainingStopped, match="export_dtype"):
        export_student(model, tokenizer, frozenset({tokenizer.eos_token_id}), tmp_path / "student", "float16")


def test_adapters_are_merged(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = build_model("llama", layers=2, vocabulary=len(tokenizer), tokenizer=tokenizer)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).train(False)
    export_student(model, tokenizer, frozenset({tokenizer.eos_token_id}), tmp_path / "student", "float32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student").train(False)
    assert torch.allclose(loaded(PROBE).logits, model(PROBE).logits, atol=1e-4)


def test_both_generations_of_transformers_find_the_rope_settings_and_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    export_student(model, tokenizer, frozenset({tokenizer.eos_token_id}), tmp_path / "student", "float32")
    config = read(tmp_path / "student" / "config.json")
    assert config["rope_theta"] == model.config.rope_parameters["rope_theta"]
    assert config["rope_parameters"]
    assert config["torch_dtype"] == "float32"
    assert read(tmp_path / "student" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_folder_that_does_not_match_is_never_called_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    model = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    honest = export.merged
    asked = []

    def drifting(student: object) -> object:
        plain = honest(student)  # type: ignore[arg-type]
        asked.append(plain)
        return plain

    def spoiled(folder: Path, *arguments: object) -> None:
        asked[0].lm_head.weight.data.add_(1.0)
        asked[0].save_pretrained(folder)

    monkeypatch.setattr(export, "merged", drifting)
    monkeypatch.setattr(export, "_write_for_both_versions", spoiled)
    with pytest.raises(TrainingStopped, match="logits differ"):
        export_student(model, tokenizer, frozenset({tokenizer.eos_token_id}), tmp_path / "student", "float32")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("pad", ["<|im_start|>", UNK, None])
def test_the_pad_occurs_in_no_prompt_and_hides_nothing(pad: str | None, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(pad=pad)
    model = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    ends = frozenset(tokenizer.convert_tokens_to_ids([EOS, UNK]))
    export_student(model, tokenizer, ends, tmp_path / "student", "float32")
    again = AutoTokenizer.from_pretrained(tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student").train(False)
    turns = [{"role": role, "content": "hello"} for role in ("system", "user", "assistant", "user")]
    prompt = again.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert again.pad_token_id not in {None, *ends, *prompt["input_ids"][0].tolist()}
    options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    masked = loaded.generate(**prompt, **options).logits[0]
    unmasked = loaded.generate(prompt["input_ids"], **options).logits[0]
    assert torch.equal(masked, unmasked)


@pytest.mark.parametrize(
    ("free", "chosen"),
    [
        (["<repo>", "<|reserved_0|>", "<|vision_pad|>"], "<|vision_pad|>"),
        (["<repo>", "<|reserved_0|>"], "<|reserved_0|>"),
        (["<repo>"], "<repo>"),
        ([], "<|pad|>"),
    ],
)
def test_the_pad_is_the_free_token_that_means_least(free: list[str], chosen: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(pad=EOS)
    tokenizer.add_special_tokens({"extra_special_tokens": free})
    model = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    ends = frozenset(tokenizer.convert_tokens_to_ids([EOS, UNK]))
    export_student(model, tokenizer, ends, tmp_path / "student", "float32")
    assert AutoTokenizer.from_pretrained(tmp_path / "student").pad_token == chosen
