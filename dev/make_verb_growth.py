"""Generate the table of how the work of each verb grows, in benchmarks/README.md.

python dev/make_verb_growth.py [--check]
"""

from __future__ import annotations

from collections.abc import Iterator

import generated


def table() -> str:
    """Return the table with one row per verb and axis."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "| verb | what grows | seconds of processor time, by size | power |"
    yield "|---|---|---|---|"
    for case in generated.result("verb_growth")["cases"]:
        spent = ", ".join(f"{point['size']:,}: {point['cpu_seconds']:.2f}" for point in case["points"])
        power = "too short" if case["power"] is None else f"{case['power']:.2f}"
        power += f" ({case['known']})" if case["known"] else ""
        yield f"| {case['verb']} | {case['axis']} | {spent} | {power} |"


if __name__ == "__main__":
    raise SystemExit(generated.main("benchmarks/README.md", "verb growth", table))
