"""pretrained: a checkpoint that lacks weights, or has others, is refused by name; a sound one is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model
from torch import Tensor
from transformers import GPT2LMHeadModel

from skill_kd.errors import UsageError
from skill_kd.evaluate import opened_models
from skill_kd.handoff.probe.model_folder import load
from skill_kd.kd.config import FromTeacher, Student, Teacher
from skill_kd.kd.errors import BadInput
from skill_kd.kd.model.loading import load_model, load_student, load_teacher

Weights = dict[str, Tensor]
SOURCE = Teacher(model="unused", dtype="float32")
LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "sound")


def changed(sound: Path, folder: Path, change: Callable[[Weights], Weights], **config: object) -> str:
    """Write a copy of a model with other weights, and return its folder."""
    folder.mkdir()
    for file in sound.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(change(load_file(sound / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    values = json.loads((sound / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    return str(folder)


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: weight for key, weight in weights.items() if not key.startswith(name)}


def prefixed(weights: Weights) -> Weights:
    return {f"_orig_mod.{name}": weight for name, weight in weights.items()}


def same(weights: Weights) -> Weights:
    return weights


ONE = torch.ones(1)
OTHER_LAYERS = {"model.layers.2.mlp.up_proj.weight": ONE, "model.layers.2.mlp.down_proj.weight": torch.zeros(1)}
REFUSED = {
    "head": (same, {"tie_word_embeddings": False}, r"lacks the weights lm_head\.weight"),
    "layer": (
        without("model.layers.1.mlp"),
        {},
        r"lacks the weights model\.layers\.1\.mlp\.down_proj\.weight, .*up_proj",
    ),
    "embedding": (without("model.embed_tokens"), {}, r"lacks the weights .*model\.embed_tokens\.weight"),
    "many": (without("model.layers.1"), {}, r"lacks the weights .* and 6 more"),
    "prefix": (prefixed, {}, r"every weight in it has the prefix '_orig_mod\.'"),
    "more layers": (lambda w: {**w, **OTHER_LAYERS}, {}, r"does not ask for model\.layers\.2\.mlp\.down_proj\.weight"),
    "bias": (lambda w: {**w, LAYER.replace("weight", "bias"): ONE}, {}, r"does not ask for .*up_proj\.bias"),
    "shape": (
        lambda w: {**w, LAYER: torch.ones(3, 4)},
        {},
        r"another shape .*up_proj\.weight \(3, 4\) instead of \(64, 32\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("weights", [True, False])
def test_a_checkpoint_with_other_weights_is_refused_by_name(
    name: str, weights: bool, sound: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, config, words = REFUSED[name]
    folder = changed(sound, tmp_path / "model", change, **config)
    with pytest.raises(BadInput, match=words) as raised:
        load_model(SOURCE, folder, weights=weights)
    assert f"'{folder}'" in str(raised.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "config"),
    [
        pytest.param(same, {}, id="tied head, saved once"),
        pytest.param(
            lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()}, {}, id="tied, saved twice"
        ),
        pytest.param(lambda w: {**w, "v_head.summary.weight": ONE}, {}, id="a value head"),
        pytest.param(lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": ONE}, {}, id="rotary table"),
        pytest.param(lambda w: {**w, "model.layers.0.self_attn.masked_bias": ONE}, {}, id="causal mask"),
    ],
)
def test_a_sound_checkpoint_is_loaded(
    change: Callable[[Weights], Weights], config: dict[str, object], sound: Path, tmp_path: Path
) -> None:
    loaded = load_model(SOURCE, changed(sound, tmp_path / "model", change, **config))
    saved = load_file(sound / "model.safetensors")
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in saved.items())


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_weights_that_are_cut_are_named_and_not_the_config(kept: int, sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(BadInput, match=r"'model\.safetensors' of [\d,]+ bytes is damaged or cut"):
        load_model(SOURCE, str(folder))


def test_names_that_the_model_class_declares_harmless_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = make_model(tmp_path / "gpt2", "gpt2")
    folder = changed(sound, tmp_path / "old", lambda w: {**without("transformer.ln_f")(w), "transformer.h.0.gone": ONE})
    with pytest.raises(BadInput, match=r"ln_f\.bias, transformer\.ln_f\.weight; it has .*transformer\.h\.0\.gone"):
        load_model(SOURCE, folder)
    monkeypatch.setattr(GPT2LMHeadModel, "_keys_to_ignore_on_load_missing", [r"ln_f"], raising=False)
    monkeypatch.setattr(GPT2LMHeadModel, "_keys_to_ignore_on_load_unexpected", [r"h\.0\.gone"], raising=False)
    load_model(SOURCE, folder)


def test_every_way_to_load_a_model_refuses_it(sound: Path, tmp_path: Path) -> None:
    folder = changed(sound, tmp_path / "model", without("model.layers.1.mlp"))
    ways: dict[str, Callable[[], object]] = {
        "student": lambda: load_student(Student(model=folder), SOURCE),
        "grown student": lambda: load_student(
            Student(from_teacher=FromTeacher(layers=1)), Teacher(model=folder, dtype="float32")
        ),
        "teacher": lambda: load_teacher(Teacher(model=folder, dtype="float32")),
        "handoff": lambda: load(Path(folder), "float32"),
    }
    for way in ways.values():
        with pytest.raises(BadInput, match="lacks the weights"):
            way()
    with pytest.raises(UsageError, match="lacks the weights"), opened_models.plain_errors():
        opened_models.open_writer(opened_models.ModelSource(folder), 4, torch.device("cpu"))
