"""Generate the measured comparison of MiniLLM's estimators in references/objectives.md.

python dev/make_estimators.py [--check]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import generated

TITLES = {
    "forward_kl": "forward KL, nats",
    "reverse_kl": "reverse KL, nats",
    "student_entropy": "entropy, nats",
    "distinct_2": "distinct 2-grams",
    "length": "length, tokens",
    "repetition": "repeated 4-grams",
}
ESTIMATORS = ("forward_kl", "reverse_kl", "student_entropy", "length", "repetition")


def table(study: str, measures: Sequence[str]) -> str:
    """Return Markdown: the held-out changes of the study's reference, and the others' differences from it."""
    document = generated.result(study)
    seeds, setting = len(document["runs"]), document["setting"]
    reference = setting["reference"]
    rows = [
        _row(f"`{reference}`, change from the start", document["changes"][reference], measures),
        *(_row(f"`{name}` − `{reference}`", found, measures) for name, found in document["less_reference"].items()),
    ]
    lines = [
        f"Held-out measures after {setting['updates']} updates of 8 rollouts of at most {setting['new_tokens']} "
        f"tokens: mean (95% t-interval) over {seeds} seeds.",
        "",
        f"| | {' | '.join(TITLES[name] for name in measures)} |",
        "|---|" + "---|" * len(measures),
        *rows,
    ]
    return "\n".join([*lines, ""])


def _row(title: str, found: Mapping[str, Mapping[str, Any]], measures: Sequence[str]) -> str:
    shown = "{mean:+.3f} ({low:+.3f} … {high:+.3f})"
    return f"| {title} | {' | '.join(shown.format(**found[name]) for name in measures)} |"


if __name__ == "__main__":
    raise SystemExit(generated.main("references/objectives.md", "estimators", partial(table, "estimators", ESTIMATORS)))
