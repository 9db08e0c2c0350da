"""The files that ``diagnose`` writes: the two specs of a pilot, and prompts to replay. Only the owner can read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from skill_kd.diagnose.changes.measures import WindowSample
from skill_kd.diagnose.changes.windows import PROMPT
from skill_kd.errors import UsageError
from skill_kd.files import write_or_refuse
from skill_kd.guidance import pilot
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec

PROMPTS, SAMPLES = 50, 8
"""Number of prompts of a replay, and number of answers to each from each model."""


@dataclass(frozen=True)
class Pilot:
    """Two specs that differ in one setting. They never run automatically."""

    finding: str
    path: str
    before: object
    after: object
    files: tuple[Path, Path]
    """The original spec and the changed one."""


def write_pilot(spec: Spec, findings: Sequence[str], folder: Path) -> Pilot | None:
    """Write the pilot of the first finding with a remedy for this spec; return None if there is none.

    Both specs are valid and differ in one setting and in their names.

    Raises:
        UsageError: the files cannot be written.
    """
    values = spec.model_dump(mode="json", exclude_unset=True)
    values["stages"] = [stage.model_dump(mode="json", exclude_unset=True) for stage in spec.stages]
    for stage, model in zip(values["stages"], spec.stages, strict=True):
        stage.update(kind=model.kind)
        if hasattr(model, "objective"):
            stage["objective"] = {**stage.get("objective", {}), "kind": model.objective.kind}
    for finding in findings:
        changed = pilot(values, finding)
        if changed is not None:
            path, value, after = changed
            files = tuple(
                _write(each, f"{spec.name[:48]}-pilot-{word}", folder) for word, each in (("a", values), ("b", after))
            )
            return Pilot(finding, path, _at(spec.model_dump(mode="json"), path), value, (files[0], files[1]))
    return None


def _write(values: dict[str, Any], name: str, folder: Path) -> Path:
    named = {**values, "name": name}
    parse_spec(named, source=name)
    path = folder / f"{name}.yaml"
    write_or_refuse(path, yaml.safe_dump(named, sort_keys=False, allow_unicode=True), private=True)
    return path


def _at(values: dict[str, Any], path: str) -> object:
    place: Any = values
    for part in path.split("."):
        if part == "distill":
            place = next(stage for stage in place["stages"] if stage["kind"] == "distill")
        else:
            place = place.get(part) if isinstance(place, dict) else None
    return place


def write_replay(windows: Sequence[WindowSample], path: Path) -> int:
    """Write a replay plan: whole prompts of the log, spread over its topics, for both models to answer 8 times.

    Prompts that the sample truncated are skipped. The prompts are text of the log and are not redacted.

    Returns:
        The number of prompts.

    Raises:
        UsageError: there are no prompts, or the file cannot be written.
    """
    topics: dict[int, dict[int, str]] = {}
    for window in windows:
        for each in window.measured:
            if each.row.prompt and len(each.row.prompt) < PROMPT:
                topics.setdefault(each.topic, {}).setdefault(each.row.prompt_hash, each.row.prompt)
    queues = [list(prompts.values()) for _, prompts in sorted(topics.items())]
    chosen: list[str] = []
    while len(chosen) < PROMPTS and any(queues):
        chosen += [queue.pop(0) for queue in queues if queue][: PROMPTS - len(chosen)]
    if not chosen:
        raise UsageError("the log has no prompts to replay; name their field with --prompt-field")
    lines = [json.dumps({"prompt": prompt, "samples": SAMPLES, "temperature": 1.0, "top_p": 1.0}) for prompt in chosen]
    write_or_refuse(path, "".join(f"{line}\n" for line in lines), private=True)
    return len(chosen)
