"""Spec files: three formats with one meaning, and every unreadable one answered with one plain message."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skill_kd.errors import SpecError
from skill_kd.spec import Spec
from skill_kd.spec.file import MAX_ALIASES, MAX_BYTES, load_spec, read_values

YAML = """\
name: tiny
seed: 7
teacher: {model: org/teacher}
student: {from_teacher: 4}
data: {train: prompts.jsonl}
stages:
  - {kind: warm_start, objective: {kind: forward_kl}}
  - {kind: distill, updates: 20, objective: {kind: minillm, clip: 0.1}}
training: {learning_rate: 1e-5, betas: [0.9, 0.99]}
trackers: [tensorboard]
"""
TOML = """\
name = "tiny"
seed = 7
trackers = ["tensorboard"]
teacher = {model = "org/teacher"}
student = {from_teacher = 4}
data = {train = "prompts.jsonl"}

[[stages]]
kind = "warm_start"
objective = {kind = "forward_kl"}

[[stages]]
kind = "distill"
updates = 20
objective = {kind = "minillm", clip = 0.1}

[training]
learning_rate = 1e-5
betas = [0.9, 0.99]
"""
REST = "teacher: {model: org/teacher}\nstudent: {model: org/student}\ndata: {train: prompts.jsonl}\n"


def written(folder: Path, content: str | bytes, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path) -> str:
    """The one message of a file that is refused: one line, naming the file."""
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 1000
    return message


# --- three formats ----------------------------------------------------------------------------------------------------


def test_yaml_json_and_toml_mean_the_same(tmp_path: Path) -> None:
    from_yaml = load_spec(written(tmp_path, YAML))
    from_toml = load_spec(written(tmp_path, TOML, "spec.toml"))
    from_json = load_spec(written(tmp_path, json.dumps(yaml.safe_load(YAML)), "spec.json"))
    assert from_yaml == from_toml == from_json
    assert from_yaml.hash == from_toml.hash == from_json.hash
    assert from_yaml.training.learning_rate == 1e-5, "YAML 1.1 reads 1e-5 as text"


@pytest.mark.parametrize("name", ["spec.yml", "spec.YAML", "a name with spaces.yaml", "sp\u00e9c.yaml"])
def test_other_names_of_a_yaml_file_are_read(tmp_path: Path, name: str) -> None:
    assert load_spec(written(tmp_path, YAML, name)).seed == 7


@pytest.mark.parametrize("name", ["spec.yaml", "spec.json", "spec.toml"])
def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path, name: str) -> None:
    text = {"spec.yaml": YAML, "spec.toml": TOML, "spec.json": json.dumps(yaml.safe_load(YAML), indent=1)}[name]
    path = written(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), name)
    assert load_spec(path).stages == load_spec(written(tmp_path, YAML, "plain.yaml")).stages


def test_overrides_replace_top_level_keys_and_are_validated(tmp_path: Path) -> None:
    path = written(tmp_path, YAML)
    assert load_spec(path, name="other", seed=1).name == "other"
    with pytest.raises(SpecError, match="name"):
        load_spec(path, name="a/b")


def test_a_resolved_spec_is_read_back_unchanged(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, YAML))
    again = load_spec(written(tmp_path, yaml.safe_dump(spec.model_dump(mode="json")), "resolved.yaml"))
    assert again == spec


def test_several_mistakes_are_reported_at_once_each_on_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "name: a/b\nseed: -1\n" + REST)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"{path}: name: ")
    assert second.startswith("  seed: ")


# --- files that cannot be read ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere.yaml")


def test_a_folder_is_refused_as_a_spec(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").mkdir()
    assert "directory" in refusal(tmp_path / "spec.yaml")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything may be read by root")
def test_a_forbidden_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, YAML)
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_a_null_byte_in_the_name_is_refused() -> None:
    with pytest.raises(SpecError, match="null byte"):
        load_spec(Path("spec\0.yaml"))


@pytest.mark.parametrize("content", [b"\x80\x81\xff\x00", YAML.encode("utf-16"), b"\x1f\x8b\x08\x00"])
def test_binary_and_other_encodings_are_refused(tmp_path: Path, content: bytes) -> None:
    assert "not UTF-8 text" in refusal(written(tmp_path, content))


@pytest.mark.parametrize("name", ["spec", "spec.txt", "spec.yaml.bak", "spec.py"])
def test_another_ending_is_answered_with_those_that_are_read(tmp_path: Path, name: str) -> None:
    assert "use .yaml, .json or .toml" in refusal(written(tmp_path, YAML, name))


@pytest.mark.parametrize("name", ["spec.yaml", "spec.json", "spec.toml"])
def test_a_data_file_given_by_mistake_is_refused_by_its_size(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, b'{"prompt": "x"}\n' * (MAX_BYTES // 16 + 1), name)
    assert f"larger than {MAX_BYTES // 1024} KiB" in refusal(path)


def test_the_largest_file_is_still_read(tmp_path: Path) -> None:
    path = written(tmp_path, YAML + "#" * (MAX_BYTES - len(YAML)))
    assert path.stat().st_size == MAX_BYTES
    assert load_spec(path).seed == 7


# --- text without a spec --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("spec.yaml", "name: [1, 2\nseed: 3\n", "line 2"),
        ("spec.yaml", "name: a\n\tseed: 3\n", "line 2"),
        ("spec.yaml", "name: a: b\n", "line 1"),
        ("spec.yaml", "name: *nobody\n", "nobody"),
        ("spec.yaml", "a: 1\n---\nb: 2\n", "line 2"),
        ("spec.yaml", "? [a, b]\n: 1\n", "line 1"),
        ("spec.yaml", "name: !!python/object/apply:os.system ['true']\n", "python/object"),
        ("spec.yaml", "name: !!int ''\n", "malformed"),
        ("spec.yaml", "name: !!timestamp x\n", "malformed"),
        ("spec.yaml", "name: !!bool x\n", "malformed"),
        ("spec.yaml", "name: 2024-99-99\n", "malformed"),
        ("spec.yaml", "name: \x07\n", "malformed"),
        ("spec.json", '{"name": "a",}', "line 1"),
        ("spec.json", "{'name': 'a'}", "line 1"),
        ("spec.json", '{"seed": ' + "9" * 5000 + "}", "malformed"),
        (
            "spec.toml",
            "name = 'a'\n" + ".".join(["a"] * 30_000) + " = 1",
            "line 2: a key or value of more than 16 parts",
        ),
        (
            "spec.toml",
            "name = 'a'\n" + " . ".join(["'a'"] * 20) + " = 1",
            "line 2: a key or value of more than 16 parts",
        ),
        ("spec.toml", f"# {'a' * 60_000}\nname: a\n", "line 2"),  # the search for long keys is linear in it
        ("spec.toml", 'name = "a\n', "line 1"),
        ("spec.toml", "name: a\n", "line 1"),
    ],
)
def test_malformed_text_is_reported_with_its_line(tmp_path: Path, name: str, content: str, fragment: str) -> None:
    message = refusal(written(tmp_path, content, name))
    assert "is malformed" in message
    assert fragment in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("spec.yaml", "name: a\nname: b\n" + REST),
        ("spec.yaml", "name: a\n" + REST + "training: {warmup: 0.1, warmup: 0.2}\n"),
        ("spec.yaml", "<<: {seed: 1}\nname: a\nname: b\n" + REST),
        ("spec.yaml", f"{'k' * 900}: 1\n{'k' * 900}: 2\n"),
        ("spec.json", '{"name": "a", "name": "b"}'),
        ("spec.json", '{"name": "a", "training": {"warmup": 0.1, "warmup": 0.2}}'),
        ("spec.toml", 'name = "a"\nname = "b"\n'),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, name: str, content: str) -> None:
    message = refusal(written(tmp_path, content, name))
    assert any(words in message for words in ("duplicate key", "overwrite", "'kkkk"))


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("spec.yaml", "", "is empty"),
        ("spec.yaml", "# only a comment\n", "is empty"),
        ("spec.yaml", "- name: a\n", "contains list, not a mapping"),
        ("spec.yaml", "just text\n", "contains str, not a mapping"),
        ("spec.yaml", "42\n", "contains int, not a mapping"),
        ("spec.json", "null", "is empty"),
        ("spec.json", "[]", "contains list, not a mapping"),
        ("spec.json", "", "is malformed"),
    ],
)
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, name: str, content: str, fragment: str) -> None:
    assert fragment in refusal(written(tmp_path, content, name))


def test_an_empty_toml_file_lacks_everything(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="name: is missing"):
        load_spec(written(tmp_path, "", "spec.toml"))


# --- values that YAML or JSON read otherwise than they look -----------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("name: on", ["name: true"]),
        ("name: 12:30", ["name: ", "not 750", "quotes"]),
        ("name: 2024-01-31", ["name: ", "quotes"]),
        ("name: 0123", ["name: ", "quotes"]),
        ("name: null", ["name: ", "valid string, not None"]),
        (f"name: 0x{'f' * 5000}", ["a whole number has 20000 bits, and at most 64 are possible"]),
        (f"name: tiny\nseed: 1{':59' * 3000}", ["a whole number has 17722 bits"]),
        (f"name: tiny\nseed: {'9' * 5000}", ["is malformed", "5000 digits"]),
        (f"name: tiny\nstages: [{{kind: 0x{'f' * 5000}}}]", ["a whole number has 20000 bits"]),
        (
            f"name: tiny\ncheckpoint: {{keep: '{'9' * 30}'}}",
            ["keep: 9999", "is too large; use at most 9223"],
        ),
        ("name: tiny\nhandoff: {epochs: 1e300}", ["handoff.epochs", "less than or equal to 1000000"]),
        ("name: tiny\nbackend: &a [*a]", ["backend: ", "string"]),
        (f"name: tiny\nbackend: {'b' * 300}", ["backend: ", "255 bytes between two slashes", "not 'bbb"]),
        (f"name: tiny\nbackend: {'b/' * 3000}", ["backend: ", "at most 4096 characters"]),
        ('name: tiny\nbackend: "a\\0b"', ["backend: ", "no NUL"]),
        ("name: tiny\nseed: yes", ["seed: true"]),
        ("name: tiny\nrollout: {temperature: .nan}", ["rollout.temperature", "finite", "nan"]),
        ("name: tiny\nrollout: {temperature: .inf}", ["rollout.temperature", "finite", "inf"]),
        ("name: tiny\nrollout: {temperature: 1e999}", ["rollout.temperature", "finite"]),
        ('name: "\\uD800"', ["name: "]),
        ('name: tiny\n"\\uD800": 1', ["unknown key '\\ud800'"]),
        ("name: tiny\n1: x", ["unknown key '1'"]),
        ("name: tiny\noff: x", ["unknown key 'False'"]),
        ("name: tiny\n'a\\nb': x", ["unknown key 'a\\\\nb'"]),
        ('name: tiny\n"a\\nb": x', ["unknown key 'a\\nb'"]),
        (f"name: {'x' * 5000}", ["name: "]),
        (f"name: tiny\n{'x' * 900}: 1", ["unknown key 'xxx"]),
    ],
)
def test_a_value_that_yaml_reads_otherwise_than_it_looks(tmp_path: Path, line: str, fragments: list[str]) -> None:
    message = refusal(written(tmp_path, f"{line}\n{REST}"))
    for fragment in fragments:
        assert fragment in message
    message.encode()  # it can be printed


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_json_numbers_that_are_none_are_refused(tmp_path: Path, number: str) -> None:
    values = json.dumps({**yaml.safe_load("name: tiny\n" + REST), "rollout": {"temperature": 0.125}})
    assert "finite" in refusal(written(tmp_path, values.replace("0.125", number), "spec.json"))


def test_a_lone_surrogate_in_json_is_refused(tmp_path: Path) -> None:
    values = json.dumps({**yaml.safe_load(REST), "name": "\ud800"})
    assert "name: " in refusal(written(tmp_path, values, "spec.json"))


# --- documents made to hurt -------------------------------------------------------------------------------------------


def laughs(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + f"\ntraining: *a{levels - 1}\n"


@pytest.mark.parametrize("document", [laughs(12, 10), laughs(3, MAX_ALIASES), "a: &a {<<: [" + "*a, " * 40 + "]}"])
def test_a_billion_laughs_are_refused_at_once(tmp_path: Path, document: str) -> None:
    began = time.monotonic()
    assert f"more than {MAX_ALIASES} aliases" in refusal(written(tmp_path, document))
    assert time.monotonic() - began < 5


def test_as_many_laughs_as_there_may_be_aliases_do_no_harm(tmp_path: Path) -> None:
    began = time.monotonic()
    refusal(written(tmp_path, laughs(8, 2)))
    refusal(written(tmp_path, "name: tiny\n" + REST + "training: &loop {betas: *loop}\n"))
    assert time.monotonic() - began < 5


def test_an_alias_and_a_merge_do_what_yaml_says(tmp_path: Path) -> None:
    stages = "stages: [{kind: warm_start, <<: &more {learning_rate: 1.0e-5}}, {kind: distill, <<: *more, updates: 3}]\n"
    spec = load_spec(written(tmp_path, "name: tiny\n" + REST + stages))
    assert [stage.learning_rate for stage in spec.stages] == [1e-5, 1e-5]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("spec.yaml", "a: " + "[" * 30_000),
        ("spec.yaml", "a: " + "[" * 5_000 + "]" * 5_000),
        ("spec.yaml", "- " * 5_000 + "a"),
        ("spec.json", '{"a": ' + "[" * 30_000),
        ("spec.json", '{"a": ' + "[" * 20_000 + "]" * 20_000 + "}"),
        ("spec.toml", "a = " + "[" * 20_000 + "]" * 20_000),
    ],
    ids=["open", "nested", "dashes", "open json", "nested json", "nested toml"],
)
def test_a_document_nested_too_deeply_is_malformed(tmp_path: Path, name: str, content: str) -> None:
    assert "is malformed" in refusal(written(tmp_path, content, name))


@pytest.mark.parametrize("depth", [50, 200])
def test_a_value_nested_deeply_is_shown_cut(tmp_path: Path, depth: int) -> None:
    message = refusal(written(tmp_path, f"name: {'[' * depth}{']' * depth}\n{REST}"))
    assert "valid string, not [[[" in message
    assert "..." in message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(alphabet="{}[]:,-&*!<>|?'\"\n \tab1.\\#%@", max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("any.yaml", "any.json", "any.toml"):
        path = written(tmp_path, content, name)
        try:
            read_values(path)
            assert isinstance(load_spec(path), Spec)
        except SpecError as error:
            message = str(error)
            assert str(path) in message
