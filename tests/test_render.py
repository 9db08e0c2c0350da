"""Rendering: values arrive as data, nothing else of the template changes, and a script knows where it comes from."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skill_kd import __version__
from skill_kd.backends.transformers import TransformersBackend
from skill_kd.errors import SkillKDError, SpecError, UsageError
from skill_kd.jobs.folder import write_folder
from skill_kd.render import (
    config_literal,
    examples_folder,
    files_hash,
    fill,
    is_edited,
    kd_files,
    read_config,
    read_requirements,
    read_stamp,
    render,
    templates_folder,
)
from skill_kd.spec import Distill, ForwardKL, Spec
from skill_kd.spec.file import load_spec, parse_spec
from skill_kd.testing import FakeBackend, minimal_spec

TEMPLATE = '''"""A template. It says so, and mentions the mark:

from skill_kd.kd.config import this is not an import

# kd: config
"""

import sys

from skill_kd.kd.config import Config
from skill_kd.kd.losses.masking import (
    response_mask,
)

CONFIG = Config.read(sys.argv[1])  # kd: config
TEXT = "from skill_kd.kd import nothing  # kd: config"


def main() -> None:
    """Show it."""
    from skill_kd.kd import config as late

    print(CONFIG.name, sys.argv, late, response_mask, "\\u00e9 é")


if __name__ == "__main__":
    main()
'''
IMPORT = "from skill_kd.kd.config import Config\n"
HOSTILE = [
    '"""; import os #',
    "'''; import os #",
    '"); import os; ("',
    "\\",
    '\\"',
    "\\'\"",
    "a\nb\r\nc\x0bd\x0ce",
    "# kd: config",
    "{{x}} {x} %s $x",
    "\x00",
    "\u2028\u2029\x85",
    "\u202e drow \u200b\ufeff",
    "Κ аdmin",
    "😀",
    "\ud800 lone",
    "x" * 300,
    "/// script",
]


class Pinned(FakeBackend):
    requirements = ("torch==2.13.0", "odd ; python_version < '4'")


BACKEND = Pinned()
SECTIONS = [
    "Checkpoint",
    "Config",
    "Data",
    "Distill",
    "Evaluation",
    "Launch",
    "MiniLLM",
    "Rollout",
    "Student",
    "Teacher",
    "Training",
]
"""Those of the minimal spec."""
text = st.text(st.characters(exclude_categories=()), min_size=1)


def spec_with(**data: object) -> Spec:
    return minimal_spec().model_copy(update={"data": minimal_spec().data.model_copy(update=data)})


def body(script: str) -> str:
    """Return the script after its header."""
    return script.split("\n# ///\n\n", 1)[1]


def outside_config(script: str) -> list[str]:
    """The lines of a rendered body without its CONFIG statement."""
    lines = body(script).split("\n")
    nodes = [node for node in ast.parse(body(script)).body if isinstance(node, ast.Assign)]
    [config] = [node for node in nodes if ast.unparse(node.targets[0]) == "CONFIG"]
    return lines[: config.lineno - 1] + lines[config.end_lineno :]


def names_imported_from_config(script: str) -> list[str]:
    tree = ast.parse(script)
    [imported] = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "kd.config"]
    return [alias.name for alias in imported.names]


# --- values -----------------------------------------------------------------------------------------------------------


@given(train=text, held_out=text, revision=text)
@settings(max_examples=150, deadline=None)
@example(train=HOSTILE[0], held_out=HOSTILE[6], revision=HOSTILE[14])
def test_any_text_reaches_the_script_as_data_and_as_nothing_else(train: str, held_out: str, revision: str) -> None:
    spec = spec_with(train=train, held_out=held_out)
    spec = spec.model_copy(update={"teacher": spec.teacher.model_copy(update={"revision": revision})})
    script = fill(TEMPLATE, spec, BACKEND)
    config = read_config(script)
    assert config == spec.model_dump(mode="json")
    plain = fill(TEMPLATE, minimal_spec(), BACKEND)
    assert outside_config(script) == outside_config(plain)
    assert {line.split(" = ")[0] for line in script.split("\n# ///\n")[0].split("\n")} == {
        line.split(" = ")[0] for line in plain.split("\n# ///\n")[0].split("\n")
    }


