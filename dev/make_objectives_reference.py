"""Generate parts of references/objectives.md and the picture next to it.

python dev/make_objectives_reference.py
python dev/make_objectives_reference.py --check     # exit code 1 if a file has drifted
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from skill_kd.kd.losses.divergences import forward_kl, reverse_kl
from skill_kd.prove.enumeration import (
    AllResponses,
    Loss,
    all_responses,
    cosine,
    exact_gradient,
    expected_gradient,
    gradient_variance,
    random_policy,
)
from skill_kd.prove.judging import compare, policies
from skill_kd.prove.known import KNOWN, pads_trained

REFERENCES = Path(__file__).parent.parent / "references"
COMMAND = "python dev/make_objectives_reference.py"

# --- the bias of estimators -------------------------------------------------------------------------------------------

VOCABULARY, LENGTH, SEEDS, MIXES = 4, 4, range(16), (0.0, 0.2, 0.5)
MORE_SEEDS, SCALES = 200, (1.0, 2.0)
MORE_SHOWN = (
    "Single + Long, per-decision weights (`exact`)",
    "per-token weight, length normalization, clip (`paper`)",
    "Single alone (`reverse_kl`, on-policy)",
)


def bias_table(_text: str) -> str:
    """Return a Markdown table that compares each known loss with the exact gradient."""
    responses = all_responses(VOCABULARY, LENGTH)
    head = "".join(f" α = {mix:g} |" for mix in MIXES)
    rows = [f"| loss |{head} variance |", f"|---|{'---|' * len(MIXES)}---|"]
    shown = {name: loss for name, loss in KNOWN.items() if loss is not pads_trained}  # it depends on the number of pads
    rows += [f"| {name} | {' | '.join(_cells(loss, responses))} |" for name, loss in shown.items()]
    legend = (
        f"Cosine with the exact gradient: median (lowest) of {len(SEEDS)} pairs of random policies; then the relative "
        f"bias ‖g − e‖ / ‖e‖, median. Every response of at most {LENGTH} tokens over a vocabulary of {VOCABULARY} with "
        "EOS, logits of standard deviation 1, float64. Variance: of one response's gradient, median over the pairs "
        f"at α = {', '.join(f'{mix:g}' for mix in MIXES)}. {_larger_toys()}"
    )
    return "\n".join([legend, "", *rows])


def _larger_toys() -> str:
    """Return a sentence: the cosines at α = 0 on more pairs of policies, over one more token, and further apart."""
    responses = all_responses(VOCABULARY + 1, LENGTH)
    shown = [
        f"{name} {' and '.join(_spread(KNOWN[name], responses, scale) for scale in SCALES)}" for name in MORE_SHOWN
    ]
    return (
        f"Cosines over {MORE_SEEDS} pairs and {VOCABULARY + 1} tokens, α = 0, with logits of standard deviation "
        f"{' and '.join(f'{scale:g}' for scale in SCALES)}: {'; '.join(shown)}."
    )


def _spread(loss: Loss, responses: AllResponses, scale: float) -> str:
    cosines = []
    for seed in range(MORE_SEEDS):
        student, teacher = (random_policy(responses, each, scale) for each in (seed, MORE_SEEDS + seed))
        gradient = expected_gradient(loss, student, teacher, responses, None)
        cosines.append(cosine(gradient, exact_gradient(student, teacher, responses)))
    return f"{median(cosines):.2f} ({min(cosines):.2f})"


def _cells(loss: Loss, responses: AllResponses) -> list[str]:
    cells = []
    for mix in MIXES:
        cases = [compare(loss, responses, seed, mix) for seed in SEEDS]
        bias, cosines = median(case.error for case in cases), [case.cosine for case in cases]
        if max(abs(case.step) + case.left for case in cases) < 1e-9:
            cells.append("no gradient")
        else:
            # Adding 0.0 turns a negative zero into a zero.
            middle, lowest = (round(value, 2) + 0.0 for value in (median(cosines), min(cosines)))
            cells.append(f"{middle:.2f} ({lowest:.2f}), {bias:.0%}")
    spreads = [
        median(gradient_variance(loss, *policies(responses, seed), responses, mix or None) for seed in SEEDS)
        for mix in MIXES
    ]
    return [*cells, " / ".join(f"{spread:.1f}" for spread in spreads)]


# --- the price of exact weights ---------------------------------------------------------------------------------------

TOKENS = (16, 48, 128, 256)
GAPS = (0.1, 0.3, 1.0)


def sample_size_table(_text: str) -> str:
    """Return a Markdown table of the effective sample size with exact weights."""
    rows = ["| reverse KL per token | α |" + "".join(f" {tokens} tokens |" for tokens in TOKENS)]
    rows.append("|---|---|" + "---|" * len(TOKENS))
    for gap in GAPS:
        q, p = _pair(gap)
        for mix in MIXES[1:]:
            kept = 1 / float((q**2 / (mix * p + (1 - mix) * q)).sum())
            cells = "".join(f" {_share(kept**tokens)} |" for tokens in TOKENS)
            rows.append(f"| {gap:g} nats | {mix:g} |{cells}")
    return "\n".join(rows)


def _pair(gap: float) -> tuple[Tensor, Tensor]:
    """Return a student and a teacher over 1000 tokens with a reverse KL of ``gap``; all gaps share one direction."""
    generator = torch.Generator().manual_seed(0)
    logits, change = torch.randn(2, 1000, generator=generator, dtype=torch.float64)
    q, low, high = (3 * logits).log_softmax(dim=-1), 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        p = (3 * logits + middle * change).log_softmax(dim=-1)
        low, high = (middle, high) if float(reverse_kl(q, p)) < gap else (low, middle)
    return q.exp(), p.exp()


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "< 1%" if share >= 0.001 else "< 0.1%"


# --- the directions ---------------------------------------------------------------------------------------------------


def check_output(text: str) -> str:
    """Run the first Python block of the reference and return its output."""
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    done = subprocess.run([sys.executable, "-c", found[1]], capture_output=True, text=True, check=True)  # noqa: S603
    return f"```text\n{done.stdout}```"


GRID = torch.linspace(-7, 7, 281, dtype=torch.float64)
WIDTH, HEIGHT, BASE = 640, 300, 250
COLORS = {"teacher": "#6b7280", "forward": "#2f6fdb", "reverse": "#c2541d"}


def bump(center: Tensor | float, width: Tensor | float) -> Tensor:
    """Return the log-probs of a Gaussian on the grid."""
    return (-(((GRID - center) / width) ** 2) / 2).log_softmax(dim=-1)


def fits() -> dict[str, Tensor]:
    """Return log-probs of a bimodal teacher and of the best single Gaussian by each KL direction."""
    teacher = torch.logaddexp(bump(-2.5, 0.8) + torch.tensor(0.65).log(), bump(2.5, 0.8) + torch.tensor(0.35).log())
    centers = torch.arange(-4, 4.01, 0.05, dtype=torch.float64)
    widths = torch.arange(0.4, 4.01, 0.05, dtype=torch.float64)
    students = bump(centers.repeat_interleave(len(widths)).unsqueeze(1), widths.repeat(len(centers)).unsqueeze(1))
    return {
        "teacher": teacher,
        "forward": students[forward_kl(students, teacher.expand_as(students)).argmin()],
        "reverse": students[reverse_kl(students, teacher.expand_as(students)).argmin()],
    }


def picture() -> str:
    """Return an SVG with the teacher as a filled area and both students as lines."""
    curves = fits()
    scale = (BASE - 30) / max(float(curve.exp().max()) for curve in curves.values())
    names = {
        "teacher": "teacher, two modes",
        "forward": "forward KL, KL(teacher ‖ student): covers both",
        "reverse": "reverse KL, KL(student ‖ teacher): seeks one",
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif">',
        "<title>One Gaussian fitted to a teacher with two modes, by forward and by reverse KL</title>",
    ]
    for name, curve in curves.items():
        path, color = _path(curve.exp() * scale), COLORS[name]
        style = f'fill="{color}" fill-opacity=".35"' if name == "teacher" else f'fill="none" stroke="{color}"'
        parts.append(f'<path d="{path}" {style} stroke-width="2.5"/>')
    parts.append(f'<path d="M0 {BASE}H{WIDTH}" stroke="{COLORS["teacher"]}"/>')
    for at, (name, label) in zip((8, 180, 420), names.items(), strict=True):
        first, _, second = label.partition(", ")
        parts += [
            f'<text x="{at}" y="{BASE + 22 + 16 * line}" fill="{COLORS[name]}" font-size="12">{words}</text>'
            for line, words in enumerate((first, second))
        ]
    return "\n".join([*parts, "</svg>", ""])


def _path(heights: Tensor) -> str:
    xs = torch.linspace(0, WIDTH, len(heights)).tolist()
    points = [f"{x:.0f} {BASE - height:.0f}" for x, height in zip(xs, heights.tolist(), strict=True)]
    return "M" + "L".join(points[::2])


# --- files ------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[str], str]] = {
    "check": check_output,
    "bias": bias_table,
    "sample size": sample_size_table,
}


def document(text: str) -> str:
    """Return the reference with every generated part updated."""
    for name, make in PARTS.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"error: references/objectives.md lacks the markers of '{name}'")
        text = f"{before}{begin}{make(text)}\n{end}{after}"
    return text


def main() -> int:
    """Write the two files, or check them for drift."""
    parser = argparse.ArgumentParser(description="The generated parts of references/objectives.md.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    checking = parser.parse_args().check
    reference, drawing = REFERENCES / "objectives.md", REFERENCES / "directions.svg"
    wanted = {reference: document(reference.read_text(encoding="utf-8")), drawing: picture()}
    drifted = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if checking:
        for path in drifted:
            sys.stderr.write(f"error: references/{path.name} has drifted; run: {COMMAND}\n")
        return 1 if drifted else 0
    for path in drifted:
        partial = path.with_suffix(".partial")
        partial.write_text(wanted[path], encoding="utf-8")
        os.replace(partial, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
