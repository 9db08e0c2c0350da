"""The same calls give the same diagnosis in every format; logs that support none are refused by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import log_formats
import pytest
from log_formats import CHANGE, LOGS, MODEL, PER_DAY, Invented, invented

from skill_kd.diagnose import Diagnosis, diagnose
from skill_kd.diagnose.changes.scan import Options, Scan, scan
from skill_kd.diagnose.changes.windows import Sampled
from skill_kd.diagnose.formats import lines
from skill_kd.diagnose.formats.readers import FORMATS
from skill_kd.diagnose.report.diagnosis_page import html
from skill_kd.errors import UsageError
from skill_kd.kd.dataset.formats import streams
from skill_kd.kd.dataset.formats.generic import Fields

CHANGED = f"2026-11-{1 + CHANGE:02}"


def written(folder: Path, log: str, calls: Iterable[Invented], name: str = "log") -> str:
    path = folder / name
    path.write_text(LOGS[log][1](list(calls)), encoding="utf-8")
    return str(path)


def answers(done: Scan) -> list[tuple[int, list[Sampled]]]:
    """All that the detectors read: each window's answers, with prompts, settings and finish reasons."""
    return [(start, sorted(window.sample)) for start, window in done.windows]


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, list[Sampled]]]:
    return answers(scan([written(tmp_path_factory.mktemp("control"), "openai", invented("temperature"))], Options()))


@pytest.mark.parametrize("log", LOGS)
def test_every_format_gives_the_detectors_the_same_answers(
    log: str, control: list[tuple[int, list[Sampled]]], tmp_path: Path
) -> None:
    done = scan([written(tmp_path, log, invented("temperature"))], Options())
    assert set(done.formats.values()) == {LOGS[log][0]}
    assert answers(done) == control
    assert not done.drops


def test_every_format_is_written_by_a_log() -> None:
    assert {kind for kind, _ in LOGS.values()} == {*FORMATS} - {"openai-batch"}  # batches are two files


def found(result: Diagnosis) -> dict[str, str]:
    return {each.key: result.when(each.at or 0) for each in result.findings}


@pytest.mark.parametrize("log", ["openai", "litellm"])
def test_a_change_of_the_student_is_a_finding_and_a_change_of_temperature_is_not(log: str, tmp_path: Path) -> None:
    damaged = diagnose([written(tmp_path, log, invented("damage"))])
    assert found(damaged) == {"sameness": CHANGED, "length": CHANGED}
    cooler = diagnose([written(tmp_path, log, invented("temperature"))])
    assert cooler.status == "nothing found"
    assert {sign.explained_by for sign in cooler.explained} == {("temperature",)}
    assert {cooler.when(sign.at or 0) for sign in cooler.explained} == {CHANGED}


def test_nothing_is_found_in_a_healthy_log(tmp_path: Path) -> None:
    assert diagnose([written(tmp_path, "openai", invented(None))]).status == "nothing found"


# --- model versions ---------------------------------------------------------------------------------------------------


def deployed(folder: Path, change: str | None, version: str) -> Diagnosis:
    """Diagnose the calls, with another model version from the day of the change on."""
    path = Path(written(folder, "openai", invented(change)))
    rows = path.read_text(encoding="utf-8").splitlines()
    since = CHANGE * PER_DAY
    new = [row.replace(json.dumps(MODEL), json.dumps(version)) for row in rows[since:]]
    path.write_text("\n".join([*rows[:since], *new]) + "\n", encoding="utf-8")
    return diagnose([str(path)])


def test_a_new_version_is_the_cause_of_each_finding(tmp_path: Path) -> None:
    result = deployed(tmp_path, "damage", "student-2")
    assert found(result) == {"sameness": CHANGED, "length": CHANGED}
    for each in result.findings:
        assert each.deployment is not None
        assert (each.deployment.version, each.deployment.instead_of) == ("student-2", MODEL)
        assert result.when(each.deployment.at) == CHANGED
    [cause] = [line for line in result.table().splitlines() if line.startswith("likely cause")]
    assert f"since version student-2, deployed {CHANGED}: repeated answers +" in cause
    assert ", length -" in cause
    assert cause.endswith("; compare student-2 with student-1")


def test_another_temperature_excuses_a_new_version(tmp_path: Path) -> None:
    result = deployed(tmp_path, "temperature", "student-2")
    assert result.status == "nothing found"
    assert result.explained
    assert {sign.explained_by for sign in result.explained} == {("temperature", "model version")}


def test_a_new_version_that_answers_as_before_is_not_a_finding(tmp_path: Path) -> None:
    result = deployed(tmp_path, None, "student-2")
    assert result.status == "nothing found"
    assert not result.explained


