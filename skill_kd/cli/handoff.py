"""``skill-kd handoff``."""

from __future__ import annotations

from pathlib import Path

import click

from skill_kd.cli.options import JSON, TRUST_CODE, TRUST_RUN
from skill_kd.console import Verb, print_json, say, show


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE", help="Fine-tuning data, instead of handoff.data."
)
@click.option("--execute", is_flag=True, help="Also fine-tune, reload the result, and measure the drift.")
@click.option("--python", metavar="PATH", help="Python interpreter that has Unsloth (default: this one).")
@click.option("--max-steps", type=click.IntRange(min=1), metavar="N", help="Stop after N optimizer steps, as a trial.")
@click.option("--no-drift", is_flag=True, help="Do not measure drift, which needs the teacher.")
@click.option(
    "--gguf", "quantizations", multiple=True, metavar="Q", help="Make a GGUF file of the student, for example q8_0."
)
@click.option("--force", is_flag=True, help="Overwrite edited files and an earlier fine-tune.")
@TRUST_CODE
@TRUST_RUN
@JSON
def handoff(
    run: Path,
    data: Path | None,
    execute: bool,
    python: str | None,
    max_steps: int | None,
    no_drift: bool,
    quantizations: tuple[str, ...],
    force: bool,
    trust_remote_code: bool,
    trust_run: bool,
    as_json: bool,
) -> None:
    """Verify a run's student and write the Unsloth step that follows.

    \b
    Example:
      skill-kd handoff runs/demo
      skill-kd handoff runs/demo --data examples/data/chat.jsonl --execute --max-steps 3
    """
    from skill_kd.handoff import hand_off

    result = hand_off(
        run,
        data=data,
        execute=execute,
        python=python,
        max_steps=max_steps or -1,
        drift=not no_drift,
        quantizations=quantizations,
        force=force,
        trust_remote_code=trust_remote_code,
        trust_run=trust_run,
        notify=say,
    )
    if as_json:
        print_json(result.to_json())
    else:
        show(result.table())
