"""Generated documents have not drifted from the code. test_docs.py follows the links."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest

from skill_kd.evaluate.metrics import KINDS
from skill_kd.evaluate.policy import GatePolicy
from skill_kd.guidance import CHOICES, advise
from skill_kd.spec import OBJECTIVE_KINDS, Divergence, MiniLLM, Objective, Rollout, Section, Spec

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "dev" / "make_spec_reference.py"
REFERENCE = REPOSITORY / "references" / "spec.md"


def make(*arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, check=False)


def test_the_reference_of_the_spec_has_not_drifted() -> None:
    done = make()
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == REFERENCE.read_bytes(), "run: python dev/make_spec_reference.py > references/spec.md"


def test_check_reports_drift_by_its_exit_code(tmp_path: Path) -> None:
    script, copy = tmp_path / "dev" / SCRIPT.name, tmp_path / "references" / "spec.md"
    script.parent.mkdir()
    copy.parent.mkdir()
    script.write_bytes(SCRIPT.read_bytes())
    assert b"has drifted" in make("--check", script=script).stderr
    copy.write_bytes(REFERENCE.read_bytes())
    assert make("--check", script=script).returncode == 0
    copy.write_bytes(REFERENCE.read_bytes() + b"\n")
    assert make("--check", script=script).returncode == 1


def keys() -> set[str]:
    found: set[str] = set()
    waiting: list[type[Section]] = [Section]
    while waiting:
        model = waiting.pop()
        found |= model.model_fields.keys()
        waiting += [child for child in model.__subclasses__() if child.__module__.startswith(Spec.__module__)]
    return found - {"kind"}


def test_every_key_has_a_row() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert keys()
    failures = [f"no row for {key}" for key in sorted(keys()) if f"\n| `{key}` | " not in text]
    assert not failures, "\n".join(failures)


def test_every_row_of_every_table_is_whole() -> None:
    rows = [line for line in REFERENCE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 4, row
        assert all(cells), row


@pytest.mark.parametrize("name", ["spec.md", "objectives.md"])
def test_no_two_headings_share_an_anchor(name: str) -> None:
    text = (REPOSITORY / "references" / name).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert len({re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}) == len(headings)


def test_a_long_reference_begins_with_its_contents() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(REFERENCE.parent.glob("*.md"))}
    assert texts
    failures = []
    for name, text in texts.items():
        if len(text.splitlines()) > 100:
            titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
            listed = re.findall(r"^- \[(.+?)\]\(#", text.partition("\n## ")[0], re.MULTILINE)
            if listed != titles:
                failures.append(f"{name}: lists {listed} and has {titles}")
    assert not failures, "\n".join(failures)


def test_every_metric_of_the_gate_has_a_row() -> None:
    text = (REFERENCE.parent / "evaluation.md").read_text(encoding="utf-8")
    table = text.partition("\n## What is measured\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)))
    assert sorted(named) == sorted(KINDS)
    assert f"the margin is {GatePolicy().rules.kl_ratio.margin:g}" in table


def test_every_objective_stands_with_its_equation_or_its_paper() -> None:
    objectives = REFERENCE.read_text(encoding="utf-8").partition("## Objectives")[2].split("\n### kind: ")[1:]
    assert len(objectives) == len(OBJECTIVE_KINDS)
    for text in objectives:
        assert re.search(r"arXiv \d{4}\.\d{5}|Σ", text), text


# --- objectives.md ----------------------------------------------------------------------------------------------------

OBJECTIVES_SCRIPT = REPOSITORY / "dev" / "make_objectives_reference.py"
OBJECTIVES = REPOSITORY / "references" / "objectives.md"


def objectives() -> str:
    return OBJECTIVES.read_text(encoding="utf-8")


def rows_of(text: str, key: str) -> list[list[str]]:
    """Return the cells of each table row that begins with ``key``."""
    rows = [line for line in text.splitlines() if line.startswith(f"| `{key}` |")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def section(title: str) -> str:
    return objectives().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_generated_parts_have_not_drifted_and_are_made_anew_where_they_have(tmp_path: Path) -> None:
    script = tmp_path / "dev" / OBJECTIVES_SCRIPT.name
    script.parent.mkdir()
    (tmp_path / "references").mkdir()
    script.write_bytes(OBJECTIVES_SCRIPT.read_bytes())
    drifted = re.sub(r"(?m)^\| Single .*$", "| stale |", objectives())
    assert drifted != objectives()
    copy = tmp_path / "references" / "objectives.md"
    copy.write_text(drifted, encoding="utf-8")
    assert make(script=script).returncode == 0
    again = "run: python dev/make_objectives_reference.py"
    assert copy.read_text(encoding="utf-8") == objectives(), again
    assert (copy.parent / "directions.svg").read_bytes() == (OBJECTIVES.parent / "directions.svg").read_bytes(), again
    assert sorted(path.name for path in copy.parent.iterdir()) == ["directions.svg", "objectives.md"]


def test_the_check_of_the_generated_parts_names_what_has_drifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(OBJECTIVES_SCRIPT))["main"]
    for name in ("objectives.md", "directions.svg"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    # The real parts take ten seconds, and the test above has them.
    monkeypatch.setitem(main.__globals__, "REFERENCES", tmp_path)
    monkeypatch.setitem(main.__globals__, "document", str.upper)
    monkeypatch.setitem(main.__globals__, "picture", lambda: "old")
    monkeypatch.setattr(sys, "argv", ["make", "--check"])
    assert main() == 1
    assert capsys.readouterr().err == (
        "error: references/objectives.md has drifted; run: python dev/make_objectives_reference.py\n"
    )
    (tmp_path / "objectives.md").write_text("OLD", encoding="utf-8")
    assert main() == 0


def test_the_check_of_the_directions_is_ten_lines_and_prints_the_right_ones() -> None:
    """Forward KL puts one Gaussian between two modes, wide; reverse KL puts it on the larger one, as narrow as that."""
    found = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", objectives(), re.DOTALL)
    assert found is not None
    assert len(found[1].splitlines()) == 10
    printed = re.findall(r"(\w+) KL: center (-?[\d.]+), width ([\d.]+)", found[2])
    figures = {name: (float(center), float(width)) for name, center, width in printed}
    assert abs(figures["forward"][0]) < 2
    assert figures["forward"][1] > 3
    assert figures["reverse"] == pytest.approx((-4, 1), abs=0.1)


def test_the_drawing_stands_alone_and_loads_nothing() -> None:
    drawing = ElementTree.parse(OBJECTIVES.parent / "directions.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    text = (OBJECTIVES.parent / "directions.svg").read_text(encoding="utf-8")
    assert not re.search(r"href|<script|<style|url\(", text)
    assert {"KL(teacher ‖ student)", "KL(student ‖ teacher)"} <= set(re.findall(r"KL\([^)]+\)", text))


def test_every_objective_has_a_row_with_its_default_source() -> None:
    text, kinds = section("All objectives"), get_args(get_args(Objective)[0])
    assert kinds
    failures = []
    for kind in kinds:
        name = kind.model_fields["kind"].default
        rows = rows_of(text, name)
        if len(rows) != 1:
            failures.append(f"{name}: has {len(rows)} rows")
        elif len(rows[0]) != 4 or not all(rows[0]):
            failures.append(f"{name}: {rows[0]} is not four filled cells")
        elif issubclass(kind, Divergence):
            share = f"`on_policy: {kind.model_fields['on_policy'].default:g}`"
            if share not in rows[0][2]:
                failures.append(f"{name}: no {share} in '{rows[0][2]}'")
    assert not failures, "\n".join(failures)


EXACTNESS = {
    **{name: MiniLLM.model_fields[name].description for name in MiniLLM.model_fields if name != "kind"},
    **{f"rollout.{name}": Rollout.model_fields[name].description for name in ("temperature", "top_p", "inner_epochs")},
}


def mislabelled(option: str) -> Iterator[str]:
    """Yield the problems in the rows of one option of MiniLLM."""
    text, description = section("MiniLLM: what is exact and what is not"), (EXACTNESS[option] or "").lower()
    for key in ("estimator: exact", "estimator: paper") if option == "estimator" else (option,):
        rows = rows_of(text, key)
        if len(rows) != 1 or len(rows[0]) != 3:
            yield f"{key}: {rows} is not one row of three cells"
            continue
        [(_, label, why)] = rows
        if label not in {"exact", "heuristic"}:
            yield f"{key}: '{label}' is neither 'exact' nor 'heuristic'"
        if label not in description:
            yield f"{key}: the description of {option} does not say '{label}'"
        if not why:
            yield f"{key}: no reason is given"


def test_every_option_of_minillm_is_labeled_alike_here_and_in_the_spec() -> None:
    assert EXACTNESS
    failures = [failure for option in EXACTNESS for failure in mislabelled(option)]
    assert not failures, "\n".join(failures)


def test_the_choice_of_an_objective_is_documented_once() -> None:
    """The table of guidance decides. The evidence next to it may not name a choice that the table lacks."""
    text = section("Which one when")
    assert "(../SKILL.md#which-objective)" in text
    chosen = {str(each["kind"]) for choice in CHOICES for each in (choice.objective, choice.alternative) if each}
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(Objective)[0])}
    assert set(re.findall(r"`(\w+)`", text)) & kinds <= chosen
    warm = {str(advise(teacher=teacher).skeleton["stages"][0]["objective"]["kind"]) for teacher in ("logits", "served")}
    assert warm == {"forward_kl", "sequence_kd"}, "the section names what a warm start is"


def test_the_objectives_are_short_and_begin_with_their_contents() -> None:
    lines = objectives().splitlines()
    assert len(lines) < 240
    titles = [line[3:] for line in lines if line.startswith("## ")]
    assert [re.sub(r"^- \[(.*)\]\(.*$", r"\1", line) for line in lines if line.startswith("- [")] == titles


@pytest.mark.parametrize(
    "script",
    [
        "make_skill.py",
        "make_measured.py",
        "make_scaling.py",
        "make_growth.py",
        "make_verb_growth.py",
        "make_honesty.py",
        "make_estimators.py",
        "make_objectives.py",
        "make_models.py",
    ],
)
def test_a_generated_table_is_what_its_script_makes(script: str) -> None:
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, str(Path("dev", script)), "--check"], cwd=root, check=False).returncode == 0


def measured(document: str) -> list[str]:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    table = text.partition("<!-- generated: measured -->\n")[2].partition("<!-- end: measured -->")[0]
    return table.splitlines()[2:]


def test_the_readme_shows_five_rows_of_the_table_of_all_measurements() -> None:
    rows = measured("README.md")
    assert len(rows) == 5
    assert set(rows) < set(measured("benchmarks/README.md"))
