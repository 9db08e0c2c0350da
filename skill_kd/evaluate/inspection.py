"""Examples for people to inspect: worst slices, lost modes, flagged responses, lengths. All text is untrusted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skill_kd.evaluate.estimates import Columns
from skill_kd.evaluate.metrics import KINDS
from skill_kd.evaluate.samples import Samples
from skill_kd.evaluate.sides import Compared, Side, read_side
from skill_kd.report.evaluation_document import FlaggedExample, LengthQuantiles, Lengths, LostMode, SliceRow

if TYPE_CHECKING:
    from numpy import bool_, float64
    from numpy.typing import NDArray

    Array = NDArray[float64]

SHOWN = 8
"""Examples shown of each kind."""
SIDE_BY_SIDE = 3
"""Responses shown of each side in one example."""
LONGEST = 2000
"""Characters shown of a text."""
SMALLEST_SLICE = 5
"""Smallest number of prompts in a slice."""


@dataclass(frozen=True)
class Inspection:
    """All examples and tables; empty if nothing could be compared."""

    slices: list[SliceRow] = field(default_factory=list)
    lost_modes: list[LostMode] = field(default_factory=list)
    examples: list[FlaggedExample] = field(default_factory=list)
    lengths: Lengths | None = None


def inspect(compared: Compared, samples: Samples, columns: Mapping[str, Columns], binding: str | None) -> Inspection:
    """Inspect both sides. Slices are sorted by ``binding``, the metric that decided."""
    return Inspection(
        slices(columns, samples, binding),
        lost_modes(compared, samples, columns["recall"].student),
        flagged(compared.student, samples),
        {
            "teacher": lengths([*compared.half_a.words, *compared.half_b.words]),
            "student": lengths(compared.student.words),
            "baseline": None if samples.baseline is None else lengths(read_side(samples.baseline).words),
            "unit": "words",
        },
    )


def slices(columns: Mapping[str, Columns], samples: Samples, binding: str | None) -> list[SliceRow]:
    """Return each slice's metrics, worst first by the binding metric. Slices are categories, or thirds by length."""
    import numpy as np

    members = {name: rows for name, rows in _grouped(samples).items() if len(rows) >= SMALLEST_SLICE}
    found: list[SliceRow] = [
        {
            "name": name,
            "prompts": len(rows),
            "figures": {metric: _value(each, metric, np.array(rows)) for metric, each in columns.items()},
        }
        for name, rows in members.items()
    ]
    first = binding if binding is not None and binding in columns else "recall"
    sign = 1 if KINDS[first].better == "high" else -1

    def badness(each: SliceRow) -> float:
        value = each["figures"].get(first)
        return float("inf") if value is None else sign * value

    return sorted(found, key=badness)


def _grouped(samples: Samples) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    if any(prompt.category for prompt in samples.prompts):
        for index, prompt in enumerate(samples.prompts):
            groups[f"category: {prompt.category or 'none'}"].append(index)
        return groups
    order = sorted(range(len(samples.prompts)), key=lambda index: len(samples.prompts[index].text))
    third = -(-len(order) // 3)
    for number, name in enumerate(("short prompts", "prompts of medium length", "long prompts")):
        groups[name] = order[number * third : (number + 1) * third]
    return groups


def _value(columns: Columns, metric: str, rows: NDArray[bool_]) -> float | None:
    if columns.known is not None:
        rows = rows[columns.known[rows]]
        if not len(rows):
            return None
    student, teacher = float(columns.student[rows].mean()), float(columns.teacher[rows].mean())
    form = KINDS[metric].form
    if form == "retention":
        assert columns.narrow is not None
        narrow = float(columns.narrow[rows].mean())
        student, teacher = student - narrow, teacher - narrow
    if form == "difference":
        return student - teacher
    if form == "value":
        return student
    return student / teacher if teacher > 0 else None


def lost_modes(compared: Compared, samples: Samples, recall: Array) -> list[LostMode]:
    """Return the prompts of lowest recall, with the teacher responses that are furthest from every student response."""
    import numpy as np

    student = compared.rows(2)
    nearest = compared.kernel[:, : student.start, student].max(-1)
    # If recall is equal, the prompt whose furthest response is furthest comes first.
    order = np.lexsort((nearest.min(-1), recall))[:SHOWN]
    return [
        {
            "prompt": _cut(samples.prompts[n].text),
            "teacher": [_cut(samples.teacher[n][r]) for r in np.argsort(nearest[n], kind="stable")[:SIDE_BY_SIDE]],
            "student": [_cut(text) for text in samples.student[n][:SIDE_BY_SIDE]],
            "recall": float(recall[n]),
        }
        for n in order.tolist()
    ]


def flagged(student: Side, samples: Samples) -> list[FlaggedExample]:
    """Return flagged student responses, from as many different prompts and kinds of flags as possible."""
    names = {"loop": student.loop, "refusal": student.refusal, "near-duplicate": student.near_duplicate}
    chosen: list[tuple[int, int]] = []
    seen: set[int] = set()
    per_kind = -(-SHOWN // len(names))
    for flags in names.values():
        places = [(int(n), int(k)) for n, k in zip(*flags.nonzero(), strict=True)]
        fresh = list({n: (n, k) for n, k in reversed(places) if n not in seen}.values())[::-1][:per_kind]
        chosen += fresh
        seen |= {n for n, _ in fresh}
    return [
        {
            "prompt": _cut(samples.prompts[n].text),
            "teacher": [_cut(samples.teacher[n][0])],
            "student": [_cut(samples.student[n][k])],
            "flags": [
                "empty" if name == "loop" and not student.words[n][k] else name
                for name, flags in names.items()
                if flags[n, k]
            ],
        }
        for n, k in chosen[:SHOWN]
    ]


def lengths(words: Sequence[Sequence[Sequence[str]]]) -> LengthQuantiles:
    """Return quantiles and mean of the number of words."""
    import numpy as np

    counts = np.array([len(each) for row in words for each in row])
    tenth, half, ninth = np.quantile(counts, [0.1, 0.5, 0.9])
    return {"p10": float(tenth), "p50": float(half), "p90": float(ninth), "mean": float(counts.mean())}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
