"""A finished run's student, verified and handed on to the fine-tuning step that follows."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skill_kd import __version__
from skill_kd.errors import InterruptedRunError, MissingRequirementError, TrainingFailedError, UsageError
from skill_kd.handoff import gguf, interpreter
from skill_kd.handoff.files import DATA, FINETUNED, MERGED, OUT, SCRIPT, SETUP, SETUP_CPU, Task, files
from skill_kd.handoff.folder import read_json, sha256, standalone
from skill_kd.handoff.handoff_result import HandoffResult
from skill_kd.jobs.manifest import Lock, Manifest, locked, now
from skill_kd.jobs.process import supervise
from skill_kd.spec import Handoff, Spec
from skill_kd.spec.file import load_spec, parse_spec

FOLDER, STUDENT, RECORD, LOG = "handoff", "student", "manifest.json", "finetune.log"

__all__ = ["HandoffResult", "hand_on"]


def hand_on(
    run: Path,
    *,
    data: Path | None = None,
    execute: bool = False,
    python: str | None = None,
    max_steps: int = -1,
    drift: bool = True,
    quantisations: Sequence[str] = (),
    force: bool = False,
) -> HandoffResult:
    """Verify the student of ``run`` and write the fine-tuning step into its ``handoff/``.

    Args:
        run: folder of a finished run.
        data: fine-tuning data, instead of what the spec's ``handoff.data`` names.
        execute: also run the step, load what it made, and measure what it cost.
        python: interpreter that has Unsloth; this one if left out.
        max_steps: optimizer steps of a trial; -1 leaves it to ``handoff.epochs``.
        drift: whether ``execute`` measures the held-out figures again, for which it needs the teacher.
        quantisations: GGUF files to make of the distilled student itself, for example ``q8_0``.
        force: write over edited files, and over what an earlier fine-tune made.

    Raises:
        UsageError: the run is not finished, its student is not what it trained, or the data cannot be used.
        MissingRequirementError: Unsloth, a tool for GGUF, or a model is missing.
        TrainingFailedError: the fine-tune failed, or what it made does not load.
        RunLockedError, InterruptedRunError: as for ``skill_kd.run``.
    """
    manifest = Manifest.read(run)
    if manifest.status != "done":
        raise UsageError(f"run '{run}' is {manifest.status}; finish it first: skill-kd run SPEC --resume")
    gguf.refuse_missing(list(quantisations))
    step = _Step(run.absolute(), manifest, _spec(run, data), python, force)
    with locked(run) as lock:
        step.verify()
        step.write(max_steps)
        for each in quantisations:
            step.quantize(each)
        if execute:
            step.execute(lock)
            if drift:
                step.measure()
        step.record()
    return step.result


def _spec(run: Path, data: Path | None) -> Spec:
    """Return the run's spec with a hand-off section, its data found."""
    spec = load_spec(run / "spec.yaml")
    handoff = (spec.handoff or Handoff()).model_dump(mode="json")
    if data is not None:
        handoff["data"] = str(data.absolute())
    return parse_spec({**spec.model_dump(mode="json"), "handoff": handoff})


