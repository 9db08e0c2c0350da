"""A teacher in shards, read by two processes that need it unequally often; students that one of them loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import ENVIRONMENT, REPOSITORY, make_models, spec_of
from safetensors.torch import load_file, save_file
from tiny import make_model

from skill_kd.jobs.folder import write_folder
from skill_kd.plugins import get_backend

pytestmark = pytest.mark.script


def start(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run(
        [*command, *arguments],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


SCRIPT = """
import sys

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from skill_kd.kd.config import Teacher, WeightedModel
from skill_kd.kd.reporting import reporting
from skill_kd.kd.model.loading import load_teacher
from skill_kd.kd.model.sharding import ShardedTeacher


def check():
    accelerator = Accelerator(cpu=True)
    members = tuple(WeightedModel(model=name) for name in sys.argv[1:])
    source = Teacher(model=members, dtype="float32")
    whole = load_teacher(source).model
    empty = load_teacher(source, weights=accelerator.is_main_process).model
    assert accelerator.is_main_process or all(weight.is_meta for weight in empty.parameters())
    split = ShardedTeacher(empty, accelerator)
    assert not split.training

    for name, weight in split.model.named_parameters():
        in_block = ".layers." in name or ".h." in name
        full = whole.get_parameter(name)
        assert isinstance(weight, DTensor) == in_block, name
        local = weight.to_local() if in_block else weight
        assert local.numel() == (full.numel() // 2 if in_block else full.numel()), name

    with torch.no_grad():
        rank, passes = accelerator.process_index, (3, 1)[accelerator.process_index]
        with split.together():
            for number in range(passes):
                with split.together():
                    ids = torch.arange(5 + number + rank)[None]
                    torch.testing.assert_close(split(input_ids=ids).logits, whole(input_ids=ids).logits)
        with split.together():
            pass
        try:
            split(input_ids=ids)
        except AssertionError as error:
            assert "together" in str(error)
        else:
            raise SystemExit("a pass that nobody joins was begun")
    sys.stdout.write(f"{rank} made {passes}\\n")


with reporting():  # leaves before its interpreter is taken down, at which gloo could abort it
    check()
"""


@pytest.mark.parametrize("kinds", [("llama",), ("gpt2",), ("llama", "qwen2")], ids="+".join)
def test_processes_read_in_step(kinds: tuple[str, ...], tmp_path: Path) -> None:
    models = [make_model(tmp_path / kind, kind, layers=2, seed=seed) for seed, kind in enumerate(kinds)]
    (tmp_path / "script.py").write_text(SCRIPT)
    done = start(tmp_path / "script.py", *map(str, models))
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == ["0 made 3", "1 made 1"]


STUDENTS = """
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from skill_kd.kd.model import sharding
from skill_kd.kd.config import FromTeacher, Lora, Student, Teacher
from skill_kd.kd.reporting import reporting
from skill_kd.kd.model.loading import load_student


def steps_of(model):
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.SGD(trained, lr=0.1, momentum=0.9)


def learn(model, steps):
    steps.zero_grad()
    model(input_ids=torch.arange(10)[None], labels=torch.arange(10)[None]).loss.backward()
    steps.step()


def same(found, expected, **tolerance):
    if found is not None:  # on the main process
        torch.testing.assert_close(dict(found.state_dict()), dict(expected.state_dict()), **tolerance)


def check(model, how):
    accelerator = Accelerator(cpu=True)
    main = accelerator.is_main_process
    lora = Lora(r=2, alpha=4.0) if how == "lora" else None
    source = Teacher(model=model, dtype="float32")
    student = Student(from_teacher=FromTeacher(layers=2)) if how == "grown" else Student(model=model, lora=lora)
    torch.manual_seed(0)
    whole, _ = load_student(student, source)
    torch.manual_seed(accelerator.process_index)
    part, _ = load_student(student, source, weights=main)
    assert all(weight.is_meta != main for name, weight in part.named_parameters() if "lora" not in name)

    shards = sharding.ShardedStudent(part, accelerator)
    assert [name for name, _ in part.named_parameters()] == [name for name, _ in whole.named_parameters()]
    with shards.gathered():
        for name, weight in whole.named_parameters():
            torch.testing.assert_close(part.get_parameter(name), weight, rtol=0, atol=0, msg=name)

    alone, steps = steps_of(whole), steps_of(part)
    shards.keep(steps)
    learn(whole, alone)
    learn(part, steps)
    same(shards.whole(), whole)
    folder = str(Path(model).parent)
    shards.save_state(folder)
    learn(part, steps)
    after = shards.whole()
    if not main:
        sharding.load_file = torch.load = None  # the main process hands out what it reads
    part(input_ids=torch.arange(10)[None]).logits.sum().backward()  # a step that is given up
    steps.state.clear()
    shards.load_state(folder)
    same(shards.whole(), whole)
    learn(part, steps)
    same(shards.whole(), after, rtol=0, atol=0)


with reporting():
    check(*sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("kind", "how"), [("gpt2", "whole"), ("qwen2", "grown"), ("llama", "lora"), ("qwen2", "both tied weights")]
)
def test_the_main_process_alone_loads_a_student_that_goes_into_shards(kind: str, how: str, tmp_path: Path) -> None:
    """Tied weights stay one weight, and adapters are everywhere what they are on the main process."""
    model = make_model(tmp_path / kind, kind, layers=3)
    if how == "both tied weights":  # as some tools write them
        weights = load_file(model / "model.safetensors")
        twice = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}
        save_file(twice, model / "model.safetensors", {"format": "pt"})
    (tmp_path / "script.py").write_text(STUDENTS)
    done = start(tmp_path / "script.py", str(model), how)
    assert done.returncode == 0, done.stderr[-3000:]


PREPARED = """
import sys

sys.path.insert(0, sys.argv[1])
import train

with train.reporting():
    assert train.prepare().student.policy.head is not None
"""


def test_no_process_needs_all_logits_of_a_student_in_shards(tmp_path: Path) -> None:
    spec = spec_of(make_models(tmp_path), launch={"strategy": "fsdp2", "processes": 2})
    write_folder(get_backend("transformers").render(spec), tmp_path / "run")
    (tmp_path / "script.py").write_text(PREPARED)
    done = start(tmp_path / "script.py", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