def misspelled(value: str) -> Iterator[str]:
    """Yield the problems in the literal of a config with ``value``."""
    literal = config_literal(spec_with(train=value))
    if not literal.isascii():
        yield "the literal is not ASCII"
    if not all(character.isprintable() or character == "\n" for character in literal):
        yield "the literal has characters that cannot be seen"
    try:
        tree = ast.parse(literal)
    except (SyntaxError, ValueError) as error:
        yield f"the literal is not Python: {error}"
        return
    if len(tree.body) != 1:
        yield f"the literal is {len(tree.body)} statements"
    nodes = [node for statement in tree.body for node in ast.walk(statement)]
    plain = {ast.Assign, ast.Name, ast.Store, ast.Load, ast.Call, ast.keyword, ast.Constant, ast.Tuple, ast.Dict}
    if others := {type(node).__name__ for node in nodes if type(node) not in plain}:
        yield f"the literal has nodes of {sorted(others)}"
    if (called := {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}) != {*SECTIONS}:
        yield f"the literal calls {sorted(called)}"
    if value not in [node.value for node in nodes if isinstance(node, ast.Constant)]:
        yield "the value is not in the literal"


def test_a_hostile_value_is_spelled_in_visible_ascii() -> None:
    assert HOSTILE
    failures = [f"{value!a}: {failure}" for value in HOSTILE for failure in misspelled(value)]
    assert not failures, "\n".join(failures)


def test_the_script_that_runs_sees_the_very_value(tmp_path: Path) -> None:
    template = "from skill_kd.kd.config import Config\n\nCONFIG = Config.of({})  # kd: config\n"
    values = "".join(HOSTILE)
    script = tmp_path / "train.py"
    (tmp_path / "kd").mkdir()
    (tmp_path / "kd" / "config.py").write_bytes(kd_files()["config.py"])
    script.write_text(fill(template + "print(ascii(CONFIG.data.train))\n", spec_with(train=values), BACKEND))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == values


def test_numbers_keep_their_value_and_kind() -> None:
    values = {
        **minimal_spec().model_dump(mode="json"),
        "training": {"learning_rate": 1.5e-7, "max_grad_norm": 1e300, "betas": [0.1, 0.30000000000000004]},
        "stages": [{"kind": "distill", "updates": 10**12}],
    }
    spec = parse_spec(values)
    config = read_config(fill(TEMPLATE, spec, BACKEND))
    assert parse_spec(config) == spec
    assert json.dumps(config, sort_keys=True) == json.dumps(spec.model_dump(mode="json"), sort_keys=True)


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_number_that_is_none_is_refused(number: float) -> None:
    training = minimal_spec().training.model_copy(update={"learning_rate": number})
    with pytest.raises(SpecError, match="finite"):
        config_literal(minimal_spec().model_copy(update={"training": training}))


# --- the template -----------------------------------------------------------------------------------------------------


def test_a_script_imports_the_sections_that_it_names_as_ruff_sorts_them() -> None:
    values = minimal_spec().model_dump(mode="json")
    stages = [{"kind": "warm_start"}, {"kind": "distill", "objective": {"kind": "jsd"}}, {"kind": "self_train"}]
    spec = parse_spec({**values, "stages": stages, "handoff": {}})
    script = fill(TEMPLATE, spec, BACKEND)
    assert names_imported_from_config(script) == [
        *("JSD", "Checkpoint", "Config", "Data", "Distill", "Evaluation", "Handoff", "Launch", "Rollout"),
        *("SelfTrain", "Sft", "Student", "Teacher", "Training", "WarmStart"),
    ]


