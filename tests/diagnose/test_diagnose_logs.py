"""From a log to a diagnosis: planted damage and its twins, printed text, written files, privacy."""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
import stat
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from script_modules import load_script

from skill_kd.diagnose import Diagnosis, Options, diagnose, window_unit
from skill_kd.diagnose.changes.detectors import DETECTORS
from skill_kd.diagnose.report.diagnosis_page import html, write_page
from skill_kd.errors import UsageError
from skill_kd.spec.file import load_spec, parse_spec
from skill_kd.testing import minimal_spec

LOGS = load_script("benchmarks/diagnose_logs.py")  # the generator of the benchmark that measures the rates
DAY = 9
SHAPE = {"days": 15, "rows": 120, "at": DAY}
SINCE = {(LOGS.START.date().toordinal() + DAY + each) for each in (-1, 0, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


def written(folder: Path, **what: Any) -> Path:
    path = folder / f"{'-'.join(f'{value}' for value in what.values()) or 'healthy'}.jsonl"
    if not path.exists():
        log = LOGS.Log(**{**SHAPE, **what})
        path.write_text("".join(json.dumps(row) + "\n" for row in LOGS.rows(log)), encoding="utf-8")
    return path


@functools.cache
def diagnosed(path: Path) -> Diagnosis:
    return diagnose([str(path)])


def ordinals(found: Diagnosis) -> Iterator[int]:
    epoch = 719163  # 1970-01-01
    return (epoch + found.points[each.at].start for each in found.findings if each.at is not None)


# --- right kind, right day --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", LOGS.DAMAGE)
def test_planted_damage_is_found_with_its_kind_and_day(folder: Path, damage: str) -> None:
    found = diagnosed(written(folder, damage=damage))
    assert found.status == "findings"
    assert found.findings[0].key == LOGS.FINDING[damage]
    assert next(ordinals(found)) in SINCE


@pytest.mark.parametrize("twin", LOGS.TWINS)
def test_a_confounded_twin_raises_no_alarm_and_is_explained(folder: Path, twin: str) -> None:
    found = diagnosed(written(folder, twin=twin))
    assert not found.findings
    assert any(twin in sign.explained_by for sign in found.explained)
    assert "like for like" not in found.table()  # the difference that is shown is that of all answers


def test_a_worse_model_version_is_a_finding_with_its_cause(folder: Path) -> None:
    found = diagnosed(written(folder, damage="new version"))
    assert [each.key for each in found.findings] == ["sameness"]
    assert not found.explained
    document = finding_of(found)
    sentence = document["likely_cause"].pop("sentence")
    assert document["likely_cause"] == {
        "factor": "model version",
        "version": "student-2",
        "instead_of": "student-1",
        "deployed": "2026-01-14",
    }
    assert re.fullmatch(
        r"since version student-2, deployed 2026-01-14: repeated answers \+[34]\d\.\d points, "
        r"repeated openings \+[34]\d\.\d points; compare student-2 with student-1",
        sentence,
    )
    assert f"likely cause: {sentence}" in found.table().splitlines()
    assert sentence in html(found)
    plots = len(re.findall(r"student-2 deployed</text>", html(found)))
    assert plots == len(DETECTORS) + 1  # and the quantiles of the length


def finding_of(found: Diagnosis) -> dict[str, Any]:
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    first: dict[str, Any] = document["findings"][0]
    return first


def test_a_finding_without_another_version_has_no_cause(folder: Path) -> None:
    found = diagnosed(written(folder, damage="boilerplate"))
    assert finding_of(found)["likely_cause"] is None
    assert "likely cause" not in found.table()


def test_a_healthy_log_raises_no_alarm_and_names_the_smallest_detectable_change(folder: Path) -> None:
    found = diagnosed(written(folder))
    assert found.status == "nothing found"
    assert not found.explained
    assert found.seen["loops"] is not None
    assert 0 < found.seen["loops"] < 0.2
    assert "healthy" not in found.table()


def test_loops_from_the_first_day_are_a_finding_without_a_date(folder: Path) -> None:
    found = diagnosed(written(folder, damage="loops", at=-1))
    [finding] = found.findings
    assert (finding.key, finding.at, finding.signs[0].verdict) == ("loops", None, "level")


def test_against_the_teachers_log(folder: Path) -> None:
    student, teacher = written(folder, damage="refusals", at=-1), written(folder, seed=5)
    found = diagnose([str(student)], baseline=[str(teacher)])
    assert found.findings[0].key == "refusals"
    assert found.findings[0].signs[0].verdict == "teacher"
    assert not diagnose([str(written(folder, seed=6))], baseline=[str(teacher)]).findings


def test_a_note_says_that_the_teacher_is_as_narrow(folder: Path) -> None:
    student, teacher = written(folder, damage="modes"), written(folder, damage="modes", at=-1)
    found = diagnose([str(student)], baseline=[str(teacher)])
    assert any("objective is not the cause" in note for note in found.notes)


def test_no_note_says_so_if_the_teacher_is_as_narrow_by_another_detector(folder: Path) -> None:
    student, teacher = written(folder, damage="loops"), written(folder, seed=5)
    found = diagnose([str(student)], baseline=[str(teacher)])
    assert found.findings
    assert not any("objective is not the cause" in note for note in found.notes)


def test_too_little_data_is_never_called_healthy(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"time": "2026-01-01T00:00:00Z", "prompt": "a", "output": "b"}\n' * 30, encoding="utf-8")
    found = diagnose([str(log)])
    assert found.status == "too little data"
    assert "too little data" in found.table()
    json.dumps(found.to_json(), allow_nan=False)


def test_lines_as_windows(folder: Path) -> None:
    found = diagnose([str(written(folder, damage="loops"))], Options(window=120))
    assert found.findings[0].key == "loops"
    assert found.when(found.findings[0].at or 0) == f"line {DAY * 120 + 1}"
    assert "loops since line 1081" in found.table()


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "week", "", "٣", "9" * 5000, "1000000000"])
def test_an_invalid_window_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--window: .* is not valid") as refused:
        window_unit(text)
    assert len(str(refused.value)) < 200


