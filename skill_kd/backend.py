"""The contract between skill-kd and a backend: what it accepts, what it renders, how that is started."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from skill_kd.spec import Spec


class Backend(ABC):
    """A way to train a spec. Subclass it, hand the class to ``register_backends``.

    A backend is cheap to create and to ask: ``check`` and ``render`` import nothing heavy, read no network
    and run on a laptop without torch. ``skill_kd.testing.check_backend`` holds a backend against this contract.
    """

    name: ClassVar[str]
    """What a spec's ``backend:`` says to choose it."""

    version: ClassVar[str]
    """Stamped into every script it renders."""

    requirements: ClassVar[tuple[str, ...]]
    """PEP 508 requirements of the rendered script; they become its PEP 723 header."""

    @abstractmethod
    def check(self, spec: Spec) -> list[str]:
        """Return one message for each thing in ``spec`` this backend cannot do, naming the field and the mend.

        An empty list means that it can be rendered. Installed packages are no concern of this method.
        """

    @abstractmethod
    def render(self, spec: Spec) -> str:
        """Return the text of ``train.py``: ordinary Python that needs only ``requirements`` and ``kd/`` beside it."""

    @abstractmethod
    def command(self, script: Path, spec: Spec) -> list[str]:
        """Return the argument list that starts ``script``; it may be followed by ``--resume``."""

    def files(self, spec: Spec) -> dict[str, str]:  # noqa: ARG002 -- for those that have some
        """Return texts by name that ``generate`` puts beside ``train.py``, to start it without skill-kd."""
        return {}

    def install(self, missing: list[str]) -> str:
        """Return the command that installs ``missing``, some of ``requirements``, told to whoever lacks them."""
        return shlex.join(["pip", "install", *missing])
