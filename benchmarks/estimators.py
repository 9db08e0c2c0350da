"""Compare estimators of MiniLLM's gradient, to choose the default.

    paper        per-token weights, R^Norm, clip, a fifth of the tokens from the teacher
    exact        Single and Long by Eq 3, only on the student's own samples
    exact mixed  the same with a fifth of the tokens from the teacher, and weights that keep it unbiased
    slow …       the same at a quarter of the learning rate; the others use the demo's

    python benchmarks/estimators.py [--seeds 1 2 3] [--updates 16] [--new-tokens 32] [--add]

arms.py describes models, figures and the result, benchmarks/results/estimators.json. ``--add`` adds seeds to the saved
ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arms import Arms, study

EXACT: dict[str, Any] = {"kind": "minillm", "estimator": "exact", "teacher_mix": 0.0}
PAPER = {"kind": "minillm", "estimator": "paper"}
SLOW = {"learning_rate": 2.5e-5}
ESTIMATORS: Arms = {
    "paper": (PAPER, {}),
    "exact": (EXACT, {}),
    "exact mixed": ({**EXACT, "teacher_mix": 0.2}, {}),
    "slow paper": (PAPER, SLOW),
    "slow exact": (EXACT, SLOW),
}

if __name__ == "__main__":
    study(str(__doc__), ESTIMATORS, "paper", Path(__file__).with_name("results") / "estimators.json")
