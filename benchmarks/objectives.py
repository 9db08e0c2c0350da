"""Compare objectives with MiniLLM on the same budget.

    minillm           the default
    minillm covering  minillm with coverage_weight 0.5, plus forward KL on teacher samples
    entropy_aware     reverse KL, plus forward KL where the teacher is undecided, on the student's samples
    forward_kl        on the teacher's samples

    python benchmarks/objectives.py [--seeds 1 2 3] [--updates 16] [--new-tokens 32] [--add]

arms.py describes models, figures and the result, benchmarks/results/objectives.json. ``--add`` adds seeds to the saved
ones. This study has one answer per prompt; figures over many answers come from the gate (``skill-kd evaluate``).
"""

from __future__ import annotations

from pathlib import Path

from arms import Arms, study

OBJECTIVES: Arms = {
    "minillm": ({"kind": "minillm"}, {}),
    "minillm covering": ({"kind": "minillm", "coverage_weight": 0.5}, {}),
    "entropy_aware": ({"kind": "entropy_aware"}, {}),
    "forward_kl": ({"kind": "forward_kl", "responses": "teacher"}, {}),
}

if __name__ == "__main__":
    study(str(__doc__), OBJECTIVES, "minillm", Path(__file__).with_name("results") / "objectives.json")