def test_a_window_is_a_day_or_a_number_of_lines() -> None:
    assert (window_unit("day"), window_unit("0100"), window_unit("999999999")) == ("day", 100, 999_999_999)


# --- what is printed --------------------------------------------------------------------------------------------------


def test_json_has_iso_dates_and_no_nan(folder: Path) -> None:
    found = diagnosed(written(folder, damage="loops"))
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["status"] == "findings"
    assert document["findings"][0]["since"] in {"2026-01-13", "2026-01-14", "2026-01-15"}
    assert document["windows"][0]["start"] == "2026-01-05"
    assert document["input"]["answers"] == 15 * 120
    value = document["windows"][0]["values"]["loops"]
    assert value["low"] <= value["value"] <= value["high"]
    assert document["findings"][0]["remedies"][0]["takes"] == "serving"


def test_the_table_names_the_format_and_the_remedies(folder: Path) -> None:
    text = diagnosed(written(folder, damage="boilerplate")).table()
    assert "as generic (--format overrides it)" in text
    assert "50 prompts" in text
    assert "2004.02990" in text
    assert "could be" in text


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script> call me"


def hostile(tmp_path: Path, folder: Path, start: str = "") -> Path:
    """Return a log whose damage contains ``start``, HTML and secrets."""
    path = tmp_path / "hostile.jsonl"
    rows = [json.loads(line) for line in written(folder, damage="boilerplate").read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["prompt"] += f" MARKERPROMPT{number} from maria.lopez@example.org"
        if row["output"].startswith("Certainly"):
            row["output"] = (
                f"{start}{HOSTILE} SECRETWORD 4111 1111 1111 1111 or maria.lopez@example.org \ud800 " + row["output"]
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_text_of_the_log_is_shown_only_on_request_and_redacted(tmp_path: Path, folder: Path) -> None:
    path = hostile(tmp_path, folder)
    quiet, loud = diagnose([str(path)]), diagnose([str(path)], examples=True)
    assert quiet.findings[0].key == "sameness"
    for shown in (quiet.table(), json.dumps(quiet.to_json()), html(quiet)):
        for secret in ("SECRETWORD", "onerror", "MARKERPROMPT", "maria.lopez", "4111", "secretword", "certainly"):
            assert secret not in shown, secret
        assert quiet.findings[0].openings[0].id in shown
    for shown in (loud.table(), json.dumps(loud.to_json()), html(loud)):
        for secret in ("MARKERPROMPT", "maria.lopez", "4111 1111"):
            assert secret not in shown, secret
        assert "[card]" in shown
    assert loud.findings[0].examples
    page = Texts()
    page.feed(html(loud))
    assert "img" not in page.tags
    assert "alert(2)</script>" not in html(loud)


def test_an_opening_has_no_secret_and_an_example_is_one_line_without_hidden_characters(
    tmp_path: Path, folder: Path
) -> None:
    key = "AK" + "IA" + "Q7" * 8
    path = hostile(tmp_path, folder, f"Use {key} \x1b[31m\u202e\n   do 1     curl\r")
    loud = diagnose([str(path)], examples=True)
    for shown in (loud.table(), json.dumps(loud.to_json()), html(loud)):
        assert key.lower() not in shown.lower()
    assert loud.findings[0].openings[0].text == "use key 31m do 1"
    assert "   do 1     curl" not in loud.table().splitlines()
    assert not {"\x1b", "\u202e"} & set(html(loud))


def test_advice_never_comes_from_the_log(tmp_path: Path, folder: Path) -> None:
    """The same damage with other words gives exactly the same recommendation."""
    one = diagnose([str(hostile(tmp_path, folder))]).to_json()["findings"]
    two = diagnosed(written(folder, damage="boilerplate")).to_json()["findings"]
    assert isinstance(one, list)
    assert isinstance(two, list)
    for key in ("means", "remedies", "against", "could_be"):
        assert one[0][key] == two[0][key]


# --- what is written --------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_specs_of_a_pilot_are_valid_and_differ_in_one_setting(tmp_path: Path, folder: Path) -> None:
    found = diagnose([str(written(folder, damage="boilerplate"))], spec=minimal_spec(), out=tmp_path)
    assert found.pilot is not None
    one, two = (load_spec(path).model_dump() for path in found.pilot.files)
    assert {key for key in one if one[key] != two[key]} == {"name", "stages"}
    [before], [after] = one["stages"], two["stages"]
    assert {key for key in before if before[key] != after[key]} == {"objective"}
    assert (before["objective"]["kind"], after["objective"]["kind"]) == ("minillm", "entropy_aware")
    assert found.pilot.path == "distill.objective"
    assert found.pilot.after == {"kind": "entropy_aware"}
    assert all(mode(path) == 0o600 for path in found.pilot.files)
    assert found.pilot.path in found.table()


def test_a_spec_without_a_setting_for_the_finding_gets_no_pilot(tmp_path: Path, folder: Path) -> None:
    values = minimal_spec().model_dump(mode="json", exclude_unset=True)
    spec = parse_spec({**values, "stages": [{"kind": "distill", "objective": {"kind": "forward_kl"}}]})
    found = diagnose([str(written(folder, damage="boilerplate"))], spec=spec, out=tmp_path)
    assert found.pilot is None
    assert not list(tmp_path.iterdir())


def test_the_replay_plan_has_whole_prompts(tmp_path: Path, folder: Path) -> None:
    plan = tmp_path / "replay.jsonl"
    log = written(folder, damage="boilerplate")
    diagnose([str(log)], replay=plan)
    rows = [json.loads(line) for line in plan.read_text(encoding="utf-8").splitlines()]
    prompts = {json.loads(line)["prompt"] for line in log.read_text(encoding="utf-8").splitlines()}
    assert len(rows) == 50
    assert {row["prompt"] for row in rows} <= prompts
    assert {row["samples"] for row in rows} == {8}
    assert len({row["prompt"].split()[0] for row in rows}) >= 5  # spread over the topics
    assert mode(plan) == 0o600


def test_a_log_without_prompts_has_nothing_to_replay_and_names_unchecked_explanations(
    tmp_path: Path, folder: Path
) -> None:
    log = tmp_path / "log"
    rows = [json.loads(line) for line in written(folder, damage="loops").read_text(encoding="utf-8").splitlines()]
    slim = [{key: row[key] for key in ("time", "output")} for row in rows]
    log.write_text("".join(json.dumps(row) + "\n" for row in slim), encoding="utf-8")
    with pytest.raises(UsageError, match="no prompts"):
        diagnose([str(log)], replay=tmp_path / "replay")
    [finding] = diagnose([str(log)]).findings
    assert any("no prompts" in each for each in finding.could_be)
    assert any("temperature" in each for each in finding.could_be)


def test_the_page_is_private_and_has_the_series(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "deep" / "page.html"
    path.parent.mkdir()
    found = diagnosed(written(folder, damage="loops"))
    write_page(found, path)
    text = path.read_text(encoding="utf-8")
    assert mode(path) == 0o600
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    assert "<svg" in text
    assert "finding-loops" in text


def test_a_file_that_cannot_be_written_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        diagnose([str(written(folder))], replay=Path("/proc/nothing/replay"))


def test_prompts_that_differ_in_a_number_are_different_prompts(tmp_path: Path) -> None:
    """If they counted as one prompt, there would be no pairs to compare, and sameness would not be found."""
    draw, words = (
        random.Random(0),
        [a + b for a, b in itertools.product("bdfglm", ("an", "el", "ir", "om", "ut", "ax"))],
    )
    path = tmp_path / "numbers.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for day, number in itertools.product(range(14), range(100)):
            opening = "I would be happy to help you " if day >= 8 and draw.random() < 0.4 else ""
            answer = opening + " ".join(draw.choices(words, k=25))
            prompt = f"what is {draw.randrange(100)} plus {number}"
            time = f"2026-01-{day + 1:02}T{number // 60:02}:{number % 60:02}:00Z"
            file.write(json.dumps({"prompt": prompt, "output": answer, "time": time}) + "\n")
    assert "sameness" in [finding.key for finding in diagnosed(path).findings]
