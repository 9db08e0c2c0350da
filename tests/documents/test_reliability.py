"""references/reliability.md and the threats of SECURITY.md: each row names tests that exist, each sort has a row."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "references" / "reliability.md").read_text(encoding="utf-8")
SECURITY = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| fault |", "| input |"))]


@cache
def functions_of(file: str) -> set[str]:
    """The names of the functions of a test file; none where there is no such file."""
    path = next(TESTS.rglob(file), None)
    tree = ast.Module([], []) if path is None else ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def flaw(row: str, sizes: frozenset[int] = frozenset({3, 5})) -> str | None:
    """Return the problem of a row, or None. Its last cell has one test or more."""
    cells = [cell.strip() for cell in row.strip().removeprefix("|").removesuffix("|").split(" | ")]
    if len(cells) not in sizes:
        return f"{len(cells)} cells"
    if not all(cells):
        return "an empty cell"
    for each in cells[-1].split(", "):
        found = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", each.strip())
        if found is None:
            return f"{each} does not name a test"
        if found[2] not in functions_of(found[1]):
            return f"there is no {found[1]}::{found[2]}"
    return None


def test_a_row_is_whole_and_names_tests_that_exist() -> None:
    assert ROWS
    failures = [f"{row.split('|')[1].strip()}: {wrong}" for row in ROWS if (wrong := flaw(row)) is not None]
    assert not failures, "\n".join(failures)


def test_each_protection_against_a_threat_names_tests_that_exist() -> None:
    threats = SECURITY.partition("## Threats\n")[2].partition("\n##")[0]
    rows = [line for line in threats.splitlines() if line.startswith("| ") and not line.startswith("| threat |")]
    assert len(rows) > 10
    failures = [f"{row.split('|')[1].strip()}: {wrong}" for row in rows if (wrong := flaw(row, frozenset({4})))]
    assert not failures, "\n".join(failures)


SORTS = """kill -9|SIGTERM|disk fills|read-only|memory|NaN loss|exploding|clock|two runs|tracker|changes under|torn
    |aliases|nested|links|pickled|trust_remote_code|keys|closed stream|working folder|temporary files|launcher is killed
    |pipes|installed skill|quoted"""


def test_every_sort_of_fault_has_a_row() -> None:
    faults = [sort.strip() for sort in SORTS.split("|")]
    failures = [f"no row for {fault}" for fault in faults if not any(fault in row for row in ROWS)]
    assert not failures, "\n".join(failures)


def test_the_figures_are_those_of_the_study() -> None:
    study = json.loads((TESTS.parent / "benchmarks" / "results" / "kill.json").read_text(encoding="utf-8"))
    kills = [kill for run in study["runs"] for kill in run["kills"]]
    torn = sum(any(re.fullmatch(r"partial-\d+-\d+", name) for name in kill["unfinished"]) for kill in kills)
    assert f"has killed {len(study['runs'])} runs {len(kills)} times, {torn} of them while" in TEXT
    assert not any(run["differences"] for run in study["runs"])
    share = study["overhead"]["share"]
    assert f"cost {share:.1%}".replace("%", " %") in TEXT
    assert share < 0.03


def test_the_log_has_the_figures_of_the_damaged_files() -> None:
    study = json.loads((TESTS.parent / "benchmarks" / "results" / "damaged_files.json").read_text(encoding="utf-8"))
    log, total = (TESTS.parent / "dev" / "LOG.md").read_text(encoding="utf-8"), study["total"]
    assert total["crash"] == total["late"] == total["unnamed"] == 0
    assert f"Of {study['tried']:,} damages to files, none crashes" in log
    counts = (
        f"{total['refused']:,} were refused by name, {total['accepted']} accepted, and {total['missing']} named a model"
    )
    assert counts in " ".join(log.split())


def test_the_documented_hour_matches_the_result() -> None:
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
