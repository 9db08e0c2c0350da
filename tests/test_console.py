"""Streams and the working folder of every verb: closed, full or removed, they cost one message at most."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from skill_kd.testing import minimal_spec

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a POSIX shell redirects the streams")
FULL = "error: cannot write to stdout: No space left on device; fix that, and call this again\n"
NO_FOLDER = "error: the working folder cannot be used: No such file or directory; change to another one\n"
STREAMS = """\
import os, stat
from skill_kd.cli import main
assert main(["--version"]) == 0
assert all(stat.S_ISCHR(os.fstat(number).st_mode) for number in range(3))
"""


PYTHON = shlex.quote(sys.executable)


def shell(line: str, folder: Path) -> tuple[int, str]:
    """Run a line in a shell. Return its exit code and its stderr."""
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("validate spec.yaml >&-", 0, ""),
        ("validate absent.yaml --json 2>&-", 2, ""),
        ("validate spec.yaml --json > /dev/full", 2, FULL),
        ("validate absent.yaml --json > /dev/full 2> /dev/full", 2, ""),
        ("--help > /dev/full", 2, FULL),
        ("nonsense 2> /dev/full", 2, ""),
    ],
)
def test_a_stream_that_cannot_be_written_costs_one_message_at_most(
    line: str, code: int, said: str, tmp_path: Path
) -> None:
    if "full" in line and not Path("/dev/full").exists():
        pytest.skip("no full device here")
    (tmp_path / "spec.yaml").write_text(json.dumps(minimal_spec().model_dump(mode="json")))
    assert shell(f"{PYTHON} -m skill_kd {line}", tmp_path) == (code, said)


def test_no_file_can_take_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Otherwise it would receive what a library prints."""
    assert shell(f"{PYTHON} -c {shlex.quote(STREAMS)} <&- >&- 2>&-", tmp_path) == (0, "")


def test_a_removed_working_folder_is_one_message(tmp_path: Path) -> None:
    code, said = shell(f"mkdir gone && cd gone && rmdir ../gone && {PYTHON} -m skill_kd schema", tmp_path)
    assert (code, said[said.index("error: ") :]) == (2, NO_FOLDER)
    assert "Traceback" not in said
