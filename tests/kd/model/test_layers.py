"""layers: validate, plan and run agree on which students can be built from a teacher's layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skill_kd.backends.transformers import TransformersBackend
from skill_kd.errors import UsageError
from skill_kd.kd.model.layers import growth_problem, shortened
from skill_kd.plan.setup import read_setup
from skill_kd.spec import Spec

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
}
GEMMA3N = {**SIZES, "model_type": "gemma3n_text", "intermediate_size": [32] * 4}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
CONFIGS: dict[str, tuple[dict[str, Any], object, str | None]] = {
    "plain": ({**SIZES, "model_type": "llama"}, 2, None),
    "multimodal": ({"model_type": "gemma3", "text_config": {**SIZES, "model_type": "gemma3_text"}}, [0, 3], None),
    "dense by number": ({**SIZES, **EXPERTS, "model_type": "qwen3_moe", "mlp_only_layers": [1]}, [0, 1, 3], None),
    "many layers": ({**SIZES, "model_type": "llama"}, 5, "layers: 5 is more than the teacher's 4 layers"),
    "high layer": (
        {"model_type": "gemma3", "text_config": {**SIZES, "model_type": "gemma3_text"}},
        [0, 4],
        "layers: [0, 4] is more than the teacher's 4 layers; the last layer is 3",
    ),
    "shared keys": (
        {"model_type": "gemma3n", "text_config": GEMMA3N},
        2,
        "gemma3n_text teacher, because its last layers",
    ),
    "shared keys, stated": ({**SIZES, "model_type": "other", "num_kv_shared_layers": 2}, 2, "(num_kv_shared_layers)"),
    "joint embedding": ({**SIZES, "model_type": "gemma4_text"}, 2, "(hidden_size_per_layer_input)"),
    "pattern": (
        {**SIZES, "model_type": "nemotron_h", "hybrid_override_pattern": "M-M*"},
        2,
        "(hybrid_override_pattern)",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_plan_and_validate_agree_on_a_student_grown_from_a_teacher(name: str, tmp_path: Path) -> None:
    config, layers, words = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = Spec.model_validate(
        {
            "name": "x",
            "teacher": {"model": str(tmp_path)},
            "student": {"from_teacher": layers},
            "data": {"train": "t.jsonl"},
            "stages": [{"kind": "distill", "objective": {"kind": "reverse_kl"}}],
        }
    )
    problems = TransformersBackend().check(spec)
    if words is None:
        assert not problems
        assert read_setup(spec).student.layers == (layers if isinstance(layers, int) else len(layers))
        return
    assert words in problems[0]
    assert problems[0].startswith("student.from_teacher")
    with pytest.raises(UsageError) as raised:
        read_setup(spec)
    assert str(raised.value) == problems[0]


def test_settings_of_each_layer_go_with_the_layers_that_are_kept() -> None:
    text = {
        "layer_types": ["a", "b", "c", "d"],
        "no_rope_layers": [1, 0, 1, 0],
        "eos_token_id": [1, 2, 3, 4],
        "moe_layers": [1, 3],
        "first_k_dense_replace": 2,
        "max_window_layers": 4,
    }
    assert shortened(text, (0, 1, 3), 4) == {
        "layer_types": ["a", "b", "d"],
        "no_rope_layers": [1, 0, 0],
        "moe_layers": [1, 2],
        "first_k_dense_replace": 2,
        "max_window_layers": 3,
    }


def test_a_setting_that_is_switched_off_binds_no_layers() -> None:
    assert growth_problem({"model_type": "gemma3n_text", "num_kv_shared_layers": 15}) is not None
    assert growth_problem({"model_type": "gemma4_text", "hidden_size_per_layer_input": 0}) is None
