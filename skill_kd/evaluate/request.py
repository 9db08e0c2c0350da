"""What the command line asks for: a run, a student, or saved generations; and where the answer goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.evaluate import harness, sampling
from skill_kd.evaluate.evaluation import Files, Measured, evaluate_generations, read_prompts, without_prompts
from skill_kd.evaluate.evaluation_result import Evaluation
from skill_kd.evaluate.generations import refuse_overlap, write_rows
from skill_kd.evaluate.opened_models import Source, plain_errors
from skill_kd.evaluate.pairwise_judge import Judge
from skill_kd.evaluate.policy import Policy, make_policy
from skill_kd.evaluate.written import Subject, Written, subject_of_folder, subject_of_run, write_all
from skill_kd.jobs.manifest import NAME as MANIFEST
from skill_kd.jobs.manifest import Manifest
from skill_kd.spec import Spec
from skill_kd.spec.file import load_spec


@dataclass(frozen=True)
class Request:
    """Everything that may be asked; what is None is taken from the run, or left out."""

    subject: str | None = None
    """A run folder, or the student: a folder or a hub id."""
    teacher: str | None = None
    prompts: Path | None = None
    baseline: str | None = None
    """The undistilled student."""
    teacher_generations: Path | None = None
    student_generations: Path | None = None
    baseline_generations: Path | None = None
    control_generations: Path | None = None
    training_data: Path | None = None
    policy: str | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    max_new_tokens: int | None = None
    dtype: str | None = None
    """Of models that no spec names: float32 where none is given."""
    latency: bool = True
    judge_url: str | None = None
    judge_model: str | None = None
    judge_key_env: str | None = None
    """Name of the environment variable that holds the judge's key."""
    harness_results: tuple[Path, Path] | None = None
    """Results of lm-evaluation-harness: the teacher's file, the student's."""
    held_out: int | None = None
    """Take no more than so many of the prompts that a run set aside."""
    out: Path | None = None

    @property
    def judge(self) -> Judge | None:
        """Whom to ask, or None.

        Raises:
            UsageError: an address without a model, or the other way round.
        """
        if self.judge_url is None and self.judge_model is None:
            return None
        if self.judge_url is None or self.judge_model is None:
            raise UsageError("--judge-url and --judge-model belong together; give both")
        if not self.judge_url.startswith(("http://", "https://")):
            raise UsageError(f"--judge-url '{self.judge_url}' is no http or https address")
        return Judge(self.judge_url, self.judge_model, self.judge_key_env)


Tell = Callable[[str], None]
"""What should be known before hours of sampling goes to it."""


def evaluate(
    request: Request, progress: sampling.Progress = sampling.silent, tell: Tell = lambda _note: None
) -> tuple[Evaluation, Written]:
    """Evaluate, write figures, report and model card, and return the evaluation and where they lie.

    Raises:
        UsageError: what was asked does not fit together, or a file cannot be used.
        MissingRequirementError: a package or a model is not there.
    """
    _ = request.judge  # refused now, not after hours of sampling
    saved = request.teacher_generations, request.student_generations
    if any(saved) and not all(saved):
        raise UsageError("--teacher-generations and --student-generations belong together; give both")
    if all(saved) and request.subject:
        raise UsageError(f"give '{request.subject}' to sample from models, or saved generations, not both")
    if not (any(saved) or request.subject or request.harness_results):
        raise UsageError("name a run, a student, --teacher-generations and --student-generations, or --harness-results")
    imported = harness.compare(*request.harness_results) if request.harness_results else None
    if all(saved):
        found, out, subject = _of_generations(request)
    elif request.subject:
        found, out, subject = _of_models(request, progress, tell)
    else:
        found, out, subject = _of_harness(request)
    found = replace(found, measured={**found.measured, "harness": imported})
    return found, write_all(found, out, subject)


Answer = tuple[Evaluation, Path, Subject | None]
"""With the folder to write, and the student whose card it is."""


def _of_harness(request: Request) -> Answer:
    found = without_prompts(make_policy(request.policy or "text-only", request.changes))
    note = "results of the harness decide nothing: a verdict needs a run, a student or saved generations as well"
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


