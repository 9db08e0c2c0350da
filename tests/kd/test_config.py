"""kd.config: the dataclasses are those of the spec, read what it resolves to, and cannot change."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from skill_kd.kd import config
from skill_kd.kd.config import Config, Distill
from skill_kd.render import config_literal, examples_folder
from skill_kd.spec import Section, Spec, all_kinds
from skill_kd.spec.file import load_spec, parse_spec
from skill_kd.testing import minimal_spec

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = sorted(examples_folder().glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_read_from_json_is_what_the_literal_spells(path: Path, tmp_path: Path) -> None:
    spec = load_spec(path)
    resolved = tmp_path / "spec.json"
    resolved.write_text(json.dumps(spec.model_dump(mode="json")))
    names = dict(vars(config))
    exec(config_literal(spec), names)
    assert Config.read(resolved) == names["CONFIG"]


@pytest.mark.parametrize("section", all_kinds(), ids=lambda section: section.__name__)
def test_defaults_are_those_of_the_spec(section: type[Section]) -> None:
    ours, theirs = getattr(config, section.__name__)(), section()
    assert {each.name: getattr(ours, each.name) for each in fields(ours)}.keys() == section.model_fields.keys()
    assert type(ours).of(theirs.model_dump(mode="json")) == ours


def test_a_kind_chooses_its_class() -> None:
    values = minimal_spec().model_dump(mode="json")
    stages = [{"kind": "warm_start"}, {"kind": "distill", "objective": {"kind": "jsd"}}, {"kind": "self_train"}]
    spec = parse_spec({**values, "stages": stages, "teacher": {"model": [{"model": "a"}]}})
    read = Config.of(spec.model_dump(mode="json"))
    assert read.stages == (config.WarmStart(), Distill(objective=config.JSD()), config.SelfTrain())
    assert read.teacher.model == (config.WeightedModel(model="a"),)


def test_nothing_of_it_changes() -> None:
    read = Config.of(minimal_spec().model_dump(mode="json"))
    with pytest.raises(AttributeError, match="frozen; edit 'name' where it is written"):
        read.name = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen; edit 'updates' where it is written"):
        read.stages[0].updates = 7  # type: ignore[misc, union-attr]
    with pytest.raises(AttributeError, match="frozen; 'seed' cannot be deleted"):
        del read.seed
    assert read == Config.of(minimal_spec().model_dump(mode="json"))


def test_an_unknown_key_and_a_missing_one_are_refused() -> None:
    with pytest.raises(TypeError, match="updatess"):
        Distill.of({"updatess": 1})
    with pytest.raises(TypeError, match="teacher"):
        Config.of({"name": "tiny"})


@pytest.mark.parametrize("text", ["[]", "1", "null"])
def test_a_file_that_is_not_an_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="not a JSON object"):
        Config.read(path)


def test_the_generated_part_has_not_drifted_and_check_reports_drift(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("generated.py", "make_config.py"):
        (tmp_path / "dev" / name).write_bytes((REPOSITORY / "dev" / name).read_bytes())
    copy = tmp_path / "skill_kd" / "kd" / "config.py"
    copy.parent.mkdir(parents=True)

    def check() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "dev" / "make_config.py"), "--check"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    shipped = Path(config.__file__).read_text(encoding="utf-8")
    copy.write_text(shipped, encoding="utf-8")
    assert check().returncode == 0, check().stderr
    copy.write_text(shipped.replace("updates: int = 500", "updates: int = 501"), encoding="utf-8")
    assert "has drifted" in check().stderr


def test_it_needs_the_standard_library_alone() -> None:
    tree = ast.parse(Path(config.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    named = [alias.name for node in imports for alias in node.names if isinstance(node, ast.Import)]
    named += [node.module or "." for node in imports if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in named} <= sys.stdlib_module_names


def test_every_key_of_a_spec_is_a_field() -> None:
    assert {each.name for each in fields(Config)} == Spec.model_fields.keys()
