"""The contract of a backend, and what this one refuses. Unsloth need not be installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from skill_kd_unsloth import SETUP, UnslothBackend
from specs import REPOSITORY, values

from skill_kd import plugins
from skill_kd.errors import MissingRequirementError
from skill_kd.jobs.folder import write_folder
from skill_kd.jobs.run import run
from skill_kd.spec.file import load_spec, parse_spec
from skill_kd.testing import check_backend


def problems(models: Path, **sections: Any) -> list[str]:
    return UnslothBackend().check(parse_spec(values(models, **sections)))


def test_the_contract() -> None:
    check_backend(UnslothBackend)


def test_it_is_found_once_installed() -> None:
    plugins.forget()
    assert isinstance(plugins.get_backend("unsloth"), UnslothBackend)
    assert not plugins.broken()


def test_it_takes_the_example_that_all_backends_take() -> None:
    spec = load_spec(REPOSITORY / "examples/any-backend.yaml")
    assert UnslothBackend().check(spec) == []
    check_backend(UnslothBackend, spec)


def test_what_installs_unsloth_is_the_recipe_of_the_readme(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "missing", lambda _: ["unsloth>=2026.10.9", "tqdm>=4.66"])
    with pytest.raises(MissingRequirementError) as caught:
        run(parse_spec(values(models)), models)
    readme = (REPOSITORY / "plugins/skill-kd-unsloth/README.md").read_text(encoding="utf-8")
    assert str(caught.value).endswith("install: " + " && ".join(SETUP))
    assert "```sh\n" + "\n".join(SETUP) + "\n```" in readme
    assert UnslothBackend().install(["tqdm>=4.66"]) == "pip install 'tqdm>=4.66'"


def test_a_gpu_without_bitsandbytes_is_one_error_line(models: Path, tmp_path: Path) -> None:
    """The import of Unsloth itself would end in a traceback, 16 bits or not."""
    write_folder(UnslothBackend().render(parse_spec(values(models))), tmp_path / "run")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util, torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'bitsandbytes' else find(name, *rest)\n"
    )
    command = UnslothBackend().command(tmp_path / "run/train.py", parse_spec(values(models)))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].endswith("needs bitsandbytes, in 16 bits too; run pip install bitsandbytes")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "student",
    [
        {},
        {"lora": {"r": 4}},
        {"lora": {"r": 4}, "quantization": "4bit"},
        {"dtype": "bfloat16"},
    ],
)
def test_it_takes_full_16_bit_and_4_bit_students(student: dict[str, Any], models: Path) -> None:
    assert problems(models, student=student) == []


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"launch": {"processes": 2, "strategy": "ddp"}}, "launch: 2 processes"),
        ({"student": {"lora": {"r": 4}, "quantization": "8bit"}}, "student.quantization: 8bit"),
        ({"student": {"dtype": "float16"}}, "student.dtype: float16"),
        ({"student": {"model": "org/own", "trust_remote_code": True, "revision": "0" * 40}}, "trust_remote_code"),
        ({"student": {"model": "./nothing"}}, "there is no folder"),
        ({"data": {"max_prompt_tokens": 2000}}, "has a context of 1024 tokens"),
    ],
)
def test_what_it_cannot_do_is_refused_with_a_way_out(sections: dict[str, Any], words: str, models: Path) -> None:
    found = problems(models, **sections)
    assert any(words in line for line in found), found
    assert all(";" in line for line in found)
