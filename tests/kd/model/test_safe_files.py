"""Pickles, code of a folder and kernels never run. Each attack here would work without its guard."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub import COMMIT, edit, model_with_code, repository, use_cache, write_code
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import make_model

from skill_kd.kd.config import FromTeacher, Student, Teacher
from skill_kd.kd.errors import BadInput, Missing
from skill_kd.kd.model.loading import load_model, load_pair, load_student, load_tokenizer
from skill_kd.kd.model.pretrained import load_weights
from skill_kd.kd.model.safe_files import refuse_other_formats

ROOT = Path(__file__).parents[3]
PLAIN = Teacher(dtype="float32")
TRUSTING = Teacher(dtype="float32", trust_remote_code=True, revision=COMMIT)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the working folder. It is empty, and so is the hub's cache."""
    use_cache(tmp_path, monkeypatch)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert not (folder / "exploded").exists()


# --- code -------------------------------------------------------------------------------------------------------------


def its_tokenizer(ran: Path) -> str:
    folder = make_model("model")
    write_code(folder, ran)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["theirs.Config", None]})
    return "model"


def its_generate(ran: Path) -> str:
    folder = make_model("model")
    write_code(folder / "custom_generate", ran)
    (folder / "custom_generate" / "theirs.py").rename(folder / "custom_generate" / "generate.py")
    return "model"


def base_of_an_adapter(ran: Path) -> str:
    plain = load_model(PLAIN, str(make_model("plain")))
    adapted = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained("adapter")
    model_with_code(Path("base"), ran)
    edit(Path("adapter/adapter_config.json"), base_model_name_or_path="base")
    return "adapter"


def code_of_a_hidden_repository(ran: Path) -> str:
    """A model of the hub takes its code from another repository, in whose place there is a folder."""
    model_with_code(repository(Path.cwd().parent, "them/pointing"), ran, "them/code--")
    write_code(Path("them/code"), ran)
    return "them/pointing"


def code_of_an_absolute_folder(ran: Path) -> str:
    model_with_code(repository(Path.cwd().parent, "them/absolute"), ran, f"{Path.cwd()}/code--")
    write_code(Path("code"), ran)
    return "them/absolute"


def tokenizer_of_a_hidden_repository(ran: Path) -> str:
    folder = make_model(repository(Path.cwd().parent, "them/tokenizer"))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["them/code--theirs.Config", None]})
    write_code(Path("them/code"), ran)
    return "them/tokenizer"


LOCAL: dict[str, Callable[[Path], str]] = {
    "folder": lambda ran: str(model_with_code(Path("model"), ran)),
    "folder with the name of a repository": lambda ran: str(model_with_code(Path("them/model"), ran)),
    "tokenizer": its_tokenizer,
    "generate": its_generate,
    "base of an adapter": base_of_an_adapter,
    "hidden repository": code_of_a_hidden_repository,
    "absolute folder": code_of_an_absolute_folder,
    "tokenizer of a hidden repository": tokenizer_of_a_hidden_repository,
}


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize("load", [load_tokenizer, load_model])
def test_code_on_this_disk_never_runs(load: Callable[[Teacher, str], object], kind: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    model = LOCAL[kind](ran)
    with pytest.raises(BadInput, match=r"no revision pins the code; drop trust_remote_code|needs a whole model"):
        load(TRUSTING, model)
    assert not ran.exists()


def test_code_of_the_hub_runs_only_with_trust(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    model_with_code(repository(tmp_path, "them/model"), ran)
    with pytest.raises(Missing, match="it needs Python code of its own, which does not run") as raised:
        load_pair(PLAIN, "them/model")
    assert "`trust_remote_code=True`" not in str(raised.value)
    assert not ran.exists()
    assert type(load_pair(TRUSTING, "them/model")[0]).__name__ == "Model"
    assert ran.exists()


def test_a_student_with_a_class_of_its_own_is_refused_before_training(tmp_path: Path) -> None:
    model_with_code(repository(tmp_path, "them/student"), tmp_path / "ran")
    asked = Student(model="them/student", trust_remote_code=True, revision=COMMIT)
    grown = Student(from_teacher=FromTeacher(layers=1))
    teacher = Teacher(dtype="float32", model="them/student", trust_remote_code=True, revision=COMMIT)
    for student in (asked, grown):
        with pytest.raises(BadInput, match="the class Model, which is code of its repository"):
            load_student(student, teacher)


KERNELS = [
    ("attn_implementation", "them/kernel"),
    ("_attn_implementation", {"text_config": "them/kernel@main:layer"}),
    ("attn_implementation", "flash_attention_2"),
    ("_attn_implementation", {"": "paged|flash_attention_3"}),
    ("experts_implementation", "deepgemm"),
    ("_experts_implementation", "sonicmoe"),
]


@pytest.mark.parametrize(("key", "value"), KERNELS)
def test_a_kernel_of_the_hub_is_refused(key: str, value: object) -> None:
    edit(make_model("model") / "config.json", **{key: value})
    field = key.removeprefix("_")
    with pytest.raises(Missing, match=rf"config\.json asks for the kernel '.*'.* remove {field} there, or set it to"):
        load_model(PLAIN, "model")


@pytest.mark.parametrize("value", ["eager", "sdpa", None])
def test_a_built_in_kernel_is_taken(value: str | None) -> None:
    edit(make_model("model") / "config.json", attn_implementation=value)
    load_model(PLAIN, "model")


def test_nobody_is_asked_if_code_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask at the terminal."""
    model_with_code(Path("model"), tmp_path / "ran")
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("transformers asked"))
    with pytest.raises(ValueError, match="custom code"):
        load_weights("model", "model")
    assert not (tmp_path / "ran").exists()


def calls(text: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func), node


def test_every_pickle_is_loaded_for_its_tensors_alone() -> None:
    folders = [ROOT / "skill_kd", ROOT / "templates", *ROOT.glob("plugins/*/skill_kd_*")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    loads = [(path, call) for path in paths for name, call in calls(path.read_text()) if name == "torch.load"]
    assert len(loads) >= 3
    for path, call in loads:
        assert "weights_only=True" in map(ast.unparse, call.keywords), path


def test_every_call_that_could_run_code_says_that_it_may_not() -> None:
    """Without the argument, transformers asks the person at the terminal."""
    folders = [ROOT / "skill_kd", ROOT / "templates", *ROOT.glob("plugins/*/skill_kd_*")]
    seen, silent = 0, []
    loads = re.compile(r"(Auto|Fast|unsloth\.Fast)\w+\.from_(pretrained|config)")
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for name, call in calls(text) if loads.search(text) else ():
            if loads.fullmatch(name):
                seen += 1
                if not {keyword.arg for keyword in call.keywords} & {"trust_remote_code", None}:
                    silent.append(f"{path.relative_to(ROOT)}, line {call.lineno}: {name}")
    assert seen > 10
    assert not silent, "\n".join(silent)


# --- weights ----------------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


def indexed(model: Path, file: str, index: str = "model.safetensors.index.json") -> None:
    """Replace a model's weights by an index, which says that all of them are in ``file``."""
    names = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    (model / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, file)}))


