"""An example backend: it renders the built-in script and passes it to a launcher, here an imaginary cloud.

Copy it for SkyPilot, Modal or Slurm. Replace ``main``, and let ``check`` refuse what that launcher cannot do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from skill_kd.backend import Backend
from skill_kd.backends.transformers import TransformersBackend
from skill_kd.hookspecs import hookimpl
from skill_kd.render import render, templates_folder
from skill_kd.spec import Spec


class EchoBackend(Backend):
    """The built-in script, started through ``python -m skill_kd_echo``."""

    name = "echo"
    version = "0.1.0"
    requirements = TransformersBackend.requirements

    def check(self, spec: Spec) -> list[str]:
        """Refuse what this cloud lacks, and what the script itself refuses."""
        several = f"launch.nodes: {spec.launch.nodes}, but the echo cloud has one machine; set nodes: 1"
        return [*TransformersBackend().check(spec), *([several] if spec.launch.nodes > 1 else [])]

    def render(self, spec: Spec) -> str:
        """Fill the built-in template. The header names this backend."""
        return render(templates_folder() / "transformers_trainer.py", spec, self)

    def command(self, script: Path, spec: Spec) -> list[str]:
        """Return the built-in command with the launcher in front."""
        return [sys.executable, "-m", "skill_kd_echo", *TransformersBackend().command(script, spec)]


@hookimpl
def register_backends(register: Callable[[type[Backend]], None]) -> None:
    """Register this backend."""
    register(EchoBackend)


def main(command: list[str]) -> None:
    """Submit a command. A real launcher would copy the run folder to the cloud, and ``student/`` back."""
    print("echo cloud: would submit", *command, "(no such cloud exists, so it runs here)", file=sys.stderr)  # noqa: T201
    os.execv(command[0], command)  # noqa: S606 -- becomes the script, so that a signal reaches it


if __name__ == "__main__":
    main(sys.argv[1:])
