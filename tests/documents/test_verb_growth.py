"""benchmarks/verb_growth.py, tried for a second at the sizes of a test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from script_modules import load_script

from skill_kd.cli import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "benchmarks")
        return load_script("benchmarks/verb_growth.py")


def test_a_verb_is_measured_at_three_sizes(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "result.json"
    options = ["--tiny", "--only", "diagnose: files", "--work", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["verb_growth.py", *options])
    assert benchmark.main() == 0
    found = json.loads(out.read_text())
    assert [(case["verb"], case["axis"], case["power"]) for case in found["cases"]] == [("diagnose", "files", None)]
    points = found["cases"][0]["points"]
    assert [point["size"] for point in points] == [1, 2, 4]
    assert all(0 < point["cpu_seconds"] < 30 for point in points)


@pytest.mark.parametrize(("exponent", "power", "code"), [(1.0, 1.0, 0), (2.0, 1.46, 1)])
def test_work_that_grows_faster_than_linearly_is_found(
    exponent: float, power: float, code: int, benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(arguments: list[str], _codes: tuple[int, ...]) -> dict[str, float]:
        return {"seconds": 1.0, "cpu_seconds": 5 + (len(arguments) - 1) ** exponent}

    monkeypatch.setattr(benchmark, "measure", measure)
    out = tmp_path / "result.json"
    options = ["--tiny", "--only", "diagnose: files", "--work", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["verb_growth.py", *options])
    assert benchmark.main() == code
    assert json.loads(out.read_text())["cases"][0]["power"] == power


def test_a_growing_part_like_noise_has_no_power(benchmark: ModuleType) -> None:
    assert benchmark.power([1, 10, 100], [5.0, 5.1, 5.3]) is None
    assert benchmark.power([1, 10, 100], [5.0, 6.8, 24.8]) == 1.0


def test_a_tokenizer_has_the_tokens_that_were_asked_for(benchmark: ModuleType) -> None:
    tokenizer = benchmark.tokenizer(1024)
    assert len(tokenizer) == 1024
    text = "where is my order"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_verb_is_measured_or_said_to_have_nothing_that_grows(benchmark: ModuleType) -> None:
    assert isinstance(cli, click.Group)
    measured = {case.verb.partition(",")[0] for case in benchmark.CASES}
    text = (ROOT / "benchmarks" / "verb_growth.py").read_text(encoding="utf-8")
    exempt = text.partition("read nothing that grows")[0].rpartition('"""')[2]
    assert {name for name in cli.commands if f"``{name}``" not in exempt} - measured == {"demo"}


def test_the_committed_result_has_every_case_and_none_beyond_the_limit(benchmark: ModuleType) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "verb_growth.json").read_text())
    assert [(case["verb"], case["axis"]) for case in found["cases"]] == [
        (case.verb, case.axis.name) for case in benchmark.CASES
    ]
    judged = [case["power"] for case in found["cases"] if case["power"] is not None and case["known"] is None]
    assert len(judged) >= 4
    assert max(judged) <= found["limit"]