def test_only_the_marked_line_and_our_imports_change() -> None:
    template = TEMPLATE.split("\n")
    marked = template.index("CONFIG = Config.read(sys.argv[1])  # kd: config")
    expected = template[:marked] + template[marked + 1 :]
    changed = {
        line: line.replace("skill_kd.kd", "kd") for line in expected if re.match(r"\s*from skill_kd\..*import", line)
    }
    docstring = "from skill_kd.kd.config import this is not an import"
    assert len(changed) == 4
    expected = [line if line == docstring else changed.get(line, line) for line in expected]
    sections = expected.index("from kd.config import Config")
    expected[sections : sections + 1] = ["from kd.config import (", *(f"    {name}," for name in SECTIONS), ")"]
    assert outside_config(fill(TEMPLATE, minimal_spec(), BACKEND)) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("CONFIG = 1\n", "found 0"),
        ("# kd: config\nCONFIG = 1\n", "exactly one line"),
        ("CONFIG = 1  # kd: config\nOTHER = 1  # kd: config\n", "found 2"),
        ("OTHER = 1  # kd: config\n", "exactly one line"),
        ("def f():\n    CONFIG = 1  # kd: config\n", "exactly one line"),
        ("CONFIG = (  # kd: config\n    1\n)\n", "exactly one line"),
        ("CONFIG = 1  # kd: config\n", "from skill_kd.kd.config import Config"),
        (f"{IMPORT}CONFIG = 1  # kd: config\nfrom skill_kd.render import fill\n", "needs skill_kd"),
        (f"{IMPORT}CONFIG = 1  # kd: config\nimport skill_kd\n", "needs skill_kd"),
        (f"{IMPORT}CONFIG = 1  # kd: config\nimport skill_kd.kd.errors\nskill_kd.kd.errors.x\n", "needs skill_kd"),
    ],
)
def test_a_template_that_breaks_the_contract_is_refused_by_name(tmp_path: Path, template: str, reason: str) -> None:
    path = tmp_path / "odd.py"
    path.write_text(template)
    with pytest.raises(SkillKDError, match=rf"^odd\.py: .*{reason}"):
        render(path, minimal_spec(), BACKEND)


def test_rendering_twice_gives_the_same_text(tmp_path: Path) -> None:
    path = tmp_path / "template.py"
    path.write_text(TEMPLATE, encoding="utf-8")
    assert render(path, minimal_spec(), BACKEND) == render(path, minimal_spec(), BACKEND)
    assert render(path, minimal_spec(), BACKEND) == fill(TEMPLATE, minimal_spec(), BACKEND)


# --- header and stamp -------------------------------------------------------------------------------------------------


def test_the_header_says_what_the_script_needs_and_where_it_comes_from() -> None:
    spec = minimal_spec()
    script = fill(TEMPLATE, spec, BACKEND)
    stamp = read_stamp(script)
    assert read_requirements(script) == list(BACKEND.requirements)
    assert (stamp.version, stamp.backend, stamp.backend_version) == (__version__, "fake", BACKEND.version)
    assert stamp.spec == spec.hash
    assert stamp.kd == files_hash(kd_files())
    assert ast.get_docstring(ast.parse(script)) == ast.get_docstring(ast.parse(TEMPLATE))
    assert read_stamp(fill(TEMPLATE + "\n", spec, BACKEND)).template != stamp.template


@pytest.mark.parametrize(
    ("old", "new", "edited"),
    [
        ("", "", False),
        ("Show it", "Show It", True),
        ("torch==2.13.0", "torch==2.12.0", True),
        ('name="minimal"', 'name="other"', True),
        ('"""A template', '\n"""A template', True),
        ("# /// script", "# /// Script", True),
        ("# body", "# Body", True),
    ],
)
def test_an_edit_anywhere_shows(old: str, new: str, edited: bool) -> None:
    assert is_edited(fill(TEMPLATE, minimal_spec(), BACKEND).replace(old, new, 1)) is edited


@pytest.mark.parametrize(
    "script",
    [
        "",
        "print()\n",
        "# /// script\n# dependencies = [\n# ///\n",
        '# /// script\n# requires-python = ">=3.11"\n# ///\n',
        '# /// script\n# [tool.skill-kd]\n# version = "1"\n# ///\n',
        '# /// script\n# [tool]\n# skill-kd = "1"\n# ///\n',
        "# /// script\nprint()\n# ///\n",
        "# /// script\n" * 100_000,  # the search for the end is linear in it
    ],
)
def test_a_script_without_a_whole_stamp_is_refused(script: str) -> None:
    assert is_edited(script)
    with pytest.raises(UsageError, match="generate"):
        read_stamp(script)


# --- reading CONFIG back ----------------------------------------------------------------------------------------------


def test_an_edited_config_is_read_unchanged() -> None:
    script = fill(TEMPLATE, minimal_spec(), BACKEND).replace("updates=500", "updates=7")
    assert parse_spec(read_config(script)).stages[0].updates == 7  # type: ignore[union-attr]


def test_the_name_of_a_section_says_its_kind() -> None:
    config = config_literal(minimal_spec())
    assert "kind=" not in config
    edited = re.sub(r"MiniLLM\(.*?\)", "ForwardKL(temperature=2.0)", config, flags=re.DOTALL)
    [stage] = parse_spec(read_config(edited)).stages
    assert stage == Distill(objective=ForwardKL(temperature=2.0))


