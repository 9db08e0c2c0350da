"""Per-prompt metrics from text: diversity, recall, precision, loops, refusals, near-duplicates, quality.

Every metric uses the same K responses of each side. The teacher's 2K responses form two halves, A and B, and its metric
is the mean of both. A metric that compares two sets of responses has the comparison of A with B as its baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skill_kd import textstats
from skill_kd.errors import UsageError
from skill_kd.evaluate import similarity
from skill_kd.evaluate.estimates import Columns
from skill_kd.evaluate.samples import Samples
from skill_kd.evaluate.sides import Compared, Side, Words
from skill_kd.report.evaluation_document import Form
from skill_kd.report.shown_document import Better

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    Array = NDArray[float64]

Scorer = Callable[[str, str, Sequence[str]], float]
"""(prompt, response, references) -> score from 0 to 1"""


@dataclass(frozen=True)
class Kind:
    """The title, form, direction and unit of a metric."""

    title: str
    form: Form
    better: Better
    unit: str


KINDS = {
    "quality": Kind("Quality against references", "difference", "high", "score"),
    "retention": Kind("Diversity retained (Vendi score)", "retention", "high", "retention"),
    "recall": Kind("Recall of the teacher's responses", "ratio", "high", "ratio"),
    "precision": Kind("Precision: responses near the teacher's", "ratio", "high", "ratio"),
    "coverage": Kind("Teacher probability in the student's nucleus", "difference", "high", "share"),
    "loops": Kind("Loops and empty responses", "difference", "low", "share"),
    "refusals": Kind("Refusals", "difference", "low", "share"),
    "near_duplicates": Kind("Near-duplicates across prompts", "difference", "low", "share"),
    "stock_openings": Kind("Openings shared across prompts", "difference", "low", "share"),
    "distinct_retention": Kind("Diversity retained (EAD)", "retention", "high", "retention"),
    "diversity": Kind("Vendi score", "value", "high", "count"),
    "usable_diversity": Kind("Diversity of usable responses", "ratio", "high", "ratio"),
    "compression": Kind("Compressed size", "ratio", "high", "ratio"),
    "distinct_4": Kind("Dist-4", "ratio", "high", "ratio"),
    "self_bleu": Kind("Self-BLEU", "ratio", "low", "ratio"),
    "length": Kind("Length", "ratio", "high", "ratio"),
    "forward_kl": Kind("KL(teacher ‖ student), teacher samples", "value", "low", "nats/token"),
    "reverse_kl": Kind("KL(student ‖ teacher), student samples", "value", "low", "nats/token"),
    "kl_ratio": Kind("Forward ÷ reverse KL", "ratio", "low", "ratio"),
    "entropy": Kind("Entropy on own samples", "ratio", "high", "ratio"),
    "nucleus_precision": Kind("Student probability in the teacher's nucleus", "difference", "high", "share"),
    "exposure": Kind("Forward KL, student ÷ teacher prefixes", "ratio", "low", "ratio"),
    "calibration": Kind("Overconfidence in the next token", "difference", "low", "share"),
    "judge": Kind("Judged better than the teacher", "value", "high", "share"),
}


def deciding_columns(compared: Compared) -> dict[str, Columns]:
    """Return the metrics that block in the presets and need no model, no reference and no scorer."""
    return {"retention": _retention(compared), **_neighbors(compared), **_flags(compared)}


def shown_columns(compared: Compared) -> dict[str, Columns]:
    """Return the other metrics that need text only."""
    return {**_other_diversity(compared), **_parity(compared)}


def _retention(compared: Compared) -> Columns:
    import numpy as np

    kernel, (a, b, s, c) = compared.kernel, map(compared.rows, range(4))
    narrow = compared.narrow
    picked = kernel[np.arange(len(kernel))[:, None, None], narrow[:, :, None], narrow[:, None, :]]
    vendi = similarity.vendi
    return Columns(
        vendi(kernel[:, s, s]),
        (vendi(kernel[:, a, a]) + vendi(kernel[:, b, b])) / 2,
        vendi(kernel[:, c, c]) if compared.control else None,
        vendi(picked),
    )


def _other_diversity(compared: Compared) -> dict[str, Columns]:
    import numpy as np

    def distinct(rows: Words) -> Array:
        return np.array([textstats.ead([w[: compared.words] for w in row]) for row in rows])

    kernel, (a, b, s) = compared.kernel, map(compared.rows, range(3))
    everything = [one + two for one, two in zip(compared.half_a.words, compared.half_b.words, strict=True)]
    narrow = [[row[i] for i in chosen] for row, chosen in zip(everything, compared.narrow, strict=True)]
    vendi = _retention(compared)
    return {
        "diversity": Columns(vendi.student, vendi.teacher),
        "distinct_retention": Columns(
            distinct(compared.student.words),
            (distinct(compared.half_a.words) + distinct(compared.half_b.words)) / 2,
            distinct(compared.control.words) if compared.control else None,
            distinct(narrow),
        ),
        "usable_diversity": Columns(
            _usable(kernel[:, s, s], compared.student),
            (_usable(kernel[:, a, a], compared.half_a) + _usable(kernel[:, b, b], compared.half_b)) / 2,
        ),
    }


def _usable(kernel_NKK: Array, side: Side) -> Array:
    """Return the Vendi score of the responses that neither loop nor refuse; 0 if there are none."""
    import numpy as np

    return np.array(
        [
            similarity.vendi(kernel[None][:, usable][:, :, usable])[0] if usable.any() else 0.0
            for kernel, usable in zip(kernel_NKK, side.usable, strict=True)
        ]
    )


def _neighbors(compared: Compared) -> dict[str, Columns]:
    kernel, (a, b, s) = compared.kernel, map(compared.rows, range(3))

    def covered(of: slice, by: slice) -> Array:
        return similarity.covered(kernel[:, of, by], kernel[:, by, by])

    own = (covered(a, b) + covered(b, a)) / 2
    return {
        "recall": Columns((covered(a, s) + covered(b, s)) / 2, own, _recall_of_the_narrow_half(compared)),
        "precision": Columns((covered(s, a) + covered(s, b)) / 2, own),
    }


def _recall_of_the_narrow_half(compared: Compared) -> Array:
    """Return the positive control of recall: the share of the other half that the teacher's narrow half covers."""
    import numpy as np

    prompt = np.arange(len(compared.kernel))[:, None, None]
    narrow = compared.narrow
    others = np.array([np.setdiff1d(range(2 * compared.count), row) for row in narrow])
    across = compared.kernel[prompt, others[:, :, None], narrow[:, None, :]]
    return similarity.covered(across, compared.kernel[prompt, narrow[:, :, None], narrow[:, None, :]])


