"""``skill-kd validate``."""

from __future__ import annotations

from pathlib import Path

import click

from skill_kd.cli.options import BACKEND, JSON, SPEC, load
from skill_kd.console import Verb, print_json, say, show


@click.command(cls=Verb)
@SPEC
@BACKEND
@JSON
def validate(spec: Path, backend: str | None, as_json: bool) -> None:
    """Check a spec, its backend, and its data files.

    The backend must support the spec. Data files are read if they are on this machine.

    \b
    Example:
      skill-kd validate examples/demo.yaml
    """
    from skill_kd import plugins
    from skill_kd.jobs.job import accepted_backend, check_data, summary

    loaded = load(spec, backend=backend)
    installed = loaded.backend in plugins.backends()
    if installed:
        accepted_backend(loaded)
    else:
        say(f"note: backend '{loaded.backend}' is not installed here, so its own checks did not run")
    check_data(loaded)
    if as_json:
        print_json(
            {
                "valid": True,
                "name": loaded.name,
                "hash": loaded.hash,
                "backend": loaded.backend,
                "backend_checked": installed,
            }
        )
    else:
        show(summary(loaded))
