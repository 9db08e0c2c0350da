"""Files of any encoding, compression, layout and size, and damaged ones. Nothing crashes."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import multiprocessing.context
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skill_kd.diagnose.changes.measures import measure_all
from skill_kd.diagnose.changes.scan import Options, Scan, scan, window_unit
from skill_kd.diagnose.changes.windows import Windows
from skill_kd.diagnose.formats import lines as splitting
from skill_kd.diagnose.formats.readers import BAD, DROPS, FORMATS
from skill_kd.errors import ExitCode, MissingRequirementError, SkillKDError, UsageError
from skill_kd.kd.dataset.formats.generic import Fields

TAILS = ("", ' one " and {', "[ a \\", '\\"}', "\t")
ROWS = [
    {
        "time": f"2026-01-0{1 + n // 10}T10:00:00Z",
        "prompt": f"p{n}",
        "output": f"answer \u2028 {n} é漢🎉{TAILS[n % 5]}",
    }
    for n in range(40)
]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)

Save = Callable[[str, bytes], str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


def outputs(done: Scan) -> set[str]:
    return {row.output for _, window in done.windows for row in window.sample}


EVERY = {str(row["output"]) for row in ROWS}
PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS)


SAME_ROWS = {
    "utf-8": TEXT.encode(),
    "utf-8 with a mark": TEXT.encode("utf-8-sig"),
    "utf-16": TEXT.encode("utf-16"),
    "utf-16-le": TEXT.encode("utf-16-le"),
    "utf-16-be": TEXT.encode("utf-16-be"),
    "utf-32": TEXT.encode("utf-32"),
    "windows line ends": TEXT.replace("\n", "\r\n").encode(),
    "empty lines": TEXT.replace("\n", "\n\n  \n").encode(),
    "no last line end": TEXT.rstrip("\n").encode(),
    "gzip": gzip.compress(TEXT.encode(), mtime=0),
    "gzip in two members": gzip.compress(TEXT[:2000].encode(), mtime=0) + gzip.compress(TEXT[2000:].encode(), mtime=0),
    "array": json.dumps(ROWS).encode(),
    "indented array": json.dumps(ROWS, indent=2).encode(),
    "indented array with a mark": json.dumps(ROWS, indent=2).encode("utf-8-sig"),
    "indented data": json.dumps({"data": ROWS}, indent=2).encode(),
    "data behind line ends": json.dumps({"data": ROWS}).encode().replace(b'{"data"', b'\n {\n"data"'),
    "indented rows": PRETTY.encode(),
}


@pytest.mark.parametrize("content", SAME_ROWS.values(), ids=SAME_ROWS)
def test_every_encoding_and_layout_gives_the_same_rows(save: Save, content: bytes) -> None:
    done = scan([save("log", content)], Options())
    assert done.rows == len(ROWS)
    assert outputs(done) == EVERY
    assert done.bad == 0
    assert len(done.windows) == 4


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_pieces_of_any_size_give_the_same_lines(size: int) -> None:
    for text in (TEXT.encode(), json.dumps(ROWS, indent=1).encode(), PRETTY.encode()):
        pieces = (text[place : place + size] for place in range(0, len(text), size))
        blocks = splitting.split(text, pieces, "log")
        found = [json.loads(line) for block in blocks for line in block.lines.split(b"\n") if line.strip()]
        assert found == ROWS


def test_a_last_line_that_was_cut_is_counted_and_the_rest_is_read(save: Save) -> None:
    done = scan([save("log", TEXT.encode()[:-20])], Options())
    assert done.rows == len(ROWS) - 1
    assert done.drops["not JSON"] == 1


def test_a_compressed_file_that_was_cut_off_gives_a_note(save: Save) -> None:
    rows = "".join(json.dumps({**row, "pad": os.urandom(300).hex()}) + "\n" for row in ROWS * 20)
    done = scan([save("log.gz", gzip.compress(rows.encode())[:-2000])], Options())
    assert 0 < done.rows < 20 * len(ROWS)
    assert any("cut off" in note for note in done.notes)


def test_nan_and_lone_surrogates_are_accepted(save: Save) -> None:
    bad = b'{"time": "2026-01-01T00:00:00Z", "prompt": "p", "temperature": NaN, "output": "x \\ud800 y"}\n'
    raw = b'{"time": "2026-01-01T00:00:00Z", "prompt": "p", "output": "x \xed\xa0\x80 \xff y"}\n'
    done = scan([save("log", TEXT.encode() + bad + raw)], Options())
    assert done.rows == len(ROWS) + 2
    assert not done.bad


def test_a_line_of_a_hundred_megabytes_is_skipped_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(TEXT.encode() + b'{"output": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + TEXT.encode())
    tracemalloc.start()
    done = scan([str(path)], Options())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done.rows == 2 * len(ROWS)
    assert done.drops["longer than the limit"] == 1
    assert peak < 60 << 20


def test_one_huge_element_of_an_array_is_skipped(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "LONGEST", 10_000)
    rows = [*ROWS[:20], {"output": "x" * 50_000}, *ROWS[20:]]
    text = json.dumps(rows).encode()
    pieces = [text[place : place + 4096] for place in range(0, len(text), 4096)]
    blocks = list(splitting.split(text, iter(pieces), "log"))
    found = [json.loads(line) for block in blocks for line in block.lines.split(b"\n") if line.strip()]
    assert found == ROWS
    assert sum(block.overlong for block in blocks) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n \n\n", "empty"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(range(256)) * 20, "binary"),
        (b"not json at all\n" * 50, "known format"),
        (b'{"a": 1}\n' * 50, "known format"),
        (b"[]", "."),
        (b"[1, 2, 3]", "."),
        (b'{"output": ""}\n' * 50, "no line has an answer"),
        ((TEXT + "broken {\n" * 3).encode(), "3 of 43 lines could not be read"),
        (gzip.compress(b"", mtime=0)[:15], "empty"),
        (b"\x28\xb5\x2f\xfd" + b"junk" * 30, "."),
        (b'{"prompt": "a", "output": "b"', "."),
    ],
    ids=[
        "no bytes",
        "spaces",
        "binary",
        "text",
        "other keys",
        "empty array",
        "numbers",
        "empty answers",
        "broken lines",
        "torn gzip",
        "broken zstandard",
        "torn object",
    ],
)
def test_unusable_logs_are_refused(save: Save, content: bytes, message: str) -> None:
    with pytest.raises(SkillKDError, match=message) as caught:
        scan([save("log", content)], Options())
    assert caught.value.exit_code in (ExitCode.USAGE, ExitCode.ENVIRONMENT)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing-here"):
        scan([str(tmp_path / "nothing-here")], Options())
    with pytest.raises(UsageError, match="folder"):
        scan([str(tmp_path)], Options())


def test_an_empty_file_among_others_gives_a_note(save: Save) -> None:
    done = scan([save("a", b""), save("b", TEXT.encode())], Options())
    assert done.rows == len(ROWS)
    assert any("empty" in note for note in done.notes)


def test_many_files_of_different_formats(save: Save) -> None:
    openai = {"created": 1767606000, "choices": [{"message": {"content": "hi"}}], "object": "chat.completion"}
    done = scan([save("a", TEXT.encode()), save("b", json.dumps(openai).encode())], Options())
    assert sorted(done.formats.values()) == ["generic", "openai"]
    assert done.rows == len(ROWS) + 1


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, TEXT.encode())
    os.close(writing)
    with os.fdopen(reading, "rb") as end:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(end))
        assert scan(["-"], Options()).rows == len(ROWS)


def test_zstd_is_read(save: Save) -> None:
    zstandard = pytest.importorskip("zstandard", reason="without it the other half is tested below")
    done = scan([save("log.zst", zstandard.compress(TEXT.encode()))], Options())
    assert outputs(done) == EVERY


def test_zstd_without_a_package_is_answered_with_the_install_command(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("zstandard", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingRequirementError, match="pip install zstandard") as caught:
        scan([save("log.zst", b"\x28\xb5\x2f\xfd junk")], Options())
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_several_processes_give_the_same_result_as_one(save: Save) -> None:
    rows = [{**row, "prompt": f"{row['prompt']} {n}", "pad": "x" * 3000} for n, row in enumerate(ROWS * 40)]
    path = save("log", "".join(json.dumps(row) + "\n" for row in rows).encode())
    one, two = scan([path], Options(jobs=1)), scan([path], Options(jobs=2))
    assert (one.rows, one.lines, one.drops) == (two.rows, two.lines, two.drops)
    for (start, here), (other_start, there) in zip(one.windows, two.windows, strict=True):
        assert start == other_start
        assert here.sample == there.sample
        assert (here.rows, here.lengths, here.finishes) == (there.rows, there.lengths, there.finishes)
        assert here.hashes == there.hashes


def test_several_processes_measure_windows_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ("I'm sorry, I can't help. ", "As an AI, it depends. ", "again and again " * 40, "", "x" * 500)
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        for n in range(2400):
            time = f"2026-01-{1 + n // 240:02}T10:00:00Z"
            row = {"time": time, "prompt": f"p{n % 7} {n}", "output": f"{texts[n % 5]}answer {n}"}
            file.write(json.dumps(row | ({"finish_reason": "length"} if n % 3 else {})) + "\n")
    windows = scan([str(tmp_path / "log")], Options()).windows
    started: list[int] = []
    pool = multiprocessing.context.SpawnContext.Pool

    def counted(self: multiprocessing.context.SpawnContext, processes: int, first: Callable[[], None]) -> object:
        started.append(processes)
        return pool(self, processes, first)

    monkeypatch.setattr(multiprocessing.context.SpawnContext, "Pool", counted)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    one, two = measure_all(windows, 1), measure_all(windows, 2)
    assert started == [2]  # or the same branch was taken twice
    assert [sample.rows for sample in one] == [240] * 10
    assert one == two


def test_without_times_windows_are_counted_in_lines(save: Save) -> None:
    rows = [{"prompt": str(n), "output": f"answer {n}"} for n in range(950)]
    done = scan([save("log", "".join(json.dumps(row) + "\n" for row in rows).encode())], Options())
    assert [start for start, _ in done.windows] == [n * 100 for n in range(10)]
    assert any("no times" in note for note in done.notes)
    assert isinstance(done.windows, Windows)


def test_values_of_window() -> None:
    assert (window_unit("day"), window_unit("500")) == ("day", 500)
    for wrong in ("week", "0", "-5", "1.5", "", "٣"):
        with pytest.raises(UsageError, match="window"):
            window_unit(wrong)


def test_the_sample_is_seeded(save: Save) -> None:
    path = save("log", "".join(json.dumps({**ROWS[0], "output": f"a{n}"}) + "\n" for n in range(2000)).encode())
    first, again, other = (outputs(scan([path], Options(seed=seed))) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first) == 256


PIECES = [b"{", b"}", b"[", b"]", b'"', b"\\", b"\n", b",", b'"output":', b'"x"', b"data:", b"\xff", b"\xef\xbb\xbf"]
PIECES += [b"\xff\xfe", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b'.chunk"', TEXT.encode()[:300]]
WILD = st.binary(max_size=400) | st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
@given(content=WILD, kind=st.sampled_from([None, *FORMATS]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, kind: str | None) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    try:
        done = scan([str(path)], Options(format_name=kind, fields=Fields()))
    except SkillKDError:
        return
    assert done.rows > 0
    assert done.bad <= 0.05 * done.lines
    assert set(done.drops) <= {*DROPS, *BAD}