def _of_models(request: Request, progress: sampling.Progress, tell: Tell) -> Answer:
    assert request.subject is not None
    folder = Path(request.subject)
    if (folder / MANIFEST).is_file():
        manifest, spec = Manifest.read(folder), load_spec(folder / "spec.yaml")
        request, task, policy, notes = _of_run(request, folder, manifest, spec)
        subject: Subject | None = subject_of_run(folder, spec, Path(manifest.cwd))
    else:
        task, notes = _task(request), ()
        subject = subject_of_folder(folder, task.teacher.model) if folder.is_dir() else None
        policy = make_policy(request.policy or "assistant", request.changes)
    if request.training_data is not None:
        refuse_overlap(sampling.prompt_keys(task.prompts), request.training_data)
    if absent := _without_references(task.prompts, policy):
        tell(absent)
    out = request.out or (folder / "eval" if folder.is_dir() else Path("evaluation"))
    files, measured = sampling.sample(task, policy, out / "samples", progress)
    return evaluate_generations(files, policy, judge=request.judge, measured=_noted(measured, notes)), out, subject


def _without_references(prompts: Path, policy: Policy) -> str | None:
    """Say that no verdict can be GO, where quality decides and cannot be scored."""
    found = read_prompts(prompts).values()
    absent = sum(not prompt.references for prompt in found)
    if not absent or "quality" not in policy.blocking:
        return None
    return (
        f"{absent} of {len(found)} prompts have no 'reference', so quality cannot be scored, and policy "
        f"'{policy.name}' says GO only if it is: add references, take --policy creative, or --set quality.role=advisory"
    )


def _noted(measured: Measured, notes: tuple[str, ...]) -> Measured:
    return replace(measured, about={**measured.about, "warnings": notes})


def _task(request: Request) -> sampling.Task:
    for name, value in (("--teacher", request.teacher), ("--prompts", request.prompts)):
        if value is None:
            raise UsageError(f"'{request.subject}' is no run folder, so {name} must be given")
    assert request.subject is not None
    assert request.teacher is not None
    assert request.prompts is not None
    dtype = request.dtype or "float32"
    return sampling.Task(
        request.prompts,
        Source(request.teacher, dtype=dtype),
        Source(request.subject, dtype=dtype),
        Source(request.baseline, dtype=dtype) if request.baseline else None,
        request.max_new_tokens or 256,
        request.latency,
    )


# --- a run folder -----------------------------------------------------------------------------------------------------


def _of_run(
    request: Request, folder: Path, manifest: Manifest, spec: Spec
) -> tuple[Request, sampling.Task, Policy, tuple[str, ...]]:
    """Fill what was not given from the run's own spec."""
    if not (folder / "student" / "config.json").is_file():
        raise UsageError(f"'{folder}' holds no student yet (the run is {manifest.status}); finish it with --resume")
    evaluation, home = spec.evaluation, Path(manifest.cwd)
    notes: tuple[str, ...] = ()
    prompts, training = request.prompts, request.training_data
    if prompts is None and evaluation.prompts is not None:
        prompts = home / evaluation.prompts
    if prompts is None:
        prompts = _held_out(spec, home, (request.out or folder / "eval") / "samples", request.held_out)
        notes = ("the prompts are the run's held-out ones, by which its best weights were chosen: take fresh ones",)
    elif training is None and (home / spec.data.train).suffix in {".jsonl", ".json", ".ndjson"}:
        training = home / spec.data.train
    task = sampling.Task(
        prompts,
        Source(request.teacher, dtype=request.dtype or spec.teacher.dtype) if request.teacher else _teacher(spec),
        Source(str(folder / "student"), dtype=request.dtype or spec.student.dtype),
        _baseline(request, spec),
        request.max_new_tokens or spec.rollout.max_new_tokens,
        request.latency,
    )
    changes = {"samples": evaluation.samples, **request.changes}
    policy = make_policy(request.policy or evaluation.policy, changes)
    return replace(request, training_data=training), task, policy, notes


def _teacher(spec: Spec) -> Source:
    teacher = spec.teacher
    if not isinstance(teacher.model, str):
        what = "behind an endpoint" if teacher.served else "an ensemble"
        raise UsageError(f"teacher: the run's is {what}; give --teacher MODEL, or save its responses and give them")
    return Source(teacher.model, teacher.revision, teacher.dtype, teacher.quantization, teacher.trust_remote_code)


def _baseline(request: Request, spec: Spec) -> Source | None:
    student = spec.student
    if request.baseline:
        return Source(request.baseline, dtype=request.dtype or student.dtype)
    if student.model is None or student.quantization:
        return None
    return Source(student.model, student.revision, student.dtype, None, student.trust_remote_code)


def _held_out(spec: Spec, home: Path, folder: Path, most: int | None) -> Path:
    """Write the prompts that the run set aside, ``most`` at most, with the responses the data gives as references."""
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
