"""data: rows are read, counted and refused by name; what is scored is what a student should learn to say."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_templates import FORGETFUL
from tiny import EOS, UNK, make_tokenizer, tiny_config
from transformers import PreTrainedTokenizerFast

from skill_kd.kd.config import Checkpoint, Config, Data, Distill, Rollout, WarmStart
from skill_kd.kd.dataset.encoding import Encoded, Encoder
from skill_kd.kd.dataset.lengths import fit_prompts
from skill_kd.kd.dataset.reading import Example, _jsonl_rows, parse_example, read_corpus, read_examples
from skill_kd.kd.dataset.split import load_split
from skill_kd.kd.dataset.training_data import load_training_data
from skill_kd.kd.errors import BadInput, Missing


def jsonl(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prompts(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {number}"} for number in range(count)]


def data_config(train: str, **changes: Any) -> Data:
    return Data(train=train, **{"held_out": 0.25, "max_prompt_tokens": 64, **changes})


# --- reading ----------------------------------------------------------------------------------------------------------


def test_byte_order_marks_windows_line_ends_blank_lines_and_line_separators_are_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n\r\n   \n{"prompt": "c\u0085d"}\r\n'.encode())
    assert [row.messages[0][1] for row in read_examples(str(path), "train", 0.0)] == ["a\u2028b", "c\u0085d"]


def test_keys_that_training_does_not_read_are_accepted(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "data.jsonl", [{"prompt": "p", "response": "r", "id": 7, "meta": {"a": [1]}}])
    assert read_examples(source, "train", 0.0) == [Example((("user", "p"),), "r")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "not a JSON object"),
        ({}, "'prompt' is missing"),
        ({"prompt": "  "}, "'prompt' is missing, empty"),
        ({"prompt": 3}, "'prompt'"),
        ({"prompt": "p", "response": ""}, "'response' is empty"),
        ({"prompt": "p", "response": ["r"]}, "'response' is empty or not text"),
        ({"messages": []}, "no user turn"),
        ({"messages": "hello"}, "is text, not a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "role"),
        ({"prompt": "p\ud800"}, r"a text has '\\ud800', half of a character"),
        ({"prompt": "p", "response": "\udfff"}, "half of a character"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a character"),
        ({"messages": [{"role": "user", "content": " "}]}, "user turn with empty content"),
        ({"messages": [{"role": "user"}]}, "text content"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no user turn"),
        (
            {
                "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                "response": "b",
            },
            "another answer",
        ),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_example(row)


def test_the_last_assistant_turn_of_messages_is_the_response() -> None:
    turns = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    example = parse_example({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert example == Example(tuple(turns[:-1]), "b")


def test_an_empty_column_of_messages_with_a_prompt_is_read() -> None:
    """Tables give every row every column."""
    assert parse_example({"prompt": "p", "messages": None, "response": None}) == Example((("user", "p"),), None)


def test_malformed_rows_are_counted_and_the_first_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{broken\n\xff\xfe\n{"prompt": "b"}\n')
    with pytest.raises(BadInput, match=r"2 of 4 rows .*line 2: not a JSON object; line 3: .*data\.max_bad_rows"):
        read_examples(str(path), "train", 0.25)


def test_a_tolerated_share_of_malformed_rows_is_left_out_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = jsonl(tmp_path / "data.jsonl", [*prompts(3), {"prompt": ""}])
    assert len(read_examples(source, "train", 0.25)) == 3
    captured = capsys.readouterr()
    assert "1 of 4 rows" in captured.err
    assert not captured.out


def test_nothing_usable_is_refused_however_much_is_tolerated(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="1 of 1 rows"):
        read_examples(jsonl(tmp_path / "data.jsonl", [{"text": "x"}]), "train", 1.0)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="is empty"):
        read_examples(str(path), "train", 0.0)


@pytest.mark.parametrize("name", ["absent.jsonl", "absent.parquet", "folder.jsonl"])
def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(BadInput, match=name):
        read_examples(str(tmp_path / name), "train", 0.0)


def test_an_empty_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises((BadInput, Missing)) as raised:
        read_examples(str(tmp_path), "train", 0.0)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_parquet_gives_the_rows_that_jsonl_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "response": None},
        {"messages": [{"role": "user", "content": "r"}], "response": "b"},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data.parquet")
    assert read_examples(str(tmp_path / "data.parquet"), "train", 0.0) == [parse_example(row) for row in rows]


@pytest.mark.parametrize(("source", "revision"), [("owner/name", None), ("owner/name@0123abcd", "0123abcd")])
def test_a_data_set_of_the_hub_is_read_at_its_revision(
    source: str, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def load_dataset(name: str, *, split: str, revision: str | None) -> list[dict[str, str]]:
        asked.append((name, split, revision))
        return prompts(2)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(read_examples(source, "test", 0.0)) == 2
    assert asked == [("owner/name", "test", revision)]


@pytest.mark.parametrize("source", ["pandas", "pandas@main"])
def test_a_reader_of_datasets_is_not_taken_for_a_data_set(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one named 'pandas' runs the pickles that it finds in the working folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(Bomb()))
    for read in (lambda: read_examples(source, "train", 0.0), lambda: read_corpus(source)):
        with pytest.raises(BadInput, match=f"there is no data file '{source}'; for a data set of the hub, write owner"):
            read()
    assert not (tmp_path / "exploded").exists()


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_corpus_is_its_text_fields(tmp_path: Path) -> None:
    assert read_corpus(jsonl(tmp_path / "corpus.jsonl", [{"text": "a"}, {"prompt": "b"}, {"text": "c"}])) == ["a", "c"]


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data\.pretraining .*'text'"):
        read_corpus(jsonl(tmp_path / "corpus.jsonl", prompts(2)))


# --- held-out prompts -------------------------------------------------------------------------------------------------


def test_a_prompt_given_several_times_stands_on_one_side_only(tmp_path: Path) -> None:
    rows = [{"prompt": text} for number in range(8) for text in (f"question {number}", f" question  {number}\n")]
    split = load_split(data_config(jsonl(tmp_path / "data.jsonl", rows)), seed=1)
    held_out = [example.key for example in split.held_out]
    assert len(held_out) == len(set(held_out)) == 2
    assert not set(held_out) & {example.key for example in split.train}
    assert len(split.train) == 12


def test_the_split_follows_from_the_seed(tmp_path: Path) -> None:
    data = data_config(jsonl(tmp_path / "data.jsonl", prompts(40)))
    assert load_split(data, seed=1) == load_split(data, seed=1)
    assert load_split(data, seed=1).held_out != load_split(data, seed=2).held_out


def test_at_least_one_prompt_is_held_out_and_one_is_left(tmp_path: Path) -> None:
    data = data_config(jsonl(tmp_path / "data.jsonl", prompts(2)), held_out=0.01)
    assert len(load_split(data, seed=1).held_out) == len(load_split(data, seed=1).train) == 1
    with pytest.raises(BadInput, match=r"data\.held_out.*none to train on"):
        load_split(data_config(jsonl(tmp_path / "one.jsonl", prompts(1))), seed=1)


def test_overlap_with_a_held_out_file_is_measured_and_refused_above_the_limit(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", prompts(4))
    held_out = jsonl(tmp_path / "held_out.jsonl", [{"prompt": " question 0"}, *prompts(8)[5:]])
    with pytest.raises(BadInput, match=r"1 of 4 held-out prompts .*data\.max_overlap"):
        load_split(data_config(train, held_out=held_out, max_overlap=0.2), seed=1)
    split = load_split(data_config(train, held_out=held_out, max_overlap=0.25), seed=1)
    assert (len(split.train), len(split.held_out)) == (4, 4)


# --- tokens -----------------------------------------------------------------------------------------------------------

TURNS = (("system", "world"), ("user", "hello"), ("assistant", "fox dog"), ("user", "brown"))


def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer, frozenset({int(tokenizer.eos_token_id)}))


def scored_text(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> str:
    kept = [token for token, flag in zip(row.response, row.scored, strict=True) if flag]
    return str(tokenizer.decode(kept))


def test_every_assistant_turn_is_scored_through_its_eos_and_nothing_else_is() -> None:
    tokenizer = make_tokenizer()
    row = encoder(tokenizer).conversation(Example(TURNS, "lazy"))
    assert scored_text(tokenizer, row) == f"fox dog{EOS}lazy{EOS}"
    assert tokenizer.decode([*row.prompt, *row.response]) == tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in (*TURNS, ("assistant", "lazy"))], tokenize=False
    ).removesuffix("\n")
    assert row.response[-1] == tokenizer.eos_token_id
    assert row.scored[-1]


def test_the_prompt_of_a_conversation_ends_where_sampling_would_begin() -> None:
    example = Example((("user", "hello"),), "lazy")
    tokens = encoder(make_tokenizer())
    assert tokens.conversation(example).prompt == tokens.prompt(example).prompt


def test_a_pad_token_that_is_eos_does_not_hide_the_eos() -> None:
    tokenizer = make_tokenizer(pad=EOS)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    row = encoder(tokenizer).conversation(Example((("user", "hello"),), "lazy"))
    assert row.response[-1] == tokenizer.eos_token_id
    assert all(row.scored)


def test_a_template_that_rewrites_earlier_answers_has_only_the_last_one_scored() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = FORGETFUL
    turns = (("user", "hello"), ("assistant", "<think>fox</think>dog"), ("user", "brown"))
    row = encoder(tokenizer).conversation(Example(turns, "<think>over</think>lazy"))
    assert scored_text(tokenizer, row) == f"<think>over</think>lazy{EOS}"
    assert "<think>fox" not in tokenizer.decode(row.prompt)


def test_a_template_that_keeps_no_prefix_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(BadInput, match="chat template"):
        encoder(tokenizer).conversation(Example((("user", "hello"),), "lazy"))


def test_a_template_whose_turns_end_without_an_eos_still_teaches_to_stop() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    row = encoder(tokenizer).conversation(Example(TURNS, "lazy"))
    assert scored_text(tokenizer, row).endswith(f"lazy\n{EOS}")
    assert row.response.count(tokenizer.eos_token_id) == 1


def test_without_a_chat_template_the_text_itself_is_the_prompt_and_eos_ends_each_answer() -> None:
    tokenizer = make_tokenizer(chat=False, special=(UNK,), pad=None)
    row = encoder(tokenizer).conversation(Example(TURNS, "lazy"))
    assert tokenizer.decode(row.prompt) == "world\n\nhello"
    assert scored_text(tokenizer, row) == f"fox dog{UNK}lazy{UNK}"


def test_without_a_chat_template_a_tokenizer_that_begins_texts_with_bos_begins_prompts_with_it() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(chat=False)
    plain = encoder(tokenizer).prompt(Example((("user", "hello"),), None)).prompt
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    row = encoder(tokenizer).conversation(Example((("user", "hello"),), "lazy"))
    assert row.prompt == (tokenizer.bos_token_id, *plain)
    assert tokenizer.bos_token_id not in row.response


def test_an_answer_written_as_text_is_closed_by_eos() -> None:
    tokenizer = make_tokenizer()
    example = Example((("user", "hello"),), None)
    row = encoder(tokenizer).answer(example, "lazy dog")
    assert row.prompt == encoder(tokenizer).prompt(example).prompt
    assert tokenizer.decode(row.response) == f"lazy dog{EOS}"
    assert all(row.scored)


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_long_prompts_are_refused_or_dropped_with_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Encoded((0,) * length) for length in (3, 9, 4, 5)]
    with pytest.raises(BadInput, match=r"2 of 4 prompts are longer than 4 tokens \(longest 9\).*max_prompt_tokens"):
        fit_prompts(rows, 4, "refuse", "prompts")
    assert fit_prompts(rows, 4, "drop", "prompts") == [0, 2]
    assert "2 of 4 prompts" in capsys.readouterr().err
    assert fit_prompts(rows, 9, "refuse", "prompts") == [0, 1, 2, 3]


def test_dropping_every_prompt_is_refused() -> None:
    with pytest.raises(BadInput, match="2 of 2"):
        fit_prompts([Encoded((0,) * 5)] * 2, 4, "drop", "prompts")


def training_config(train: str, **changes: Any) -> Config:
    return tiny_config(
        stages=(WarmStart(), Distill()),
        seed=1,
        data=data_config(train, **changes),
        rollout=Rollout(max_new_tokens=8),
        checkpoint=Checkpoint(measure_prompts=2),
    )


def test_training_data_keeps_examples_prompts_and_answers_side_by_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"hello {number}" + " fox" * 80 * (number == 3)} for number in range(12)]
    for row in rows[::2]:
        row["response"] = f"dog for {row['prompt']}"[:12]
    tokens = encoder(make_tokenizer())
    data = load_training_data(
        training_config(jsonl(tmp_path / "data.jsonl", rows), held_out=0.3, long_prompts="drop"), tokens
    )
    assert len(data.examples) == len(data.prompts) == len(data.answered)
    assert len(data.held_out_examples) == len(data.held_out_prompts) == 2
    for example, prompt, answered in zip(data.examples, data.prompts, data.answered, strict=True):
        assert prompt == tokens.prompt(example)
        assert len(prompt.prompt) <= 64
        assert (answered is None) == (example.response is None)


def test_a_written_response_longer_than_a_rollout_is_cut_and_does_not_teach_to_stop_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a row could reach beyond the positions that the model has."""
    rows = [{"prompt": f"hello {number}", "response": "fox " * 50} for number in range(4)]
    tokenizer = make_tokenizer()
    data = load_training_data(training_config(jsonl(tmp_path / "data.jsonl", rows)), encoder(tokenizer))
    limit = 64 + 8
    for row in data.answered:
        assert row is not None
        assert len(row.prompt) + len(row.response) == limit
        assert tokenizer.eos_token_id not in row.response
        assert len(row.scored) == len(row.response)
    assert "3 of 3 responses in the data" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
