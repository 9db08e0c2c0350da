"""A backend for skill-kd that trains the student through Unsloth: 4-bit, 16-bit or full, one process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from skill_kd.backend import Backend
from skill_kd.backends.transformers import TransformersBackend
from skill_kd.hookspecs import hookimpl
from skill_kd.render import render
from skill_kd.spec import Spec

__version__ = "0.1.0"


SETUP = (
    "pip install torch==2.13.0",
    "pip install --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9",
    'pip install trl==1.16.0 transformers==5.23.0 "datasets>=4.7,<5" "peft>=0.18" accelerate gguf httpx tenacity',
)
"""The versions of our tests. A plain install gives an Unsloth that cannot train on a CPU, or fails with a conflict."""


class UnslothBackend(Backend):
    """All objectives. Losses, sampler and loop come from the built-in backend, the student from Unsloth."""

    name = "unsloth"
    version = __version__
    # Ranges instead of pins: Unsloth caps transformers and trl below the versions that other backends are tested with.
    requirements = (
        "torch>=2.6,<3",
        "transformers>=5.0,<6",
        "accelerate>=1.10,<2",
        "datasets>=4.0,<5",
        "peft>=0.18,<1",
        "safetensors>=0.5,<1",
        "gguf>=0.17,<1",
        "tqdm>=4.66",
        "httpx>=0.27,<1",
        "tenacity>=9,<10",
        "unsloth>=2026.10.9",
        "unsloth_zoo>=2026.10.9",
    )

    def check(self, spec: Spec) -> list[str]:
        """Return what Unsloth cannot do. Reads model folders, but loads no model."""
        return [*TransformersBackend().check(spec), *_problems(spec)]

    def render(self, spec: Spec) -> str:
        """Fill ``templates/unsloth_trainer.py``."""
        return render(Path(__file__).parent / "templates" / "unsloth_trainer.py", spec, self)

    def command(self, script: Path, spec: Spec) -> list[str]:  # noqa: ARG002 -- the contract's
        """Return the command of one new process: Unsloth keeps state between two models in a process."""
        return [sys.executable, str(script)]

    def install(self, missing: list[str]) -> str:
        """Return all install commands if Unsloth is missing, because pip cannot resolve Unsloth by itself."""
        return " && ".join(SETUP) if any("unsloth" in each for each in missing) else super().install(missing)


def _problems(spec: Spec) -> Iterator[str]:
    if spec.launch.processes > 1 or spec.launch.strategy != "none":
        yield (
            f"launch: {spec.launch.processes} processes with strategy {spec.launch.strategy}, but Unsloth's gradient "
            "checkpointing works in one process only; set processes: 1 and strategy: none, or use backend: transformers"
        )
    if spec.student.quantization == "8bit":
        yield "student.quantization: 8bit was not tried with Unsloth; use 4bit, or backend: transformers"
    if spec.student.trust_remote_code:
        yield (
            "student.trust_remote_code: Unsloth replaces a model's own code, so this has no effect; "
            "drop it, or use backend: transformers"
        )


@hookimpl
def register_backends(register: Callable[[type[Backend]], None]) -> None:
    """Register the Unsloth backend."""
    register(UnslothBackend)
