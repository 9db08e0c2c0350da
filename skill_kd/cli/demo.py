"""``skill-kd demo``."""

from __future__ import annotations

from pathlib import Path

import click

from skill_kd.cli.options import JSON
from skill_kd.console import Verb, print_json, say, show


@click.command(cls=Verb)
@click.option(
    "--layers",
    type=click.IntRange(1, 30),
    default=24,
    show_default=True,
    help="Number of teacher layers that the student keeps.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="Seed; the same seed gives the same figures.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), metavar="DIR", help="Folder for the run.")
@JSON
def demo(layers: int, seed: int, out: Path, as_json: bool) -> None:
    """Distill a real model on this machine, in minutes.

    The teacher is a Python package, and the prompts come with skill-kd. The demo needs no account and no GPU. It also
    evaluates the student, on too few prompts for a verdict: expect INCONCLUSIVE. The exit code is then still 0.

    \b
    Example:
      skill-kd demo
      skill-kd demo --layers 10
    """
    from skill_kd import demo as main_job

    result = main_job.demo(
        layers=layers, seed=seed, out=out, progress=lambda done, of: say(f"evaluate: {done} of {of} prompts")
    )
    if as_json:
        print_json(result.to_json())
    else:
        show(result.table())
