"""``skill-kd advise``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skill_kd.cli.options import JSON
from skill_kd.console import Verb, print_json, say, show
from skill_kd.errors import UsageError

if TYPE_CHECKING:
    from skill_kd.plan import Sizes


@click.command(cls=Verb)
@click.option(
    "--matters",
    default="balanced",
    show_default=True,
    metavar="WHAT",
    help="What matters most: coverage, precision or balanced.",
)
@click.option(
    "--teacher",
    default="logits",
    show_default=True,
    metavar="KIND",
    help="Access to the teacher: logits (local weights), served (log-probabilities) or text.",
)
@click.option(
    "--budget", default="normal", show_default=True, metavar="SIZE", help="Compute budget: small, normal or large."
)
@click.option("--output-tokens", type=int, default=256, show_default=True, help="Length of a long answer, in tokens.")
@click.option("--prompts", type=int, metavar="N", help="Number of training prompts.")
@click.option("--lora", is_flag=True, help="Train adapters instead of all weights.")
@click.option("--distilled", is_flag=True, help="The student was already distilled, so leave out the warm start.")
@click.option(
    "--seen",
    metavar="FINDING",
    help="A finding about an earlier student: sameness (too narrow), sharpened, lost_modes, loops, length, refusals, "
    "imprecise, exposure, teacher_narrow.",
)
@click.option("--minutes", type=float, metavar="N", help="Fit training and evaluation of each spec into N minutes.")
@click.option("--device", metavar="NAME", help="Device for --minutes, for example A100-80 (default: cpu).")
@click.option("--objective", metavar="KIND", help="Use this objective, and compare it with the recommended one.")
@click.option("--set", "pairs", multiple=True, metavar="PATH=VALUE", help="Set a value of the spec: student.model=S.")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write the specs into this folder.")
@click.option("--spec-only", is_flag=True, help="Print only the spec, with gaps to fill in.")
@JSON
def advise(
    matters: str,
    teacher: str,
    budget: str,
    output_tokens: int,
    prompts: int | None,
    lora: bool,
    distilled: bool,
    seen: str | None,
    minutes: float | None,
    device: str | None,
    objective: str | None,
    pairs: tuple[str, ...],
    out: Path | None,
    spec_only: bool,
    as_json: bool,
) -> None:
    """Choose an objective, and a second one to compare with.

    --out writes a spec for each. They differ in the objective alone, so their measures can be compared. One exception:
    with --matters coverage, MiniLLM's best checkpoint is chosen by reverse KL, the others' by forward KL. --set changes
    models, data or any other value in both specs. Start the path of a stage with its kind: distill.updates=200.

    \b
    Example:
      skill-kd advise --matters coverage --output-tokens 400
      skill-kd advise --set teacher.model=T --set student.model=S --set data.train=prompts.jsonl -o specs
      skill-kd advise --objective jsd --set teacher.model=T --set student.from_teacher=12 -o specs
      skill-kd advise --minutes 120 --device A10 --set teacher.model=T --set student.model=S -o specs
      skill-kd advise --teacher text --spec-only > spec.yaml
      skill-kd advise --seen sameness --distilled --set distill.updates=200 --json
    """
    from skill_kd import guidance
    from skill_kd.console import given_values

    changes = given_values(pairs)
    advised = partial(
        guidance.advise,
        matters=matters,
        teacher=teacher,
        budget=budget,
        output_tokens=output_tokens,
        prompts=prompts,
        lora=lora,
        distilled=distilled,
        seen=seen,
        objective=objective,
    )
    advice = advised(changes=changes)
    if minutes is not None:
        sizes = _sizes(advice.specs, minutes, device or "cpu", prompts)
        advice = advised(changes={**sizes.settings, **changes}, reasons=sizes.reasons)
        say(f"note: {sizes.note}")
    elif device is not None:
        raise UsageError("--device needs --minutes; add it, or leave out --device")
    written = [str(path) for path in advice.write(out)] if out is not None else []
    if as_json:
        print_json({**advice.to_json(), "files": written})
    elif written and not spec_only:
        show(advice.table(spec=False))
        show("\nwritten\n" + "".join(f"  {path}\n" for path in written), newline=False)
    else:
        show(advice.yaml() if spec_only else advice.table())


def _sizes(specs: Sequence[Mapping[str, Any]], minutes: float, device: str, rows: int | None) -> Sizes:
    """Size the specs. Their models must be real: advice without ``--set`` has only placeholders."""
    from skill_kd.plan import size
    from skill_kd.spec.file import parse_spec

    for section, placeholder in (("teacher", "TEACHER"), ("student", "STUDENT")):
        if specs[0][section].get("model") == placeholder:
            raise UsageError(f"--minutes: the {section} is needed to estimate times; give --set {section}.model=MODEL")
    return size([parse_spec(spec) for spec in specs], minutes=minutes, device=device, rows=rows)
