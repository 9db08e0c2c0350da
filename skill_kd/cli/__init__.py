"""The command line: parse, call, print. Every verb imports what it needs when it is called, so that help is quick."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skill_kd import __version__
from skill_kd.console import Verbs, guarded, print_json, print_table, say
from skill_kd.errors import ExitCode, SkillKDError, TrainingFailedError

if TYPE_CHECKING:
    from skill_kd.spec import Spec

_SPEC = click.argument("spec", type=click.Path(path_type=Path))
_BACKEND = click.option("--backend", metavar="NAME", help="Use this backend instead of the one the spec names.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="skill-kd", message="%(prog)s %(version)s")
def cli() -> None:
    """Distil a large language model into a smaller one, from a small spec.

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


@cli.command()
@_SPEC
@_BACKEND
@_JSON
def validate(spec: Path, backend: str | None, as_json: bool) -> None:
    """Check a spec, and whether its backend can do all it asks for.

    \b
    Example:
      skill-kd validate examples/demo.yaml
    """
    from skill_kd import plugins
    from skill_kd.jobs.job import accepted_backend, summary

    loaded = _load(spec, backend=backend)
    installed = loaded.backend in plugins.backends()
    if installed:
        accepted_backend(loaded)
    else:
        say(f"note: backend '{loaded.backend}' is not installed here, so what it refuses was not checked")
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
        click.echo(summary(loaded))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors and agents.

    \b
    Example:
      skill-kd schema > spec.schema.json
    """
    from skill_kd.spec import Spec

    dialect = "https://json-schema.org/draft/2020-12/schema"
    print_json({"$schema": dialect, **Spec.model_json_schema(), "title": "skill-kd spec"})


@cli.command()
@_SPEC
@click.option("--device", metavar="NAME", help="What it shall fit and run on, for example A100-80 or cpu.")
@click.option("--price-per-hour", type=float, metavar="PRICE", help="Of one device, in any currency.")
@click.option("--rows", type=int, metavar="N", help="Rows of training data, where no local file tells.")
@_BACKEND
@_JSON
def plan(
    spec: Path, device: str | None, price_per_hour: float | None, rows: int | None, backend: str | None, as_json: bool
) -> None:
    """Estimate memory, time and cost before anything is downloaded.

    \b
    Example:
      skill-kd plan examples/demo.yaml --device cpu
      skill-kd plan examples/one-gpu-lora.yaml --device A100-80 --price-per-hour 1.8
    """
    from skill_kd import plan as planner

    result = planner.plan(_load(spec, backend=backend), device=device, price_per_hour=price_per_hour, rows=rows)
    if as_json:
        print_json(result.to_json())
    else:
        click.echo(result.table())


@cli.command()
@_SPEC
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write; ./NAME if left out."
)
@click.option("--format", "kind", type=click.Choice(["py", "ipynb"]), default="py", help="Files, or one notebook.")
@click.option("--check", is_flag=True, help="Write nothing; fail if the folder differs from what would be written.")
@click.option("--force", is_flag=True, help="Write over a script that was edited.")
@_BACKEND
@_JSON
def generate(
    spec: Path, out: Path | None, kind: str, check: bool, force: bool, backend: str | None, as_json: bool
) -> None:
    """Write the trainer script: train.py, and kd/ beside it.

    \b
    Example:
      skill-kd generate examples/demo.yaml -o my-run
      skill-kd generate examples/demo.yaml --format ipynb
    """
    from skill_kd.jobs import job

    loaded = _load(spec, backend=backend)
    target, notebook = out or Path(loaded.name), kind == "ipynb"
    if check:
        job.check_generated(loaded, target, notebook=notebook)
        written = []
    else:
        written = job.generate(loaded, target, notebook=notebook, force=force)
    if as_json:
        print_json({"name": loaded.name, "hash": loaded.hash, "written": [str(path) for path in written]})
    else:
        click.echo("".join(f"{path}\n" for path in written), nl=False)


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path), metavar="SPEC|train.py")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), metavar="DIR", help="Where runs go.")
@click.option("--name", metavar="NAME", help="Name of the run folder, instead of the one the spec gives.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped, from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Say what would run and what is missing; write nothing.")
@_BACKEND
@_JSON
def run(
    spec: Path, runs: Path, name: str | None, resume: bool, dry_run: bool, backend: str | None, as_json: bool
) -> None:
    """Train in runs/NAME, from a spec or a generated train.py.

    The script may have been edited. Ctrl-C stops after a checkpoint; --resume goes on from there.

    \b
    Example:
      skill-kd run examples/demo.yaml
      skill-kd run examples/demo.yaml --resume
      skill-kd run my-run/train.py --name edited
    """
    from skill_kd.jobs import job as jobs
    from skill_kd.jobs import run as runner

    if spec.suffix != ".py":
        job = jobs.prepare(_load(spec, name=name, backend=backend), runs)
    elif backend is None:
        job = jobs.prepare_script(spec, runs, name)
    else:
        raise click.UsageError("--backend goes with a spec; a generated script belongs to the backend that wrote it")
    if dry_run:
        runner.earlier(job, resume)
        _print_dry_run(str(job.folder), job.command(resume), job.missing, as_json)
        return
    for note in job.untested:
        say(f"note: {note}")
    with _telling_the_plan(job.spec):
        result = runner.start(job, resume=resume)
    if as_json:
        document = {"name": job.spec.name, "folder": str(result.folder), "student": str(result.student)}
        print_json({**document, "seconds": round(result.seconds, 1), "summary": result.summary})
    else:
        say(f"run '{job.spec.name}' is done; the student is in:")
        click.echo(result.student)


@cli.command()
@click.option("--verbose", is_flag=True, help="Show the traceback of each plugin that could not be used.")
@_JSON
def backends(verbose: bool, as_json: bool) -> None:
    """List the installed backends and what each still needs here.

    \b
    Example:
      skill-kd backends
    """
    from skill_kd import plugins

    rows = [(name, each.version, plugins.missing(each)) for name, each in plugins.backends().items()]
    broken = plugins.broken()
    for name, report in broken.items():
        say(f"warning: plugin '{name}' could not be used: {report if verbose else report.strip().splitlines()[-1]}")
    if as_json:
        table = [{"name": name, "version": version, "missing": missing} for name, version, missing in rows]
        print_json({"backends": table, "broken": broken})
    else:
        print_table(("name", "version", "missing"), [(name, version, ", ".join(lack)) for name, version, lack in rows])


@cli.command()
@click.argument("subject", required=False, metavar="[RUN|STUDENT]")
@click.option("--teacher", metavar="MODEL", help="Teacher to compare with; a run knows its own.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="JSONL prompts that no training saw.")
@click.option("--baseline", metavar="MODEL", help="The student as it was before, for a column of its own.")
@click.option("--teacher-generations", type=click.Path(path_type=Path), metavar="FILE", help="Saved responses.")
@click.option("--student-generations", type=click.Path(path_type=Path), metavar="FILE", help="Saved responses.")
@click.option("--baseline-generations", type=click.Path(path_type=Path), metavar="FILE", help="Of the base student.")
@click.option("--control-generations", type=click.Path(path_type=Path), metavar="FILE", help="Of a collapsed teacher.")
@click.option("--training-data", type=click.Path(path_type=Path), metavar="FILE", help="Refuse its prompts.")
@click.option(
    "--harness-results",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="TEACHER STUDENT",
    help="Results of lm-eval, to show beside.",
)
@click.option("--policy", metavar="PRESET", help="assistant, strict-extraction, creative or text-only.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Change the policy: recall.margin=0.85.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Length at which a response is cut.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of models that no spec names.")
@click.option("--latency/--no-latency", default=True, help="Measure the speed of both models on this machine.")
@click.option("--judge-url", metavar="URL", help="OpenAI-compatible endpoint of a judge, such as http://host/v1.")
@click.option("--judge-model", metavar="NAME", help="The judge's name there.")
@click.option("--judge-key-env", metavar="NAME", help="Environment variable that holds the judge's key.")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write; RUN/eval if none.")
@_JSON
def evaluate(subject: str | None, pairs: tuple[str, ...], as_json: bool, **given: Any) -> ExitCode:
    """May this student replace its teacher? GO, NO-GO or INCONCLUSIVE.

    From models, or from saved generations alone. Exit codes: 0 GO, 3 NO-GO, 4 INCONCLUSIVE.

    \b
    Example:
      skill-kd evaluate runs/demo --prompts fresh.jsonl
      skill-kd evaluate ./student --teacher ./teacher --prompts fresh.jsonl --policy creative
      skill-kd evaluate --teacher-generations T.jsonl --student-generations S.jsonl
      skill-kd evaluate runs/demo --harness-results teacher.json student.json
    """
    from skill_kd import evaluate as gate
    from skill_kd.console import given_values

    asked = gate.Request(subject, changes=given_values(pairs), **given)
    found, written = gate.evaluate(asked, lambda done, of: say(f"{done} of {of} prompts"), say)
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(found.table())
    say(written.told)
    return ExitCode(found.decision.exit_code)


@cli.command()
@click.argument("logs", nargs=-1, required=True, metavar="LOGS...")
@click.option(
    "--baseline", multiple=True, metavar="FILE", help="Logs of the teacher, to compare with; may be repeated."
)
@click.option("--window", default="day", show_default=True, metavar="day|N", help="Days, or so many lines.")
@click.option(
    "--format", "format_name", metavar="NAME", help="openai, openai-batch, langfuse, langsmith, otel, generic."
)
@click.option("--prompt-field", metavar="PATH", help="Where a generic log has it; dots reach into objects.")
@click.option("--output-field", metavar="PATH", help="Likewise, the model's answer.")
@click.option("--time-field", metavar="PATH", help="Likewise, ISO 8601 or seconds since 1970.")
@click.option("--system-field", metavar="PATH", help="Likewise, the system prompt.")
@click.option("--model-field", metavar="PATH", help="Likewise, the model's version.")
@click.option("--temperature-field", metavar="PATH", help="Likewise.")
@click.option("--max-tokens-field", metavar="PATH", help="Likewise.")
@click.option("--finish-field", metavar="PATH", help="Likewise, why the answer ended.")
@click.option("--spec", type=click.Path(path_type=Path), help="The student's spec: write a pilot, two specs, one knob.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path(), metavar="DIR", help="Where the pilot goes."
)
@click.option("--replay", type=click.Path(path_type=Path), metavar="FILE", help="Write 50 of the log's own prompts.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the diagnosis as one HTML file.")
@click.option("--include-examples", is_flag=True, help="Show redacted text of the log; it is not anonymous.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that parse.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample.")
@_JSON
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
    """Say from production logs what changed, and what to try.

    LOGS are files (JSONL, JSON, CSV; also gz, zst) or - for stdin. No text of a log is shown unless asked for.

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
        spec=_load(spec) if spec else None,
        out=out,
        replay=replay,
        examples=include_examples,
    )
    if html:
        from skill_kd.diagnose.report.page import write_page

        write_page(found, html)
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(found.table())


