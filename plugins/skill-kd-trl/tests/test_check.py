"""The backend accepts and refuses specs before anything is loaded, and it fulfills the contract."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from skill_kd_trl import TRLBackend
from specs import OBJECTIVES, REPOSITORY, values

from skill_kd import plugins
from skill_kd.errors import SpecError
from skill_kd.spec import Spec
from skill_kd.spec.file import load_spec, parse_spec
from skill_kd.testing import check_backend, minimal_spec

BACKEND = TRLBackend()
ON_POLICY = {"kind": "reverse_kl"}


def spec_with(objective: dict[str, Any] = ON_POLICY, **sections: Any) -> Spec:
    """A spec of models that exist nowhere."""
    named = {"teacher": {"model": "a/b"}, "student": {"model": "a/c"}} | sections
    return parse_spec(values(Path("nowhere"), objective, **named))


def test_it_is_found_by_its_entry_point() -> None:
    plugins.forget()
    assert isinstance(plugins.get_backend("trl"), TRLBackend)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_it_keeps_the_contract_for_each_objective(objective: dict[str, Any]) -> None:
    check_backend(TRLBackend, spec_with(objective))


def test_its_requirements_are_the_versions_the_tests_run_with() -> None:
    for each in map(Requirement, BACKEND.requirements):
        assert each.specifier.contains(metadata.version(each.name)), each
    assert plugins.missing(BACKEND) == []


def test_several_processes_are_started_by_accelerate() -> None:
    command = BACKEND.command(Path("train.py"), spec_with(launch={"processes": 2, "strategy": "ddp"}))
    assert command[1:4] == ["-P", "-m", "accelerate.commands.launch"]
    assert command[command.index("--num_processes") + 1] == "2"


@pytest.mark.parametrize(
    "sections",
    [
        {"teacher": {"model": [{"model": "a/b"}]}},
        {"teacher": {"model": "a/b", "quantization": "4bit"}},
        {"student": {"model": "a/c", "quantization": "4bit", "lora": {}}},
        {"student": {"model": None, "from_teacher": 2}},
        {"rollout": {"top_p": 0.9}},
        {"rollout": {"engine": "vllm"}},
        {"rollout": {"engine": "vllm", "vllm_url": "http://127.0.0.1:8000"}},
        {"launch": {"processes": 2, "strategy": "ddp"}},
    ],
)
def test_what_it_can_do_has_no_problems(sections: dict[str, Any]) -> None:
    assert BACKEND.check(spec_with(**sections)) == []


DISTILL = {"kind": "distill", "objective": ON_POLICY}
SERVED = {"model": None, "served": {"url": "http://localhost/v1", "model": "m", "top_logprobs": 5}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another objective": (
        {"objective": {"kind": "skew_reverse_kl"}},
        "stages.0.objective.kind: TRL's trainer has no skew_reverse_kl; use reverse_kl, forward_kl, jsd or minillm",
    ),
    "imitation": ({"objective": {"kind": "sft"}}, "stages.0.objective.kind: TRL's trainer has no sft"),
    "off-policy rows": (
        {"objective": {"kind": "jsd"}},
        "stages.0.objective.on_policy: 0.5, but TRL trains only on the student's samples; set on_policy: 1",
    ),
    "labels": (
        {"objective": {"kind": "forward_kl", "responses": "data", "hard_label_weight": 0.5}},
        "stages.0.objective.hard_label_weight: 0.5 needs responses from the data, which TRL does not read",
    ),
    "two temperatures": (
        {"objective": {"kind": "reverse_kl", "temperature": 2.0}},
        "stages.0.objective.temperature: 2.0 and rollout.temperature: 1.0 are one setting in TRL; make them equal",
    ),
    "temperature 0": (
        {"objective": {"kind": "forward_kl"}, "rollout": {"temperature": 0}},
        "rollout.temperature: 0.0 always samples the same response; set it above 0",
    ),
    "teacher-mixed sampling": (
        {"objective": {"kind": "minillm"}},
        "stages.0.objective.teacher_mix: 0.2, but TRL samples only from the student; set teacher_mix: 0",
    ),
    "PT loss": (
        {"objective": {"kind": "minillm", "pt_weight": 1.0}, "data": {"pretraining": "corpus.jsonl"}},
        "stages.0.objective.pt_weight: 1.0 needs a second loss on other data, but TRL's trainer has one loss; "
        "set pt_weight: 0",
    ),
    "coverage": (
        {"objective": {"kind": "minillm", "coverage_weight": 0.5}},
        "stages.0.objective.coverage_weight: 0.5 needs a second loss",
    ),
    "minillm off temperature 1": (
        {"objective": {"kind": "minillm", "teacher_mix": 0}, "rollout": {"temperature": 0.7}},
        "rollout.temperature: 0.7 needs the probability of each sampled token, which TRL does not keep",
    ),
    "minillm in a nucleus": (
        {"objective": {"kind": "minillm", "teacher_mix": 0}, "rollout": {"top_p": 0.9}},
        "rollout.top_p: 0.9 needs the probability of each sampled token",
    ),
    "inner epochs": (
        {"rollout": {"inner_epochs": 2}},
        "rollout.inner_epochs: 2, but TRL takes one step per batch",
    ),
    "rounds of rollouts": (
        {"rollout": {"prompts": 8}},
        "rollout.prompts: 8, but TRL samples for each step; set it to training.batch_size, 4",
    ),
    "vLLM for a student without a name": (
        {"rollout": {"engine": "vllm"}, "student": {"model": None, "from_teacher": 2}},
        "rollout.engine: vllm loads the student by its name, but a student grown with from_teacher has no name",
    ),
    "vLLM in 8 bits": (
        {"rollout": {"engine": "vllm"}, "student": {"model": "a/c", "quantization": "8bit", "lora": {}}},
        "student.quantization: 8bit cannot be sent to vLLM",
    ),
    "packed weights for a server": (
        {
            "rollout": {"engine": "vllm", "vllm_url": "http://127.0.0.1:8000"},
            "student": {"model": "a/c", "quantization": "4bit", "lora": {}},
        },
        "student.quantization: 4bit cannot be sent to a server",
    ),
    "a roll-back": (
        {"training": {"batch_size": 4, "on_bad_loss": "roll_back"}},
        "training.on_bad_loss: roll_back, but TRL's loop cannot roll back; set on_bad_loss: stop",
    ),
    "sharding": (
        {"launch": {"processes": 2, "strategy": "fsdp2"}},
        "launch.strategy: fsdp2 shards the student, but this backend cannot measure or export a sharded student; "
        "use strategy: ddp",
    ),
    "a teacher in shards": (
        {"launch": {"processes": 2, "strategy": "ddp", "shard_teacher": True}},
        "launch.shard_teacher: TRL loads the whole teacher in every process",
    ),
    "DeepSpeed": ({"launch": {"strategy": "deepspeed"}}, "launch.strategy: deepspeed shards the student"),
    "served teacher": ({"teacher": SERVED}, "teacher.served: TRL needs a loaded teacher"),
    "several teachers": (
        {"teacher": {"model": [{"model": "a/b"}, {"model": "a/d"}]}},
        "teacher.model: 2 teachers, but TRL uses one; list one",
    ),
    "adapter on the head": (
        {"student": {"model": "a/c", "lora": {"targets": ["q_proj", "lm_head"]}}},
        "student.lora.targets: TRL's loss ignores an adapter on lm_head; leave it out",
    ),
    "warm start": (
        {"stages": [{"kind": "warm_start"}, DISTILL]},
        "stages.0: a warm_start is not part of TRL's trainer; first train its objective as the distill stage of a run "
        "with backend: transformers, then set student.model to that run's student/",
    ),
    "self-training": (
        {"stages": [DISTILL, {"kind": "self_train"}]},
        "stages.1: self_train is not part of TRL's trainer; drop the stage",
    ),
    "float16": ({"student": {"model": "a/c", "dtype": "float16"}}, "student.dtype: float16 needs a loss scaler"),
    "no such folder": ({"teacher": {"model": "./no-such"}}, "teacher.model: there is no folder './no-such'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_specs_are_refused_with_the_fix(name: str) -> None:
    sections, problem = REFUSED[name]
    problems = BACKEND.check(spec_with(**sections))
    assert any(each.startswith(problem) for each in problems), problems
    assert all("\n" not in each for each in problems)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"rollout": {"top_p": 1.5}}, "rollout.top_p"),
        ({"rollout": {"max_new_tokens": 0}}, "rollout.max_new_tokens"),
        ({"rollout": {"temperature": 0}}, "rollout.temperature: 0"),
        ({"rollout": {"temperature": -1}}, "rollout.temperature"),
        ({"rollout": {"vllm_url": "http://127.0.0.1:8000"}}, "applies only to engine: vllm; set that, or drop it"),
        ({"rollout": {"engine": "vllm", "vllm_url": "127.0.0.1:8000"}}, "rollout.vllm_url"),
        ({"rollout": {"engine": "vllm", "vllm_url": "http://me:secret@127.0.0.1"}}, "vllm_url: holds a user name"),
        ({"rollout": {"engine": "vllm", "vllm_url": "http://127.0.0.1:8000/v1"}}, "drop /v1 from its end"),
        ({"teacher": {"model": None}}, "set exactly one of 'model' (loaded here) and 'served' (an endpoint)"),
    ],
)
def test_what_trl_takes_silently_the_spec_refuses(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_with(**sections)
    assert words in str(caught.value)


def test_it_takes_the_example_that_all_backends_take() -> None:
    spec = load_spec(REPOSITORY / "examples/any-backend.yaml")
    assert BACKEND.check(spec) == []
    check_backend(TRLBackend, spec)


def test_the_shortest_spec_gets_every_problem_at_once() -> None:
    problems = BACKEND.check(minimal_spec("trl"))
    assert [each.split(":")[0] for each in problems] == ["stages.0.objective.teacher_mix", "rollout.prompts"]


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_a_teacher_folder_with_another_tokenizer_is_refused_naming_the_first_id(models: Path) -> None:
    spec = parse_spec(values(models, ON_POLICY, teacher={"model": str(models / "stranger")}))
    (problem,) = BACKEND.check(spec)
    assert problem.startswith("teacher.model: its tokenizer differs from the student's: id 0 is '<|im_end|>'")
    assert BACKEND.check(parse_spec(values(models, ON_POLICY))) == []


def test_a_folder_without_a_readable_tokenizer_file_is_left_to_the_script(models: Path, tmp_path: Path) -> None:
    for name, text in {"missing": None, "broken": "{", "a list": "[1]", "no vocabulary": '{"model": {}}'}.items():
        teacher = tmp_path / name
        shutil.copytree(models / "stranger", teacher)
        (teacher / "tokenizer.json").unlink()
        if text is not None:
            (teacher / "tokenizer.json").write_text(text)
        assert BACKEND.check(parse_spec(values(models, ON_POLICY, teacher={"model": str(teacher)}))) == []


def test_unigram_vocabularies_are_compared_in_the_order_of_their_ids(models: Path, tmp_path: Path) -> None:
    folders = {"one": ["<s>", "a", "b"], "same": ["<s>", "a", "b", "c"], "other": ["<s>", "b", "a"]}
    for name, tokens in folders.items():
        shutil.copytree(models / "teacher", tmp_path / name)
        listed = ", ".join(f'["{token}", -1.0]' for token in tokens)
        (tmp_path / name / "tokenizer.json").write_text(f'{{"model": {{"vocab": [{listed}]}}}}')

    def problems(teacher: str) -> list[str]:
        folders = {"teacher": {"model": str(tmp_path / teacher)}, "student": {"model": str(tmp_path / "one")}}
        return BACKEND.check(parse_spec(values(models, ON_POLICY, **folders)))

    assert problems("same") == []
    assert "id 1 is 'b' in the teacher and 'a' in the student" in problems("other")[0]
