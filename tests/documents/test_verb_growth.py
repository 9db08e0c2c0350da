"""benchmarks/verb_growth.py, tried for a second at the sizes of a test."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch
from script_modules import load_script
from tiny import build_model, make_tokenizer
from transformers.masking_utils import AttentionMaskInterface

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
    options = ["--tiny", "--only", "diagnose: files", "--repeats", "1", "--work", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["verb_growth.py", *options])
    assert benchmark.main() == 0
    found = json.loads(out.read_text())
    assert [(case["verb"], case["axis"], case["power"]) for case in found["cases"]] == [("diagnose", "files", None)]
    assert found["cases"][0]["verdict"] == "constant"
    points = found["cases"][0]["points"]
    assert [point["size"] for point in points] == [1, 2, 4]
    assert all(0 < point["cpu_seconds"] < 30 for point in points)


@pytest.mark.parametrize(("exponent", "power", "code"), [(1.0, 1.0, 0), (2.0, 1.46, 1)])
def test_work_that_grows_faster_than_linearly_is_found(
    exponent: float, power: float, code: int, benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = itertools.cycle((2.0, 0.0))  # other programs on the machine

    def measure(arguments: list[str], _codes: tuple[int, ...], *, attention: bool) -> float:
        assert attention
        return float(4 + (len(arguments) - 1) ** exponent) + next(delays)

    monkeypatch.setattr(benchmark, "measure", measure)
    out = tmp_path / "result.json"
    options = ["--tiny", "--only", "diagnose: files", "--work", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["verb_growth.py", *options])
    assert benchmark.main() == code
    assert json.loads(out.read_text())["cases"][0]["power"] == power


def test_a_growing_part_like_noise_has_no_power(benchmark: ModuleType) -> None:
    assert benchmark.power([1, 10, 100], [5.0, 5.1, 5.3]) is None
    assert benchmark.power([1, 10, 100], [5.0, 6.8, 24.8]) == 1.0


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [
        ([5.0, 4.8, 5.9], "constant"),
        ([20.0, 19.0, 23.9], "constant"),
        ([5.0, 5.5, 8.0], "too short"),
        ([5.0, 6.8, 24.8], "linear"),
        ([5.0, 6.8, 60.0], "faster than linear"),
    ],
)
def test_each_verb_gets_a_verdict(seconds: list[float], verdict: str, benchmark: ModuleType) -> None:
    power = benchmark.power([1, 10, 100], seconds)
    assert benchmark.judged(seconds, power, benchmark.LIMIT) == verdict


def test_without_attention_every_token_reads_only_itself(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)  # to get it back
    monkeypatch.setattr(AttentionMaskInterface, "_global_mapping", {**AttentionMaskInterface._global_mapping})
    exec(benchmark.WITHOUT_ATTENTION, {})
    model = build_model("llama", layers=2, vocabulary=300, tokenizer=make_tokenizer())
    ids = torch.tensor([[5, 6, 7], [9, 8, 7]])
    read = model(ids[:, :2], use_cache=True)
    logits = torch.cat([read.logits, model(ids[:, 2:], past_key_values=read.past_key_values).logits], dim=1)
    torch.testing.assert_close(logits, model(ids).logits)
    torch.testing.assert_close(logits[0, 2], logits[1, 2])
    assert not torch.allclose(logits[0, 1], logits[1, 1])


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
        (case.name, case.axis) for case in benchmark.CASES
    ]
    assert found["limit"] == benchmark.LIMIT
    faster = [case["known"] for case in found["cases"] if case["verdict"] not in {"constant", "linear"}]
    assert all(faster)
    assert sum(case["verdict"] == "linear" for case in found["cases"]) >= 4
