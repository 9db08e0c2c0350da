"""``skill-kd diagnose``."""

from __future__ import annotations

from pathlib import Path

import click

from skill_kd.cli.options import JSON, load
from skill_kd.console import Verb, print_json, show


@click.command(cls=Verb)
@click.argument("logs", nargs=-1, required=True, metavar="LOGS...")
@click.option("--baseline", multiple=True, metavar="FILE", help="Log of the teacher to compare with; repeatable.")
@click.option(
    "--window", default="day", show_default=True, metavar="day|N", help="Size of a window: a day, or N lines."
)
@click.option(
    "--format",
    "format_name",
    metavar="NAME",
    help="anthropic, braintrust, generic, helicone, langfuse, langsmith, litellm, mlflow, ollama, openai, "
    "openai-batch, openinference, otel, vercel, weave. Detected by default.",
)
@click.option(
    "--prompt-field", metavar="PATH", help="Path of the prompt; dots reach into objects, lists and JSON text."
)
@click.option("--output-field", metavar="PATH", help="Path of the model's answer.")
@click.option("--time-field", metavar="PATH", help="Path of the time: ISO 8601, US date or Unix time.")
@click.option("--system-field", metavar="PATH", help="Path of the system prompt.")
@click.option("--model-field", metavar="PATH", help="Path of the model's version.")
@click.option("--temperature-field", metavar="PATH", help="Path of the temperature.")
@click.option("--max-tokens-field", metavar="PATH", help="Path of the token limit.")
@click.option("--finish-field", metavar="PATH", help="Path of the finish reason.")
@click.option(
    "--spec",
    type=click.Path(path_type=Path),
    help="The student's spec. Writes a pilot: two specs that differ in one setting.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path(), metavar="DIR", help="Folder of the pilot."
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write 50 prompts of the log to FILE, for student and teacher to answer.",
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the diagnosis as one HTML file.")
@click.option("--include-examples", is_flag=True, help="Show redacted text of the log. It may still identify people.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Number of processes that parse.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the sample.")
@JSON
def diagnose(
    logs: tuple[str, ...],
    baseline: tuple[str, ...],
    window: str,
    format_name: str | None,
    spec: Path | None,
    out: Path,
    replay: Path | None,
    html: Path | None,
    include_examples: bool,
    jobs: int,
    seed: int,
    as_json: bool,
    **fields: str | None,
) -> None:
    """Find out what changed in production logs, when, and what to try.

    LOGS are files (JSONL, JSON, CSV, TSV; also gz, zst), or - for stdin. Text of a log is shown only with
    --include-examples.

    \b
    Example:
      skill-kd diagnose logs/*.jsonl.gz --baseline teacher.jsonl --spec spec.yaml
      skill-kd diagnose export.jsonl --prompt-field q.text --output-field a.text --time-field at
      zcat old.gz | skill-kd diagnose - --window 1000 --json
    """
    from skill_kd import diagnose as diagnosing

    named = diagnosing.Fields(**{key.removesuffix("_field"): value for key, value in fields.items()})
    options = diagnosing.Options(format_name, named, diagnosing.window_unit(window), seed, jobs)
    found = diagnosing.diagnose(
        logs,
        options,
        baseline=baseline,
        spec=load(spec) if spec else None,
        out=out,
        replay=replay,
        examples=include_examples,
    )
    if html:
        from skill_kd.diagnose.report.diagnosis_page import write_page

        write_page(found, html)
    if as_json:
        print_json(found.to_json())
    else:
        show(found.table())
