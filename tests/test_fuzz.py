"""Files that anything may have happened to: each reader takes them or refuses them in words, and none crashes."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import places, replaced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skill_kd.errors import SkillKDError, SpecError, UsageError
from skill_kd.jobs.manifest import Manifest
from skill_kd.jobs.process import _Events
from skill_kd.jobs.run import RunResult
from skill_kd.kd.train.checkpoint_files import CHECKSUMS, STATE, flaw, seal
from skill_kd.plugins import get_backend
from skill_kd.render import is_edited, read_config, read_requirements, read_stamp
from skill_kd.spec import Spec
from skill_kd.spec.file import load_spec, parse_spec
from skill_kd.testing import minimal_spec

bounded = settings(
    derandomize=True,
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANYTHING = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3)
)


@st.composite
def damaged(draw: Callable[..., Any], content: bytes) -> bytes:
    """Bytes as a crash, a bad disk or an editor leaves them: cut, a piece overwritten, doubled, or taken out."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 40)))
    piece = draw(st.sampled_from([b"", content[start:end] * 2]) | st.binary(max_size=8))
    tail = draw(st.sampled_from([content[end:], b""]))
    return content[:start] + piece + tail


# --- specs and scripts ------------------------------------------------------------------------------------------------

SPEC = {
    "name": "tiny",
    "teacher": {"model": [{"model": "org/teacher", "weight": 2.0}], "dtype": "bfloat16"},
    "student": {"model": "org/student", "lora": {"r": 4, "targets": ["q_proj"]}},
    "data": {"train": "prompts.jsonl", "held_out": 0.1, "chat_template_options": {"enable_thinking": False}},
    "stages": [{"kind": "warm_start", "objective": {"kind": "sft"}}, {"kind": "distill", "updates": 3}],
    "training": {"betas": [0.9, 0.95], "learning_rate": 1e-5},
    "launch": {"processes": 2, "strategy": "ddp"},
}
YAML = yaml.safe_dump(SPEC, sort_keys=False).encode()


def taken_or_refused(read: Callable[[], Spec]) -> Spec | str:
    """Return the spec, or the message of its refusal, which can be printed."""
    try:
        return read()
    except SpecError as error:
        return str(error).encode().decode()


@bounded
@given(content=damaged(YAML))
def test_a_damaged_spec_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    outcome = taken_or_refused(lambda: load_spec(path))
    assert isinstance(outcome, Spec) or str(path) in outcome


def test_the_whole_spec_is_a_good_one() -> None:
    assert parse_spec(SPEC).name == "tiny"


@bounded
@given(place=st.sampled_from([place for place in places(SPEC) if place]), value=ANYTHING)
def test_a_spec_with_any_value_in_any_place_is_refused_or_becomes_data_in_a_script(
    place: tuple[Any, ...], value: Any
) -> None:
    spec = taken_or_refused(lambda: parse_spec(replaced(SPEC, place, value)))
    if isinstance(spec, str):
        assert place[0] in spec or isinstance(value, dict)
        return
    with contextlib.suppress(SkillKDError):  # the backend may refuse it too
        script = get_backend("transformers").render(spec)
        ast.parse(script)
        assert read_config(script) == spec.model_dump(mode="json")


@cache
def rendered() -> str:
    return get_backend("transformers").render(minimal_spec())


@bounded
@given(content=damaged(rendered().encode()) | st.binary(max_size=100))
def test_a_damaged_script_is_called_edited_and_its_values_are_read_or_refused(content: bytes) -> None:
    text = content.decode(errors="replace")
    if text != rendered():
        assert is_edited(text)
    for read in (read_stamp, read_requirements, read_config):
        with contextlib.suppress(UsageError):
            read(text)


# --- run folders ------------------------------------------------------------------------------------------------------

