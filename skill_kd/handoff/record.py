"""The record of a hand-off, ``manifest.json``: where the student, the measures and each file come from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skill_kd import __version__
from skill_kd.files import read_checked, write_atomically
from skill_kd.handoff.finished_run import FinishedRun
from skill_kd.handoff.handoff_result import HandoffResult
from skill_kd.handoff.student_folder import read_json, sha256
from skill_kd.handoff.verify import StudentFindings
from skill_kd.jobs.folder import KD, kd_hash
from skill_kd.jobs.manifest import now

RECORD = "manifest.json"


@dataclass(frozen=True)
class Written:
    """The part of an earlier record that a hand-off reads."""

    written: dict[str, str]


def written_before(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that the last hand-off wrote, by file name. Empty if there was none.

    Raises:
        UsageError: the record is damaged.
    """
    record = folder / RECORD
    return read_checked(record, Written, f"delete it: {record}").written if record.exists() else {}


def write_record(run: FinishedRun, findings: StudentFindings, result: HandoffResult) -> None:
    """Write the record of this hand-off over the last one."""
    values = {**_provenance(run, findings), **_student(run), **_outcome(result)}
    write_atomically(run.folder / RECORD, json.dumps(values, indent=2) + "\n")


def _provenance(run: FinishedRun, findings: StudentFindings) -> dict[str, Any]:
    spec = run.spec
    return {
        "run": run.manifest.name,
        "created": now(),
        "skill_kd": __version__,
        "backend": run.manifest.backend,
        "backend_version": run.manifest.backend_version,
        "spec_hash": run.manifest.spec_hash,
        "teachers": findings.teachers,
        "served_teacher": spec.teacher.served and spec.teacher.served.model,
        "student": findings.student,
        "layers_of_teacher": spec.student.from_teacher and spec.student.from_teacher.model_dump(mode="json")["layers"],
        "objective": [stage.model_dump(mode="json") for stage in spec.stages],
        "metrics": findings.metrics,
        "verdict": run.verdict,
    }


def _student(run: FinishedRun) -> dict[str, Any]:
    config, template, lora = (
        read_json(run.student / "config.json"),
        run.student / "chat_template.jinja",
        run.spec.student.lora,
    )
    return {
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "template_hash": sha256(template) if template.exists() else None,
        "adapters": lora and lora.model_dump(mode="json"),
        "weights": {path.name: sha256(path) for path in sorted(run.student.glob("*.safetensors"))},
    }


def _outcome(result: HandoffResult) -> dict[str, Any]:
    return {
        "written": {
            name: kd_hash(result.folder) if name == KD else sha256(result.folder / name) for name in result.written
        },
        "checks": result.checks,
        "drift": result.measures,
    }