@cli.command()
@click.option("--matters", default="balanced", show_default=True, metavar="WHAT", help="coverage, precision, balanced.")
@click.option(
    "--teacher",
    default="logits",
    show_default=True,
    metavar="KIND",
    help="logits (weights here), served (log-probabilities), text.",
)
@click.option("--budget", default="normal", show_default=True, metavar="SIZE", help="small, normal, large.")
@click.option("--output-tokens", type=int, default=256, show_default=True, help="Length of a long answer.")
@click.option("--prompts", type=int, metavar="N", help="How many prompts there are to train on.")
@click.option("--lora", is_flag=True, help="Train adapters instead of all weights.")
@click.option("--distilled", is_flag=True, help="The student was distilled before: no warm start.")
@click.option(
    "--seen",
    metavar="FINDING",
    help="Seen in a student trained before: sameness (too narrow), sharpened, lost_modes, loops, length, refusals, "
    "imprecise, exposure, teacher_narrow.",
)
@click.option("--set", "pairs", multiple=True, metavar="PATH=VALUE", help="A value of the spec: student.model=S.")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write the specs there.")
@click.option("--spec-only", is_flag=True, help="Print the spec to fill in, and nothing else.")
@_JSON
def advise(
    matters: str,
    teacher: str,
    budget: str,
    output_tokens: int,
    prompts: int | None,
    lora: bool,
    distilled: bool,
    seen: str | None,
    pairs: tuple[str, ...],
    out: Path | None,
    spec_only: bool,
    as_json: bool,
) -> None:
    """Choose an objective, and one to train beside it.

    With --out both are written as specs, which differ in the objective alone, so that what they measure can be
    compared. --set fills in models, data and any other value, in both; "distill" and "warm_start" name the stages.

    \b
    Example:
      skill-kd advise --matters coverage --output-tokens 400
      skill-kd advise --set teacher.model=T --set student.model=S --set data.train=prompts.jsonl -o specs
      skill-kd advise --teacher text --spec-only > spec.yaml
      skill-kd advise --seen sameness --distilled --set distill.updates=200 --json
    """
    from skill_kd import guidance
    from skill_kd.console import given_values

    advice = guidance.advise(
        matters=matters,
        teacher=teacher,
        budget=budget,
        output_tokens=output_tokens,
        prompts=prompts,
        lora=lora,
        distilled=distilled,
        seen=seen,
        changes=given_values(pairs),
    )
    written = [str(path) for path in advice.write(out)] if out is not None else []
    if as_json:
        print_json({**advice.to_json(), "files": written})
    elif written and not spec_only:
        click.echo(advice.table(spec=False))
        click.echo("\nwritten\n" + "".join(f"  {path}\n" for path in written), nl=False)
    else:
        click.echo(advice.yaml() if spec_only else advice.table())


