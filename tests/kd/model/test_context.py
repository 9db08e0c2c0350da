"""context: one rule says how many tokens a model reads; validation, plan and trainer ask it."""

import pytest

from skill_kd.kd.model.context import context_length


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 256}}, 256),
        ({"text_config": {"max_position_embeddings": 256}, "max_position_embeddings": 512}, 256),
        ({"text_config": {}, "max_position_embeddings": 512}, 512),
        ({"text_config": 1, "n_positions": "many"}, None),
        ({}, None),
    ],
    ids=repr,
)
def test_the_text_part_of_a_config_says_how_many_tokens_it_reads(
    config: dict[str, object], expected: int | None
) -> None:
    assert context_length(config) == expected
