"""Each format by a small log made from its public description; all readers with random JSON; batches."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skill_kd.cli import cli
from skill_kd.diagnose.changes.scan import Options, Scan, scan
from skill_kd.diagnose.formats import batches
from skill_kd.diagnose.formats.readers import BAD, DROPS, FORMATS, detect, parse, reader
from skill_kd.diagnose.formats.sources import LogSource
from skill_kd.errors import UsageError
from skill_kd.kd.dataset.formats import streams
from skill_kd.kd.dataset.formats import table as formats
from skill_kd.kd.dataset.formats.conversation import Call, text_of, turns_of
from skill_kd.kd.dataset.formats.generic import Fields
from skill_kd.kd.dataset.formats.values import number, seconds

LOGS = Path(__file__).parents[1] / "data" / "logs"
GIVEN = Fields(prompt="q.text", output="a.texts", time="at", temperature="cfg.t")


def lines_of(name: str) -> list[bytes]:
    blocks = LogSource(str(LOGS / name)).blocks()
    return [line for block in blocks for line in block.lines.split(b"\n") if line.strip()]


def read(name: str, fields: Fields | None = None) -> tuple[str, list[Call], list[str]]:
    """Return the detected format, the answers, and the reasons that other lines have none."""
    lines, fields = lines_of(name), fields or Fields()
    kind = detect(lines, fields)
    found = [reader(kind, fields)(parse(line)) for line in lines]
    return (
        kind,
        [row for each in found if isinstance(each, list) for row in each],
        [e for e in found if isinstance(e, str)],
    )


CASES: dict[str, tuple[str, list[tuple[str, str | None]], list[str]]] = {
    "openai_proxy.jsonl": (
        "openai",
        [
            ("A narrow inlet of the sea between cliffs.", "What is a fjord?"),
            ("The Aare.", "Name a river."),
            ("A bridge.", "What is this?"),
            ("Seven days.", "How long is a week?"),
            *[("Red.", "A color?"), ("Blue.", "A color?")] * 2,
        ],
        ["tool call without text", "served from a cache", "failed call"],
    ),
    "openai_responses.jsonl": (
        "openai",
        [("Debris left by a glacier.", "What is a moraine?"), ("A drumlin is a hill that", None)],
        ["tool call without text", "failed call"],
    ),
    "openai_batch_output.jsonl": (
        "openai-batch",
        [("Bern.", None), ("Oslo is the capital of", None)],
        ["failed call", "failed call"],
    ),
    "openai_batch_input.jsonl": ("openai-batch", [], ["request without its answer"]),
    "openai_stream.txt": ("openai", [("One.", None), ("Two words", None), ("never ended", None)], []),
    "openai_conversations.jsonl": (
        "openai",
        [("Lake Thun.", "Name a lake."), ("Mönch.", "Another?")],
        ["request without its answer"],
    ),
    "langfuse_blob.jsonl": (
        "langfuse",
        [("In autumn.", "Best time to plant tulips?"), ("Plain answer", "Plain prompt")],
        ["not a model call", "failed call", "tool call without text"],
    ),
    **dict.fromkeys(
        ("langfuse_table.json", "langfuse_table.csv"),
        (
            "langfuse",
            [
                ("In autumn.", "Plant tulips when?"),
                ('In late winter, "before" budding.\nNot later.', "Prune roses when?"),
            ],
            [],
        ),
    ),
    **dict.fromkeys(
        ("langsmith_runs.jsonl", "langsmith_runs.json"),
        (
            "langsmith",
            [("A grain.", "What is rye?"), ("An old kind of wheat.", "What is spelt?"), ("A cereal.", "What is oat?")],
            ["not a model call", "failed call", "tool call without text"],
        ),
    ),
    "otel_spans.jsonl": (
        "otel",
        [("A soft metal.", "What is tin?"), ("A metal.", "What is zinc?")],
        ["tool call without text", "not a model call", "not a model call", "failed call"],
    ),
    "otel_otlp.jsonl": (
        "otel",
        [("A metal that rusts.", "What is iron?"), ("A metal.", "What is zinc?"), ("A heavy", "What is lead?")],
        [],
    ),
    "otel_events.jsonl": (
        "otel",
        [("A noble metal.", None), ("A noble gas.", "What is argon?")],
        ["request without its answer"],
    ),
    "anthropic.jsonl": (
        "anthropic",
        [("A ball of ice and dust.", "What is a comet?"), ("A star is", None), ("A moon.", None)],
        ["failed call", "tool call without text"],
    ),
    "ollama.jsonl": (
        "ollama",
        [("A tall plant.", None), ("A plant without flowers.", "What is a fern?"), ("A small plant.", None)],
        ["tool call without text"],
    ),
    "litellm.jsonl": (
        "litellm",
        [("Curved glass.", "What is a lens?"), ("Frozen water.", "What is ice?")],
        ["tool call without text", "served from a cache", "failed call", "not a model call", "redacted"],
    ),
    "helicone.jsonl": (
        "helicone",
        [("A round part.", "What is a wheel?")],
        ["failed call", "tool call without text", "request without its answer"],
    ),
    "weave.jsonl": (
        "weave",
        [("A hit instrument.", "What is a drum?"), ("A plucked instrument.", "What is a lute?")],
        ["not a model call", "failed call"],
    ),
    "braintrust.jsonl": (
        "braintrust",
        [("Falling water.", "What is rain?"), ("Falling ice.", "What is snow?")],
        ["not a model call", "tool call without text", "failed call"],
    ),
    "otel_openllmetry.jsonl": (
        "otel",
        [("A threaded pin.", "What is a bolt?"), ("A threaded ring.", "What is a nut?")],
        ["tool call without text", "not a model call", "request without its answer", "failed call"],
    ),
    "vercel.jsonl": (
        "vercel",
        [("Pressed wool.", "What is felt?"), ("A fine thread.", "What is silk?")],
        ["not a model call", "tool call without text", "failed call", "not a model call"],
    ),
    "openinference.jsonl": (
        "openinference",
        [
            ("A toy that flies.", "What is a kite?"),
            ("A vehicle on runners.", "What is a sled?"),
            ("A flat boat.", "What is a raft?"),
        ],
        ["not a model call", "tool call without text", "failed call", "redacted"],
    ),
    "mlflow.jsonl": (
        "mlflow",
        [("A round dish.", "What is a bowl?"), ("A pot for flowers.", "What is a vase?")],
        ["not a model call", "failed call"],
    ),
    "generic_usual.jsonl": (
        "generic",
        [("Soft limestone.", "What is chalk?"), ("Hard quartz.", "What is flint?")],
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_format_is_detected_by_its_content_and_read(name: str) -> None:
    kind, rows, reasons = read(name)
    assert kind == CASES[name][0]
    assert [(row.output, row.prompt) for row in rows] == CASES[name][1]
    assert reasons == CASES[name][2]


REFERENCE = (LOGS.parents[2] / "references" / "diagnosis.md").read_text(encoding="utf-8")
HELP = next(str(option.help) for option in cli.commands["diagnose"].params if option.name == "format_name")
HOMES: dict[str, Collection[str]] = {
    "its class to FORMATS in skill_kd/kd/dataset/formats/table.py": FORMATS,
    "a log to tests/data/logs, and what it holds to CASES here": {kind for kind, _, _ in CASES.values()},
    "its name to the help of --format in skill_kd/cli/diagnose.py": re.findall(r"[\w-]+", HELP),
    "a row to 'What it reads' in references/diagnosis.md": re.findall(r"^\| `([\w-]+)` \|", REFERENCE, re.MULTILINE),
}
"""The requirements on a new format, and the formats that meet them."""


def lacking(name: str) -> list[str]:
    """Return, in words, what a format lacks."""
    return [f"{name}: add {home}" for home, found in HOMES.items() if name not in found]


def test_every_format_is_in_all_its_homes() -> None:
    failures = [line for name in sorted({*FORMATS, *(kind for kind, _, _ in CASES.values())}) for line in lacking(name)]
    assert not failures, "\n".join(failures)


def test_a_new_format_gets_the_names_of_its_homes() -> None:
    assert lacking("new") == [f"new: add {home}" for home in HOMES]


def test_settings_and_times_are_read() -> None:
    logs = ("openai_proxy.jsonl", "langsmith_runs.jsonl", "langfuse_table.json", "otel_spans.jsonl", "otel_otlp.jsonl",
            "anthropic.jsonl", "litellm.jsonl", "helicone.jsonl", "weave.jsonl", "otel_openllmetry.jsonl",
            "vercel.jsonl", "openinference.jsonl", "mlflow.jsonl", "braintrust.jsonl")  # fmt: skip
    for name in logs:
        row = read(name)[1][0]
        assert (row.model, row.temperature, row.max_tokens) == ("student-1", 0.7, 200), name
        assert row.system in ("You are a helpful assistant.", "Be brief."), name
        assert row.time is not None
        assert int(row.time) // 60 == 1767607260 // 60 or name == "otel_otlp.jsonl", name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai_proxy.jsonl", ["stop", "stop", "length", "stop", "stop", "length", "stop", "length"]),
        ("openai_responses.jsonl", ["stop", "length"]),
        ("openai_stream.txt", ["stop", "length", None]),
        ("otel_otlp.jsonl", ["stop", "stop", "length"]),
        ("langsmith_runs.jsonl", ["stop", "length", None]),
    ],
)
def test_finish_reasons_are_read(name: str, expected: list[str | None]) -> None:
    assert [row.finish for row in read(name)[1]] == expected


def test_given_fields_make_a_log_generic_and_reach_into_it() -> None:
    kind, rows, _ = read("generic.jsonl", GIVEN)
    assert kind == "generic"
    assert [row.output for row in rows] == ["Dark rock", "Cooled lava", "Split rock"]
    assert rows[0].prompt == "What is basalt?"
    assert rows[0].temperature == 0.3
    assert rows[0].time == 1767603660  # one hour before UTC


def test_a_text_log_of_a_server_is_refused_with_advice() -> None:
    with pytest.raises(UsageError, match="proxy"):
        read("vllm.log")


def test_unknown_formats_and_misplaced_fields_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown"):
        reader("nonsense", Fields())
    with pytest.raises(UsageError, match="add --format generic"):
        reader("langfuse", Fields(output="x"))
    with pytest.raises(UsageError, match="--prompt-field"):
        detect([b'{"a": 1}', b'{"b": 2}'], Fields())


def test_a_call_that_was_written_twice_counts_once() -> None:
    done = scan([str(LOGS / "openai_proxy.jsonl")], Options())
    assert done.rows == 6
    assert done.drops["written twice"] == 2


# --- batches: two files of one log ------------------------------------------------------------------------------------

INPUT, OUTPUT = str(LOGS / "openai_batch_input.jsonl"), str(LOGS / "openai_batch_output.jsonl")


def sampled(done: Scan) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    """Prompt and settings of each answer."""
    return {row.output: (row.prompt, row.setting) for _, window in done.windows for row in window.sample}


def packed(source: str, target: Path) -> str:
    target.write_bytes(gzip.compress(Path(source).read_bytes()))
    return str(target)


@pytest.mark.parametrize(
    ("order", "kind", "jobs"),
    [
        ((INPUT, OUTPUT), None, 1),
        ((OUTPUT, INPUT), None, 1),
        ((OUTPUT, INPUT), "openai-batch", 1),
        ((OUTPUT, INPUT), None, 2),
    ],
)
def test_a_batchs_answers_get_their_prompts_from_its_input(order: tuple[str, str], kind: str | None, jobs: int) -> None:
    done = scan(order, Options(kind, jobs=jobs))
    prompt, setting = sampled(done)["Bern."]
    assert prompt == "Capital of Switzerland?"
    assert setting[:3] == ("student-1", "0.7", "200")
    assert setting[3] != sampled(done)["Oslo is the capital of"][1][3]  # it has a system prompt
    assert sampled(done)["Oslo is the capital of"][0] is None
    assert done.lines == 4  # lines of the input are not lines of the log
    assert done.drops == {"failed call": 2}
    assert any(f"by custom_id from '{INPUT}'; 3 answers have no request" in note for note in done.notes)


def test_a_packed_input_is_joined_too(tmp_path: Path) -> None:
    done = scan([packed(INPUT, tmp_path / "in.gz"), packed(OUTPUT, tmp_path / "out.gz")], Options())
    assert sampled(done)["Bern."][0] == "Capital of Switzerland?"


def test_an_answer_is_not_joined_if_two_requests_share_its_id(tmp_path: Path) -> None:
    record = json.loads(Path(INPUT).read_text())
    same, other = tmp_path / "same.jsonl", tmp_path / "other.jsonl"
    same.write_text(json.dumps(record) + "\n")
    assert sampled(scan([INPUT, str(same), OUTPUT], Options()))["Bern."][0] == "Capital of Switzerland?"
    record["body"]["messages"][-1]["content"] = "Capital of France?"
    other.write_text(json.dumps(record) + "\n")
    done = scan([INPUT, str(other), OUTPUT], Options())
    assert sampled(done)["Bern."][0] is None
    assert any("4 answers have no request there, or more than one" in note for note in done.notes)


@pytest.mark.parametrize("paths", [(OUTPUT,), (OUTPUT, str(LOGS / "generic_usual.jsonl")), (OUTPUT, OUTPUT)])
def test_without_an_input_the_answers_have_no_prompts(paths: tuple[str, ...]) -> None:
    done = scan(paths, Options())
    assert sampled(done)["Bern."][0] is None
    assert not any("custom_id" in note for note in done.notes)


def test_requests_beyond_a_limit_are_counted_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_HELD", 2000)
    record = json.loads(Path(INPUT).read_text().splitlines()[0])
    many = tmp_path / "in.gz"
    more = "".join(json.dumps({**record, "custom_id": f"more-{number}"}) + "\n" for number in range(100))
    many.write_bytes(gzip.compress((json.dumps(record) + "\n" + more).encode()))
    done = scan([str(many), OUTPUT], Options())
    assert sampled(done)["Bern."][0] == "Capital of Switzerland?"
    [note] = [note for note in done.notes if "custom_id" in note]
    beyond = int(note.split("; ")[-1].split()[0])
    assert note.endswith(f"{beyond} requests are over the total limit of 0 MiB")
    assert 90 < beyond < 100


def test_inputs_without_outputs_are_refused() -> None:
    with pytest.raises(UsageError, match="no line has an answer"):
        scan([INPUT, INPUT], Options())


def test_broken_lines_count_in_the_output_but_not_in_the_input(tmp_path: Path) -> None:
    broken = tmp_path / "in.jsonl"
    broken.write_bytes(Path(INPUT).read_bytes() + b'{"custom_id": "q-2", "body": \n[1]\n\xff\n')
    answers_ = tmp_path / "out.jsonl"
    answers_.write_bytes(Path(OUTPUT).read_bytes() * 20 + b'{"custom_id": "q-1", "resp\n')
    done = scan([str(broken), str(answers_)], Options())
    assert done.drops["not JSON"] == 1
    assert sampled(done)["Bern."][0] == "Capital of Switzerland?"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-01-05T10:01:00Z", 1767607260),
        ("2026-01-05T10:01:00.5Z", 1767607260),
        ("2026-01-05 10:01:00.123000", 1767607260),
        ("2026-01-05T12:01:00+02:00", 1767607260),
        (1767607260, 1767607260),
        (1767607260123, 1767607260.123),
        ("1767607260000000000", 1767607260),
        (1767607260000000, 1767607260),
        (float("nan"), None),
        (10**400, None),
        ("yesterday at ten", None),
        ("9999-99-99T00:00:00Z", None),
        (-5, None),
        (True, None),
        (None, None),
        ([], None),
    ],
)
def test_times(value: Any, expected: float | None) -> None:
    found = seconds(value)
    assert found == expected or (found is not None and expected is not None and abs(found - expected) < 1)


def test_numbers_that_are_not_finite_are_ignored() -> None:
    assert [number(each) for each in (1, "0.5", float("nan"), "inf", True, None, "x", 10**400)] == [
        1.0, 0.5, None, None, None, None, None, None,
    ]  # fmt: skip


def test_the_text_of_content_in_many_shapes() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "u"}},
        {"type": "text", "content": "b"},
    ]
    assert text_of(parts) == "a\nb"
    call = Call(turns_of([{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]))
    assert (call.prompt, call.system) == ("a\nb", "s")
    call = Call(turns_of({"messages": [{"role": "human", "content": "q"}]}))
    assert (call.prompt, call.system) == ("q", None)


def test_nan_and_lone_surrogates_are_read() -> None:
    assert parse(b'{"temperature": NaN, "output": "\\ud800x"}')["output"].endswith("x")
    with pytest.raises(ValueError, match="deep"):
        parse(b"[" * 100_000)


def test_a_row_that_is_nested_deeply_is_in_no_format() -> None:
    attributes: dict[str, Any] = {}
    for _ in range(5000):
        attributes = {"a": attributes}
    assert formats.detect([{"attributes": attributes}]) is None


KEYS = sorted(
    {key for name in CASES for line in lines_of(name) for key in json.loads(line)}
    | {"role", "content", "parts", "kwargs", "key", "value", "spans", "choices", "attributes", "body", "delta", "text"}
    | {"index", "content_block", "thinking", "tool_calls", "function"}
    | {"scopeSpans", "resourceSpans", "arrayValue", "values", "gen_ai.output.messages", "generations", "object"}
)
WORDS = ["message_start", "content_block_start", "content_block_delta", "response.created", "response.completed"]
WORDS += ["chat.completion", "response", "x.chunk", "llm", "GENERATION", "user", "assistant", "gen_ai.choice", "[[]]"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
LEAVES |= st.sampled_from([*WORDS, '{"a": [1]}'])
RECORDS = st.dictionaries(
    st.sampled_from(KEYS),
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_size=6,
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(record=RECORDS)
def test_every_reader_survives_any_record(record: dict[str, Any]) -> None:
    """A reader returns answers or a known reason, or raises an error that ``scan`` counts as an unreadable line.

    Detection raises nothing, and neither does joining streams.
    """
    formats.detect([record])
    streams.joined([record, record])
    for kind in FORMATS:
        try:
            found = reader(kind, Fields())(record)
        except (TypeError, AttributeError, KeyError, IndexError, ValueError):
            continue
        if isinstance(found, str):
            assert found in (*DROPS, *BAD)
        else:
            assert found
            assert all(isinstance(row.output, str) and row.output.strip() for row in found)
            assert all(row.prompt is None or isinstance(row.prompt, str) for row in found)
            assert all(row.time is None or 0 < row.time < 1e10 for row in found)