class _Step:
    """One hand-off under way; ``spec`` is the run's, with a hand-off section."""

    def __init__(self, run: Path, manifest: Manifest, spec: Spec, python: str | None, force: bool) -> None:
        self.run, self.manifest, self.spec, self.force = run, manifest, spec, force
        self.student, self.folder = run / STUDENT, run / FOLDER
        self.python = python or sys.executable
        self.prober = interpreter.with_torch(python)
        self.result = HandoffResult(self.folder)
        self.found: dict[str, Any] = {}
        self.summary = read_json(run / "summary.json") if (run / "summary.json").exists() else {}

    def _ask(self, kind: str, **question: object) -> dict[str, Any]:
        spec = self.spec.model_dump(mode="json")
        told = {"ask": kind, "spec": spec, "folder": str(self.student), **question}
        return interpreter.ask(self.prober, told, interpreter.folder_of(self.manifest))

    def verify(self) -> None:
        """Look at the student and the data; refuse what nobody should build on."""
        self.result.checks += standalone(self.student)
        self._refuse()
        handoff, best = self.spec.handoff, self.summary.get("best")
        assert handoff is not None
        self.folder.mkdir(exist_ok=True)
        checkpoint = str(self.run / "checkpoints" / best) if best else None
        data = handoff.data or (str(self.folder / DATA) if (self.folder / DATA).exists() else None)
        self.found = self._ask("student", checkpoint=checkpoint, data=data)
        self.result.checks += self.found["checks"]
        self._refuse()
        if not self.found["has_template"]:
            raise UsageError(f"the tokenizer in '{self.student}' has no chat template; give it one, and hand on again")
        if handoff.responses_only and self.found["parts"] is None:
            raise UsageError(
                "handoff.responses_only: the chat template shows no plain turns to tell responses by; set it to false"
            )
        longest, positions = self.found.get("longest", 0), self.found["positions"]
        if positions is not None and longest > positions:
            raise UsageError(
                f"handoff.data has a row of {longest} tokens, and the student reads {positions}; shorten it"
            )
        if data is None:
            self.result.notes.append(f"handoff.data names no data; put rows of messages into {self.folder / DATA}")
        judged = f"is {self.verdict}" if self.verdict else f"was not asked: skill-kd evaluate {self.run}"
        self.result.notes.append(f"these checks are of files, not of quality; the gate's verdict {judged}")

    @property
    def verdict(self) -> str | None:
        """What the gate said of this student when it was last asked; None if it never was."""
        found = self.run / "eval" / "evaluation.json"
        return read_json(found).get("verdict") if found.exists() else None

    def _refuse(self) -> None:
        if failed := self.result.failed():
            raise UsageError(f"'{self.student}' is not fit to be handed on: " + "\n  ".join(failed))

    def write(self, max_steps: int) -> None:
        """Write the step's files; those a person edited are kept, unless forced."""
        record = self.folder / RECORD
        known = read_json(record).get("written", {}) if record.exists() else {}
        longest, rows = self.found.get("longest", 2048), self.found.get("rows", [])
        texts = files(Task(self.spec, self.found["parts"], longest, len(rows), max_steps))
        if rows:
            texts[DATA] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for name, text in texts.items():
            path = self.folder / name
            if path.exists() and not self.force and sha256(path) != known.get(name) and path.read_text("utf-8") != text:
                self.result.kept.append(name)
                continue
            draft = path.with_name(f".{name}.{os.getpid()}")
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
            self.result.written.append(name)

    def quantize(self, quantisation: str) -> None:
        """Make a GGUF file of the distilled student, and read it back."""
        file = self.folder / gguf.file_name(STUDENT, quantisation)
        gguf.convert(self.student, file, quantisation, self.prober)
        self.result.checks += self._ask("gguf", file=str(file))["checks"]
        self.result.written.append(file.name)
        if failed := self.result.failed():
            raise TrainingFailedError("; ".join(failed))

    def execute(self, lock: Lock) -> None:
        """Run the script in a new process, and load every export."""
        self._ready()
        log = self.folder / LOG
        ending = supervise(
            [self.python, str(self.folder / SCRIPT)],
            log=log,
            metrics=self.folder / "metrics.jsonl",
            descriptor=lock.descriptor,
            on_start=lock.name_holder,
        )
        if ending.stopped_by is not None:
            number = signal.Signals(ending.stopped_by)
            raise InterruptedRunError(f"the fine-tune was stopped by {number.name}", ending.stopped_by)
        if ending.returncode:
            error = TrainingFailedError(f"the fine-tune failed: {ending.last_words or ending.returncode}")
            error.add_note(f"log: {log}")
            raise error
        for each in self._quantisations:
            file = self.folder / OUT / gguf.file_name(FINETUNED, each)
            gguf.convert(self.folder / OUT / MERGED, file, each, self.prober)
        self.result.checks += self._ask("finetuned", out=str(self.folder / OUT))["checks"]
        self.record()
        if failed := self.result.failed():
            raise TrainingFailedError("what the fine-tune made is not fit for use: " + "\n  ".join(failed))

    def _ready(self) -> None:
        out, data = self.folder / OUT, self.folder / DATA
        if not data.exists():
            raise UsageError(f"no data to fine-tune on; name it in handoff.data or --data, or write '{data}'")
        if out.exists() and not self.force:
            raise UsageError(f"'{out}' holds an earlier fine-tune; move it away, or write over it with --force")
        if interpreter.version(self.python, "unsloth") is None:
            raise MissingRequirementError(
                f"'{self.python}' has no Unsloth; name one that has with --python, or install it: "
                + "\n  ".join([f"with a GPU: {' && '.join(SETUP)}", f"without: {' && '.join(SETUP_CPU)}"])
            )
        gguf.refuse_missing(self._quantisations)

    @property
    def _quantisations(self) -> list[str]:
        """Of the fine-tuned model."""
        assert self.spec.handoff is not None
        return gguf.among(self.spec.handoff.export)

    def measure(self) -> None:
        """Measure what the fine-tune cost: the distilled student and the fine-tuned one, against the teacher."""
        merged = self.folder / OUT / MERGED
        if not merged.is_dir():
            self.result.notes.append("drift was not measured: it needs 'merged' in handoff.export")
            return
        try:
            answer = self._ask("measure", folders={"student": str(self.student), "finetuned": str(merged)})
            self.result.figures = answer["figures"]
        except (MissingRequirementError, UsageError) as error:
            self.result.notes.append(f"drift was not measured: {error}")

    def record(self) -> None:
        """Write down where all of it comes from."""
        student, config = self.spec.student, read_json(self.student / "config.json")
        template = self.student / "chat_template.jinja"
        values = {
            "run": self.manifest.name,
            "created": now(),
            "skill_kd": __version__,
            "backend": self.manifest.backend,
            "backend_version": self.manifest.backend_version,
            "spec_hash": self.manifest.spec_hash,
            "teachers": self.found["teachers"],
            "served_teacher": self.spec.teacher.served and self.spec.teacher.served.model,
            "student": self.found["student"],
            "layers_of_teacher": student.from_teacher and student.from_teacher.model_dump(mode="json")["layers"],
            "objective": [stage.model_dump(mode="json") for stage in self.spec.stages],
            "metrics": self.found["metrics"],
            "verdict": self.verdict,
            "dtype": config.get("dtype") or config.get("torch_dtype"),
            "template_hash": sha256(template) if template.exists() else None,
            "adapters": student.lora and student.lora.model_dump(mode="json"),
            "weights": {path.name: sha256(path) for path in sorted(self.student.glob("*.safetensors"))},
            "written": {name: sha256(self.folder / name) for name in self.result.written},
            "checks": self.result.checks,
            "drift": self.result.figures,
        }
        path = self.folder / RECORD
        draft = path.with_name(f".{RECORD}.{os.getpid()}")
        draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)
