"""The built-in backend: our own PyTorch loop on transformers, started by accelerate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from skill_kd import __version__
from skill_kd.backend import Backend
from skill_kd.backends import launch
from skill_kd.errors import UsageError
from skill_kd.hookspecs import hookimpl
from skill_kd.kd.errors import BadInput, ScriptError
from skill_kd.kd.files import read_object
from skill_kd.kd.model.adapter_folder import adapter_in
from skill_kd.kd.model.context import context_length
from skill_kd.kd.model.families import refusal
from skill_kd.kd.model.layers import LAYER_COUNTS, growth_problem, kept_layers, text_part
from skill_kd.render import render, templates_folder
from skill_kd.spec import FromTeacher, Spec


class TransformersBackend(Backend):
    """Backend for every objective, on one process or many."""

    name = "transformers"
    version = __version__
    # The versions that the tests ran with.
    requirements = (
        "torch==2.13.0",
        "transformers==5.23.0",
        "accelerate==1.15.0",
        "datasets==4.8.5",
        "peft==0.21.2",
        "safetensors==0.8.0",
        "gguf==0.19.0",
        "tqdm==4.70.1",
        "httpx==0.28.1",
        "tenacity==9.2.1",
    )

    def check(self, spec: Spec) -> list[str]:
        """Return what this backend does not support. Read the config of a local model; download nothing."""
        return [*_student_problems(spec), *_model_problems(spec)]

    def render(self, spec: Spec) -> str:
        """Fill ``templates/transformers_trainer.py``."""
        return render(templates_folder() / "transformers_trainer.py", spec, self)

    def command(self, script: Path, spec: Spec) -> list[str]:
        """Start one process directly, and several on one machine with ``accelerate launch``.

        Raises:
            UsageError: the spec asks for several machines, which one command cannot start.
        """
        if spec.launch.nodes > 1:
            raise UsageError(
                f"launch.nodes: {spec.launch.nodes}, and `skill-kd run` starts only one machine; `skill-kd generate` "
                f"writes {launch.SCRIPT}: start it on each machine, or submit it to Slurm"
            )
        if not launch.several(spec):
            return [sys.executable, str(script)]
        # -P: a folder named accelerate in the working folder must not be imported instead.
        return [sys.executable, "-P", "-m", "accelerate.commands.launch", *launch.arguments(spec), str(script)]

    def files(self, spec: Spec) -> dict[str, str]:
        """Return accelerate's configuration and ``launch.sh`` if several processes train."""
        return launch.files(spec)


def _student_problems(spec: Spec) -> Iterator[str]:
    student, strategy = spec.student, spec.launch.strategy
    if student.quantization and strategy in ("fsdp2", "deepspeed"):
        yield (
            f"launch.strategy: {strategy} cannot shard student.quantization: {student.quantization}; "
            "use strategy: ddp, or drop the quantization"
        )
    if strategy == "deepspeed" and spec.training.on_bad_loss == "roll_back":
        yield (
            "training.on_bad_loss: roll_back is not possible with DeepSpeed, which keeps accumulated gradients; "
            "set on_bad_loss: stop, or launch.strategy: fsdp2"
        )
    if student.quantization and student.from_teacher:
        yield (
            f"student.quantization: {student.quantization} is not possible with from_teacher: a student with fewer "
            "layers must train all its weights; drop the quantization"
        )
    if spec.rollout.engine != "transformers":
        yield (
            f"rollout.engine: {spec.rollout.engine} does not return the probabilities that this backend needs; "
            "drop rollout.engine, or use backend: trl"
        )
    if student.dtype == "float16":
        yield "student.dtype: float16 needs a loss scaler, which this backend does not have; use float32 or bfloat16"


def _model_problems(spec: Spec) -> Iterator[str]:
    teacher = spec.teacher.model
    if isinstance(teacher, str):
        yield from _folder_problems("teacher.model", teacher, spec)
    for index, each in enumerate(teacher if isinstance(teacher, tuple) else ()):
        yield from _folder_problems(f"teacher.model.{index}.model", each.model, spec)
    if spec.student.model is not None:
        yield from _folder_problems("student.model", spec.student.model, spec)


def _folder_problems(field: str, model: str, spec: Spec, depth: int = 0) -> Iterator[str]:
    """Yield problems of a model in a local folder; a hub id is not checked. ``depth`` adapters led to the model."""
    folder = Path(model)
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.endswith("/"):
            yield f"{field}: there is no folder {model!r}; set an existing folder or a hub id"
        return
    try:
        adapter = adapter_in(folder)
        below = adapter.check_depth(depth) if adapter else 0
    except ScriptError as error:
        yield f"{field}: {error}"
        return
    if adapter is not None and not adapter.on_itself:
        yield from _folder_problems(f"{field} (the base model of the adapter {model!r})", adapter.base, spec, below)
        return
    if not (folder / "config.json").exists():
        yield f"{field}: folder {model!r} contains no config.json; set a folder that save_pretrained wrote"
        return
    try:
        config = read_object(folder / "config.json")
    except BadInput as error:
        yield f"{field}: {error}; save the model again"
        return
    if reason := refusal(config):
        yield f"{field}: {model!r}: {reason}; take another model"
    yield from _context_problems(field, model, config, spec)
    if field.startswith("teacher") and spec.student.from_teacher:
        yield from _growth_problems(config, spec.student.from_teacher)


def _context_problems(field: str, model: str, config: Mapping[str, object], spec: Spec) -> Iterator[str]:
    context = context_length(config)
    wanted = spec.data.max_prompt_tokens + spec.rollout.max_new_tokens
    if context is not None and wanted > context:
        yield (
            f"{field}: {model!r} has a context of {context} tokens, and data.max_prompt_tokens "
            f"{spec.data.max_prompt_tokens} + rollout.max_new_tokens {spec.rollout.max_new_tokens} is {wanted}; "
            f"lower their sum by {wanted - context}"
        )


def _growth_problems(config: Mapping[str, object], grown: FromTeacher) -> Iterator[str]:
    text = text_part(config)
    if problem := growth_problem(text):
        yield problem
    count = next((text[name] for name in LAYER_COUNTS if name in text), None)
    if isinstance(count, int):
        try:
            kept_layers(grown.layers, count)
        except BadInput as error:
            yield str(error)


@hookimpl
def register_backends(register: Callable[[type[Backend]], None]) -> None:
    """Register the built-in backend."""
    register(TransformersBackend)
