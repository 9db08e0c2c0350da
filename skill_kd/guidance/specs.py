"""Specs as plain values: a skeleton to fill in, and a pilot that changes one key."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skill_kd.errors import UsageError
from skill_kd.files import making, read_input, refusing_unwritable, write_atomically
from skill_kd.guidance.table import BY_KEY
from skill_kd.spec.file import parse_spec

Values = dict[str, Any]
"""A spec as parsed from a file."""


def skeleton(objective: Mapping[str, object], teacher: str, *, lora: bool, warm: bool) -> Values:
    """Return a spec with this objective; the caller fills in the settings.

    Args:
        objective: as in a spec.
        teacher: ``logits``, ``served`` or ``text``.
        lora: train adapters.
        warm: start with a warm start.
    """
    served = {
        "url": "http://127.0.0.1:8000/v1",
        "model": "TEACHER",
        **({"top_logprobs": 64} if teacher == "served" else {}),
    }
    first = {"kind": "forward_kl", "responses": "teacher"} if teacher == "logits" else {"kind": "sequence_kd"}
    return {
        "name": str(objective["kind"]).replace("_", "-"),
        "seed": 42,
        "teacher": {"model": "TEACHER"} if teacher == "logits" else {"served": served},
        "student": {"model": "STUDENT", **({"lora": {"r": 16, "alpha": 32}} if lora else {})},
        "data": {"train": "prompts.jsonl"},
        "stages": [
            *([{"kind": "warm_start", "objective": first}] if warm else []),
            {"kind": "distill", "updates": 1, "objective": dict(objective)},
        ],
        **{name: {} for name in ("rollout", "training", "checkpoint", "evaluation")},
    }


_INSTEAD = {
    "student.from_teacher": ("student", "model"),
    "teacher.served": ("teacher", "model"),
    "teacher.model": ("teacher", "served"),
}
"""Keys that exclude another key of the skeleton, by section and name."""


def put(spec: Values, path: str, value: object) -> None:
    """Set the key at ``path``, such as ``training.learning_rate``; ``distill`` and ``warm_start`` name stages.

    A key of the skeleton that ``path`` excludes is removed: ``student.from_teacher`` removes ``student.model``.

    Raises:
        UsageError: there is no such stage, or a part of the path is a value without keys.
    """
    place, last = _place(spec, path)
    place[last] = copy.deepcopy(value)
    for key, other in _INSTEAD.items():
        if path == key or path.startswith(f"{key}."):
            spec[other[0]].pop(other[1], None)


def _place(spec: Values, path: str) -> tuple[Values, str]:
    *parts, last = path.split(".")
    place: Any = spec
    for part in parts:
        if part in ("distill", "warm_start"):
            place = next((stage for stage in spec["stages"] if stage["kind"] == part), None)
            if place is None:
                raise UsageError(f"{path}: this spec has no stage '{part}'")
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise UsageError(f"{path}: '{part}' has no keys")
    return place, last


def pilot(spec: Mapping[str, Any], key: str) -> tuple[str, object, Values] | None:
    """Return path, new value and changed spec of the first remedy that fits ``spec`` and is valid, or None.

    Exactly one key differs.
    """
    before = parse_spec(spec).hash
    for knob in (knob for remedy in BY_KEY[key].remedies for knob in remedy.knobs):
        changed = copy.deepcopy(dict(spec))
        stage = next(stage for stage in changed["stages"] if stage["kind"] == "distill")
        if stage.setdefault("objective", {"kind": "minillm"})["kind"] not in knob.kinds:
            continue
        path = f"distill.{knob.path}" if knob.path.startswith("objective") else knob.path
        place, name = _place(changed, path)
        value = int(place.get(name, 256) * float(str(knob.value))) if knob.scale else copy.deepcopy(knob.value)
        place[name] = value
        try:
            if parse_spec(changed).hash != before:
                return path, value, changed
        except UsageError:
            continue
    return None


def write_specs(specs: tuple[Values, ...], folder: Path) -> list[Path]:
    """Write each spec as NAME.yaml into ``folder``; return the paths.

    Raises:
        UsageError: a file exists with other content, or cannot be written.
    """
    import yaml

    texts = {folder / f"{each['name']}.yaml": yaml.safe_dump(each, sort_keys=False) for each in specs}
    with refusing_unwritable(f"'{folder}'", "fix that, or choose another --out"), making(folder):
        for path, text in texts.items():
            if os.path.lexists(path) and read_input(path) != text.encode():
                raise UsageError(f"'{path}' exists with other content; move it away, or choose another --out")
        for path, text in texts.items():
            write_atomically(path, text)
    return list(texts)