@cli.command()
@click.argument("loss", metavar="MODULE:FUNCTION|FILE.py:FUNCTION")
@click.option(
    "--teacher-mix",
    "mixes",
    type=click.FloatRange(0, 1, max_open=True),
    multiple=True,
    default=(0.0, 0.2, 0.5),
    show_default=True,
    help="α, the chance that the teacher samples a token; give it once for each.",
)
@click.option("--seeds", type=click.IntRange(1, 100), default=4, show_default=True, help="Pairs of random policies.")
@_JSON
def prove(loss: str, mixes: tuple[float, ...], seeds: int, as_json: bool) -> ExitCode:
    """Judge a loss of your own against the exact gradient.

    Its expected gradient is computed over every response of a toy, so a bias shows as a difference, not as noise, and
    compared with that of KL(student ‖ teacher); a swapped direction is named. The function takes
    (student_logp_BTV, teacher_logp_BTV, ids_BT, mask_BT, behaviour_logp_BT or None) and returns loss_BT, or its sum
    over T or over all; it is called with one response at a time. This imports and runs your code. Exit code 0 if
    exact, at most a constant step size apart, and 3 if not.

    \b
    Example:
      skill-kd prove skill_kd.kd.losses.estimators:minillm_exact
      skill-kd prove my_losses.py:reverse_kl_loss --teacher-mix 0
    """
    from skill_kd import prove as proof

    verdict = proof.prove(loss, seeds=seeds, teacher_mixes=mixes)
    if as_json:
        print_json(verdict.to_json())
    else:
        click.echo(verdict.table())
    return ExitCode.OK if verdict.exact else ExitCode.NO_GO


