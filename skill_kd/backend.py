"""The contract between skill-kd and a backend: the specs it accepts, the script it renders, the start command."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from skill_kd.spec import Spec


class Backend(ABC):
    """A way to train a spec. Subclass it and pass the class to ``register_backends``.

    Creating and querying a backend is cheap: ``check`` and ``render`` import nothing heavy, use no network and run
    without torch. ``skill_kd.testing.check_backend`` tests a backend against this contract.
    """

    name: ClassVar[str]
    """Name of the backend in a spec's ``backend:``."""

    version: ClassVar[str]
    """Version of the backend, stamped into every script it renders."""

    requirements: ClassVar[tuple[str, ...]]
    """PEP 508 requirements of the rendered script, written into its PEP 723 header."""

    @abstractmethod
    def check(self, spec: Spec) -> list[str]:
        """Return one message per unsupported key of ``spec``, naming the field and the fix.

        An empty list means that the spec can be rendered. Do not check installed packages here.
        """

    @abstractmethod
    def render(self, spec: Spec) -> str:
        """Return the text of ``train.py``: plain Python that needs only ``requirements`` and the ``kd/`` next to it."""

    @abstractmethod
    def command(self, script: Path, spec: Spec) -> list[str]:
        """Return the argument list that starts ``script``; the caller may append ``--resume``."""

    def files(self, spec: Spec) -> dict[str, str]:  # noqa: ARG002 -- subclasses use it
        """Return files (name to text) that ``generate`` writes next to ``train.py``, to start it without skill-kd."""
        return {}

    def install(self, missing: list[str]) -> str:
        """Return the command that installs ``missing``, a subset of ``requirements``, for an error message."""
        return shlex.join(["pip", "install", *missing])
