"""rendering: one text of a conversation for every model, with the options. A refused conversation is bad data."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_templates import REASONING, STRICT, THINKING
from tiny import EOS, UNK, make_tokenizer, tiny_config
from transformers import PreTrainedTokenizerFast

from skill_kd.kd.answers import BLOCKS
from skill_kd.kd.config import Config, Data, Distill, Rollout, Stage, WarmStart
from skill_kd.kd.dataset.comparison import difference
from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.dataset.reading import Example
from skill_kd.kd.dataset.rendering import TemplateRefusal, render
from skill_kd.kd.dataset.training_data import load_training_data
from skill_kd.kd.errors import BadInput

ON_POLICY: tuple[Stage, ...] = (Distill(),)
FROM_DATA: tuple[Stage, ...] = (WarmStart(), Distill())
SYSTEM = (("system", "world"), ("user", "hello"))


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def encoder(template: str, **options: Any) -> Encoder:
    tokenizer = tokenizer_with(template)
    return Encoder(tokenizer, frozenset({int(tokenizer.eos_token_id)}), options)


def text(encoder: Encoder, ids: tuple[int, ...]) -> str:
    return str(encoder.tokenizer.decode(list(ids)))


def rows_config(folder: Path, rows: list[dict[str, Any]], stages: tuple[Stage, ...], max_bad_rows: float = 0) -> Config:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held_out = folder / "held_out.jsonl"
    held_out.write_text('{"prompt": "lazy dog"}\n', encoding="utf-8")
    data = Data(train=str(path), held_out=str(held_out), max_bad_rows=max_bad_rows)
    return tiny_config(data=data, rollout=Rollout(max_new_tokens=64), stages=stages)


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_reach_prompts_and_answers() -> None:
    quiet = encoder(THINKING, enable_thinking=False)
    row = quiet.conversation(Example((("user", "hello"),), "fox"))
    assert text(quiet, row.prompt).endswith("assistant\n<think>\n\n</think>\n\n")
    assert text(quiet, row.response) == f"fox{EOS}"
    assert row.prompt == quiet.prompt(Example((("user", "hello"),), None)).prompt
    thinks = encoder(THINKING)
    row = thinks.conversation(Example((("user", "hello"),), "fox"))
    assert text(thinks, row.prompt).endswith("assistant\n")
    assert text(thinks, row.response) == f"<think>\n\n</think>\n\nfox{EOS}"


def test_equal_templates_with_equal_options_render_alike_and_with_others_do_not() -> None:
    assert difference(encoder(THINKING, enable_thinking=False), encoder(THINKING, enable_thinking=False)) is None
    found = difference(encoder(THINKING, enable_thinking=False), encoder(THINKING))
    assert found is not None
    assert "</think>" in found.ours
    assert "</think>" not in found.theirs


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            ("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"),
            "a prompt after a system turn",
        ),
        (("{% for m in messages %}", "{% for m in messages[-1:] %}"), "a prompt after a system turn"),
        (("{{ m['content'] }}", "{% if not loop.first or loop.last %}{{ m['content'] }}{% endif %}"), "system turn"),
        (("{{ m['content'] }}", "{% if m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}"), "a second prompt"),
    ],
)
def test_templates_that_differ_only_in_system_turns_or_later_turns_differ(change: tuple[str, str], what: str) -> None:
    found = difference(encoder(THINKING), encoder(THINKING.replace(*change)))
    assert found is not None
    assert what in found.what


def test_a_conversation_that_both_templates_refuse_does_not_differ() -> None:
    assert difference(encoder(STRICT), encoder(STRICT)) is None
    found = difference(encoder(STRICT), encoder(STRICT.replace("System role", "x").replace("'system'", "'nobody'")))
    assert found is None, "the order of roles refuses the system turn too"
    accepts = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
    found = difference(encoder(STRICT), encoder(accepts))
    assert found is not None
    assert found.ours.startswith("nothing")


# --- no template ------------------------------------------------------------------------------------------------------


def test_without_a_template_turns_that_no_answer_separates_are_separated() -> None:
    tokenizer = make_tokenizer(chat=False, special=(UNK,), pad=None)
    turns = (*SYSTEM, ("assistant", "fox"), ("user", "dog"))
    assert render(tokenizer, turns, {}, for_answer=True) == f"world\n\nhellofox{UNK}dog"
    assert render(tokenizer, turns[1:2], {}, for_answer=True) == "hello"


# --- rows that the template refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        (SYSTEM, "System role not supported"),
        ((("user", "hello"), ("user", "fox")), "Conversation roles must alternate"),
        ((("assistant", "hello"), ("user", "fox")), "Conversation roles must alternate"),
    ],
)
def test_a_refusal_quotes_the_template(turns: tuple[tuple[str, str], ...], words: str) -> None:
    with pytest.raises(TemplateRefusal, match=words) as raised:
        encoder(STRICT).prompt(Example(turns, None))
    assert raised.value.exit_code == 2


def test_an_error_of_python_in_a_template_is_a_refusal() -> None:
    with pytest.raises(TemplateRefusal, match="conversation"):
        encoder("{{ messages[0]['content'] + 1 }}").prompt(Example((("user", "hello"),), None))


def test_refused_rows_are_bad_rows_with_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"hello {number}"} for number in range(8)]
    rows[2] = {"messages": [{"role": role, "content": content} for role, content in SYSTEM]}  # type: ignore[dict-item]
    rows[5] = {"prompt": ""}
    refused = (
        r"2 of 8 rows of '.*data\.jsonl' cannot be used \(line 6: 'prompt' .*; line 3: .*System role not supported"
    )
    with pytest.raises(BadInput, match=refused):
        load_training_data(rows_config(tmp_path, rows, ON_POLICY, 0.2), encoder(STRICT))
    data = load_training_data(rows_config(tmp_path, rows, ON_POLICY, 0.25), encoder(STRICT))
    assert len(data.prompts) == 6
    assert "2 of 8 rows" in capsys.readouterr().err


def test_a_held_out_row_that_the_template_refuses_names_its_own_file(tmp_path: Path) -> None:
    config = rows_config(tmp_path, [{"prompt": "hello"}], ON_POLICY)
    messages = [{"role": role, "content": content} for role, content in SYSTEM]
    Path(str(config.data.held_out)).write_text(json.dumps({"messages": messages}), encoding="utf-8")
    with pytest.raises(BadInput, match=r"1 of 1 rows of '.*held_out\.jsonl' .*line 1: .*System role"):
        load_training_data(config, encoder(STRICT))


# --- reasoning --------------------------------------------------------------------------------------------------------

QUESTION = (("user", "hello"),)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("<think>\nfox\n</think>\n\nlazy dog", "fox\n</think>\n\nlazy dog"),
        ("<think>fox</think>lazy dog", "fox</think>lazy dog"),
        ("fox</think>lazy dog", "fox</think>lazy dog"),
    ],
)
def test_reasoning_stays_in_the_target_behind_a_prompt_that_opens_it(answer: str, target: str) -> None:
    tokens = encoder(REASONING)
    row = tokens.conversation(Example(QUESTION, answer))
    assert text(tokens, row.prompt) == "<|im_start|>hello<|Answer|><think>\n"
    assert text(tokens, row.response) == f"{target}{EOS}"
    assert all(row.scored)
    assert row.prompt == tokens.prompt(Example(QUESTION, None)).prompt


def test_reasoning_that_the_template_drops_from_the_last_answer_stays_in_the_target() -> None:
    tokens = encoder(REASONING.replace("<think>\n{% endif %}", "{% endif %}"))
    row = tokens.conversation(Example(QUESTION, "<think>fox</think>dog"))
    assert text(tokens, row.response) == f"<think>fox</think>dog{EOS}"


def test_a_closed_empty_block_of_reasoning_needs_none_in_the_answer() -> None:
    template = REASONING.replace("<think>\n{% endif %}", "<think></think>{% endif %}")
    row = encoder(template).conversation(Example(QUESTION, "dog"))
    assert text(encoder(template), row.response) == f"dog{EOS}"


def test_of_several_answers_without_their_reasoning_only_the_last_is_scored() -> None:
    tokens = encoder(REASONING)
    turns = (*QUESTION, ("assistant", "<think>fox</think>dog"), ("user", "the"))
    row = tokens.conversation(Example(turns, "<think>quick</think>brown"))
    assert "fox" not in text(tokens, row.prompt)
    assert text(tokens, row.response) == f"quick</think>brown{EOS}"


def test_an_answer_without_reasoning_is_refused_only_where_answers_are_needed(tmp_path: Path) -> None:
    rows = [{"prompt": f"hello {number}", "response": "lazy dog"} for number in range(4)]
    data = load_training_data(rows_config(tmp_path, rows, ON_POLICY), encoder(REASONING))
    assert data.answered == [None] * 4
    needed = r"4 of 4 rows .*line 1, line 2, line 3 and 1 more: .*'<think>'.* has no '</think>'; begin it with"
    with pytest.raises(BadInput, match=needed):
        load_training_data(rows_config(tmp_path, rows, FROM_DATA), encoder(REASONING))


def test_the_answers_of_a_prompt_that_is_too_long_are_not_read(tmp_path: Path) -> None:
    """A template writes a conversation again for each answer, so thousands of turns would take minutes for nothing."""
    rows = [{"prompt": "hello " * 40, "response": "no reasoning"}, {"prompt": "hello", "response": "fox</think>dog"}]
    config = rows_config(tmp_path, rows, FROM_DATA)
    short = dataclasses.replace(config.data, max_prompt_tokens=40, long_prompts="drop")
    data = load_training_data(dataclasses.replace(config, data=short), encoder(REASONING))
    assert [example.response for example in data.examples] == ["fox</think>dog"]


def test_a_greeting_before_the_first_question_is_read_and_not_scored() -> None:
    tokens = encoder(THINKING)
    row = tokens.conversation(Example((("assistant", "hello"), ("user", "fox")), "dog"))
    assert "hello" in text(tokens, row.prompt)
    assert text(tokens, row.response).endswith(f"dog{EOS}")


@pytest.mark.parametrize("begins", ["<think>\n", "<think>", ""])
def test_the_text_of_another_model_begins_reasoning_once(begins: str) -> None:
    tokens = encoder(REASONING)
    row = tokens.answer(Example(QUESTION, None), f"{begins}fox</think>dog")
    assert text(tokens, row.response) == f"fox</think>dog{EOS}"


@pytest.mark.parametrize("answer", ["dog", "Write <think>fox</think> dog"])
def test_the_text_of_another_model_without_reasoning_closes_what_the_prompt_opens(answer: str) -> None:
    tokens = encoder(REASONING)
    row = tokens.answer(Example(QUESTION, None), answer)
    assert text(tokens, row.prompt).endswith("<think>\n")
    assert text(tokens, row.response) == f"\n</think>\n\n{answer}{EOS}"


@pytest.mark.parametrize(("begin", "end"), BLOCKS)
def test_each_mark_of_reasoning_that_a_template_opens_must_be_closed(begin: str, end: str) -> None:
    tokens = encoder(REASONING.replace("<think>", begin).replace("</think>", end))
    row = tokens.conversation(Example(QUESTION, f"{begin}fox{end}dog"))
    assert text(tokens, row.response) == f"fox{end}dog{EOS}"
    with pytest.raises(BadInput, match=re.escape(f"has no {end!r}")):
        tokens.conversation(Example(QUESTION, f"{begin}fox"))
