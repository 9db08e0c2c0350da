"""``launch.sh`` and accelerate's configuration: one machine, each of several, and Slurm."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from skill_kd.backends.launch import arguments, files
from skill_kd.errors import UsageError
from skill_kd.jobs.job import check_generated, generate
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec

TWO_MACHINES = {"strategy": "ddp", "nodes": 2, "processes": 4}
ASKED = """\
#!/bin/bash
printf "%s\\n" "$@" > "asked-${NODE_RANK:-$SLURM_NODEID}"
"""
"""An ``accelerate`` that keeps what it was asked."""
SCONTROL = """\
#!/bin/bash
case "$*" in
  "show hostnames host[1-2]") echo host1; sleep .1; echo host2 ;;  # whoever reads one line only would break the pipe
  "show job 7") printf "JobId=7\\n   Command=%s/launch.sh --resume\\n   WorkDir=/\\n" HERE ;;
  *) exit 1 ;;
esac
"""


def spec_of(**launch: Any) -> Spec:
    return parse_spec(
        {
            "name": "far",
            "teacher": {"model": "org/teacher"},
            "student": {"model": "org/student"},
            "data": {"train": "prompts.jsonl"},
            "stages": [{"kind": "distill", "updates": 4, "objective": {"kind": "minillm"}}],
            "training": {"accumulate": 4, "max_grad_norm": 0.5},
            "launch": launch,
        }
    )


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with ``launch.sh`` for two machines, and stand-ins for accelerate and Slurm.

    Its name has everything that a shell would read as more than a name.
    """
    made = tmp_path / "-far away; $(touch broken) 'n' \"more\""
    made.mkdir()
    for name, text in files(spec_of(**TWO_MACHINES)).items():
        (made / name).write_text(text)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "accelerate", ASKED)
    program(tmp_path / "bin", "scontrol", SCONTROL.replace("HERE", shlex.quote(str(made))))
    program(tmp_path / "bin", "srun", '#!/bin/bash\nfor node in 0 1; do SLURM_NODEID=$node "$@"; done\n')
    return made


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder.parent / "bin"), os.environ["PATH"]])
    command = ["bash", environment.pop("SCRIPT", str(folder / "launch.sh")), *arguments]
    return subprocess.run(
        command, cwd=folder, env={"PATH": path, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "launch",
    [
        {"strategy": "ddp", "processes": 2},
        {"strategy": "fsdp2", "processes": 4},
        {"strategy": "deepspeed", "processes": 2},
    ],
    ids=str,
)
def test_the_configuration_says_what_the_command_says(launch: dict[str, Any], tmp_path: Path) -> None:
    spec, config = spec_of(**launch), tmp_path / "accelerate.yaml"
    config.write_text(files(spec)["accelerate.yaml"])
    parser = launch_command_parser()
    by_flags = parser.parse_args([*arguments(spec), "train.py"])
    by_file = parser.parse_args(["--config_file", str(config), "train.py"])
    for parsed in (by_flags, by_file):
        _validate_launch_command(parsed)
    for name in ("multi_gpu", "use_deepspeed", "num_processes", "num_machines", "mixed_precision"):
        assert getattr(by_file, name) == getattr(by_flags, name), name
    # Two runs on one machine must not meet at one port. Several machines agree on one through launch.sh.
    assert by_flags.main_process_port == 0
    assert by_file.main_process_port == (0 if spec.launch.nodes == 1 else None)


def test_it_is_a_configuration_that_accelerate_takes(folder: Path) -> None:
    config = load_config_from_file(str(folder / "accelerate.yaml"))
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (2, 4, "no")


def test_each_machine_says_which_it_is(folder: Path) -> None:
    done = start(folder, "--resume", NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert done.returncode == 0, done.stderr
    asked = (folder / "asked-1").read_text().splitlines()
    rendezvous = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1", "--main_process_port", "29500"]
    config = ["--config_file", f"{folder}/accelerate.yaml"]
    assert asked == ["launch", *config, *rendezvous, f"{folder}/train.py", "--resume"]


@pytest.mark.parametrize("given", [{}, {"NODE_RANK": "0"}, {"MASTER_ADDR": "10.0.0.1"}], ids=str)
def test_a_machine_that_does_not_know_its_place_starts_nothing(folder: Path, given: dict[str, str]) -> None:
    done = start(folder, **given)
    assert done.returncode != 0
    assert "not set" in done.stderr
    assert not list(folder.glob("asked-*"))


def test_slurm_starts_it_once_on_each_machine(folder: Path) -> None:
    copy = shutil.copy(folder / "launch.sh", folder.parent / "slurm_script")  # as sbatch does
    done = start(folder, "--resume", SCRIPT=str(copy), SLURM_JOB_ID="7", SLURM_JOB_NODELIST="host[1-2]")
    assert done.returncode == 0, done.stderr
    for node in ("0", "1"):
        asked = (folder / f"asked-{node}").read_text().splitlines()
        assert asked[3:7] == ["--machine_rank", node, "--main_process_ip", "host1"]
        assert asked[-2:] == [f"{folder}/train.py", "--resume"]
    script = (folder / "launch.sh").read_text()
    assert {"#SBATCH --nodes=2", "#SBATCH --gpus-per-node=2", "#SBATCH --job-name=far"} <= set(script.splitlines())
    assert "torchrun --nnodes=2 --node-rank=$NODE_RANK" in script


def test_one_machine_needs_no_place(folder: Path) -> None:
    for name, text in files(spec_of(strategy="fsdp2", processes=2)).items():
        (folder / name).write_text(text)
    assert start(folder, NODE_RANK="0").returncode == 0
    asked = ["launch", "--config_file", f"{folder}/accelerate.yaml", f"{folder}/train.py"]
    assert (folder / "asked-0").read_text().splitlines() == asked


def test_generate_writes_them_and_never_over_a_persons_edits(tmp_path: Path) -> None:
    spec, target = spec_of(**TWO_MACHINES), tmp_path / "far"
    assert [path.name for path in generate(spec, target)] == ["train.py", "kd", "accelerate.yaml", "launch.sh"]
    generate(spec, target)
    check_generated(spec, target)
    edited = (target / "launch.sh").read_text().replace("#SBATCH --nodes", "#SBATCH --partition=long\n#SBATCH --nodes")
    (target / "launch.sh").write_text(edited)
    with pytest.raises(UsageError, match=r"launch\.sh: changed"):
        check_generated(spec, target)
    with pytest.raises(UsageError, match=r"has other versions of launch\.sh; use --force"):
        generate(spec, target)
    assert (target / "launch.sh").read_text() == edited
    generate(spec, target, force=True)
    check_generated(spec, target)


def test_one_process_needs_neither(tmp_path: Path) -> None:
    assert [path.name for path in generate(spec_of(), tmp_path / "near")] == ["train.py", "kd"]