@cli.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="Data, instead of handoff.data.")
@click.option("--execute", is_flag=True, help="Also fine-tune, load what came out, and measure what it cost.")
@click.option("--python", metavar="PATH", help="Python interpreter that has Unsloth (default: this one).")
@click.option("--max-steps", type=click.IntRange(min=1), metavar="N", help="Optimizer steps of a trial.")
@click.option("--no-drift", is_flag=True, help="Do not measure drift; it needs the teacher.")
@click.option("--gguf", "quantisations", multiple=True, metavar="Q", help="Make a GGUF of the student, e.g. q8_0.")
@click.option("--force", is_flag=True, help="Write over edited files and an earlier fine-tune.")
@_JSON
def handoff(
    run: Path,
    data: Path | None,
    execute: bool,
    python: str | None,
    max_steps: int | None,
    no_drift: bool,
    quantisations: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Verify a run's student and write the Unsloth step that follows.

    \b
    Example:
      skill-kd handoff runs/demo
      skill-kd handoff runs/demo --data examples/data/chat.jsonl --execute --max-steps 3
    """
    from skill_kd.handoff import hand_on

    result = hand_on(
        run,
        data=data,
        execute=execute,
        python=python,
        max_steps=max_steps or -1,
        drift=not no_drift,
        quantisations=quantisations,
        force=force,
    )
    if as_json:
        print_json(result.to_json())
    else:
        click.echo(result.table())


@cli.command()
@click.option(
    "--layers",
    type=click.IntRange(1, 30),
    default=24,
    show_default=True,
    help="Layers the student keeps.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="The same seed gives the same figures.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), metavar="DIR", help="Where the run goes.")
@_JSON
def demo(layers: int, seed: int, out: Path, as_json: bool) -> None:
    """Distil a real model on this machine, in minutes.

    The teacher comes as a package, the prompts with skill-kd; no account and no GPU is needed. Its report shows what
    `evaluate` shows, on far too few prompts for a verdict: INCONCLUSIVE is right, and the exit code is 0.

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
        click.echo(result.table())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return guarded(cli, args)


def _load(path: Path, **overrides: str | None) -> Spec:
    from skill_kd.spec.file import load_spec

    return load_spec(path, **{key: value for key, value in overrides.items() if value is not None})


@contextlib.contextmanager
def _telling_the_plan(spec: Spec) -> Iterator[None]:
    """Where memory runs out, add what the plan expected."""
    try:
        yield
    except TrainingFailedError as error:
        if "out of memory" in str(error):
            from skill_kd.plan import plan
            from skill_kd.plan.plan_result import gigabytes

            with contextlib.suppress(SkillKDError):
                highest = plan(spec).phases[0]
                largest = sorted(highest.parts, key=lambda part: -part.bytes)[:3]
                parts = ", ".join(f"{part.name} {gigabytes(part.bytes)}" for part in largest)
                peak = f"{gigabytes(highest.bytes)} for each process at its peak, the {highest.name}"
                error.add_note(f"the plan says {peak}: {parts}")
        raise


def _print_dry_run(folder: str, command: Sequence[str], missing: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"folder": folder, "command": list(command), "missing": missing})
    else:
        click.echo(f"folder   {folder}\ncommand  {shlex.join(command)}\nmissing  {', '.join(missing) or 'nothing'}")
