"""The evaluation of a request: of a run, a student, saved generations or results of a harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.evaluate import harness_results, sampling
from skill_kd.evaluate.evaluation_result import EvaluationResult
from skill_kd.evaluate.from_generations import Files, evaluate_generations, without_prompts
from skill_kd.evaluate.generations import read_prompts, refuse_overlap
from skill_kd.evaluate.measurements import ModelMeasurements
from skill_kd.evaluate.opened_models import ModelSource
from skill_kd.evaluate.policy import GatePolicy, make_policy
from skill_kd.evaluate.request import Request
from skill_kd.evaluate.run_request import fill_from_run
from skill_kd.evaluate.written import Subject, Written, subject_of_folder, subject_of_run, write_all
from skill_kd.jobs.manifest import Manifest, refuse_linked
from skill_kd.jobs.trust import is_own, is_run_folder, missing_key, refuse_code
from skill_kd.spec.file import load_spec

Notify = Callable[[str], None]
"""Receives notes that a person should see before hours of sampling."""


def evaluate(
    request: Request, progress: sampling.Progress = sampling.silent, notify: Notify = lambda _note: None
) -> tuple[EvaluationResult, Written]:
    """Evaluate, and write the results, the report and the model card. Return the evaluation and the paths of the files.

    Raises:
        UsageError: parts of the request contradict each other, or a file cannot be used.
        MissingRequirementError: a package or a model is missing.
    """
    _ = request.judge  # raises for an invalid judge now, not after hours of sampling
    saved = request.teacher_generations, request.student_generations
    if any(saved) and not all(saved):
        raise UsageError("--teacher-generations and --student-generations belong together; give both")
    if all(saved) and request.subject:
        raise UsageError(f"'{request.subject}' and saved generations exclude each other; give only one of them")
    if not (any(saved) or request.subject or request.harness_results):
        raise UsageError(
            "name a run, a student, both --teacher-generations and --student-generations, or --harness-results"
        )
    imported = harness_results.compare(*request.harness_results) if request.harness_results else None
    if all(saved):
        found, out, subject = _of_generations(request)
    elif request.subject:
        found, out, subject = _of_models(request, progress, notify)
    else:
        found, out, subject = _of_harness(request)
    found = replace(found, shown=replace(found.shown, harness=imported))
    return found, write_all(found, out, subject)


Answer = tuple[EvaluationResult, Path, Subject | None]
"""The evaluation, the folder to write, and the student of the model card, if any."""


def _of_harness(request: Request) -> Answer:
    found = without_prompts(make_policy(request.policy or "text-only", request.changes))
    note = "harness results do not affect the verdict; for a verdict, also give a run, a student or saved generations"
    return replace(found, warnings=[*found.warnings, note]), request.out or Path("evaluation"), None


def _of_generations(request: Request) -> Answer:
    assert request.teacher_generations is not None
    assert request.student_generations is not None
    files = Files(
        request.teacher_generations,
        request.student_generations,
        request.baseline_generations,
        request.control_generations,
        request.prompts,
        request.training_data,
    )
    policy = make_policy(request.policy or "text-only", request.changes)
    return evaluate_generations(files, policy, judge=request.judge), request.out or Path("evaluation"), None


def _of_models(request: Request, progress: sampling.Progress, notify: Notify) -> Answer:
    assert request.subject is not None
    folder = Path(request.subject)
    if is_run_folder(folder):
        manifest, spec = Manifest.read(folder), load_spec(folder / "spec.yaml")
        if not request.trust_remote_code:
            given = {"teacher": request.teacher, "student": request.baseline}
            refuse_code(spec, folder / "spec.yaml", [section for section, model in given.items() if model is None])
        refuse_linked(folder / "eval", folder / "eval" / "samples")
        trusted = request.trust_run or is_own(folder)
        request, task, policy, notes = fill_from_run(request, folder, manifest, spec, trusted)
        subject: Subject | None = subject_of_run(folder, spec, Path(manifest.cwd))
    elif request.trust_remote_code:
        raise UsageError(f"--trust-remote-code allows what a run's spec asks for, and '{folder}' is not a run folder")
    else:
        task, notes = _task(request), ()
        subject = subject_of_folder(folder, task.teacher.model) if folder.is_dir() else None
        policy = make_policy(request.policy or "assistant", request.changes)
    if request.training_data is not None:
        refuse_overlap(sampling.prompt_keys(task.prompts), request.training_data)
    if absent := _without_references(task.prompts, policy):
        notify(absent)
    if note := missing_key():
        notify(note)
    out = request.out or (folder / "eval" if folder.is_dir() else Path("evaluation"))
    files, measured = sampling.sample(task, policy, out / "samples", progress, request.trust_run)
    return evaluate_generations(files, policy, judge=request.judge, measured=_noted(measured, notes)), out, subject


def _without_references(prompts: Path, policy: GatePolicy) -> str | None:
    """Return a note if quality blocks and cannot be scored, so that the verdict cannot be GO; otherwise None."""
    found = read_prompts(prompts).values()
    absent = sum(not prompt.references for prompt in found)
    if not absent or "quality" not in policy.blocking:
        return None
    return (
        f"{absent} of {len(found)} prompts have no 'reference', so quality cannot be scored. Policy '{policy.name}' "
        "never gives GO without it: add references, or use --policy creative or --set quality.role=advisory"
    )


def _noted(measured: ModelMeasurements, notes: tuple[str, ...]) -> ModelMeasurements:
    return replace(measured, warnings=(*notes, *measured.warnings))


def _task(request: Request) -> sampling.SamplingTask:
    for name, value in (("--teacher", request.teacher), ("--prompts", request.prompts)):
        if value is None:
            raise UsageError(f"'{request.subject}' is not a run folder; give one, or a student with {name}")
    assert request.subject is not None
    assert request.teacher is not None
    assert request.prompts is not None

    def source(model: str) -> ModelSource:
        return ModelSource(model, dtype=request.dtype or "float32", template_options=request.options)

    return sampling.SamplingTask(
        request.prompts,
        source(request.teacher),
        source(request.subject),
        source(request.baseline) if request.baseline else None,
        request.max_new_tokens or 256,
        request.latency,
    )
