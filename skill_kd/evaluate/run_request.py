"""The defaults that a run folder gives to a request: its models, its prompts, its policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.evaluate import sampling
from skill_kd.evaluate.generations import write_rows
from skill_kd.evaluate.opened_models import ModelSource, plain_errors
from skill_kd.evaluate.policy import GatePolicy, make_policy
from skill_kd.evaluate.request import Request
from skill_kd.jobs.manifest import Manifest
from skill_kd.spec import Spec


def fill_from_run(
    request: Request, folder: Path, manifest: Manifest, spec: Spec
) -> tuple[Request, sampling.SamplingTask, GatePolicy, tuple[str, ...]]:
    """Return the request, the sampling task, the policy and notes. The run's spec fills what the request leaves out.

    Raises:
        UsageError: the run has no student yet, or its teacher cannot be loaded.
    """
    if not (folder / "student" / "config.json").is_file():
        raise UsageError(
            f"'{folder}' has no student yet (the run is {manifest.status}); finish it with `skill-kd run --resume`"
        )
    evaluation, home = spec.evaluation, Path(manifest.cwd)
    notes: tuple[str, ...] = ()
    prompts, training = request.prompts, request.training_data
    if prompts is None and evaluation.prompts is not None:
        prompts = home / evaluation.prompts
    if prompts is None:
        prompts = _held_out(spec, home, (request.out or folder / "eval") / "samples", request.held_out)
        notes = ("the prompts are the run's held-out prompts, which also chose its best weights: use fresh prompts",)
    elif training is None and (home / spec.data.train).suffix in {".jsonl", ".json", ".ndjson"}:
        training = home / spec.data.train
    task = sampling.SamplingTask(
        prompts,
        ModelSource(request.teacher, dtype=request.dtype or spec.teacher.dtype) if request.teacher else _teacher(spec),
        ModelSource(str(folder / "student"), dtype=request.dtype or spec.student.dtype),
        _baseline(request, spec),
        request.max_new_tokens or spec.rollout.max_new_tokens,
        request.latency,
    )
    changes = {"samples": evaluation.samples, **request.changes}
    policy = make_policy(request.policy or evaluation.policy, changes)
    return replace(request, training_data=training), task, policy, notes


def _teacher(spec: Spec) -> ModelSource:
    teacher = spec.teacher
    if not isinstance(teacher.model, str):
        what = "behind an endpoint" if teacher.served else "an ensemble"
        raise UsageError(f"teacher: the run's teacher is {what}; give --teacher MODEL, or saved generations")
    return ModelSource(teacher.model, teacher.revision, teacher.dtype, teacher.quantization, teacher.trust_remote_code)


def _baseline(request: Request, spec: Spec) -> ModelSource | None:
    student = spec.student
    if request.baseline:
        return ModelSource(request.baseline, dtype=request.dtype or student.dtype)
    if student.model is None or student.quantization:
        return None
    return ModelSource(student.model, student.revision, student.dtype, None, student.trust_remote_code)


def _held_out(spec: Spec, home: Path, folder: Path, most: int | None) -> Path:
    """Write up to ``most`` of the run's held-out prompts, with the data's responses as references; return the path."""
    with plain_errors():
        from skill_kd.kd.config import Data
        from skill_kd.kd.dataset.split import load_split

        values = spec.data.model_dump(mode="json")
        for key in ("train", "held_out"):
            if isinstance(values[key], str) and (home / values[key]).is_file():
                values[key] = str(home / values[key])
        held_out = load_split(Data.of(values), spec.seed).held_out
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.jsonl"
    write_rows(
        path,
        (
            {
                "messages": [{"role": role, "content": content} for role, content in example.messages],
                **({"reference": example.response} if example.response else {}),
            }
            for example in held_out[:most]
        ),
    )
    return path
