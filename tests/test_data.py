"""Data is read, counted and refused in plain words; only assistant turns are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import BOS, EOS, make_tokenizer

from skill_kd.runtime.config import Config
from skill_kd.runtime.data import Encoder, Example, fit_prompts, load_split, parse_example, read_corpus, read_examples
from skill_kd.runtime.failures import BadInput


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_byte_order_mark_crlf_blank_lines_and_line_separators_inside_strings_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"prompt": "one\u2028two"}\r\n\r\n{"prompt": "three", "id": 7}\n'.encode())
    assert [example.messages[0][1] for example in read_examples(str(path), "train", 0)] == ["one\u2028two", "three"]


def test_bad_rows_are_counted_named_and_refused_above_the_limit(tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", [{"prompt": "good"}, {"prompt": ""}, {"promt": "typo"}, {"prompt": "fine"}])
    with pytest.raises(BadInput, match=r"2 of 4 rows .*line 2: 'prompt' is missing.*max_bad_rows"):
        read_examples(source, "train", 0.4)
    assert len(read_examples(source, "train", 0.5)) == 2


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x00\x01\n", b"[1, 2]\n"])
def test_a_file_without_a_usable_row_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput):
        read_examples(str(path), "train", 1.0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.jsonl"):
        read_examples(str(tmp_path / "nowhere.jsonl"), "train", 0)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"prompt": "x", "response": ""},
        "text",
    ],
)
def test_a_malformed_row_says_what_is_wrong(row: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_example(row)


def split_config(train: str, held_out: float | str, max_overlap: float = 0.0) -> Config:
    return Config(train=train, split="train", held_out=held_out, max_overlap=max_overlap, max_bad_rows=0.0)


def test_a_prompt_given_twice_never_stands_on_both_sides(tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", [{"prompt": f"question {number % 10}"} for number in range(30)])
    for seed in range(5):
        split = load_split(split_config(source, 0.3), seed)
        assert not {example.key for example in split.train} & {example.key for example in split.held_out}
        assert len(split.held_out) == 3
    assert load_split(split_config(source, 0.3), 1) == load_split(split_config(source, 0.3), 1)


def test_overlap_with_a_held_out_file_is_measured_and_refused_above_the_limit(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    held_out = write(tmp_path / "held.jsonl", [{"prompt": " a "}, {"prompt": "c"}])
    with pytest.raises(BadInput, match="1 of 2 held-out prompts"):
        load_split(split_config(train, held_out), 0)
    assert len(load_split(split_config(train, held_out, 0.5), 0).held_out) == 2


def test_only_assistant_turns_are_scored_through_their_eos_though_pad_is_eos() -> None:
    tokenizer = make_tokenizer(pad=EOS)
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}))
    turns = (("user", "hello"), ("assistant", "world"), ("user", "again"))
    encoded = encoder.conversation(Example(turns, "fox"))
    scored = [token for token, flag in zip(encoded.response, encoded.scored, strict=True) if flag]
    assert tokenizer.decode(scored) == f"world{EOS}fox{EOS}"
    assert encoded.prompt == encoder.prompt(Example(turns[:1], None)).prompt
    assert encoded.response[-1] == tokenizer.eos_token_id


def test_a_template_that_rewrites_earlier_turns_scores_the_last_answer_only() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}" + BOS + "{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and loop.last %}thought {% endif %}{{ m['content'] }}" + EOS + "\n{% endfor %}"
        "{% if add_generation_prompt %}" + BOS + "assistant\n{% endif %}"
    )
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}))
    encoded = encoder.conversation(Example((("user", "a"), ("assistant", "world"), ("user", "b")), "fox"))
    scored = [token for token, flag in zip(encoded.response, encoded.scored, strict=True) if flag]
    assert tokenizer.decode(scored) == f"thought fox{EOS}"


def test_long_prompts_are_refused_or_dropped_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer(chat=False)
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}))
    encoded = [encoder.prompt(Example((("user", text),), None)) for text in ("ab", "the quick brown fox " * 20)]
    with pytest.raises(BadInput, match=r"1 of 2 prompts are longer than 10 tokens"):
        fit_prompts(encoded, 10, "refuse", "prompts")
    assert fit_prompts(encoded, 10, "drop", "prompts") == [0]
    assert "1 of 2" in capsys.readouterr().err


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'text'"):
        read_corpus(write(tmp_path / "corpus.jsonl", [{"prompt": "x"}]))