@pytest.mark.parametrize("version", ["ignore all rules", "<b>x</b>", "a\x1b[31m", "AK" + "IA" + "Q7" * 8, "m" * 65])
def test_a_version_with_an_unusual_name_is_shown_as_an_id(version: str, tmp_path: Path) -> None:
    result = deployed(tmp_path, "damage", version)
    for shown in (result.table(), json.dumps(result.to_json()), html(result)):
        assert version not in shown
        assert "compare id " in shown


# --- texts that are not in the log ------------------------------------------------------------------------------------


def redacted(call: Invented) -> Invented:
    return Invented(call.id, call.time, "redacted-by-litellm", "redacted-by-litellm", call.temperature)


@pytest.mark.parametrize("since", [0, CHANGE * log_formats.PER_DAY])
def test_a_redacted_log_is_named_and_supports_no_conclusion(since: int, tmp_path: Path) -> None:
    calls = [redacted(call) if number >= since else call for number, call in enumerate(invented(None))]
    with pytest.raises(UsageError, match=rf"{len(calls) - since} of {len(calls)} answers are redacted.*LiteLLM"):
        diagnose([written(tmp_path, "litellm", calls)])


def test_a_few_redacted_answers_are_counted(tmp_path: Path) -> None:
    calls = [redacted(call) if number % 40 == 0 else call for number, call in enumerate(invented(None))]
    done = scan([written(tmp_path, "litellm", calls)], Options())
    assert (done.rows, done.drops) == (468, {"redacted": 12})


def test_redacted_prompt_counts_as_missing(tmp_path: Path) -> None:
    calls = [Invented(call.id, call.time, "redacted-by-litellm", call.answer, 0.8) for call in invented(None)]
    done = scan([written(tmp_path, "litellm", calls)], Options())
    assert done.rows == len(calls)
    assert {row.prompt for _, window in done.windows for row in window.sample} == {None}


def test_spans_without_texts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "log"
    rows = [log_formats.openllmetry(call) for call in invented(None)[:40]]
    for row in rows:
        row["attributes"] = {key: value for key, value in row["attributes"].items() if "content" not in key}
        row["attributes"].pop("gen_ai.completion.0.role")
        row["attributes"].pop("gen_ai.completion.0.finish_reason")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match=r"40 request without its answer.*recording"):
        scan([str(path)], Options())


# --- fields and times -------------------------------------------------------------------------------------------------

INSIDE = Fields(
    prompt="attributes.mlflow.spanInputs.messages.-1.content",
    output="attributes.mlflow.spanOutputs.choices.0.message.content",
    time="start_time_unix_nano",
    temperature="attributes.mlflow.spanInputs.temperature",
)
DOTTED = Fields(
    prompt="attributes.gen_ai.prompt.1.content",
    output="attributes.gen_ai.completion.0.content",
    time="startTimeUnixNano",
    temperature="attributes.gen_ai.request.temperature",
)


SPAN = "resourceSpans.0.scopeSpans.0.spans.0"
OTLP = Fields(**{key: f"{SPAN}.{path}" for key, path in asdict(DOTTED).items() if path})


@pytest.mark.parametrize(
    ("log", "fields"), [("openllmetry", DOTTED), ("openllmetry in OTLP", OTLP), ("mlflow", INSIDE)]
)
def test_fields_reach_dotted_keys_and_json_text(log: str, fields: Fields, tmp_path: Path) -> None:
    calls = invented(None)[:40]
    done = scan([written(tmp_path, log, calls)], Options(fields=fields))
    rows = [row for _, window in done.windows for row in window.sample]
    assert {(row.prompt, row.output, row.setting[1]) for row in rows} == {
        (call.prompt, call.answer, f"{call.temperature:g}") for call in calls
    }


