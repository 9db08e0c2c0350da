"""A few of the simulations that benchmarks/evaluate_honesty.py counts: the gate against planted damage."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from script_modules import load_script

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")


ROOT = Path(__file__).parents[2]
SEED = 77_000  # in neither range that the results were taken from


@cache
def benchmark() -> ModuleType:
    """benchmarks/evaluate_honesty.py as a module."""
    return load_script("benchmarks/evaluate_honesty.py")


@cache
def played(*conditions: str) -> dict[str, list[object]]:
    known = benchmark().CONDITIONS | benchmark().UNSEEN
    return benchmark().simulate(SEED, {name: known[name] for name in conditions})


EIGHT = ("null", "half length", "1.5 times the length", "12 to 3 modes", "temperature 0.8", "15% loops")
PLANTED = {"boilerplate opening", "10% refusals"}


@pytest.mark.parametrize("preset", ["text-only", "assistant"])
def test_student_like_its_teacher_passes_at_any_length_and_damaged_student_does_not(preset: str) -> None:
    judged = played(*EIGHT, *sorted(PLANTED))
    verdicts = {name: benchmark().verdict(metrics, preset).verdict for name, metrics in judged.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "GO"} == set(benchmark().HARMLESS)


def test_metric_that_measures_the_damage_decides() -> None:
    judged = played(*EIGHT, *sorted(PLANTED))
    binding = {name: benchmark().verdict(metrics, "text-only").binding for name, metrics in judged.items()}
    assert binding["15% loops"] == "loops"
    assert binding["10% refusals"] == "refusals"
    assert binding["boilerplate opening"] in {"stock_openings", "recall", "retention"}
    assert binding["12 to 3 modes"] in {"retention", "recall"}
    assert binding["temperature 0.8"] == "retention"


def test_modes_that_words_do_not_show_are_inconclusive() -> None:
    world = benchmark().WORLDS[-1]
    judged = benchmark().simulate(SEED, {"12 to 3 modes": benchmark().CONDITIONS["12 to 3 modes"]}, world)
    found = benchmark().verdict(judged["12 to 3 modes"], "text-only")
    assert found.verdict == "INCONCLUSIVE"
    assert found.reason_code == "metric_insensitive"


# --- the synthetic teacher itself -------------------------------------------------------------------------------------


def test_samples_match_the_stated_probabilities() -> None:
    Teacher, Condition = benchmark().SyntheticTeacher, benchmark().Condition
    teacher = Teacher(3, prompts=2, modes=4)
    for condition in (Condition(), Condition(modes=1), Condition(temperature=0.5)):
        ids, lengths = teacher.ids(condition, 4000, 1)
        probabilities, _ = next(iter(teacher.reading(condition, ids[:, :1], lengths[:, :1], 1)))
        words = probabilities[0, :-1] / probabilities[0, :-1].sum()
        seen = np.bincount(ids[0, :, 0], minlength=len(words)) / 4000
        spread = np.sqrt(words * (1 - words) / 4000)
        assert (np.abs(seen - words) < 5 * spread + 1e-3).all()


def test_teacher_covers_its_nucleus_and_damage_reduces_coverage() -> None:
    Teacher, Condition = benchmark().SyntheticTeacher, benchmark().Condition
    teacher = Teacher(4, prompts=10)
    student, own = teacher.coverage(Condition(), 2)
    assert student == pytest.approx(own)
    assert own.min() >= 0.95
    fewer, _ = teacher.coverage(Condition(modes=3), 2)
    sharper, _ = teacher.coverage(Condition(temperature=0.8), 2)
    assert fewer.mean() < own.mean() - 0.02
    assert sharper.mean() < own.mean() - 0.02
