"""Output to a terminal: hidden characters become escapes on every stream, and progress bars still work."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import unicodedata
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from skill_kd.kd import reporting
from skill_kd.kd.errors import BadInput
from skill_kd.kd.terminal import VisibleStream, visible

TEXT = st.text(st.characters(exclude_categories=["Cn", "Co"]))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m\x9d0;title\x9c", r"\x9b31m\x9d0;title\x9c"),
        ("safe\rGO\b\b\x7f\x00", r"safe\rGO\x08\x08\x7f\x00"),
        ("\u202egpj.exe\u202c \u2066a\u2069", r"\u202egpj.exe\u202c \u2066a\u2069"),
        ("\u200ea\u200f\u061c", r"\u200ea\u200f\u061c"),
        ("ad\u200bmin\u2060\ufeff\xad\u034f\u3164", r"ad\u200bmin\u2060\ufeff\xad\u034f\u3164"),
        ("\U000e0001\U000e0041\U000e007f", r"\U000e0001\U000e0041\U000e007f"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
        ("\udc9b", r"\udc9b"),
        ("ad\u200dmin \u200cx", r"ad\u200dmin \u200cx"),
        ("a\ufe00b", r"a\ufe00b"),
        ("\u845b\ufe0f\ufe01\U000e0101", "\u845b\ufe0f" + r"\ufe01\U000e0101"),
        ("\u845b\u200d\u200d", "\u845b\u200d" + r"\u200d"),
    ],
)
def test_hidden_characters_become_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "tab\tand\nnewline",
        "\N{FAMILY}\u200d\N{WOMAN} \N{HEAVY BLACK HEART}\ufe0f\u200d\N{FIRE} 1\ufe0f\N{COMBINING ENCLOSING KEYCAP}",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian with a non-joiner
        "\u0915\u094d\u200d\u0937",  # Hindi with a joiner
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d \u845b\U000e0100",
        "e\u0301 \xa0 \u3000 \ue0b0",
    ],
)
def test_legitimate_text_stays(text: str) -> None:
    assert visible(text) == text


@given(TEXT)
def test_no_control_and_no_bidi_character_is_left(text: str) -> None:
    shown = visible(text)
    hidden = {each for each in shown if unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"}} - {"\n", "\t"}
    bidi = {each for each in shown if unicodedata.bidirectional(each) in {"LRE", "RLE", "LRO", "RLO", "PDF", "BN"}}
    assert not hidden | bidi - {"\u200c", "\u200d"} | set("\u2066\u2067\u2068\u2069\u200e\u200f\u061c") & set(shown)
    assert visible(shown) == shown
    assert shown.encode().decode() == shown


# --- progress bars ----------------------------------------------------------------------------------------------------


class Writes(io.StringIO):
    """A stream that remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []

    def write(self, text: str) -> int:
        self.all.append(text)
        return super().write(text)


def test_bars_reach_the_terminal_as_they_are_and_the_note_between_them_does_not() -> None:
    tqdm_writes, note = Writes(), "note: \x1b[2J\rGO"
    bars = [tqdm(total=2, file=tqdm_writes, mininterval=0) for _ in range(2)]
    for bar in bars:
        bar.update(1)
    tqdm.write(note, file=tqdm_writes)
    for bar in reversed(bars):
        bar.close()
    assert {"\x1b[A", note} <= set(tqdm_writes.all)
    expected = "".join(visible(each) if each == note else each for each in tqdm_writes.all)
    output, copied = io.StringIO(), io.StringIO()
    VisibleStream(output).writelines(tqdm_writes.all)
    VisibleStream(copied).write_output(expected)
    assert output.getvalue() == copied.getvalue() == expected


class Screen:
    """A terminal that knows carriage return, newline and cursor up."""

    def __init__(self) -> None:
        self.lines: dict[int, dict[int, str]] = defaultdict(dict)
        self.row = self.column = 0

    def write(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[A|.", text, re.DOTALL):
            if piece == "\n":
                self.row, self.column = self.row + 1, 0
            elif piece == "\r":
                self.column = 0
            elif piece == "\x1b[A":
                self.row -= 1
            else:
                assert piece.isprintable()
                self.lines[self.row][self.column] = piece
                self.column += 1

    def shown(self) -> list[str]:
        return ["".join(line[column] for column in sorted(line)) for line in self.lines.values()]


HOSTILE = st.lists(st.sampled_from(["\n", "\r", "\x1b[A", "\x1b[A\x1b[A", "\rGO", "GO", "\r\n", "\x1b[2K", "", "\n\n"]))


@given(HOSTILE, HOSTILE)
def test_nothing_overwrites_a_message(before: list[str], after: list[str]) -> None:
    screen = Screen()
    stream = VisibleStream(screen)  # type: ignore[arg-type]
    for text in before:
        stream.write(text)
    stream.writelines(["\n", "error: the student fails", *after])
    stream.write_output("".join(after))
    assert any(line.startswith("error: the student fails") for line in screen.shown())


def test_a_second_argument_of_print_does_not_hide_the_first() -> None:
    output = io.StringIO()
    print("error:", "\rGO", "\x1b[A", file=VisibleStream(output))  # type: ignore[arg-type]
    assert output.getvalue() == "error: " + r"\rGO \x1b[A" + "\n"


# --- streams of a process ---------------------------------------------------------------------------------------------


def fail() -> None:
    print("prompt \x1b]0;x\x07")
    raise ValueError("\x9b31m")


def test_a_failing_trainer_shows_no_raw_character(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reporting.reporting():
        raise BadInput("'\x1b[31m\u202e.jsonl' is missing")
    with pytest.raises(SystemExit), reporting.reporting():
        fail()
    out, err = capsys.readouterr()
    assert r"prompt \x1b]0;x\x07" in out
    assert r"error: '\x1b[31m\u202e.jsonl' is missing" in err
    assert "Traceback" in err
    assert out + err == visible(out + err)


PROGRAM = """
import importlib.util, logging, sys
early = logging.getLogger("early")
early.addHandler(logging.StreamHandler())
source = importlib.util.spec_from_file_location("terminal", sys.argv[1])
terminal = importlib.util.module_from_spec(source)
source.loader.exec_module(terminal)
terminal.wrap_output()
early.warning("logged \\x1b[31m")
print("printed \\u202e \\udc9b")
assert getattr(sys.stdout, "buffer", None) is None
raise ValueError("raised \\x9b\\x07")
"""


def test_it_guards_a_process_that_has_only_this_file() -> None:
    path = Path(reporting.__file__).with_name("terminal.py")
    command = [sys.executable, "-I", "-c", PROGRAM, str(path)]
    done = subprocess.run(command, capture_output=True, check=False, env={"PYTHONIOENCODING": "utf-8:surrogateescape"})
    assert done.stdout.decode() == "printed \\u202e \\udc9b\n"
    assert r"logged \x1b[31m" in done.stderr.decode()
    assert r"ValueError: raised \x9b\x07" in done.stderr.decode()
