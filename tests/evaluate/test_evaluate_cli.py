"""The verb `evaluate`: its output and its exit codes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("scipy")

from skill_kd import cli
from skill_kd.evaluate.generations import write_rows

pytestmark = pytest.mark.skipif("evaluate" not in cli.cli.commands, reason="the verb is not there yet")


def words(prompt: int, row: int, modes: int) -> str:
    """Return an answer in one of ``modes`` modes, each with different words."""
    draw = random.Random(f"{prompt}.{row}")
    mode = draw.randrange(modes)
    own = [f"p{prompt}m{mode}w{w}" for w in range(25)]
    return " ".join(draw.choice(own) for _ in range(60))


def saved(folder: Path, name: str, rows: range, modes: int, prompts: int) -> str:
    path = folder / f"{name}.jsonl"
    write_rows(path, ({"prompt": f"q{n}", "response": words(n, k, modes)} for n in range(prompts) for k in rows))
    return str(path)


def evaluate(folder: Path, *more: str, modes: int = 6, prompts: int = 60) -> int:
    files = saved(folder, "t", range(16), 6, prompts), saved(folder, "s", range(16, 24), modes, prompts)
    both = ["--teacher-generations", files[0], "--student-generations", files[1]]
    return cli.main(["evaluate", *both, "--set", "resamples=300", "--out", str(folder / "out"), *more])


def test_student_like_its_teacher_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("GO: all ")
    assert str(tmp_path / "out") in printed.err


def test_student_of_one_mode_exits_with_3_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, "--json", modes=1) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["verdict"], document["exit_code"]) == ("NO-GO", 3)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == document


def test_few_prompts_exit_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, prompts=10) == 4
    assert capsys.readouterr().out.startswith("INCONCLUSIVE: too few prompts")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a run, a student"),
        (["--teacher-generations", "none.jsonl", "--student-generations", "none.jsonl"], "cannot read 'none.jsonl'"),
        (["x", "--policy", "lenient"], "or a student with --teacher"),
        (["x", "--set", "recall"], "write KEY=VALUE"),
    ],
)
def test_usage_error_exits_with_2_and_one_message(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""
