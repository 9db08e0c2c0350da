"""Write the table of measurements to benchmarks/README.md, and five of its rows to README.md, between the markers.

The numbers come from benchmarks/results.

python dev/make_measured.py [--check]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

import generated
from generated import RESULTS, result

Row = tuple[str, str]


def startup() -> Iterator[Row]:
    """Yield the start-up times of the light verbs."""
    medians = {row["name"]: row["median"] for row in result("startup")["rows"]}
    named = ", ".join(f"`{name}` {medians[name]:.2f}" for name in ("skill-kd --help", "skill-kd validate"))
    yield "start-up time, seconds", f"{named} (for comparison: `trl --help` {medians['trl --help']:.2f})"


def loss() -> Iterator[Row]:
    """Yield the speed and the memory use of the loss from hidden states."""
    for shape in result("loss")["shapes"]:
        faster, peak = shape["times_faster_than"]["wall"]["trl"], shape["peak_bytes"]
        size = f"{shape['tokens']} tokens, vocabulary {shape['vocabulary']}"
        yield (
            f"speed and memory of reverse KL and its gradients, computed from hidden states; {size}",
            f"neither compiled: {_range(faster['eager'])} times as fast as TRL's chunked kernel, peak memory "
            f"{peak['eager'] / 2**20:.0f} MiB (TRL: {peak['trl'] / 2**20:.0f} MiB); ours with `torch.compile`, TRL's "
            f"without: {_range(faster['compiled'])} times as fast",
        )


def sampling() -> Iterator[Row]:
    """Yield the speed of teacher-mixed sampling, relative to other samplers."""
    for case in result("sampling")["cases"]:
        ratios = case["ratios"]
        faster = _spread(ratios["every step / lazy, reordered"])
        longer = _spread(ratios["lazy, reordered / student, reordered"])
        yield (
            f"teacher-mixed sampling, α = 0.2, student of {case['layers']} of 30 layers",
            f"{faster} times as fast as running both models at every step with torch's matrix products; takes {longer} "
            "times as long as student-only sampling",
        )


def end_to_end() -> Iterator[Row]:
    """Yield the speed of whole updates relative to peers, and the held-out KLs after equal time."""
    kept = result("end_to_end")
    faster = kept["speed"]["times_faster_than"]
    for peer, name, what in (
        ("trl", "ours reverse_kl", "TRL's DistillationTrainer, on-policy reverse KL, same models and settings"),
        ("plain", "ours minillm", "a plain two-model MiniLLM loop, same models and settings"),
    ):
        rates = faster[peer][name]
        updates, tokens = _spread(rates["updates"]), _spread(rates["tokens"])
        found = (
            f"{updates} times as many updates per second, {tokens} times as many tokens per second (sampled answers "
            "differ in length)"
        )
        yield f"speed of complete updates (sampling, loss, optimizer), compared with {what}", found
    entries = kept["races"][0]
    measures = "; ".join(f"{name} {entry['reverse_kl']:.3f}" for name, entry in entries.items())
    yield f"held-out reverse KL after {kept['setting']['budget']:.0f} s of updates (one seed)", measures


def demo() -> Iterator[Row]:
    """Yield the held-out KLs of the demo."""
    kept = result("demo")
    moments = ("student before", "after warm start", "after MiniLLM")
    values = [[run["figures"][moment]["reverse_kl"] for run in kept["runs"]] for moment in moments]
    when = ("before training", "after the warm start", "after MiniLLM")
    shown = ", ".join(f"{min(each):.2f}–{max(each):.2f} {moment}" for each, moment in zip(values, when, strict=True))
    yield f"demo, held-out reverse KL over {len(kept['runs'])} seeds, nats per token (lower is better)", shown
    change = kept["changes"]["MiniLLM"]
    found = ", ".join(f"{_words(name)} {_interval(change[name])}" for name in ("reverse_kl", "forward_kl"))
    yield "demo, change from the warm start to the end of MiniLLM", found


def backends() -> Iterator[Row]:
    """Yield the differences between the students of the backends."""
    kept = result("backends")
    for pair, figures in kept["differences"].items():
        found = ", ".join(f"{_words(name)} {_interval(values)}" for name, values in figures.items())
        seeds = len({run["seed"] for run in kept["runs"]})
        yield f"the same spec on two backends, {pair}: held-out difference over {seeds} seeds", found


def plan() -> Iterator[Row]:
    """Yield the errors of plan."""
    for measure, what in (("rss", "resident memory"), ("live", "memory of tensors")):
        errors = [abs(row[f"{measure}_error"]) for row in result("plan_memory")["rows"]]
        found = f"median error {median(errors):.1%}, largest error {max(errors):.1%}"
        yield f"{what} that `plan` estimates, compared with the measured memory of updates on a CPU", found


def honesty() -> Iterator[Row]:
    """Yield the error rates of the gate, on students it was not tuned on."""
    kept = result("evaluate_honesty")
    world = kept["worlds"]["as derived"]
    for preset in ("assistant", "text-only"):
        rows = world[preset]
        damaged = {name: row["false_rate"] for name, row in rows.items() if row["false_verdict"] == "GO"}
        worst = max(damaged, key=lambda name: damaged[name]["value"])
        null = rows["null"]["go_rate"]
        rate = damaged[worst]
        passed = (
            f"at most {_share(rate)} of a kind got GO"
            if rate["value"]
            else f"none got GO (95% interval for each kind of damage: at most {rate['high']:.1%})"
        )
        found = f"students identical to their teacher: {_share(null)} got GO; damaged students: {passed}"
        what = f"verdicts of `evaluate`, policy `{preset}`"
        yield f"{what}, {world['simulations']} simulations per kind of student", found


def reading() -> Iterator[Row]:
    """Yield the cost of the probabilities that evaluate reads."""
    ratio = result("evaluate_speed")["ratio"]["wall"]
    yield (
        "`evaluate`: time to score with two models ÷ time of their forward passes alone",
        _range([min(ratio["all"]), ratio["median"], max(ratio["all"])]),
    )


def diagnosing() -> Iterator[Row]:
    """Yield the speed and the memory use of diagnose."""
    kept = result("diagnose_speed")
    found = "; ".join(
        f"{run['lines']:,} lines {run['lines_per_second']:,.0f} lines/s, {run['peak_bytes'] / 1e6:.0f} MB"
        for run in kept["runs"]
    )
    yield f"`diagnose`, {kept['jobs']} jobs, lines of {kept['line_bytes'] / 1000:.1f} kB", found


PARTS = {
    "startup": startup,
    "loss": loss,
    "sampling": sampling,
    "end_to_end": end_to_end,
    "demo": demo,
    "backends": backends,
    "plan_memory": plan,
    "evaluate_honesty": honesty,
    "evaluate_speed": reading,
    "diagnose_speed": diagnosing,
}


IN_README = ("demo", "end_to_end", "loss", "plan_memory", "evaluate_honesty")
"""The parts whose first row is in README.md."""


def table() -> str:
    """Return the table of all results in benchmarks/results."""
    kept = {name: part for name, part in PARTS.items() if (RESULTS / f"{name}.json").exists()}
    return _table((name, row) for name, part in kept.items() for row in part())


def selection() -> str:
    """Return the table of README.md."""
    return _table((name, next(PARTS[name]())) for name in IN_README)


def _table(rows: Iterable[tuple[str, Row]]) -> str:
    head = ["| what | result | from `benchmarks/results` |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {what} | {found} | `{name}.json` |" for name, (what, found) in rows)]) + "\n"


def _spread(values: dict[str, float]) -> str:
    return _range([values["least"], values["median"], values["largest"]])


def _range(values: list[float]) -> str:
    least, median, largest = values
    return f"{median:.2f} ({least:.2f}–{largest:.2f})"


def _interval(values: dict[str, float]) -> str:
    return f"{values['mean']:+.3f} (95% interval {values['low']:+.3f} to {values['high']:+.3f})"


def _share(rate: dict[str, float]) -> str:
    return f"{rate['value']:.1%} (95% interval {rate['low']:.1%} to {rate['high']:.1%})"


def _words(name: str) -> str:
    return {"reverse_kl": "reverse KL", "forward_kl": "forward KL"}[name]


if __name__ == "__main__":
    drifted = [
        generated.main("benchmarks/README.md", "measured", table),
        generated.main("README.md", "measured", selection),
    ]
    raise SystemExit(max(drifted))
