"""families: a model that padding or a missing cache would make wrong is refused, with its reason."""

from __future__ import annotations

import pytest

from skill_kd.kd.errors import BadInput
from skill_kd.kd.model.families import REFUSED, check_family, refusal


@pytest.mark.parametrize(
    "config", [{"model_type": "rwkv"}, {"model_type": "any", "text_config": {"model_type": "rwkv"}}]
)
def test_a_refused_family_is_named_with_its_reason(config: dict[str, object]) -> None:
    assert str(refusal(config)).startswith("models of type 'rwkv' cannot be trained here, because it has no")


@pytest.mark.parametrize("config", [{}, {"model_type": "llama"}, {"model_type": 3, "text_config": None}])
def test_other_models_are_not_refused(config: dict[str, object]) -> None:
    assert refusal(config) is None


def test_a_model_of_a_refused_family_is_named() -> None:
    check_family({"model_type": "llama"}, "the student")
    with pytest.raises(BadInput, match=r"^the student: models of type 'rwkv'.*no attention mask.*; take another model"):
        check_family({"model_type": "rwkv"}, "the student")


def test_each_refused_family_is_one_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    assert REFUSED.keys() <= NAMES.keys()
