"""references/diagnosis.md agrees with the code and with the measured rates."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from skill_kd.diagnose import FORMATS
from skill_kd.diagnose.changes.detectors import DETECTORS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "references" / "diagnosis.md").read_text(encoding="utf-8")


def test_the_generated_tables_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rates = importlib.import_module("diagnose_rates")
    assert rates.reference(TEXT) == TEXT, "run: python benchmarks/diagnose_rates.py --reference"


def test_it_is_short_and_its_links_work() -> None:
    assert len(TEXT.splitlines()) < 200
    anchors = {
        re.sub(r"[^\w -]", "", line[3:]).lower().replace(" ", "-") for line in TEXT.splitlines() if line[:3] == "## "
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) == anchors


def test_every_format_and_detector_is_named() -> None:
    assert all(f"`{name}`" in TEXT for name in FORMATS)
    assert all(detector.label.lower() in TEXT for detector in DETECTORS)
