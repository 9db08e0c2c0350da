"""The command line: parse, call, print. Each verb has one module.

A verb imports what it needs when it is called, so that ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from skill_kd import __version__
from skill_kd.cli import (
    advise,
    backends,
    demo,
    diagnose,
    evaluate,
    generate,
    handoff,
    plan,
    prove,
    run,
    schema,
    validate,
)
from skill_kd.console import guarded


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="skill-kd", message="%(prog)s %(version)s")
def cli() -> None:
    """Distill a large language model into a smaller one, from a small spec.

    \b
    Example:
      skill-kd validate examples/demo.yaml
      skill-kd run examples/demo.yaml

    \b
    Exit codes:
      0 done or GO       2 usage or input    4 INCONCLUSIVE           6 training failed
      1 crash            3 NO-GO             5 something is missing   7 the run is locked
      130, 143 stopped by a signal
    """


for _verb in (
    validate.validate,
    schema.schema,
    plan.plan,
    generate.generate,
    run.run,
    backends.backends,
    evaluate.evaluate,
    diagnose.diagnose,
    advise.advise,
    prove.prove,
    handoff.handoff,
    demo.demo,
):
    cli.add_command(_verb)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return guarded(cli, args)
