"""A backend for skill-kd that trains with TRL's DistillationTrainer (TRL 1.16)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from skill_kd.backend import Backend
from skill_kd.backends.transformers import TransformersBackend
from skill_kd.hookspecs import hookimpl
from skill_kd.render import render
from skill_kd.spec import JSD, Distill, ForwardKL, MiniLLM, ReverseKL, Spec

__version__ = "0.1.0"

BUILT_IN = "use backend: transformers"
"""The alternative that every refusal suggests."""


class TRLBackend(Backend):
    """On-policy reverse KL, forward KL and JSD with TRL's own loss, and MiniLLM without teacher mixing with ours."""

    name = "trl"
    version = __version__
    # The script uses methods that TRL does not promise to keep, so each minor version is tested before it is allowed.
    requirements = (*TransformersBackend.requirements, "trl>=1.16,<1.17")

    def check(self, spec: Spec) -> list[str]:
        """Return what TRL cannot do or would silently do differently. Reads model folders, but loads no model."""
        problems = [*_stage_problems(spec), *_rollout_problems(spec), *_model_problems(spec)]
        own_engine = spec.rollout.model_copy(update={"engine": "transformers", "vllm_url": None})
        return [*TransformersBackend().check(spec.model_copy(update={"rollout": own_engine})), *problems]

    def render(self, spec: Spec) -> str:
        """Fill ``templates/trl_trainer.py``."""
        return render(Path(__file__).parent / "templates" / "trl_trainer.py", spec, self)

    def command(self, script: Path, spec: Spec) -> list[str]:
        """Return the built-in backend's command: the script in one process, or through ``accelerate launch``."""
        return TransformersBackend().command(script, spec)

    def files(self, spec: Spec) -> dict[str, str]:
        """Return the files that the built-in backend writes for several processes."""
        return TransformersBackend().files(spec)


# --- stages and objectives --------------------------------------------------------------------------------------------


def _stage_problems(spec: Spec) -> Iterator[str]:
    for number, stage in enumerate(spec.stages):
        if isinstance(stage, Distill):
            yield from _objective_problems(f"stages.{number}.objective", stage.objective, spec)
        elif stage.kind == "warm_start":
            yield (
                f"stages.{number}: a warm_start is not part of TRL's trainer; first train its objective as the distill "
                "stage of a run with backend: transformers, then set student.model to that run's student/, "
                f"or {BUILT_IN}"
            )
        else:
            yield f"stages.{number}: {stage.kind} is not part of TRL's trainer; drop the stage, or {BUILT_IN}"


def _objective_problems(field: str, objective: object, spec: Spec) -> Iterator[str]:
    if isinstance(objective, MiniLLM):
        yield from _minillm_problems(field, objective, spec)
    elif isinstance(objective, ReverseKL | ForwardKL | JSD):
        yield from _divergence_problems(field, objective, spec)
    else:
        kind = getattr(objective, "kind", objective)
        yield f"{field}.kind: TRL's trainer has no {kind}; use reverse_kl, forward_kl, jsd or minillm, or {BUILT_IN}"


def _divergence_problems(field: str, objective: ReverseKL | ForwardKL | JSD, spec: Spec) -> Iterator[str]:
    if objective.on_policy != 1:
        yield (
            f"{field}.on_policy: {objective.on_policy}, but TRL trains only on the student's samples; "
            f"set on_policy: 1, or {BUILT_IN}"
        )
    if objective.hard_label_weight:
        yield (
            f"{field}.hard_label_weight: {objective.hard_label_weight} needs responses from the data, which TRL does "
            f"not read; drop it, or {BUILT_IN}"
        )
    if objective.temperature != spec.rollout.temperature:
        yield (
            f"{field}.temperature: {objective.temperature} and rollout.temperature: {spec.rollout.temperature} are one "
            f"setting in TRL; make them equal, or {BUILT_IN}"
        )


def _minillm_problems(field: str, objective: MiniLLM, spec: Spec) -> Iterator[str]:
    if objective.teacher_mix:
        yield (
            f"{field}.teacher_mix: {objective.teacher_mix}, but TRL samples only from the student; "
            f"set teacher_mix: 0, or {BUILT_IN}"
        )
    for name in ("pt_weight", "coverage_weight"):
        if weight := getattr(objective, name):
            yield (
                f"{field}.{name}: {weight} needs a second loss on other data, but TRL's trainer has one loss; "
                f"set {name}: 0, or {BUILT_IN}"
            )
    for name in ("temperature", "top_p"):
        if (value := getattr(spec.rollout, name)) != 1:
            yield (
                f"rollout.{name}: {value} needs the probability of each sampled token, which TRL does not keep; "
                f"with minillm set {name}: 1, or {BUILT_IN}"
            )


