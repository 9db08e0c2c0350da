"""Compare several ways to train the same warm-started student, over several seeds.

Teacher: SmolLM2-135M-Instruct as packaged; student: 24 of its layers, warm-started with forward KL as in the demo. All
arms use the same prompts, rows and number of updates. A result file has the held-out figures of every run, the change
by each arm, and its difference from a reference arm, with 95% t-intervals over seeds. It is written after every seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo import interval
from machine import keep, machine

from skill_kd.demo import demo_spec
from skill_kd.jobs.run import run
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec

WARM_UPDATES = 12
FIGURES = ("forward_kl", "reverse_kl", "student_entropy", "distinct_2", "length", "repetition", "ended")


Arms = Mapping[str, tuple[Mapping[str, Any], Mapping[str, float]]]
"""Name, objective as in a spec, and other keys of its stage."""
Runs = dict[str, dict[str, dict[str, Any]]]
"""The held-out figures of each seed and arm."""


def specs(arms: Arms, seed: int, updates: int, new_tokens: int, student: Path) -> dict[str, Spec]:
    """Return the spec of the warm start, and of each arm, which starts from its student."""
    values = demo_spec(24, seed, "warm").model_dump(mode="json", exclude_unset=True)
    warm, distill = values["stages"]
    values["rollout"]["max_new_tokens"] = new_tokens
    first = {**warm, "kind": "distill", "updates": WARM_UPDATES}
    del first["epochs"]
    named = {"warm": parse_spec({**values, "stages": [first]}, source="warm")}
    for number, (name, (objective, more)) in enumerate(arms.items(), 1):
        stage = {**distill, **more, "updates": updates, "objective": dict(objective)}
        own = {"name": f"arm-{number}", "stages": [stage], "student": {"model": str(student)}}
        checkpoint = {**values["checkpoint"], "every": updates}
        named[name] = parse_spec({**values, **own, "checkpoint": checkpoint}, source=name)
    return named


def of_seed(arms: Arms, seed: int, updates: int, new_tokens: int) -> dict[str, dict[str, Any]]:
    """Return the held-out figures before and after each arm, and seconds per update."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        named = specs(arms, seed, updates, new_tokens, Path(scratch) / "warm" / "student")
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


def compared(arms: Arms, reference: str, runs: Runs) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return the mean change by each arm, and its mean difference from the reference, with intervals over seeds."""

    def over_seeds(name: str, moment: str, other: str) -> dict[str, dict[str, float]]:
        pairs = [(found[name]["after"], found[other][moment]) for found in runs.values()]
        had = [each for each in FIGURES if all(each in after for after, _ in pairs)]
        return {each: interval([after[each] - against[each] for after, against in pairs]) for each in had}

    return {
        "changes": {name: over_seeds(name, "before", name) for name in arms},
        "less_reference": {name: over_seeds(name, "after", reference) for name in arms if name != reference},
    }


def study(description: str, arms: Arms, reference: str, results: Path) -> None:
    """Run a study from the command line: run all seeds, print changes and differences, save the results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--add", action="store_true", help="keep the other seeds that the result file has")
    parser.add_argument("--out", type=Path, default=results)
    options = parser.parse_args()
    setting = {"updates": options.updates, "new_tokens": options.new_tokens, "reference": reference}
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.add else {"setting": setting, "runs": {}}
    if kept["setting"] != setting:
        parser.error(f"{options.out} has another setting: {kept['setting']}")
    runs = kept["runs"]
    for seed in options.seeds:
        runs[str(seed)] = of_seed(arms, seed, options.updates, options.new_tokens)
        told = {"machine": machine("torch", "transformers", "skill-kd"), "setting": setting}
        keep(options.out, told | compared(arms, reference, runs) | {"runs": runs})
    for title, table in compared(arms, reference, runs).items():
        for name, figures in table.items():
            print(f"{title:<15}{name:<28}" + "  ".join(f"{each} {values}" for each, values in figures.items()))
