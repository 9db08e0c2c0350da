"""``skill-kd generate``."""

from __future__ import annotations

from pathlib import Path

import click

from skill_kd.cli.options import BACKEND, JSON, SPEC, load
from skill_kd.console import Verb, print_json, show


@click.command(cls=Verb)
@SPEC
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write (default: ./NAME).")
@click.option(
    "--format", "kind", type=click.Choice(["py", "ipynb"]), default="py", help="Write files, or one notebook."
)
@click.option("--check", is_flag=True, help="Write nothing; fail if the folder is out of date.")
@click.option("--force", is_flag=True, help="Overwrite an edited script.")
@BACKEND
@JSON
def generate(
    spec: Path, out: Path | None, kind: str, check: bool, force: bool, backend: str | None, as_json: bool
) -> None:
    """Write the trainer script: train.py, and kd/ next to it.

    \b
    Example:
      skill-kd generate examples/demo.yaml -o my-run
      skill-kd generate examples/demo.yaml --format ipynb
    """
    from skill_kd.jobs import job

    loaded = load(spec, backend=backend)
    target, notebook = out or Path(loaded.name), kind == "ipynb"
    if check:
        job.check_generated(loaded, target, notebook=notebook)
        written = []
    else:
        written = job.generate(loaded, target, notebook=notebook, force=force)
    if as_json:
        print_json({"name": loaded.name, "hash": loaded.hash, "written": [str(path) for path in written]})
    else:
        show("".join(f"{path}\n" for path in written), newline=False)