def _flags(compared: Compared) -> dict[str, Columns]:
    def columns(name: str) -> Columns:
        of = {each: getattr(side, name).mean(-1) for each, side in _sides(compared).items()}
        return Columns(of["s"], (of["a"] + of["b"]) / 2)

    names = {
        "loops": "loop",
        "refusals": "refusal",
        "near_duplicates": "near_duplicate",
        "stock_openings": "stock_opening",
    }
    return {metric: columns(attribute) for metric, attribute in names.items()}


def _sides(compared: Compared) -> dict[str, Side]:
    return {"a": compared.half_a, "b": compared.half_b, "s": compared.student}


def _parity(compared: Compared) -> dict[str, Columns]:
    """Return the metrics that papers report, and length. No preset blocks on them."""
    import numpy as np

    def columns(metric: Callable[[list[list[str]]], float]) -> Columns:
        of = {name: np.array([metric(row) for row in side.words]) for name, side in _sides(compared).items()}
        return Columns(of["s"], (of["a"] + of["b"]) / 2)

    def cut(row: list[list[str]]) -> list[list[str]]:
        return [words[: compared.words] for words in row]

    return {
        "compression": columns(lambda row: textstats.compression(" ".join(" ".join(w) for w in cut(row)).encode())),
        "distinct_4": columns(lambda row: textstats.distinct(cut(row), 4)),
        "self_bleu": columns(lambda row: textstats.self_bleu(cut(row))),
        "length": columns(lambda row: sum(map(len, row)) / len(row)),
    }


# --- quality ----------------------------------------------------------------------------------------------------------


def rouge_l(_prompt: str, response: str, references: Sequence[str]) -> float:
    """Return the best ROUGE-L against a reference, 0 to 1. This is the default scorer."""
    words = textstats.words(response)
    return max(textstats.rouge_l(words, textstats.words(reference)) for reference in references)


def quality(samples: Samples, scorer: Scorer = rouge_l) -> Columns:
    """Return the mean score of each prompt.

    The control scores the teacher's responses as answers to another prompt.
    Raises:
        UsageError: a score is not a finite number.
    """
    import numpy as np

    def scores(texts: Sequence[Sequence[str]], shift: int = 0) -> Array:
        prompts = samples.prompts[shift:] + samples.prompts[:shift]
        table = [[scorer(p.text, t, p.references) for t in row] for p, row in zip(prompts, texts, strict=True)]
        if not np.isfinite(table).all():
            raise UsageError("quality: the scorer returned a score that is not a finite number; fix the scorer")
        means: Array = np.array(table, dtype=float).mean(-1)
        return means

    return Columns(
        scores(samples.student),
        scores(samples.teacher),
        scores([row[: samples.count] for row in samples.teacher], shift=1),
        baseline=scores(samples.baseline) if samples.baseline else None,
    )