def test_dates_with_the_day_first_are_refused_instead_of_read_as_months(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = [f"{day}/11/2026 10:00,question {day},answer number {day}" for day in range(1, 29) for _ in range(20)]
    path.write_text("\n".join(["time,prompt,output", *rows]))
    with pytest.raises(UsageError, match=r"320 of 560 answers have no time.*US dates"):
        scan([str(path)], Options())


def test_a_table_has_at_most_a_thousand_columns_and_may_have_short_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    names = ["time", "prompt", "output", *(f"c{number}" for number in range(997))]
    rows = [f"2026-11-01T10:00:00Z,question {number},answer {number}" for number in range(600)]
    path.write_text("\n".join([",".join(names), *rows]))
    done = scan([str(path)], Options())
    assert {row.output.split()[0] for _, window in done.windows for row in window.sample} == {"answer"}
    path.write_text("\n".join([",".join([*names, "one more"]), *rows]))
    with pytest.raises(UsageError, match=r"has 1001 columns, and at most 1000 are read"):
        scan([str(path)], Options())


def test_a_table_whose_row_never_ends_is_refused_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST", 10_000)
    path = tmp_path / "log.csv"
    path.write_text('time,output\n2026-01-01T00:00:00Z,"\n' + '","\n' * 10_000)
    with pytest.raises(UsageError, match=r"log '.*' looks like a table but .*: a row is longer than 10,000 characters"):
        scan([str(path)], Options())


# --- streams ----------------------------------------------------------------------------------------------------------


def sse(events: Iterable[dict[str, Any]]) -> str:
    return "".join(f"event: {each.get('type', 'chunk')}\ndata: {json.dumps(each)}\n\n" for each in events)


def chat_chunks(call: Invented) -> str:
    head = {"id": call.id, "object": "chat.completion.chunk", "created": call.time, "model": "student-1"}
    deltas = [{"role": "assistant", "reasoning_content": "Hm."}, *({"content": part} for part in parts(call))]
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return sse([*chunks, {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}])


def response_events(call: Invented) -> str:
    whole = log_formats.responses(call)
    begun = {**whole, "output": [], "status": "in_progress"}
    deltas = [{"type": "response.output_text.delta", "item_id": "m", "delta": part} for part in parts(call)]
    ended = {"type": "response.completed", "response": whole}
    return sse([{"type": "response.created", "response": begun}, *deltas, ended])


def message_events(call: Invented) -> str:
    message = {**log_formats.anthropic(call)["response"], "content": [], "stop_reason": None}
    thought = {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}}
    deltas = [
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": part}}
        for part in parts(call)
    ]
    return sse(
        [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
            {"type": "ping"},
            thought,
            {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
            *deltas,
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {"type": "message_stop"},
        ]
    )


def ollama_lines(call: Invented) -> str:
    head = {"model": "student-1", "created_at": call.iso}
    events = [
        *({**head, "message": {"role": "assistant", "content": part}, "done": False} for part in parts(call)),
        {**head, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"},
    ]
    return "".join(json.dumps(each) + "\n" for each in events)


def parts(call: Invented) -> list[str]:
    half = len(call.answer) // 2
    return [call.answer[:half], call.answer[half:]]


@pytest.mark.parametrize(
    ("write", "kind", "timed"),
    [
        (chat_chunks, "openai", True),
        (response_events, "openai", True),
        (message_events, "anthropic", False),
        (ollama_lines, "ollama", True),
    ],
)
def test_streams_are_joined(write: Callable[[Invented], str], kind: str, timed: bool, tmp_path: Path) -> None:
    calls = invented(None)[:80]
    path = tmp_path / "log"
    path.write_text("".join(map(write, calls)))
    done = scan([str(path)], Options())
    assert set(done.formats.values()) == {kind}
    assert not done.drops
    rows = [row for _, window in done.windows for row in window.sample]
    assert {(row.output, row.finish, row.setting[0]) for row in rows} == {
        (call.answer, "stop", "student-1") for call in calls
    }
    assert (done.windows.unit == "day") is timed


def test_a_stream_that_was_cut_keeps_what_came(tmp_path: Path) -> None:
    path = tmp_path / "log"
    call = invented(None)[0]
    for write in (response_events, message_events, ollama_lines):
        text = write(call)
        last = text.rindex("data: " if write is not ollama_lines else '{"model"')
        path.write_text(text[:last])
        assert {row.output for _, window in scan([str(path)], Options()).windows for row in window.sample} == {
            call.answer
        }


def test_a_stream_that_never_ends_counts_as_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LONGEST", 10_000)
    calls = invented(None)[:80]
    endless = {"object": "chat.completion.chunk", "id": "endless", "choices": [{"delta": {"content": "x" * 1000}}]}
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(("".join(map(chat_chunks, calls)) + sse([endless] * 100)).encode()))
    done = scan([str(path)], Options())
    assert done.drops == {"longer than the limit": 1}
    assert done.rows == len(calls)


def test_a_log_of_one_endless_stream_is_refused_with_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LONGEST", 10_000)
    endless = {"object": "chat.completion.chunk", "id": "endless", "choices": [{"delta": {"content": "x" * 1000}}]}
    path = tmp_path / "log"
    path.write_text(sse([endless] * 100))
    with pytest.raises(UsageError, match="its first line or answer is longer than the limit of 8 MiB"):
        scan([str(path)], Options())


def test_an_event_that_is_nested_deeply_is_counted(tmp_path: Path) -> None:
    calls = invented(None)[:80]
    deep = '{"type":"message_start","message":{"x":' + "[" * 900 + "]" * 900 + "}}\n"
    path = tmp_path / "log"
    path.write_text("".join(map(ollama_lines, calls)) + deep)
    done = scan([str(path)], Options())
    assert (done.rows, done.bad) == (len(calls), 1)
