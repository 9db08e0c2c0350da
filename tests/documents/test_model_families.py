"""benchmarks/model_families.py says of 12 families what references/models.md says: a lane of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from script_modules import ROOT, load_script

from skill_kd.errors import UsageError
from skill_kd.plan.model_source import parse_config

FAMILIES = (
    "llama",  # dense
    "gpt2",  # learned positions
    "deepseek_v3",  # latent attention, experts
    "qwen3_moe",  # experts
    "gpt_oss",  # experts, a sliding window in every other layer, attention sinks
    "gemma3_text",  # sliding window
    "gemma3",  # the same in a config with a vision part
    "qwen3_5",  # recurrent layers in such a config
    "qwen3_next",  # recurrent layers and experts
    "granitemoehybrid",  # Mamba layers between attention
    "lfm2",  # convolutions between attention
    "mamba",  # recurrent only
)


@pytest.fixture(scope="module")
def walk(request: pytest.FixtureRequest) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return load_script("benchmarks/model_families.py")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_does_what_the_committed_result_says(walk: ModuleType, family: str) -> None:
    committed = json.loads(Path(walk.RESULTS).read_text(encoding="utf-8"))["families"][family]["stages"]
    found = walk.attempt(family)
    assert {stage for stage, told in found.items() if told != "ok"} == {
        stage for stage, told in committed.items() if told != "ok"
    }, found
    assert found["sample"] == found["update"] == "ok"


UNPLANNED = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), "have no attention heads"),
    "deepseek_v2": "'num_experts_per_tok'",  # only the default config lacks it
    "nemotron_h": "'num_hidden_layers'",  # its own list of layers
    "whisper": "'num_attention_heads'",  # two stacks of layers
}
"""Families that work and cannot be planned, with words of the message."""


def test_each_family_that_works_can_be_planned_unless_it_is_listed() -> None:
    transformers = pytest.importorskip("transformers")
    table = (ROOT / "references" / "models.md").read_text(encoding="utf-8")
    works = re.findall(r"^\| `([^`]+)` \| \w+ \| works", table, re.MULTILINE)
    found = {}
    for family in works:
        try:
            parse_config(transformers.AutoConfig.for_model(family).to_dict(), family)
        except UsageError as error:
            found[family] = str(error)
    assert found.keys() == UNPLANNED.keys()
    assert all(words in found[family] for family, words in UNPLANNED.items())


def test_two_computations_that_differ_are_found(walk: ModuleType) -> None:
    walk.equal("equal", [1.0, 2.0], [1.0, 2.00001])
    for found in ([1.0, 2.1], [1.0], [1.0, float("nan")]):
        with pytest.raises(walk.DiffersError, match=r"off by|numbers"):
            walk.equal("different", found, [1.0, 2.0])


def test_a_family_that_takes_too_long_or_dies_is_noted(walk: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "SECONDS", 0.05)
    assert "longer than" in str(walk.in_own_process("llama")["stages"].popitem())