def test_options_of_a_chat_template_are_a_mapping_and_come_back() -> None:
    spec = spec_with(chat_template_options={"enable_thinking": False, "_": "x" * 120})
    assert read_config(config_literal(spec)) == spec.model_dump(mode="json")


def test_a_script_of_version_0_1_is_read() -> None:
    run = Path(__file__).parent / "data" / "run-0.1" / "runs" / "tiny"
    script = (run / "train.py").read_text(encoding="utf-8")
    assert parse_spec(read_config(script)) == load_spec(run / "spec.yaml")
    spelled = script.replace("options=Config()", "options=Config(enable_thinking=False)")
    assert parse_spec(read_config(spelled)).data.chat_template_options == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "0 statements"),
        ("CONFIG = Config()\nCONFIG = Config()", "2 statements"),
        ("CONFIG = Config(", "never closed"),
        ("CONFIG = {}", "not Config"),
        ("CONFIG = Config(1)", "not Config"),
        ("CONFIG = Distill(updates=1)", "not Config"),
        ("CONFIG = Config(name=open('x'))", "not a section"),
        ("CONFIG = Config(name=Config.read('x'))", "not a section"),
        ("CONFIG = Config(teacher=Teacher('x'))", "not a section"),
        ("CONFIG = Config(name=f'{x}')", "malformed node"),
        ("CONFIG = Config(name=1 if x else 2)", "malformed node"),
    ],
)
def test_a_config_of_more_than_literals_is_refused_and_never_run(config: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"CONFIG in mine\.py: .*{reason}"):
        read_config(config, "mine.py")


# --- what ships -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bound",
    ["from skill_kd.kd.teacher.teacher import Teacher", "class Teacher:\n    pass", "Teacher = 1", "import Teacher"],
)
def test_a_template_that_takes_the_name_of_a_section_is_refused(bound: str) -> None:
    template = f"from skill_kd.kd.config import Config\n{bound}\nCONFIG = Config.read('x')  # kd: config\n"
    with pytest.raises(SkillKDError, match="binds Teacher, which CONFIG needs"):
        fill(template, minimal_spec(), BACKEND)


def test_templates_and_examples_are_found() -> None:
    assert templates_folder().name == "templates"
    assert examples_folder().name == "examples"


def test_kd_is_a_copy_byte_for_byte() -> None:
    package = Path(sys.modules["skill_kd"].__file__ or "").parent
    files = kd_files()
    assert files == {
        path.relative_to(package / "kd").as_posix(): path.read_bytes() for path in (package / "kd").rglob("*.py")
    }
    assert {"__init__.py", "config.py", "train/loop.py", "losses/divergences.py"} <= files.keys()


def ruff(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length", "120", "train.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def assert_ruff_is_content(folder: Path) -> None:
    for arguments in (["format", "--check", "--diff"], ["check", "--select", "E,F,W,I,UP,B,SIM,RUF100"]):
        done = ruff(folder, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_rendered_script_of_any_shape_is_formatted_and_lint_free(tmp_path: Path) -> None:
    values = {
        **minimal_spec().model_dump(mode="json"),
        "name": "n" * 64,
        "teacher": {"model": [{"model": f"organization/model-{n}", "weight": n / 3 + 1e-9} for n in range(5)]},
        "student": {"model": 'it\'s "quoted" \\ "twice" \u200b \x7f\xe9', "lora": {"targets": ["q_proj"]}},
        "data": {"train": "long " * 20, "held_out": 'one "quote" more'},
        "stages": [
            {"kind": "warm_start", "objective": {"kind": "sequence_kd"}},
            {"kind": "distill", "objective": {"kind": "jsd", "beta": 0.1, "temperature": 1e22}},
            {"kind": "self_train"},
        ],
        "training": {"learning_rate": 1e-7},
        "trackers": ["tensorboard"],
        "launch": {"processes": 4, "strategy": "ddp"},
        "handoff": {"export": ["merged", "gguf-q4_k_m", "lora"]},
    }
    write_folder(fill(TEMPLATE, parse_spec(values), BACKEND), tmp_path)
    assert_ruff_is_content(tmp_path)


@pytest.mark.parametrize("example", sorted(examples_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_renders_the_real_template_formatted_and_lint_free(example: Path, tmp_path: Path) -> None:
    spec = load_spec(example, backend="transformers")
    script = TransformersBackend().render(spec)
    assert parse_spec(read_config(script)) == spec
    write_folder(script, tmp_path)
    assert_ruff_is_content(tmp_path)