MANIFEST = Manifest(
    name="tiny",
    status="interrupted",
    spec_hash="a" * 64,
    skill_kd="1.0",
    backend="transformers",
    backend_version="1.0",
    script_hash="b" * 64,
    edited=False,
    command=("python", "train.py"),
    cwd="/",
    python="3.11.7",
    platform="Linux",
    started="2026-01-01T00:00:00+00:00",
)


def test_the_manifest_that_is_damaged_below_is_a_good_one(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST


@bounded
@given(content=damaged(json.dumps(dataclasses.asdict(MANIFEST)).encode()) | st.binary(max_size=60))
def test_a_damaged_manifest_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with contextlib.suppress(UsageError):
        assert Manifest.read(tmp_path).status in {"running", "done", "failed", "interrupted"}


@bounded
@given(place=st.sampled_from(places(dataclasses.asdict(MANIFEST))), value=ANYTHING)
def test_a_manifest_with_any_value_in_any_place_is_read_or_refused(
    place: tuple[Any, ...], value: Any, tmp_path: Path
) -> None:
    values = json.loads(json.dumps(dataclasses.asdict(MANIFEST)))
    (tmp_path / "manifest.json").write_text(json.dumps(replaced(values, place, value)))
    with contextlib.suppress(UsageError):
        Manifest.read(tmp_path)


LINES = b'{"event": "update", "loss": 1.5}\n{"event": "note", "text": "a\\u2028b"}\n{"event": "done"}\n'


@bounded
@given(content=damaged(LINES) | st.binary(max_size=60))
def test_damaged_metrics_are_reported_as_far_as_they_are_events(content: bytes, tmp_path: Path) -> None:
    path, told = tmp_path / "metrics.jsonl", list[dict[str, object]]()
    path.unlink(missing_ok=True)
    events = _Events(path, told.append)
    path.write_bytes(content)
    events.poll()
    assert all(isinstance(event, dict) for event in told)
    path.write_bytes(content + b'\n{"event": "last"}\n')
    events.poll()
    assert told[-1] == {"event": "last"}


@bounded
@given(content=damaged(b'{"best": "0-00000001", "measures": {}}') | st.binary(max_size=60))
def test_a_damaged_summary_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with contextlib.suppress(UsageError):
        assert isinstance(RunResult(tmp_path, 0.0).summary, dict)


def test_a_run_without_a_summary_has_an_empty_one(tmp_path: Path) -> None:
    assert RunResult(tmp_path, 0.0).summary == {}


# --- checkpoints ------------------------------------------------------------------------------------------------------

FILES = {"model.safetensors": bytes(range(200)), STATE: b'{"stage": 0}', "deeper/optimizer.bin": b"moments"}


def sealed(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / CHECKSUMS).unlink(missing_ok=True)
    seal(folder)
    return folder


@bounded
@given(data=st.data(), name=st.sampled_from(sorted(FILES)))
def test_a_checkpoint_is_whole_exactly_if_every_byte_is_as_it_was(
    data: st.DataObject, name: str, tmp_path: Path
) -> None:
    folder = sealed(tmp_path)
    assert flaw(folder) is None
    content = data.draw(damaged(FILES[name]))
    (folder / name).write_bytes(content)
    assert (flaw(folder) is None) == (content == FILES[name])


@bounded
@given(content=st.binary(max_size=60) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_list_of_checksums_but_the_right_one_is_a_flaw(content: bytes, tmp_path: Path) -> None:
    folder = sealed(tmp_path)
    (folder / CHECKSUMS).write_bytes(content)
    assert flaw(folder) is not None


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "no\0name", "deeper"])
def test_checksums_of_a_missing_file_are_a_flaw(name: str, tmp_path: Path) -> None:
    folder = sealed(tmp_path / "checkpoint")
    checksums = json.loads((folder / CHECKSUMS).read_text())
    (folder / CHECKSUMS).write_text(json.dumps({**checksums, name: [1, 2]}))
    assert name in str(flaw(folder))
