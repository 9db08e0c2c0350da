"""Consent to run the code of models that a run folder's own spec asks for: the folder may come from somebody else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from skill_kd.errors import UsageError
from skill_kd.jobs.manifest import NAME
from skill_kd.spec import Spec


def is_run_folder(folder: Path) -> bool:
    """Return True if ``folder`` has a manifest."""
    return os.path.lexists(folder / NAME)


def refuse_code(spec: Spec, path: Path, sections: Sequence[str] = ("teacher", "student")) -> None:
    """Refuse a spec that asks to run the code of a model, because nobody said on the command line that it may.

    Args:
        path: the spec's file, for the message.
        sections: the parts of the spec whose models may be loaded.

    Raises:
        UsageError: the message names the model, its revision and the option that allows the code.
    """
    for section in sections:
        source = getattr(spec, section)
        if source.trust_remote_code:
            named = " and ".join(f"'{model}' at revision {revision}" for model, revision in source.revisions)
            raise UsageError(
                f"{section}.trust_remote_code: '{path}' asks to run the Python code of {named}, and a run folder may "
                "come from somebody else; if you have read that code and trust it, add --trust-remote-code"
            )
