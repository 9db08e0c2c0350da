"""Measure the error rates of the gate: it judges damaged students, and students that equal their teacher, many times.

Each simulation has new prompts, modes, words and samples. Margins are derived from one range of seeds, and error rates
are counted on another. ``derived`` is the tightest margin that a student equal to its teacher passes in 98 % of cases.

    nice python benchmarks/evaluate_honesty.py [--simulations 200] [--out benchmarks/results/evaluate_honesty.json]

dev/make_honesty.py writes the tables of references/evaluation.md from the results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parent))

from synthetic_teacher import CONDITIONS, HARMLESS, UNSEEN, Condition, SyntheticTeacher

from skill_kd.evaluate import gate, metrics, sides
from skill_kd.evaluate.estimates import Columns
from skill_kd.evaluate.policy import PRESETS, GatePolicy

RESULTS = Path(__file__).parent / "results" / "evaluate_honesty.json"
PROMPTS, SAMPLES = 200, 8
DERIVING, COUNTING = 10_000, 0
"""First seed of each range."""
PLAYED = ("text-only", "assistant")
REFERENCE = 50
"""Random stream of the references."""


@dataclass(frozen=True)
class World:
    """Settings that all prompts of a simulation share."""

    name: str
    language: str = "latin"
    mode_share: float = 0.45


WORLDS = (
    World("as derived"),
    World("Cyrillic words", "cyrillic"),
    World("Han characters", "han"),
    World("modes with similar words", mode_share=0.25),
    World("modes with almost the same words", mode_share=0.10),
)


def simulate(seed: int, conditions: Mapping[str, Condition], world: World = WORLDS[0]) -> dict[str, list[gate.Metric]]:
    """Return the judged metrics of a student under each condition, for one teacher."""
    teacher = SyntheticTeacher(seed, prompts=PROMPTS, language=world.language, mode_share=world.mode_share)
    rows = teacher.responses(Condition(), 2 * SAMPLES, 0)
    half_a, half_b = sides.read_side([r[:SAMPLES] for r in rows]), sides.read_side([r[SAMPLES:] for r in rows])
    references = teacher.responses(Condition(), 1, REFERENCE)
    own = scores(rows, references)
    judged = {}
    for stream, (name, condition) in enumerate(conditions.items(), start=1):
        texts = teacher.responses(condition, SAMPLES, stream)
        compared = sides.compare(half_a, half_b, sides.read_side(texts), None, PRESETS["assistant"].word_budget)
        columns = metrics.deciding_columns(compared)
        columns["quality"] = Columns(
            scores(texts, references), own, scores([r[:SAMPLES] for r in rows], references[1:] + references[:1])
        )
        columns["coverage"] = coverage(teacher, condition)
        judged[name] = gate.judge(columns, {}, [None] * PROMPTS, SAMPLES, quick(PRESETS["assistant"]))
    return judged


def quick(policy: GatePolicy) -> GatePolicy:
    """Half the resamples: a bound moves by less than a tenth of its standard error."""
    return policy.model_copy(update={"resamples": 1000})


def scores(rows: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the mean ROUGE-L of each prompt."""
    return np.array(
        [np.mean([metrics.rouge_l("", t, r) for t in row]) for row, r in zip(rows, references, strict=True)]
    )


def coverage(teacher: SyntheticTeacher, condition: Condition) -> Columns:
    """Return the exact nucleus coverage. Only modes, temperature and length change it."""
    plain = Condition(modes=condition.modes, temperature=condition.temperature, length=condition.length)
    if plain == Condition():
        return Columns(np.full(teacher.prompts, 0.95), np.full(teacher.prompts, 0.95))
    student, own = teacher.coverage(plain, 1)
    return Columns(student, own)


def verdict(judged: Sequence[gate.Metric], preset: str) -> gate.Decision:
    """Return the decision of a preset on metrics that were already judged."""
    policy = PRESETS[preset]
    roles = [replace(metric, role=getattr(policy.rules, metric.name).role) for metric in judged]
    return gate.decide(roles, PROMPTS, SAMPLES, policy)


# --- many -------------------------------------------------------------------------------------------------------------

Task = tuple[str, int]
"""World and seed. In the world ``NULL`` there is only a null student, and margins are derived from its bounds."""
NULL = "null"


