"""references/reliability.md: every row of its tables names a test that exists, and every sort of fault has a row."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "references" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| fault |", "| input |"))]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_is_whole_and_names_a_test_that_exists(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert len(cells) in {3, 5}
    assert all(cells)
    found = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", cells[-1].rstrip(" |"))
    assert found is not None, cells[-1]
    tree = ast.parse((TESTS / found[1]).read_text(encoding="utf-8"))
    assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


SORTS = """kill -9|SIGTERM|disk fills|read-only|memory|no number|exploding|clock|two runs|tracker|changes under|torn
    |aliases|nested|links|pickled|trust_remote_code|keys"""


@pytest.mark.parametrize("fault", [sort.strip() for sort in SORTS.split("|")])
def test_every_sort_of_fault_has_a_row(fault: str) -> None:
    assert any(fault in row for row in ROWS)


def test_the_figures_are_those_of_the_study() -> None:
    study = json.loads((TESTS.parent / "benchmarks" / "results" / "kill.json").read_text(encoding="utf-8"))
    kills = [kill for run in study["runs"] for kill in run["kills"]]
    torn = sum(any(re.fullmatch(r"partial-\d+-\d+", name) for name in kill["unfinished"]) for kill in kills)
    assert f"has killed {len(study['runs'])} runs {len(kills)} times, {torn} of them while" in TEXT
    assert not any(run["differences"] for run in study["runs"])
    share = study["overhead"]["share"]
    assert f"cost {share:.1%}".replace("%", " %") in TEXT
    assert share < 0.03


def test_the_hour_is_told_as_it_was() -> None:
    soak = json.loads((TESTS.parent / "benchmarks" / "results" / "soak.json").read_text(encoding="utf-8"))
    text = " ".join(TEXT.split())
    most = soak["least_and_most"]["bytes"][1]
    second, third, last = (round(each / 1e6) for each in soak["bytes_an_hour"])
    assert f"for {soak['minutes']:g} minutes ({soak['updates']} updates" in text
    assert (
        f"by {second}, {third} and {last} MB an hour in the second, third and last quarter, to {most / 1e9:.2f} GB"
        in text
    )
    assert f"which had {soak['bytes_an_hour'][-1] / most:.1%}".replace("%", " %") in text
    least = [round(each / 1e6) for each in soak["least_in_use"]]
    assert f"The least in use was {least[0]}, {least[1]} and {least[2]} MB in these quarters" in text
    assert f"which had {least[2] / least[0] - 1:.1%}".replace("%", " %") in text


def test_the_reference_is_short_and_begins_with_its_contents() -> None:
    lines = TEXT.splitlines()
    assert len(lines) < 120
    titles = [line[3:] for line in lines if line.startswith("## ")]
    assert [re.sub(r"^- \[(.*)\]\(#.*$", r"\1", line) for line in lines if line.startswith("- [")] == titles