@pytest.mark.parametrize("read", [lambda path: read_examples(path, "train", 0), read_corpus])
@pytest.mark.usefixtures("at_once")
def test_a_pipe_is_not_waited_for(read: Callable[[str], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(BadInput, match=r"pipe\.jsonl': is a pipe, a socket or a device"):
        read(str(tmp_path / "pipe.jsonl"))


@pytest.mark.parametrize("name", ["train", "held_out", "pretraining"])
@pytest.mark.parametrize("edit", [lambda path: path.write_text('{"prompt": "new"}\n'), Path.unlink])
def test_a_file_that_changes_while_it_is_read_is_refused(
    name: str, edit: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hash would be that of rows which nobody was trained on."""
    rows = {"train": prompts(3), "held_out": [{"prompt": "another"}], "pretraining": [{"text": "hello"}]}
    files = {each: jsonl(tmp_path / f"{each}.jsonl", rows[each]) for each in rows}
    monkeypatch.setattr("skill_kd.kd.dataset.reading._jsonl_rows", edited_behind(Path(files[name]), edit))
    with pytest.raises(BadInput, match=rf"data\.{name}: '.*{name}\.jsonl' changed while it was read"):
        load_training_data(training_config(files.pop("train"), **files), encoder(make_tokenizer()))


def edited_behind(changing: Path, edit: Callable[[Path], object]) -> Callable[[Path], Iterator[tuple[str, object]]]:
    """Read files as ever, and edit one of them once it was read."""

    def rows(path: Path) -> Iterator[tuple[str, object]]:
        yield from _jsonl_rows(path)
        if path == changing:
            edit(path)

    return rows


def test_a_corpus_edited_after_the_start_trains_as_it_was_hashed(tmp_path: Path) -> None:
    rows, corpus = jsonl(tmp_path / "data.jsonl", prompts(3)), tmp_path / "corpus.jsonl"
    jsonl(corpus, [{"text": "hello"}])
    before = hashlib.sha256(corpus.read_bytes()).hexdigest()
    read = load_training_data(training_config(rows, pretraining=str(corpus)), encoder(make_tokenizer()))
    jsonl(corpus, [{"text": "another"}])
    assert (read.corpus, read.hashes["data.pretraining"]) == (["hello"], before)


def test_the_chat_template_gets_the_options_of_the_spec() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{{ messages[0]['content'] }}{% if thinking is defined and not thinking %}<quiet>{% endif %}"
    )
    ends = frozenset({int(tokenizer.eos_token_id)})
    example = Example((("user", "hello"),), None)
    told = Encoder(tokenizer, ends, {"thinking": False}).prompt(example)
    assert tokenizer.decode(told.prompt) == "hello<quiet>"
    assert tokenizer.decode(Encoder(tokenizer, ends).prompt(example).prompt) == "hello"
