"""benchmarks/soak.py finds what a run leaks, tried for seconds on programs that leak one thing each."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TRAINER = """
import os, signal, subprocess, sys, threading, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
os.mkdir("soak")
with open("soak/metrics.jsonl", "w") as file:
    file.write('{"event": "update"}\\n')
leak = {
    "nothing": lambda: None,
    "processes": lambda: subprocess.Popen(["sleep", "20"]),
    "threads": lambda: threading.Thread(target=time.sleep, args=(20,)).start(),
    "files": lambda: open(os.devnull),
    "bytes": lambda: bytearray(b"x") * (1 << 20),
}[sys.argv[1]]
kept = [bytearray(1 << 26)]  # much more than Python itself takes
while True:
    if (leaked := leak()) is not None:
        kept.append(leaked)
    time.sleep(0.1)
"""


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("soak")


@pytest.mark.parametrize("leak", ["nothing", "processes", "threads", "files", "bytes"])
def test_what_leaks_is_found(leak: str, soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = soak.soak([sys.executable, "-c", TRAINER, leak], tmp_path, seconds=4, every=0.05)
    names = {flaw.partition(":")[0] for flaw in found["flaws"]}
    assert found["updates"] == 1
    if leak == "nothing":
        assert names == set()
    elif leak == "processes":  # which hold threads and memory of their own, and are left behind
        assert names >= {"processes", "processes_left"}
    elif leak == "bytes":
        assert names == {"bytes", "in_use"}
    else:
        assert leak in names <= {leak, "bytes", "in_use"}


@pytest.mark.parametrize(("flaws", "code"), [([], 0), (["threads: 8 at least, 7 at most before"], 1)])
def test_the_exit_code_is_the_verdict(
    flaws: list[str], code: int, soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "soak", lambda *_: {"flaws": flaws, "samples": []})
    monkeypatch.setattr(sys, "argv", ["soak.py", "--out", str(tmp_path / "soak.json")])
    assert soak.main() == code
    assert json.loads((tmp_path / "soak.json").read_text())["flaws"] == flaws


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"exit_code": 0}, "exit_code: 0"),
        ({"processes_left": 1}, "processes_left: 1"),
        ({"partial_files_left": ["partial-1"]}, "partial_files_left: ['partial-1']"),
        ({"bytes_an_hour": [0, 0, 160_000_000]}, "bytes: rising by 3.6% an hour"),
        ({"least_in_use": [1000, 1000, 1021]}, "in_use: 1021 at least, 1000 before"),
    ],
)
def test_the_hour_that_is_kept_has_no_flaw_and_would_show_one(
    change: dict[str, object], flaw: str, soak: ModuleType
) -> None:
    kept = json.loads(soak.RESULTS.read_text(encoding="utf-8"))
    assert soak.flaws(kept) == []
    assert soak.flaws({**kept, **change}) == [flaw]
