"""``skill-kd evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from skill_kd.cli.options import JSON, TRUST_CODE, TRUST_RUN
from skill_kd.console import Verb, print_json, say, show
from skill_kd.errors import ExitCode


@click.command(cls=Verb)
@click.argument("subject", required=False, metavar="[RUN|STUDENT]")
@click.option("--teacher", metavar="MODEL", help="Teacher to compare with (default: the run's own).")
@click.option(
    "--prompts", type=click.Path(path_type=Path), metavar="FILE", help="JSONL prompts that were not used in training."
)
@click.option("--baseline", metavar="MODEL", help="The student before distillation, shown in its own column.")
@click.option(
    "--teacher-generations", type=click.Path(path_type=Path), metavar="FILE", help="The teacher's saved responses."
)
@click.option(
    "--student-generations", type=click.Path(path_type=Path), metavar="FILE", help="The student's saved responses."
)
@click.option(
    "--baseline-generations", type=click.Path(path_type=Path), metavar="FILE", help="The baseline's saved responses."
)
@click.option(
    "--control-generations",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Saved responses of a collapsed teacher, as a control.",
)
@click.option(
    "--training-data", type=click.Path(path_type=Path), metavar="FILE", help="Refuse prompts that are also in FILE."
)
@click.option(
    "--harness-results",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="TEACHER STUDENT",
    help="Results of lm-eval, shown in the report.",
)
@click.option("--policy", metavar="PRESET", help="Policy: assistant, strict-extraction, creative or text-only.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Change the policy: recall.margin=0.85.")
@click.option(
    "--template-option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the chat templates, such as enable_thinking=false (default: the run's own).",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Cut responses after N tokens.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Dtype of models without a spec.")
@click.option("--latency/--no-latency", default=True, help="Measure the speed of both models on this machine.")
@click.option("--judge-url", metavar="URL", help="OpenAI-compatible endpoint of a judge, such as http://host/v1.")
@click.option("--judge-model", metavar="NAME", help="Name of the judge's model on that endpoint.")
@click.option("--judge-key-env", metavar="NAME", help="Environment variable that holds the judge's key.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write (default: RUN/eval)."
)
@TRUST_CODE
@TRUST_RUN
@JSON
def evaluate(
    subject: str | None, pairs: tuple[str, ...], options: tuple[str, ...], as_json: bool, **given: Any
) -> ExitCode:
    """Decide if a student may replace its teacher.

    Compare models, or only saved generations. The verdict is GO (exit code 0), NO-GO (3) or INCONCLUSIVE (4).

    \b
    Example:
      skill-kd evaluate runs/demo --prompts fresh.jsonl
      skill-kd evaluate ./student --teacher ./teacher --prompts fresh.jsonl --policy creative
      skill-kd evaluate --teacher-generations T.jsonl --student-generations S.jsonl
      skill-kd evaluate runs/demo --harness-results teacher.json student.json
    """
    from skill_kd import evaluate as gate
    from skill_kd.console import given_values

    template_options = given_values(options, "--template-option", "enable_thinking=false")
    asked = gate.Request(subject, changes=given_values(pairs), template_options=template_options, **given)
    found, written = gate.evaluate(asked, lambda done, of: say(f"{done} of {of} prompts"), say)
    if as_json:
        print_json(found.to_json())
    else:
        show(found.table())
    say(written.summary)
    return ExitCode(found.decision.exit_code)
