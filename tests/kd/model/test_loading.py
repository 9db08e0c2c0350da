"""loading: students grown layer by layer, teachers mixed exactly, vocabularies compared id by id."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hub
import huggingface_hub.constants
import pytest
import torch
from damage import damages
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import EOS, POSITIONS, UNK, build_model, make_model, make_tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3nTextConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    RwkvConfig,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from skill_kd.kd.config import FromTeacher, Lora, Student, Teacher, WeightedModel
from skill_kd.kd.errors import BadInput, Missing, ScriptError
from skill_kd.kd.losses.divergences import log_probs
from skill_kd.kd.model import pretrained
from skill_kd.kd.model.growing import grow
from skill_kd.kd.model.layers import kept_layers
from skill_kd.kd.model.loading import check_context, load_model, load_pair, load_student, load_teacher, load_tokenizer
from skill_kd.kd.model.vocabulary import eos_ids, real_vocabulary, refuse_ids_beyond, shared_vocabulary

torch.set_num_threads(1)

IDS = torch.tensor([[5, 9, 40, 80, 120, 7, 33, 250], [3, 4, 5, 6, 7, 8, 9, 10]])


def source(**changes: Any) -> Teacher:
    return Teacher(**{"dtype": "float32", **changes})


def student(**changes: Any) -> Student:
    return Student(**changes)


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor = IDS, **inputs: Any) -> torch.Tensor:
    return model.eval()(input_ids=ids, **inputs).logits


# --- growing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "available", "kept"),
    [
        (24, 30, (*range(12), *range(18, 30))),
        (3, 4, (0, 1, 3)),
        (1, 4, (0,)),
        (4, 4, (0, 1, 2, 3)),
        ((0, 2, 3), 4, (0, 2, 3)),
    ],
)
def test_a_count_keeps_the_first_and_last_half_and_a_list_what_it_names(
    layers: int | tuple[int, ...], available: int, kept: tuple[int, ...]
) -> None:
    assert kept_layers(layers, available) == kept


@pytest.mark.parametrize("layers", [5, (0, 4), (0, 1, 2, 3, 3)])
def test_more_layers_than_the_teacher_has_are_refused(layers: int | tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"student\.from_teacher\.layers.*4 layers"):
        kept_layers(layers, 4)


@pytest.mark.parametrize(("layers", "available"), [(10**12, 4), (10**12, 10**12), (2, 10**12)])
def test_a_number_of_layers_that_no_model_has_is_refused_before_they_are_listed(layers: int, available: int) -> None:
    with pytest.raises(BadInput, match=r"1000000000000"):
        kept_layers(layers, available)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_keeping_every_layer_keeps_the_logits(kind: str) -> None:
    teacher = build_model(kind, layers=3, vocabulary=300, tokenizer=make_tokenizer())
    assert torch.equal(logits(grow(teacher, 3)), logits(teacher))


@pytest.mark.parametrize(("kind", "layers"), [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_a_grown_student_has_the_weights_of_the_layers_it_keeps(kind: str, layers: str) -> None:
    teacher = build_model(kind, layers=4, vocabulary=300, tokenizer=make_tokenizer())
    grown = grow(teacher, 3)
    assert grown.config.num_hidden_layers == 3
    weights, kept = teacher.state_dict(), grown.state_dict()
    for new, old in enumerate((0, 1, 3)):
        names = [name for name in kept if name.startswith(f"{layers}.{new}.")]
        assert names
        for name in names:
            assert torch.equal(kept[name], weights[name.replace(f"{layers}.{new}.", f"{layers}.{old}.")])
    outside = [name for name in kept if not name.startswith(layers)]
    assert outside
    assert all(torch.equal(kept[name], weights[name]) for name in outside)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_grown_student_decodes_with_its_cache_as_without(kind: str) -> None:
    grown = grow(build_model(kind, layers=4, vocabulary=300, tokenizer=make_tokenizer()), 2)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    grown.eval()
    assert torch.equal(grown.generate(IDS, use_cache=True, **options), grown.generate(IDS, use_cache=False, **options))


def test_growing_copies_weights_and_leaves_the_teacher_as_it_was() -> None:
    teacher = build_model("llama", layers=3, vocabulary=300, tokenizer=make_tokenizer())
    before = logits(teacher)
    with torch.no_grad():
        for weight in grow(teacher, 2).parameters():
            weight.zero_()
    assert torch.equal(logits(teacher), before)
    assert teacher.config.num_hidden_layers == 3


def test_settings_per_layer_follow_the_layers_that_are_kept() -> None:
    teacher = SmolLM3ForCausalLM(
        SmolLM3Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            no_rope_layers=[1, 0, 1, 0],
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    grown = grow(teacher, (0, 3))
    assert grown.config.no_rope_layers == [1, 0]
    assert [layer.self_attn.use_rope for layer in grown.model.layers] == [1, 0]


SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = ["sliding_attention", "full_attention"] * 2
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}


def gemma3() -> PreTrainedModel:
    text = {**SIZES, "layer_types": KINDS, "sliding_window": 4}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=TOWER, mm_tokens_per_image=4))


def qwen3_moe(**experts: Any) -> PreTrainedModel:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **EXPERTS, **experts))


def bert() -> PreTrainedModel:
    return BertLMHeadModel(BertConfig(**SIZES, is_decoder=True, tie_word_embeddings=True))


def modern_bert() -> PreTrainedModel:
    return ModernBertDecoderForCausalLM(ModernBertDecoderConfig(**SIZES))


LAYERED: dict[str, tuple[Callable[[], PreTrainedModel], tuple[int, ...], dict[str, Any]]] = {
    "a head of several layers": (bert, (0, 3), {"num_hidden_layers": 2}),
    "a head named decoder": (modern_bert, (0, 3), {"num_hidden_layers": 2}),
    "multimodal": (gemma3, (0, 3), {"model_type": "gemma3_text", "layer_types": [KINDS[0], KINDS[3]]}),
    "dense layers by number": (lambda: qwen3_moe(mlp_only_layers=[1, 3]), (0, 3), {"mlp_only_layers": [1]}),
    "dense layers by step": (
        lambda: qwen3_moe(decoder_sparse_step=2),
        (0, 1, 3),
        {"mlp_only_layers": [0], "decoder_sparse_step": 1},
    ),
}


@pytest.mark.parametrize("kind", LAYERED)
def test_a_student_grows_from_a_teacher_whose_layers_differ(kind: str, tmp_path: Path) -> None:
    build, kept, changes = LAYERED[kind]
    torch.manual_seed(0)
    teacher, ids = build().eval(), IDS[:1] % 60
    assert torch.equal(logits(grow(teacher, 4), ids), logits(teacher, ids))
    grown = grow(teacher, kept)
    config = grown.config.to_dict()
    assert {name: config[name] for name in changes} == changes
    grown.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(source(), str(tmp_path)), ids), logits(grown, ids))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Gemma3nTextConfig(), "gemma3n_text teacher, because .*num_kv_shared_layers"),
        (GPTNeoConfig(num_layers=4, attention_types=[[["global", "local"], 2]]), "gpt_neo teacher, .*attention_types"),
    ],
)
def test_a_teacher_whose_layers_belong_together_is_refused(config: Any, words: str) -> None:
    teacher = build_model("llama", layers=1, vocabulary=300, tokenizer=make_tokenizer())
    teacher.config = config
    with pytest.raises(
        BadInput, match=rf"student\.from_teacher: no layer can be taken from a {words}.*set student\.model"
    ):
        grow(teacher, 1)


def test_a_student_grown_by_a_spec_has_the_teachers_tokenizer(tmp_path: Path) -> None:
    teacher = make_model(tmp_path / "teacher", layers=3)
    for named in (str(teacher), (WeightedModel(model=str(teacher), weight=1.0),)):
        model, tokenizer = load_student(student(from_teacher=FromTeacher(layers=2)), source(model=named))
        assert model.config.num_hidden_layers == 2
        assert tokenizer.get_vocab() == make_tokenizer().get_vocab()


# --- students ---------------------------------------------------------------------------------------------------------


def test_dropout_is_off_in_a_loaded_student_and_its_configuration_keeps_it(tmp_path: Path) -> None:
    model, _ = load_student(student(model=str(make_model(tmp_path / "gpt2", "gpt2"))), source(model="unused"))
    model.train()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, model(IDS).logits)
    assert model.config.resid_pdrop > 0


def test_dropout_is_off_in_a_family_that_applies_it_by_function(tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=300,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        dropout=0.5,
        attention_dropout=0.5,
        word_embed_proj_dim=32,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer(chat=False).save_pretrained(tmp_path)
    model, _ = load_student(student(model=str(tmp_path)), source(model="unused"))
    model.train()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_lora_trains_adapters_only_and_begins_as_the_model_itself(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = make_model(tmp_path / "student")
    plain, _ = load_student(student(model=str(folder)), source(model="unused"))
    lora = Lora(r=4, alpha=8.0, dropout=0.0, targets="all-linear")
    model, _ = load_student(student(model=str(folder), lora=lora), source(model="unused"))
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert torch.allclose(logits(model), logits(plain), atol=1e-5)


def test_lora_targets_may_be_named(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = Lora(r=4, alpha=8.0, dropout=0.0, targets=("q_proj", "v_proj"))
    model, _ = load_student(student(model=str(make_model(tmp_path / "s")), lora=lora), source(model="unused"))
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable} == {"q_proj", "v_proj"}


def test_a_model_comes_in_the_dtype_asked_for_with_its_cache_on(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_cache": False}))
    model = load_model(source(dtype="bfloat16"), str(folder))
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache is True


@pytest.mark.parametrize("model", ["no-one-at-all/no-model", "./no-such-folder", "package:other"])
def test_a_model_that_cannot_be_had_is_named_in_one_line(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for load in (load_model, load_tokenizer):
        with pytest.raises(Missing, match=model.removeprefix("package:")) as raised:
            load(source(), model)
        assert "\n" not in str(raised.value)


def test_a_folder_without_weights_is_named_in_one_line(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(Missing, match="cannot load") as raised:
        load_model(source(), str(folder))
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("whole") / "model")


DAMAGED = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors")


@pytest.mark.parametrize("file", DAMAGED)
def test_a_damaged_file_of_a_model_is_read_or_refused_by_name(file: str, whole: Path, tmp_path: Path) -> None:
    content, refused = (whole / file).read_bytes(), dict[str, str]()
    drawn = random.Random(file).sample(list(damages(file, content)), 8)
    for number, (damage, new) in enumerate(drawn):
        folder = Path(shutil.copytree(whole, tmp_path / str(number)))
        (folder / file).unlink()
        (folder / file).mkdir() if new is None else (folder / file).write_bytes(new)
        try:
            load_pair(source(), str(folder))
        except ScriptError as error:
            refused[damage] = str(error)
    assert refused
    assert not [damage for damage, said in refused.items() if str(tmp_path) not in said]


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "head_dim"])
@pytest.mark.parametrize("number", [10**9, 10**30])
def test_a_config_of_a_much_larger_model_than_its_weights_takes_no_memory(
    key: str, number: int, whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: number}))
    with pytest.raises(BadInput, match=rf"config\.json says {key}: 1000.*, too much for its weights"):
        load_model(source(), str(folder))


LARGE: dict[str, tuple[str, dict[str, int]]] = {
    "positions": ("gpt2", {"n_positions": 3 * 10**6}),
    "heads times their size": ("llama", {"num_attention_heads": 32, "head_dim": 100_000}),
}


@pytest.mark.parametrize("on_hub", [False, True])
@pytest.mark.parametrize("name", LARGE)
def test_a_config_whose_tables_are_much_larger_than_its_weights_takes_no_memory(
    name: str, on_hub: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, sizes = LARGE[name]
    hub.use_cache(tmp_path, monkeypatch)
    folder = make_model(hub.repository(tmp_path, "them/model"), kind)
    hub.edit(folder / "config.json", **sizes)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(BadInput, match=rf"describes a model of .* numbers, too many .* {max(sizes.values())}\)"):
        load_model(source(), "them/model" if on_hub else str(folder))


def test_a_table_of_n_by_n_positions_counts(tmp_path: Path) -> None:
    config = GPTNeoConfig(
        vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]], window_size=4
    )
    folder = tmp_path / "model"
    GPTNeoForCausalLM(config).save_pretrained(folder)
    hub.edit(folder / "config.json", max_position_embeddings=8000)
    with pytest.raises(BadInput, match=r"its largest number is max_position_embeddings: 8000\); restore the config"):
        load_model(source(), str(folder))


def test_a_config_of_endless_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "model")
    hub.edit(folder / "config.json", num_hidden_layers=5000)
    monkeypatch.setattr(pretrained, "BUILD_SECONDS", 0.1)
    with pytest.raises(BadInput, match=r"describes a model that takes more than .* num_hidden_layers: 5000\); restore"):
        load_model(source(), str(folder))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory holds on Linux")
def test_a_config_that_takes_memory_without_weights_is_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "BUILD_BYTES", 1 << 26)
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *_, **__: bytearray(1 << 28))
    with pytest.raises(BadInput, match=r"describes a model that takes more than 60 s or 0 GiB to build"):
        load_model(source(), str(whole))


@pytest.mark.parametrize("odd", [float("nan"), "2", [2, None], -1, 10**30, True])
def test_an_invalid_end_token_is_refused(odd: object, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": odd}))
    with pytest.raises(BadInput, match=r"generation_config\.json"):
        load_model(source(), str(folder))


@pytest.mark.parametrize("part", ["whole", "base of an adapter"])
@pytest.mark.parametrize("weights", [True, False])
def test_a_family_that_cannot_be_trained_is_refused_before_its_weights_are_read(
    part: str, weights: bool, tmp_path: Path
) -> None:
    model = tmp_path / "rwkv"
    RwkvConfig().save_pretrained(model)  # a folder without weights
    if part != "whole":
        named = tmp_path / "adapter"
        named.mkdir()
        (named / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(model)})
        )
        (named / "adapter_model.safetensors").write_bytes(b"")
    asked = model if part == "whole" else tmp_path / "adapter"
    with pytest.raises(BadInput, match=r"rwkv': models of type 'rwkv' cannot be trained here, because it has no"):
        load_model(source(), str(asked), weights=weights)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_folder_whose_adapter_is_a_pickle_is_refused(load: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    adapted = get_peft_model(load_model(source(), str(folder)), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(folder)
    load(source(), str(folder))
    adapter = folder / "adapter_model.safetensors"
    torch.save(load_file(adapter), folder / "adapter_model.bin")
    load(source(), str(folder))  # the safetensors are what is read
    adapter.unlink()
    with pytest.raises(Missing, match=r"adapter_model\.bin is a pickle; save the adapter"):
        load(source(), str(folder))


@pytest.mark.parametrize("commit", [hub.COMMIT, "2" * 40])
def test_code_of_another_repository_runs_at_the_pinned_commit_alone(
    commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.use_cache(tmp_path, monkeypatch)
    ran = tmp_path / "ran"
    hub.write_code(hub.repository(tmp_path, "them/code"), ran)
    here = hub.repository(tmp_path, "them/pinned").rename(tmp_path / "hub/models--them--pinned/snapshots" / commit)
    hub.model_with_code(here, tmp_path / "ran here", "them/code--")
    with suppress(Missing):
        load_model(source(trust_remote_code=True, revision=commit), "them/pinned")
    assert ran.exists() == (commit == hub.COMMIT)
    assert not (tmp_path / "ran here").exists()


# --- ensembles --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ensemble(tmp_path: Path) -> Teacher:
    first = make_model(tmp_path / "first", seed=1)
    second = make_model(tmp_path / "second", seed=2, layers=3, vocabulary=320)
    return source(model=(WeightedModel(model=str(first), weight=3.0), WeightedModel(model=str(second), weight=1.0)))


def mean_of_members(ensemble: Teacher, ids: torch.Tensor) -> torch.Tensor:
    logp = [log_probs(logits(load_model(source(), member.model), ids)[..., :300]) for member in ensemble.model]
    return (0.75 * logp[0].exp() + 0.25 * logp[1].exp()).log()


def test_an_ensemble_gives_the_log_of_the_weighted_mean_of_probabilities(ensemble: Teacher) -> None:
    teacher = load_teacher(ensemble)
    assert teacher.vocabulary == 300
    torch.testing.assert_close(teacher.model(input_ids=IDS).logits, mean_of_members(ensemble, IDS))


def test_an_ensemble_gives_the_same_with_its_caches(ensemble: Teacher) -> None:
    model = load_teacher(ensemble).model
    cache, steps = None, []
    for chunk in (IDS[:, :5], IDS[:, 5:6], IDS[:, 6:]):
        output = model(input_ids=chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), mean_of_members(ensemble, IDS), atol=1e-4, rtol=1e-4)


def test_a_teacher_is_frozen_and_in_inference_mode(tmp_path: Path) -> None:
    teacher = load_teacher(source(model=str(make_model(tmp_path / "teacher", "gpt2"))))
    assert not teacher.model.training
    assert not any(weight.requires_grad for weight in teacher.model.parameters())


def test_members_of_an_ensemble_need_one_vocabulary(tmp_path: Path) -> None:
    first = make_model(tmp_path / "first")
    other = make_model(tmp_path / "other", special=(EOS, "<|im_start|>", UNK))
    members = (WeightedModel(model=str(first), weight=1.0), WeightedModel(model=str(other), weight=1.0))
    with pytest.raises(BadInput, match=r"teacher '.*other' has another tokenizer: id 0"):
        load_teacher(source(model=members))


# --- vocabularies -----------------------------------------------------------------------------------------------------


def test_an_embedding_padded_beyond_its_tokenizer_adds_no_tokens() -> None:
    tokenizer = make_tokenizer()
    assert real_vocabulary(tokenizer, build_model("llama", layers=1, vocabulary=384, tokenizer=tokenizer)) == 300
    assert real_vocabulary(tokenizer, build_model("llama", layers=1, vocabulary=290, tokenizer=tokenizer)) == 290


def test_a_shared_vocabulary_ends_where_the_shorter_one_does() -> None:
    longer = make_tokenizer()
    longer.add_tokens(["<tool>"])
    assert shared_vocabulary(make_tokenizer(), longer, 400) == 300
    assert shared_vocabulary(longer, make_tokenizer(), 250) == 250


def test_two_permuted_ids_are_refused_and_the_first_named() -> None:
    ours = make_tokenizer()
    state = json.loads(ours.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    names = {index: name for name, index in vocabulary.items()}
    vocabulary[names[70]], vocabulary[names[90]] = 90, 70
    theirs = make_tokenizer()
    theirs._tokenizer = type(ours.backend_tokenizer).from_str(json.dumps(state))
    with pytest.raises(BadInput, match=r"id 70 is .*kind: sequence_kd"):
        shared_vocabulary(ours, theirs, 300)
    assert shared_vocabulary(ours, theirs, 70) == 70


def test_tokens_that_were_added_without_a_row_are_refused_at_load(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<tool_result>", "</tool_result>"])
    tokenizer.save_pretrained(folder)
    words = (
        r"302 tokens, and its embedding has 300 rows: '<tool_result>' has id 300; call resize_token_embeddings\(302\)"
    )
    loads: tuple[Callable[[], object], ...] = (
        lambda: load_student(student(model=str(folder)), source(model="unused")),
        lambda: load_teacher(source(model=str(folder))),
    )
    for load in loads:
        with pytest.raises(BadInput, match=words):
            load()


def test_a_placeholder_for_images_needs_no_row_in_a_text_model(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image_soft_token>"])
    tokenizer.save_pretrained(folder)
    assert load_teacher(source(model=str(folder))).vocabulary == 300


def test_a_text_with_a_token_that_a_model_lacks_is_refused() -> None:
    tokenizer = make_tokenizer()
    refuse_ids_beyond(300, [[299]], tokenizer, "the teacher")
    tokenizer.add_tokens(["<tool>"])
    refuse_ids_beyond(300, [[299], []], tokenizer, "the teacher")
    with pytest.raises(BadInput, match="token '<tool>', id 300 of 301 tokens, and the teacher has only the first 300"):
        refuse_ids_beyond(300, [[299], [300]], tokenizer, "the teacher")


def test_every_eos_that_a_generation_config_names_ends_a_response() -> None:
    tokenizer = make_tokenizer()
    model = build_model("llama", layers=1, vocabulary=300, tokenizer=tokenizer)
    assert eos_ids(tokenizer, model.generation_config) == {2}
    model.generation_config.eos_token_id = [2, 0]
    assert eos_ids(tokenizer, model.generation_config) == {0, 2}
    model.generation_config.eos_token_id = None
    assert eos_ids(tokenizer, model.generation_config) == {2}
    tokenizer.eos_token = UNK  # a base model; its template ends turns with token 2
    assert eos_ids(tokenizer, model.generation_config) == {0, 2}


def test_a_tokenizer_without_pad_pads_with_eos_and_one_without_eos_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", pad=None)
    assert load_tokenizer(source(), str(folder)).pad_token == EOS
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadInput, match="no end-of-sequence token"):
        load_tokenizer(source(), str(folder))


def test_sequences_beyond_the_positions_of_a_model_are_refused() -> None:
    model = build_model("gpt2", layers=1, vocabulary=300, tokenizer=make_tokenizer())
    check_context(model, POSITIONS, "the student")
    with pytest.raises(BadInput, match=f"{POSITIONS + 1} tokens, the student has {POSITIONS} positions"):
        check_context(model, POSITIONS + 1, "the student")
