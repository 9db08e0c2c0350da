"""Which estimator of MiniLLM's gradient should be the default? All, from one warm-started student a seed.

    paper        per-token weights, R^Norm, clip, a fifth of the tokens from the teacher
    exact        Single and Long by Eq 3, on the student's own samples alone
    exact mixed  the same, a fifth of the tokens from the teacher, with the weights that keep it unbiased
    slow …       at a quarter of the others' learning rate, which is the demo's

    python benchmarks/estimators.py [--seeds 1 2 3] [--updates 16] [--new-tokens 32] [--add]

Teacher: SmolLM2-135M-Instruct as packaged; student: 24 of its layers, warm-started by forward KL as the demo's is. All
see the same prompts, rows and number of updates. Kept in benchmarks/results/estimators.json: held-out
figures of every run, the change each estimator made, and the difference to ``paper`` with a 95% t-interval over seeds.
The file is written after every seed; ``--add`` puts the seeds to those that are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from demo import interval
from machine import keep, machine

from skill_kd.demo import demo_spec
from skill_kd.run import run
from skill_kd.spec import Spec
from skill_kd.specfile import parse_spec

RESULTS = Path(__file__).with_name("results") / "estimators.json"
EXACT: dict[str, Any] = {"estimator": "exact", "teacher_mix": 0.0}
SLOW = {"learning_rate": 2.5e-5}
ESTIMATORS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "paper": ({"estimator": "paper"}, {}),
    "exact": (EXACT, {}),
    "exact mixed": ({**EXACT, "teacher_mix": 0.2}, {}),
    "slow paper": ({"estimator": "paper"}, SLOW),
    "slow exact": (EXACT, SLOW),
}
WARM_UPDATES = 12
FIGURES = ("forward_kl", "reverse_kl", "student_entropy", "length", "repetition", "ended")


def specs(seed: int, updates: int, new_tokens: int, student: Path) -> dict[str, Spec]:
    """Return the warm start, and each estimator on the student it leaves."""
    values = demo_spec(24, seed, "warm").model_dump(mode="json", exclude_unset=True)
    warm, distill = values["stages"]
    values["rollout"]["max_new_tokens"] = new_tokens
    first = {**warm, "kind": "distill", "updates": WARM_UPDATES}
    del first["epochs"]
    named = {"warm": parse_spec({**values, "stages": [first]}, source="warm")}
    for name, (choice, rate) in ESTIMATORS.items():
        stage = {**distill, **rate, "updates": updates, "objective": {"kind": "minillm", **choice}}
        own = {"name": name.replace(" ", "-"), "stages": [stage], "student": {"model": str(student)}}
        checkpoint = {**values["checkpoint"], "every": updates}
        named[name] = parse_spec({**values, **own, "checkpoint": checkpoint}, source=name)
    return named


def of_seed(seed: int, updates: int, new_tokens: int) -> dict[str, dict[str, Any]]:
    """Return for each estimator its held-out figures before and after, seconds and tokens an update."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        named = specs(seed, updates, new_tokens, Path(scratch) / "warm" / "student")
        run(named.pop("warm"), Path(scratch))
        for name, spec in named.items():
            steps: list[dict[str, Any]] = []
            measures: Any = run(spec, Path(scratch), on_event=steps.append).summary["measures"]
            before, *_, after = measures.values()
            counted = [step for step in steps if step["event"] == "update"]
            found[name] = {
                "before": {each: before[each] for each in FIGURES},
                "after": {each: after[each] for each in FIGURES},
                "seconds_an_update": statistics.median(step["seconds"] for step in counted),
                "gradient_norm": statistics.median(step["grad_norm"] for step in counted),
            }
            told = ", ".join(f"{each} {after[each]:.3f}" for each in FIGURES)
            print(f"seed {seed}, {name}: {told}", flush=True)
    return found


def compared(runs: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return each estimator's mean change and how far from ``paper`` the others end, with intervals over seeds."""

    def over_seeds(name: str, moment: str, other: str) -> dict[str, dict[str, float]]:
        pairs = [(found[name]["after"], found[other][moment]) for found in runs.values()]
        return {each: interval([after[each] - against[each] for after, against in pairs]) for each in FIGURES}

    others = [name for name in ESTIMATORS if name != "paper"]
    return {
        "changes": {name: over_seeds(name, "before", name) for name in ESTIMATORS},
        "less_paper": {name: over_seeds(name, "after", "paper") for name in others},
    }


def main() -> None:
    """Run all seeds, print changes and differences, keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--add", action="store_true", help="keep the other seeds that the result file has")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    setting = {name: getattr(options, name) for name in ("updates", "new_tokens")}
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.add else {"setting": setting, "runs": {}}
    if kept["setting"] != setting:
        parser.error(f"{options.out} has another setting: {kept['setting']}")
    runs = kept["runs"]
    for seed in options.seeds:
        runs[str(seed)] = of_seed(seed, options.updates, options.new_tokens)
        told = {"machine": machine("torch", "transformers", "skill-kd"), "setting": setting}
        keep(options.out, told | compared(runs) | {"runs": runs})
    for title, table in compared(runs).items():
        for name, figures in table.items():
            print(f"{title:<11}{name:<12}" + "  ".join(f"{each} {values}" for each, values in figures.items()))


if __name__ == "__main__":
    main()
