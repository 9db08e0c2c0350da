"""Generate the table of model families in references/models.md, from the walk of benchmarks/model_families.py.

python dev/make_models.py [--check]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import generated

from skill_kd.kd.model.families import REFUSED

WORKS, NOTED, REFUSES, UNTESTED, FAILS = "works", "works with a note", "refused", "untested", "fails"
NOTES = {
    "grow": "`student.from_teacher` does not work",
    "mixed": "`teacher_mix` above 0 does not work",
}
"""The loss for a user if a stage of the walk fails, while the others work."""


def verdict(
    family: str, stages: Mapping[str, str], asked: Sequence[str], refused: Mapping[str, str] = REFUSED
) -> tuple[str, str]:
    """Return the verdict on a family and its reason.

    Args:
        stages: what became of each stage: ``ok`` or an error.
        asked: the stages that every family goes through after it is built.
    """
    if reason := refused.get(family):
        return REFUSES, reason
    if stages.get("build") != "ok":
        return UNTESTED, "it cannot be built from a config alone"
    failed = {stage: stages.get(stage, "not reached") for stage in asked if stages.get(stage) != "ok"}
    if not failed:
        return WORKS, ""
    if failed.keys() <= NOTES.keys():
        return NOTED, "; ".join(NOTES[stage] for stage in failed)
    return FAILS, "; ".join(f"{stage}: {told}" for stage, told in failed.items())


def verdicts() -> dict[str, tuple[str, str]]:
    """Return the verdict and its reason for each family of the saved walk."""
    walk = generated.result("model_families")
    return {name: verdict(name, each["stages"], walk["stages"]) for name, each in walk["families"].items()}


def table() -> str:
    """Return the counts and the table as Markdown."""
    walk, judged = generated.result("model_families"), verdicts()
    counts = Counter(kind for kind, _ in judged.values())
    told = ", ".join(f"{counts[kind]} {kind}" for kind in (WORKS, NOTED, REFUSES, UNTESTED, FAILS) if counts[kind])
    lines = [
        f"transformers {walk['machine']['transformers']}, {len(judged)} families: {told}.",
        "",
        "| `model_type` | class | verdict | why |",
        "|---|---|---|---|",
    ]
    for family, (kind, reason) in judged.items():
        lines.append(f"| `{family}` | {walk['families'][family]['class']} | {kind} | {reason.replace('|', '¦')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(generated.main("references/models.md", "models", table))
