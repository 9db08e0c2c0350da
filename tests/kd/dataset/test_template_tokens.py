"""template_tokens: where a turn ends, and which tokens a prompt contains, in the styles of several families."""

from __future__ import annotations

import pytest
from chat_templates import FAMILIES, tokenizer_of

from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.dataset.reading import Example
from skill_kd.kd.dataset.template_tokens import end_of_turn, written_by_template


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_turn_is_the_token_that_the_template_writes_after_an_answer(family: str) -> None:
    tokenizer, expected = tokenizer_of(family), FAMILIES[family][3]
    found = end_of_turn(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_given_as_text_ends_as_the_template_ends_it(family: str) -> None:
    tokenizer = tokenizer_of(family)
    _, _, eos, turn_end = FAMILIES[family]
    ends = frozenset(tokenizer.convert_tokens_to_ids([eos, turn_end or eos]))
    encoder = Encoder(tokenizer, ends)
    example = Example((("user", "hello"),), "a dog")
    for row in (encoder.answer(example, "a dog"), encoder.conversation(example)):
        assert tokenizer.convert_ids_to_tokens(row.response[-1]) == (turn_end or eos)
        assert sum(token in ends for token in row.response) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_written_tokens_are_those_of_prompts_and_of_every_branch(family: str) -> None:
    tokenizer = tokenizer_of(family)
    written = set(tokenizer.convert_ids_to_tokens(sorted(written_by_template(tokenizer))))
    absent = {"<unk>", *{"qwen": ("<|endoftext|>", "<|fim_pad|>"), "llama 3": ("<|end_of_text|>",)}.get(family, ())}
    absent |= {"gemma": {"<eos>"}, "gpt-2": {"<|endoftext|>", "\n\n"}, "plain text": {"<s>", "</s>"}}.get(family, set())
    blank = {"\n\n"}
    assert written - blank == {"<unk>", *FAMILIES[family][1]} - absent - blank


def test_a_tool_branch_names_its_tokens() -> None:
    tokenizer = tokenizer_of("qwen")
    tokenizer.add_tokens(["<tools>", "<other>"])
    written = tokenizer.convert_ids_to_tokens(sorted(written_by_template(tokenizer)))
    assert "<tools>" in written
    assert "<other>" not in written


def test_an_end_that_does_not_end_responses_is_not_written() -> None:
    tokenizer = tokenizer_of("qwen")
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}))
    assert encoder.end == tokenizer.eos_token_id
