"""dev/ARCHITECTURE.md is true: its names exist, and its cheap recipes work when they are followed in a copy."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
GUIDE = REPOSITORY / "dev" / "ARCHITECTURE.md"
TEXT = GUIDE.read_text(encoding="utf-8")
TEMPLATE = (REPOSITORY / "templates" / "transformers_trainer.py").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, f"no section '{title}'"
    return found


def steps(text: str) -> list[str]:
    """Return the numbered items of a text, each on one line, with single backticks."""
    items = re.findall(r"^\d\. (.*(?:\n(?!\d\. |\n).+)*)", text, re.MULTILINE)
    return [" ".join(item.split()).replace("``", "`") for item in items]


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_training_loop_is_two_clicks_from_the_readme() -> None:
    assert "](dev/ARCHITECTURE.md)" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "](../skill_kd/kd/train/loop.py)" in section("Reading order")


def test_every_link_leads_to_a_file_or_a_heading() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    lost = [
        link
        for link in links
        if not (link[1:] in headings if link.startswith("#") else (GUIDE.parent / link).is_file())
    ]
    assert not lost


def test_the_contents_list_every_section() -> None:
    titles = set(re.findall(r"^## (.+)$", TEXT, re.MULTILINE))
    listed = set(re.findall(r"\]\(#([\w-]+)\)", TEXT.partition("\n## ")[0]))
    assert listed == {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_a_script_and_the_guide_list_the_same_eight_steps() -> None:
    ours, theirs = steps(section("The life of an update")), steps(ast.get_docstring(ast.parse(TEMPLATE)) or "")
    assert len(theirs) == 8
    assert [item[: len(step)] for item, step in zip(ours, theirs, strict=True)] == theirs


def found(path: str) -> Path | None:
    """Return the file that a path of the guide means, or None."""
    places = [root / path for root in (REPOSITORY, REPOSITORY / "skill_kd")]
    return next((place for place in places if place.is_file()), None)


FILE = r"`([\w./-]+\.(?:py|sh|md|yml|yaml))`"
NAMES = re.compile(rf"{FILE}((?:(?:, | or | and )`[A-Za-z_][\w.]*`)+)")


def test_every_file_that_the_guide_names_exists() -> None:
    made = {"train.py", "spec.yaml", "launch.sh", "__init__.py"}
    paths = {path for path in re.findall(FILE, TEXT) if path not in made}
    assert len(paths) > 40
    assert not sorted(path for path in paths if found(path) is None)


def defined(path: Path) -> set[str]:
    """Return what a file defines at its top level, and the members of its classes as Class.member."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names |= set(_targets(node))
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each}" for inner in node.body for each in _targets(inner)}
    return names