def one(task: Task) -> dict[str, Any]:
    """Return {condition: {preset: (verdict, binding metric)}}, or the deciding bounds of a null student."""
    name, seed = task
    if name == NULL:
        judged = simulate(seed, {NULL: CONDITIONS["null"]})[NULL]
        return {m.name: _deciding(m) for m in judged if m.role == "blocking"}
    world = next(each for each in WORLDS if each.name == name)
    judged_by = simulate(seed, CONDITIONS | UNSEEN if world is WORLDS[0] else CONDITIONS, world)
    return {
        condition: {preset: [found.verdict, found.binding] for preset in PLAYED for found in [verdict(each, preset)]}
        for condition, each in judged_by.items()
    }


def _deciding(metric: gate.Metric) -> float:
    assert metric.found is not None
    return metric.found.low if metric.kind.better == "high" else metric.found.high


def play(tasks: Sequence[Task], processes: int, work: Path) -> dict[Task, dict[str, Any]]:
    """Return the outcome of each task. Outcomes are saved in ``work``, and finished tasks are read from there."""
    policy = PRESETS["assistant"].hash
    lines = [json.loads(line) for line in work.read_text().splitlines()] if work.is_file() else []
    done = {(line["world"], line["seed"]): line["found"] for line in lines if line["policy"] == policy}
    open_tasks = [task for task in tasks if task not in done]
    with ProcessPoolExecutor(processes) as pool, work.open("a") as file:
        for task, found in zip(open_tasks, pool.map(one, open_tasks), strict=True):
            done[task] = found
            line = {"world": task[0], "seed": task[1], "policy": policy, "found": found}
            print(json.dumps(line), file=file, flush=True)
            print(f"{len(done)} of {len(tasks)}: {task[0]}, seed {task[1]}", file=sys.stderr, flush=True)
    return {task: done[task] for task in tasks}


def margins(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the margin that a null student passes in 98 % of cases and the preset's, for each blocking metric."""
    derived = {}
    for name in found[0]:
        worst = 0.02 if metrics.KINDS[name].better == "high" else 0.98
        tightest = float(np.quantile([each[name] for each in found], worst))
        derived[name] = {"derived": round(tightest, 4), "preset": getattr(PRESETS["assistant"].rules, name).margin}
    return derived


def rates(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return verdict counts with exact 95% intervals, by preset and condition."""
    return {
        preset: {condition: _row([each[condition][preset] for each in found], condition) for condition in found[0]}
        for preset in PLAYED
    }


def _row(found: Sequence[tuple[str, str | None]], name: str) -> dict[str, object]:
    verdicts = Counter(verdict for verdict, _ in found)
    wrong = "NO-GO" if name in HARMLESS else "GO"
    by = Counter(metric for verdict, metric in found if verdict != "GO")
    return {
        **{each: verdicts[each] for each in ("GO", "NO-GO", "INCONCLUSIVE")},
        "go_rate": _rate(verdicts["GO"], len(found)),
        "false_verdict": wrong,
        "false_rate": _rate(verdicts[wrong], len(found)),
        "stopped_by": dict(by.most_common(3)),
    }


def _rate(events: int, of: int) -> dict[str, float]:
    low, high = binomtest(events, of).proportion_ci(0.95, "exact")
    return {"value": events / of, "low": round(float(low), 4), "high": round(float(high), 4)}


def main() -> None:
    """Simulate, count and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--others", type=int, default=20, help="simulations in each of the other worlds")
    parser.add_argument("--deriving", type=int, default=100, help="null students that margins are derived from")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=Path("evaluate_honesty.work.jsonl"), help="finished simulations")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    counts = {world.name: arguments.others for world in WORLDS} | {WORLDS[0].name: arguments.simulations}
    seeds = {NULL: range(DERIVING, DERIVING + arguments.deriving)}
    seeds |= {name: range(COUNTING, COUNTING + count) for name, count in counts.items()}
    tasks = [(name, seed) for name, of in seeds.items() for seed in of]
    done = play(tasks, arguments.processes, arguments.work)
    found = {name: [done[name, seed] for seed in of] for name, of in seeds.items()}
    document = {
        "prompts": PROMPTS,
        "samples": SAMPLES,
        "seeds": {"margins": [DERIVING, arguments.deriving], "rates": [COUNTING, arguments.simulations]},
        "policies": {preset: PRESETS[preset].hash for preset in PLAYED},
        "margins": margins(found[NULL]),
        "worlds": {name: {"simulations": count, **rates(found[name])} for name, count in counts.items() if count},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
