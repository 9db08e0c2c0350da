"""Generate the gate's margins and error rates in references/evaluation.md.

python dev/make_honesty.py [--check]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import generated


def table() -> str:
    """Return margins and error rates as Markdown."""
    document = generated.result("evaluate_honesty")
    simulations = document["seeds"]["margins"][1]
    lines = [
        f"Margins: what a student that is its teacher passes in 98% of {simulations} simulations, and the preset's.",
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
        f"| {each} | {' | '.join(f'{_counts(world[p][each])} | {_wrong(world[p][each])}' for p in presets)} |"
        for each in world[presets[0]]
    ]
    about = f"**{name}**, {world['simulations']} simulations"
    return [about, "", f"| student | {heads} |", "|---|" + "---|---|" * len(presets), *rows, ""]


def _other_worlds(worlds: Mapping[str, Mapping[str, Any]], played: str) -> list[str]:
    conditions = next(iter(worlds.values()))[played]
    rows = [f"| {each} | {' | '.join(_counts(w[played][each]) for w in worlds.values())} |" for each in conditions]
    heads = " | ".join(f"{name} ({world['simulations']})" for name, world in worlds.items())
    about = f"**Other worlds** (simulations), `{played}`: GO, NO-GO, INCONCLUSIVE"
    return [about, "", f"| student | {heads} |", "|---|" + "---|" * len(worlds), *rows]


def _counts(row: Mapping[str, Any]) -> str:
    return ", ".join(str(row[each]) for each in ("GO", "NO-GO", "INCONCLUSIVE"))


def _wrong(row: Mapping[str, Any]) -> str:
    rate = row["false_rate"]
    return f"{row['false_verdict']} {rate['value']:.1%} ({rate['low']:.1%} … {rate['high']:.1%})"


if __name__ == "__main__":
    raise SystemExit(generated.main("references/evaluation.md", "honesty", table))
