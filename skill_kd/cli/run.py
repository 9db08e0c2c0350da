"""``skill-kd run``."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skill_kd.cli.options import BACKEND, JSON, TRUST_CODE, TRUST_RUN, load
from skill_kd.console import Verb, print_json, say, show
from skill_kd.errors import OutOfMemoryError, SkillKDError

if TYPE_CHECKING:
    from skill_kd.spec import Spec


@click.command(cls=Verb)
@click.argument("spec", type=click.Path(path_type=Path), metavar="SPEC|train.py")
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), metavar="DIR", help="Folder for all runs."
)
@click.option("--name", metavar="NAME", help="Name of the run folder, instead of the spec's name.")
@click.option("--resume", is_flag=True, help="Resume a run from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Print the command and the missing packages; write nothing.")
@BACKEND
@TRUST_CODE
@TRUST_RUN
@JSON
def run(
    spec: Path,
    runs: Path,
    name: str | None,
    resume: bool,
    dry_run: bool,
    backend: str | None,
    trust_remote_code: bool,
    trust_run: bool,
    as_json: bool,
) -> None:
    """Train in runs/NAME, from a spec or a generated train.py.

    You may edit a script before you run it. Ctrl-C stops after a checkpoint, and --resume resumes from there. --resume
    with more updates in the last stage trains a finished run further.

    \b
    Example:
      skill-kd run examples/demo.yaml
      skill-kd run examples/demo.yaml --resume
      skill-kd run my-run/train.py --name edited
    """
    from skill_kd.jobs import job as jobs
    from skill_kd.jobs import run as runner
    from skill_kd.jobs.resume import earlier
    from skill_kd.jobs.trust import is_run_folder, may_be_foreign, refuse_code, refuse_server

    if spec.suffix != ".py":
        loaded = load(spec, name=name, backend=backend)
        # A spec that the user wrote is the consent. One in a run folder may be from somebody else.
        if is_run_folder(spec.parent) and not trust_remote_code:
            refuse_code(loaded, spec)
        job = jobs.prepare(loaded, runs)
    elif backend is None:
        job = jobs.prepare_script(spec, runs, name)
    else:
        raise click.UsageError("--backend applies only to a spec; a generated script keeps the backend that wrote it")
    # Naming a script is consent to run its code, but not to send a key to the server in its CONFIG.
    if may_be_foreign(spec) and not trust_run:
        refuse_server(job.spec, spec)
    if dry_run:
        earlier(job, resume)
        _print_dry_run(str(job.folder), job.command(resume), job.missing, as_json)
        return
    for note in job.untested:
        say(f"note: {note}")
    with _adding_the_plan(job.spec):
        result = runner.start(job, resume=resume, trust_run=trust_run, notify=say)
    if as_json:
        document = {"name": job.spec.name, "folder": str(result.folder), "student": str(result.student)}
        print_json({**document, "seconds": round(result.seconds, 1), "summary": result.summary})
    else:
        say(f"run '{job.spec.name}' is done; the student is in:")
        show(result.student)


@contextlib.contextmanager
def _adding_the_plan(spec: Spec) -> Iterator[None]:
    """Add the planned peak to an error about memory."""
    try:
        yield
    except OutOfMemoryError as error:
        with contextlib.suppress(SkillKDError):
            error.add_note(_planned_peak(spec))
        raise


def _planned_peak(spec: Spec) -> str:
    from skill_kd.plan import plan
    from skill_kd.plan.plan_result import gigabytes

    highest = plan(spec).phases[0]
    largest = sorted(highest.parts, key=lambda part: -part.bytes)[:3]
    parts = ", ".join(f"{part.name} {gigabytes(part.bytes)}" for part in largest)
    return f"`plan` estimates a peak of {gigabytes(highest.bytes)} per process, in {highest.name}: {parts}"


def _print_dry_run(folder: str, command: Sequence[str], missing: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"folder": folder, "command": list(command), "missing": missing})
    else:
        show(f"folder   {folder}\ncommand  {shlex.join(command)}\nmissing  {', '.join(missing) or 'nothing'}")