def _targets(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (ast.unparse(target) for target in targets)


def test_every_name_that_follows_a_file_is_defined_there() -> None:
    pairs = [(path, name) for path, names in NAMES.findall(TEXT) for name in re.findall(r"`([\w.]+)`", names)]
    pairs = [(path, name) for path, name in pairs if path.endswith(".py") and not name.endswith((".py", ".md"))]
    assert len(pairs) > 30
    lost = [f"{path}: {name}" for path, name in pairs if (file := found(path)) is None or name not in defined(file)]
    assert not lost, "\n".join(lost)


def test_every_test_that_the_guide_names_exists() -> None:
    calls = re.findall(r"pytest (?:-n 0 )?(tests/[\w/.]+)(?: -k (\w+))?", TEXT)
    assert len(calls) > 8
    lost = []
    for path, word in calls:
        file = REPOSITORY / path
        tests = [name for name in defined(file) if name.startswith("test_")] if file.is_file() else []
        if not any(word in name for name in tests):
            lost.append(f"{path} -k {word}")
    assert not lost, "\n".join(lost)


def test_every_entry_of_the_log_has_a_date_and_the_newest_comes_first() -> None:
    titles = re.findall(r"^## (.*)$", (GUIDE.parent / "LOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    dates = [match[1] for title in titles if (match := re.fullmatch(r"(\d{4}-\d\d-\d\d): \S.+", title))]
    assert len(dates) == len(titles) > 30
    assert dates == sorted(dates, reverse=True)


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------


def event_rows() -> dict[str, set[str]]:
    table = TEXT.partition("### metrics.jsonl")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
    return {event: set(re.findall(r"`(\w+)`", keys)) for event, keys in rows}


def test_the_table_has_the_events_that_training_writes() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "skill_kd/kd/train").glob("*.py"))
    written = set(re.findall(r'\.(?:event|figures)\(\s*"(\w+)"', source))
    assert written == event_rows().keys()


def test_the_table_has_the_keys_of_a_real_run() -> None:
    path = REPOSITORY / "tests/data/run-0.1/runs/tiny/metrics.jsonl"
    rows, teachers = event_rows(), {f"teacher_{name}" for name in ("length", "repetition", "distinct_2", "ended")}
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        assert line.keys() - {"event", "time"} - teachers <= rows[line["event"]]


# --- recipes, followed in a copy --------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository without what the recipes do not read."""
    ignored = shutil.ignore_patterns("__pycache__", "data", "results")
    for folder in ("skill_kd", "templates", "examples", "references", "dev", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignored)
    shutil.copyfile(REPOSITORY / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )


def replace_once(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_add_a_spec_key(copy: Path) -> None:
    field = "    compile_loss: bool = False\n"
    added = '    new_key: float = 0.5\n    """Does nothing yet."""\n'
    replace_once(copy / "skill_kd/spec/running.py", field, added + field)
    for script, drifted in (("make_config.py", "config.py"), ("make_spec_reference.py", "spec.md")):
        checked = python(copy, f"dev/{script}", "--check")
        assert checked.returncode == 1
        assert f"{drifted} has drifted" in checked.stderr
    assert python(copy, "dev/make_config.py").returncode == 0
    reference = python(copy, "dev/make_spec_reference.py").stdout
    (copy / "references/spec.md").write_text(reference, encoding="utf-8")
    for script in ("make_config.py", "make_spec_reference.py"):
        assert python(copy, f"dev/{script}", "--check").returncode == 0
    assert "| `new_key` |" in reference
    shown = python(copy, "-c", "from skill_kd.kd.config import Training; print(Training().new_key)")
    assert shown.stdout == "0.5\n", shown.stderr


def run_test(copy: Path, path: str, word: str) -> str:
    """Return what a failing test of the copy says."""
    done = python(copy, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", path, "-k", word)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_add_an_objective(copy: Path) -> None:
    """The test that the recipe runs names every home that the new divergence lacks, and no other objective."""
    with (copy / "skill_kd/kd/losses/divergences.py").open("a", encoding="utf-8") as file:
        file.write('\n\nDIVERGENCES = {**DIVERGENCES, "new_kl": forward_kl}\n')
    said = run_test(copy, "tests/kd/train/test_objectives.py", "homes")
    lacking = set(re.findall(r"^E +(?:AssertionError: )?(\w+): add (.*)", said, re.MULTILINE))
    assert {kind for kind, _ in lacking} == {"new_kl"}
    assert any("a model to Objective in skill_kd/spec" in home for _, home in lacking)
    assert len(lacking) > 5


def test_add_a_launch_strategy(copy: Path) -> None:
    replace_once(copy / "skill_kd/spec/running.py", '"fsdp2", "deepspeed"]', '"fsdp2", "deepspeed", "new"]')
    said = run_test(copy, "tests/kd/train/test_strategy.py", "every_strategy")
    assert "kd/train/strategy.py: STRATEGIES has no class for ['new']" in said


def test_add_a_metric_of_the_gate(copy: Path) -> None:
    replace_once(
        copy / "skill_kd/evaluate/metrics.py",
        "KINDS = {\n",
        'KINDS = {\n    "new": Kind("", "value", "low", "share"),\n',
    )
    assert "'new'" in run_test(copy, "tests/evaluate/test_evaluate_metrics.py", "policy")
