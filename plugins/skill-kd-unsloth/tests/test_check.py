"""The contract of a backend, and what this one refuses. Unsloth need not be installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from skill_kd_unsloth import UnslothBackend
from specs import values

from skill_kd import plugins
from skill_kd.specfile import parse_spec
from skill_kd.testing import check_backend


def problems(models: Path, **sections: Any) -> list[str]:
    return UnslothBackend().check(parse_spec(values(models, **sections)))


def test_the_contract() -> None:
    check_backend(UnslothBackend)


def test_it_is_found_once_installed() -> None:
    if "unsloth" not in plugins.backends():
        pytest.skip("this plugin is not installed")
    assert plugins.get_backend("unsloth").name == "unsloth"
    assert not plugins.broken()


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
        ({"student": {"trust_remote_code": True, "revision": "0" * 40}}, "student.trust_remote_code"),
        ({"student": {"model": "./nothing"}}, "is no folder here"),
        ({"data": {"max_prompt_tokens": 2000}}, "reads 1024 tokens"),
    ],
)
def test_what_it_cannot_do_is_refused_with_a_way_out(sections: dict[str, Any], words: str, models: Path) -> None:
    found = problems(models, **sections)
    assert any(words in line for line in found), found
    assert all(";" in line for line in found)