def _vllm_problems(spec: Spec) -> Iterator[str]:
    student, server = spec.student, spec.rollout.vllm_url
    if student.from_teacher is not None:
        # TRL gives vLLM the name in the model's config, the teacher's. vLLM would load all the teacher's layers.
        yield (
            "rollout.engine: vllm loads the student by its name, but a student grown with from_teacher has no name; "
            "set student.model, or drop rollout.engine"
        )
    if student.quantization == "8bit" or (student.quantization and server):
        yield (
            f"student.quantization: {student.quantization} cannot be sent to {'a server' if server else 'vLLM'}; "
            "drop it, or drop rollout.engine: vllm"
        )


def _rollout_problems(spec: Spec) -> Iterator[str]:
    rollout, batch = spec.rollout, spec.training.batch_size
    if rollout.temperature <= 0:
        yield f"rollout.temperature: {rollout.temperature} always samples the same response; set it above 0"
    if rollout.engine == "vllm":
        yield from _vllm_problems(spec)
    if rollout.inner_epochs != 1:
        yield (
            f"rollout.inner_epochs: {rollout.inner_epochs}, but TRL takes one step per batch of rollouts; "
            f"set inner_epochs: 1, or {BUILT_IN}"
        )
    if rollout.prompts != batch:
        yield (
            f"rollout.prompts: {rollout.prompts}, but TRL samples for each step; set it to training.batch_size, "
            f"{batch}, or {BUILT_IN}"
        )
    if spec.training.on_bad_loss == "roll_back":
        yield f"training.on_bad_loss: roll_back, but TRL's loop cannot roll back; set on_bad_loss: stop, or {BUILT_IN}"
    if spec.launch.strategy in ("fsdp2", "deepspeed"):
        yield (
            f"launch.strategy: {spec.launch.strategy} shards the student, but this backend cannot measure or export a "
            f"sharded student; use strategy: ddp, or {BUILT_IN}"
        )
    if spec.launch.shard_teacher:
        yield f"launch.shard_teacher: TRL loads the whole teacher in every process; drop it, or {BUILT_IN}"


# --- models -----------------------------------------------------------------------------------------------------------


def _model_problems(spec: Spec) -> Iterator[str]:
    teacher, lora = spec.teacher.model, spec.student.lora
    if spec.teacher.served is not None:
        yield f"teacher.served: TRL needs a loaded teacher; set teacher.model, or {BUILT_IN}"
    if isinstance(teacher, tuple) and len(teacher) > 1:
        yield f"teacher.model: {len(teacher)} teachers, but TRL uses one; list one, or {BUILT_IN}"
    elif teacher is not None and spec.student.model is not None:
        name = teacher if isinstance(teacher, str) else teacher[0].model
        yield from _vocabulary_problems(Path(name), Path(spec.student.model))
    if lora is not None and "lm_head" in ([lora.targets] if isinstance(lora.targets, str) else lora.targets):
        yield f"student.lora.targets: TRL's loss ignores an adapter on lm_head; leave it out, or {BUILT_IN}"


def _vocabulary_problems(teacher: Path, student: Path) -> Iterator[str]:
    """Compare two model folders. The script compares models from a hub, after download and before training."""
    theirs, ours = _tokens(teacher), _tokens(student)
    differing = [token_id for token_id in sorted(theirs.keys() & ours.keys()) if theirs[token_id] != ours[token_id]]
    if differing:
        first = differing[0]
        yield (
            f"teacher.model: its tokenizer differs from the student's: id {first} is {theirs[first]!r} in the teacher "
            f"and {ours[first]!r} in the student; use a teacher of the student's family, or backend: transformers with "
            "kind: sequence_kd"
        )


def _tokens(folder: Path) -> dict[int, str]:
    """Return the tokens by id from a folder's ``tokenizer.json``; none if there is no such file."""
    try:
        values: Any = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        listed = values["model"]["vocab"]
        # Unigram models list [token, score] in the order of ids, the others map tokens to ids.
        pairs = listed.items() if isinstance(listed, dict) else ((each[0], i) for i, each in enumerate(listed))
        added = ((each["content"], each["id"]) for each in values.get("added_tokens") or [])
        return {int(token_id): str(token) for token, token_id in (*pairs, *added)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # transformers may read another format of tokenizer; the script compares those


@hookimpl
def register_backends(register: Callable[[type[Backend]], None]) -> None:
    """Register the TRL backend."""
    register(TRLBackend)
