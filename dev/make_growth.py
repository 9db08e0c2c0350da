"""Generate the table of update growth in benchmarks/README.md, and draw results/growth.svg.

python dev/make_growth.py [--check]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import generated

AXES = {
    "tokens": ("tokens sampled per update", lambda case: case["rows"] * case["new_tokens"]),
    "vocabulary": ("vocabulary", lambda case: case["vocabulary"]),
    "rows": ("responses per update", lambda case: case["rows"]),
}
PANEL, HEIGHT, LEFT, TOP, BOTTOM = 250, 230, 44, 34, 186
KINDS = {"seconds": ("update", "#1f6feb"), "sampling": ("of which sampling", "#bf5700")}
INK = "#57606a"


def table() -> str:
    """Return the table with one row per case."""
    kept = generated.result("end_to_end_growth")
    lines = ["| what grows | size | seconds per update | of which sampling | peak MiB |", "|---|---|---|---|---|"]
    for axis, (name, size) in AXES.items():
        power = kept["seconds_go_as_power"][axis]
        for number, case in enumerate(kept["cases"][axis]):
            label = f"{name}; seconds grow with its power of {power:.2f}" if number == 0 else ""
            seconds, sampling = (case[kind]["median"] for kind in KINDS)
            cells = f"{size(case):,} | {seconds:.2f} | {sampling:.2f} | {case['peak_bytes'] / 2**20:,.0f}"
            lines.append(f"| {label} | {cells} |")
    return "\n".join(lines) + "\n"


def drawing() -> str:
    """Return an SVG of three panels with logarithmic axes."""
    cases = generated.result("end_to_end_growth")["cases"]
    seconds = [case[kind]["median"] for measured in cases.values() for case in measured for kind in KINDS]
    low, high = math.log10(min(seconds)), math.log10(max(seconds))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * PANEL} {HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="11"><title>How an update grows</title>',
        f'<rect width="{3 * PANEL}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for number, axis in enumerate(AXES):
        parts += panel(axis, cases[axis], number * PANEL, low, high)
    return "\n".join([*parts, "</svg>", ""])


def panel(axis: str, measured: list[dict[str, Any]], at: float, low: float, high: float) -> Iterator[str]:
    """Yield the SVG of one panel: one line for the whole update and one for its sampling."""
    name, size = AXES[axis]
    sizes = [size(case) for case in measured]
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def x(value: float) -> float:
        return round(at + LEFT + (PANEL - LEFT - 20) * (math.log10(value) - first) / (last - first), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP - 12) * (math.log10(value) - low) / (high - low), 1)

    for power in range(math.ceil(low), math.floor(high) + 1):
        level = y(10.0**power)
        yield f'<path d="M{x(sizes[0])} {level}H{x(sizes[-1])}" stroke="#d0d7de"/>'
        yield f'<text x="{at + LEFT - 6}" y="{level + 4}" text-anchor="end" fill="{INK}">{10.0**power:g} s</text>'
    for value in sizes:
        shown = f"{value // 1024}k" if value >= 2**14 else str(value)
        yield f'<text x="{x(value)}" y="{BOTTOM + 16}" text-anchor="middle" fill="{INK}">{shown}</text>'
    yield f'<text x="{x(sizes[0])}" y="{BOTTOM + 34}" fill="{INK}">{name}</text>'
    for number, (kind, (label, color)) in enumerate(KINDS.items()):
        places = [(x(size(case)), y(case[kind]["median"])) for case in measured]
        yield f'<path d="M{"L".join(f"{a} {b}" for a, b in places)}" fill="none" stroke="{color}" stroke-width="2"/>'
        yield "".join(f'<circle cx="{a}" cy="{b}" r="3" fill="{color}"/>' for a, b in places)
        yield f'<text x="{x(sizes[0]) + 92 * number}" y="16" fill="{color}">{label}</text>'


if __name__ == "__main__":
    drawings = {"benchmarks/results/growth.svg": drawing}
    raise SystemExit(generated.main("benchmarks/README.md", "growth", table, drawings))
