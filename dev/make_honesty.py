"""Generate the gate's margins and error rates in references/evaluation.md.

python dev/make_honesty.py [--check]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import generated

WORLDS = {
    "as derived": "The synthetic teacher that the margins were derived with",
}
"""Titles of the synthetic teachers in the results."""


def table() -> str:
    """Return margins and error rates as Markdown."""
    document = generated.result("evaluate_honesty")
    simulations = document["seeds"]["margins"][1]
    lines = [
        f"The tightest margins that a student identical to its teacher passes in 98% of {simulations} simulations, and "
        "the margins of the presets:",
        "",
        "| metric | tightest | preset |",
        "|---|---|---|",
        *(f"| `{name}` | {each['derived']:.3f} | {each['preset']:g} |" for name, each in document["margins"].items()),
        "",
    ]
    presets, (first, *others) = list(document["policies"]), document["worlds"].items()
    lines += _all_presets(*first, presets)
    if others:
        lines += _other_worlds(dict(others), presets[0])
    return "\n".join([*lines, ""])


def _all_presets(name: str, world: Mapping[str, Any], presets: Sequence[str]) -> list[str]:
    heads = " | ".join(f"{preset}: GO, NO-GO, INCONCLUSIVE | wrong" for preset in presets)
    rows = [
        f"| {_student(each)} | {' | '.join(f'{_counts(world[p][each])} | {_wrong(world[p][each])}' for p in presets)} |"
        for each in world[presets[0]]
    ]
    about = f"**{WORLDS.get(name, name)}**, {world['simulations']} simulations of each student:"
    return [about, "", f"| student | {heads} |", "|---|" + "---|---|" * len(presets), *rows, ""]


def _other_worlds(worlds: Mapping[str, Mapping[str, Any]], played: str) -> list[str]:
    conditions = next(iter(worlds.values()))[played]
    rows = [
        f"| {_student(each)} | {' | '.join(_counts(w[played][each]) for w in worlds.values())} |" for each in conditions
    ]
    heads = " | ".join(f"{WORLDS.get(name, name)} ({world['simulations']})" for name, world in worlds.items())
    about = f"**Other synthetic teachers** (number of simulations), `{played}`: GO, NO-GO, INCONCLUSIVE"
    return [about, "", f"| student | {heads} |", "|---|" + "---|" * len(worlds), *rows]


def _student(condition: str) -> str:
    return "identical to the teacher" if condition == "null" else condition


def _counts(row: Mapping[str, Any]) -> str:
    return ", ".join(str(row[each]) for each in ("GO", "NO-GO", "INCONCLUSIVE"))


def _wrong(row: Mapping[str, Any]) -> str:
    rate = row["false_rate"]
    return f"{row['false_verdict']} {rate['value']:.1%} ({rate['low']:.1%} … {rate['high']:.1%})"


if __name__ == "__main__":
    raise SystemExit(generated.main("references/evaluation.md", "honesty", table))