def an_index_of_tensors(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "weights.bin")
    indexed(model, "weights.bin")


def an_index_of_a_bomb(model: Path) -> None:
    indexed(model, "weights.bin")
    (model / "weights.bin").write_bytes(pickle.dumps(Bomb()))


def an_index_of_another_folder(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model.parent / "other.safetensors")
    indexed(model, "../other.safetensors")


def an_index_of_indices(model: Path) -> None:
    indexed(model, "other.safetensors.index.json")
    (model / "other.safetensors.index.json").write_bytes(pickle.dumps(Bomb()))


def a_config_that_names_a_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "adapter_model.bin")
    (model / "model.safetensors").unlink()
    edit(model / "config.json", transformers_weights="adapter_model.bin")


def a_config_that_names_an_index(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "weights.bin")
    indexed(model, "weights.bin", "own.safetensors.index.json")
    edit(model / "config.json", transformers_weights="own.safetensors.index.json")


def a_pickle_alone(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


PICKLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "index": (an_index_of_tensors, "model.safetensors.index.json names 'weights.bin'"),
    "bomb": (an_index_of_a_bomb, "model.safetensors.index.json names 'weights.bin'"),
    "another folder": (an_index_of_another_folder, "model.safetensors.index.json names '../other.safetensors'"),
    "index of an index": (an_index_of_indices, "names 'other.safetensors.index.json'"),
    "config": (a_config_that_names_a_pickle, "config.json names 'adapter_model.bin'"),
    "config and index": (a_config_that_names_an_index, "own.safetensors.index.json names 'weights.bin'"),
    "alone": (a_pickle_alone, "no model.safetensors or model.safetensors.index.json"),
}


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("kind", PICKLES)
def test_weights_in_another_format_are_refused_in_our_words(kind: str, place: str, tmp_path: Path) -> None:
    spoil, words = PICKLES[kind]
    spoil(make_model("model" if place == "folder" else repository(tmp_path, "them/model")))
    with pytest.raises(Missing) as raised:
        load_model(PLAIN, "model" if place == "folder" else "them/model")
    assert words in str(raised.value)
    assert "only safetensors are loaded" in str(raised.value)
    assert "weights_only" not in str(raised.value)
    assert "use_safetensors" not in str(raised.value)


def test_an_index_of_safetensors_is_accepted() -> None:
    model = make_model("model")
    shutil.copy(model / "model.safetensors", model / "model-00001-of-00001.safetensors")
    indexed(model, "model-00001-of-00001.safetensors")
    load_model(PLAIN, "model")


def test_a_file_in_place_of_a_model_ends_in_our_words() -> None:
    """transformers takes it for the config and for a pickle of the weights."""
    with pytest.raises(
        Missing, match=r"cannot load 'model/config\.json': a file of its weights is not safetensors"
    ) as raised:
        load_model(PLAIN, str(make_model("model") / "config.json"))
    assert "weights_only" not in str(raised.value)


def test_a_config_that_is_nested_deeply_is_searched() -> None:
    folder = make_model("model")
    deep = "[" * 60 + '{"attn_implementation": "them/kernel"}' + "]" * 60
    (folder / "config.json").write_text(f'{{"deep": {deep}}}')
    with pytest.raises(Missing, match="asks for the kernel"):
        refuse_other_formats("model", "model", None)


def test_a_config_that_is_nested_too_deeply_is_refused() -> None:
    folder = make_model("model")
    (folder / "config.json").write_text(f'{{"deep": {"[" * 900 + "]" * 900}}}')
    with pytest.raises(BadInput, match=r"config\.json': it is nested"):
        refuse_other_formats("model", "model", None)
