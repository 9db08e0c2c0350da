"""Put the measured comparison of MiniLLM's estimators between its markers in references/objectives.md.

python scripts/make_estimators.py [--check]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import generated

FIGURES = {
    "forward_kl": "forward KL, nats",
    "reverse_kl": "reverse KL, nats",
    "student_entropy": "entropy, nats",
    "length": "length, tokens",
    "repetition": "repeated 4-grams",
}


def table() -> str:
    """Return the changes of held-out figures, and the differences to ``paper``, as Markdown."""
    document = generated.result("estimators")
    seeds, setting = len(document["runs"]), document["setting"]
    rows = [
        *(_row(f"`{name}`, its change", found) for name, found in document["changes"].items()),
        *(_row(f"`{name}` − `paper`", found) for name, found in document["less_reference"].items()),
    ]
    lines = [
        f"Held-out figures after {setting['updates']} updates of 8 rollouts of at most {setting['new_tokens']} tokens: "
        f"mean (95% t-interval) over {seeds} seeds.",
        "",
        f"| | {' | '.join(FIGURES.values())} |",
        "|---|" + "---|" * len(FIGURES),
        *rows,
    ]
    return "\n".join([*lines, ""])


def _row(title: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    shown = "{mean:+.3f} ({low:+.3f} … {high:+.3f})"
    return f"| {title} | {' | '.join(shown.format(**found[name]) for name in FIGURES)} |"


if __name__ == "__main__":
    raise SystemExit(generated.main("references/objectives.md", "estimators", table))
