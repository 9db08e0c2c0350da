"""The defaults that a run folder gives to a request: its models, its prompts, its policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.evaluate import sampling
from skill_kd.evaluate.generations import write_rows
from skill_kd.evaluate.moved_run import is_absent_folder, located, names_a_file
from skill_kd.evaluate.opened_models import ModelSource, accepted_by, plain_errors
from skill_kd.evaluate.policy import GatePolicy, make_policy
from skill_kd.evaluate.request import Request
from skill_kd.files import making, refusing_unwritable
from skill_kd.jobs.manifest import Manifest, ended
from skill_kd.jobs.trust import is_inside, refuse_outside
from skill_kd.spec import Spec


def fill_from_run(
    request: Request, folder: Path, manifest: Manifest, spec: Spec, trusted: bool
) -> tuple[Request, sampling.SamplingTask, GatePolicy, tuple[str, ...]]:
    """Return the request, the sampling task, the policy and notes. The run's spec fills what the request leaves out.

    Unless the run is ``trusted``, no data that its spec names outside of ``folder`` is read.

    Raises:
        RunLockedError: the run still runs.
        UsageError: the run has no student yet, its teacher cannot be loaded, or its prompts are not on this machine or
            must not be read.
    """
    end = ended(folder, manifest)
    if not (folder / "student" / "config.json").is_file():
        raise UsageError(f"'{folder}' has no student yet: the run {end}; finish it first: skill-kd run SPEC --resume")
    evaluation, home = spec.evaluation, Path(manifest.cwd)
    options = {**spec.data.chat_template_options, **request.options}
    notes = [f"the run {end}: the student may be that of an earlier start"] if manifest.status == "running" else []
    prompts, training = request.prompts, request.training_data
    if prompts is None and evaluation.prompts is not None:
        prompts = located(evaluation.prompts, home)
        if prompts is None:
            raise UsageError(f"evaluation.prompts: no '{evaluation.prompts}' on this machine; name it with --prompts")
        if not trusted:
            refuse_outside(folder, "evaluation.prompts", evaluation.prompts, prompts, "name prompts with --prompts")
    if prompts is None:
        found = _data_files(request, spec, home, folder, trusted)
        prompts, training = _held_out(spec, found, request, folder), None
        notes.append("the prompts are the run's held-out prompts, which also chose its best weights: use fresh prompts")
    elif training is None and (home / spec.data.train).suffix in {".jsonl", ".json", ".ndjson"}:
        training = located(spec.data.train, home)
        if training is None:
            notes.append(
                f"the training data '{spec.data.train}' is not on this machine, so the prompts were not compared with "
                "it: name it with --training-data"
            )
        elif not (trusted or is_inside(folder, training)):
            training = None
            notes.append(
                f"the training data '{spec.data.train}' was not read, because the run may come from somebody else, so "
                "the prompts were not compared with it: name it with --training-data, or add --trust-run"
            )
    baseline = _baseline(request, spec)
    if baseline is not None and not request.baseline and is_absent_folder(baseline.model):
        notes.append(
            f"student.model: no '{baseline.model}' on this machine, so it has no column: name it with --baseline"
        )
        baseline = None
    task = sampling.SamplingTask(
        prompts,
        replace(_teacher(request, spec), template_options=options),
        ModelSource(str(folder / "student"), dtype=request.dtype or spec.student.dtype, template_options=options),
        baseline and replace(baseline, template_options=options),
        request.max_new_tokens or spec.rollout.max_new_tokens,
        request.latency,
    )
    changes = {"samples": evaluation.samples, **request.changes}
    policy = make_policy(request.policy or evaluation.policy, changes)
    return replace(request, training_data=training), task, policy, tuple(notes)


def _teacher(request: Request, spec: Spec) -> ModelSource:
    teacher = spec.teacher
    if request.teacher:
        return ModelSource(request.teacher, dtype=request.dtype or teacher.dtype)
    if not isinstance(teacher.model, str):
        what = "behind an endpoint" if teacher.served else "an ensemble"
        raise UsageError(f"teacher: the run's teacher is {what}; give --teacher MODEL, or saved generations")
    if is_absent_folder(teacher.model):
        raise UsageError(f"teacher.model: no '{teacher.model}' on this machine; name it with --teacher MODEL")
    return ModelSource(teacher.model, teacher.revision, teacher.dtype, teacher.quantization, teacher.trust_remote_code)


def _baseline(request: Request, spec: Spec) -> ModelSource | None:
    student = spec.student
    if request.baseline:
        return ModelSource(request.baseline, dtype=request.dtype or student.dtype)
    if student.model is None or student.quantization:
        return None
    return ModelSource(student.model, student.revision, student.dtype, None, student.trust_remote_code)


def _data_files(request: Request, spec: Spec, home: Path, folder: Path, trusted: bool) -> dict[str, str]:
    """Return the paths of the training data and the held-out file, by key of the spec. Only files are included.

    ``request`` may name the present place of the training data.
    """
    found = {}
    for name in ("train", "held_out"):
        given, value = request.training_data if name == "train" else None, getattr(spec.data, name)
        path = given or _data_file(name, spec, home)
        if isinstance(value, str) and not (given or trusted):
            give = "name it with --training-data, or give prompts" if name == "train" else "give prompts"
            refuse_outside(folder, f"data.{name}", value, path, f"{give} with --prompts")
        if path is not None:
            found[name] = str(path)
    return found


def _held_out(spec: Spec, found: Mapping[str, str], request: Request, run: Path) -> Path:
    """Write the run's held-out prompts, with the data's responses as references, and return the path.

    Prompts that the student's chat template refuses are left out if the spec allows bad rows, as in training.
    ``found`` has the data files, and ``request`` may have the highest number of prompts.
    """
    folder = (request.out or run / "eval") / "samples"
    with plain_errors():
        from skill_kd.kd.config import Data
        from skill_kd.kd.dataset.split import load_split

        held_out = load_split(Data.of({**spec.data.model_dump(mode="json"), **found}), spec.seed).held_out
        if spec.data.max_bad_rows:
            held_out = accepted_by(str(run / "student"), held_out, spec.data.chat_template_options)
    path = folder / "prompts.jsonl"
    rows = (
        {
            "messages": [{"role": role, "content": content} for role, content in example.messages],
            **({"reference": example.response} if example.response else {}),
        }
        for example in held_out[: request.held_out]
    )
    with refusing_unwritable(f"'{path}'", "fix that, or choose another --out"), making(folder):
        write_rows(path, rows)
    return path


def _data_file(name: str, spec: Spec, home: Path) -> Path | None:
    """Return the file of ``data.train`` or ``data.held_out``; None if it is a data set of the hub, or a share.

    Raises:
        UsageError: the file is not on this machine.
    """
    value = spec.data.train if name == "train" else spec.data.held_out
    if not isinstance(value, str) or not names_a_file(value):
        return None
    path = located(value, home)
    if path is None:
        give = "name it with --training-data, or give other prompts" if name == "train" else "give other prompts"
        raise UsageError(
            f"data.{name}: no '{value}' on this machine, and the run's held-out prompts come from it; {give} "
            "with --prompts"
        )
    return path
