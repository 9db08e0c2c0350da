"""How the work of each verb grows with the vocabulary, the rows of data, the turns of a conversation and the files.

Every verb runs as a process of its own, at three sizes, on one thread. Its work is the processor time of the process
and of those that it starts, which other programs on the machine change less than the time on a clock. The smallest size
gives the constant part, which is taken off the other two. ``power`` is the exponent that leads from the second size to
the third: 1 is linear, 2 is quadratic. A power above ``--limit`` whose reason is not known ends this with exit code 1.
A growing part that is too short, compared with noise, has no power. ``--only`` measures some cases again and keeps the
other results.

The models have random weights of hidden size 32, so that the work outside of the models is what grows. Byte-level BPE
tokenizers of 49,152 and 262,144 tokens are made from merges of the byte alphabet.

    python benchmarks/verb_growth.py [--tiny] [--only TEXT] [--work DIR] [--out benchmarks/results/verb_growth.json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from machine import keep, machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "verb_growth.json"
LIMIT = 1.25
"""Highest power that counts as linear: caches get slower as they fill."""
NOISE = 1.0
"""Seconds. A growing part that is shorter at the second size is not judged."""
Prepare = Callable[[Path, int], list[str]]
WORDS = ("refund", "order", "parcel", "late", "thanks", "please", "where", "when", "account", "price", "cancel", "help")


@dataclass(frozen=True)
class Axis:
    """A quantity that grows, and its three sizes."""

    name: str
    sizes: tuple[int, int, int]
    tiny: tuple[int, int, int]


VOCABULARY = Axis("vocabulary", (1024, 49_152, 262_144), (400, 500, 600))
ROWS = Axis("rows", (200, 2000, 20_000), (4, 8, 16))
TURNS = Axis("turns of a conversation", (2, 20, 200), (2, 4, 8))
MORE_TURNS = Axis("turns of a conversation", (2, 50, 200), (2, 4, 8))
FILES = Axis("files", (4, 40, 400), (1, 2, 4))


@dataclass(frozen=True)
class Case:
    """A verb on an axis. ``prepare`` fills a folder for a size, and returns the arguments of the verb."""

    verb: str
    axis: Axis
    prepare: Prepare
    codes: tuple[int, ...] = (0,)
    """Exit codes of a verb that did its work."""
    known: str | None = None
    """The reason why this grows faster than linearly. It is then not judged."""


# --- inputs -----------------------------------------------------------------------------------------------------------


def text(number: int, words: int = 12) -> str:
    """Return words that differ from row to row."""
    return " ".join([*(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(words)), str(number)])


def conversation(number: int, turns: int = 2) -> list[dict[str, str]]:
    """Return messages that end with the assistant's."""
    roles, words = (
        ("user", "assistant"),
        12 if turns == 2 else 1,
    )  # many turns are short, or attention would be measured
    return [{"role": roles[turn % 2], "content": text(number * turns + turn, words)} for turn in range(turns)]


def write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    """Write JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def data(folder: Path, rows: int, turns: int = 2) -> Path:
    """Write conversations."""
    return write_lines(folder / "data.jsonl", ({"messages": conversation(number, turns)} for number in range(rows)))


def log(path: Path, lines: int, turns: int = 1) -> Path:
    """Write a production log of an OpenAI-compatible proxy, over thirty days."""

    def line(number: int) -> dict[str, Any]:
        at = 1_790_000_000 + 30 * 86_400 * number // lines
        message = {"role": "assistant", "content": text(number, 60)}
        request = {
            "model": "student",
            "messages": [*conversation(number, turns - 1), {"role": "user", "content": text(number)}],
        }
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        response = {"object": "chat.completion", "created": at, "model": "student", "choices": [choice]}
        return {"timestamp": at, "request": request, "response": response}

    return write_lines(path, map(line, range(lines)))


def tokenizer(tokens: int) -> Any:
    """Return a byte-level BPE tokenizer of about that many tokens, with a chat template."""
    sys.path.append(str(ROOT / "tests"))
    from tiny import BOS, CHAT_TEMPLATE, EOS, UNK
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((UNK, BOS, EOS, *alphabet))}
    merges: list[tuple[str, ...]] = []
    pairs = list(product(alphabet, repeat=2))
    longer = ((first + second, third) for (first, second), third in product(pairs, alphabet))
    for pair in (*pairs, *(pair for pair, _ in zip(longer, range(max(0, tokens - len(pairs))), strict=False))):
        if len(vocabulary) >= tokens:
            break
        vocabulary["".join(pair)] = len(vocabulary)
        merges.append(pair)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNK, bos_token=BOS, eos_token=EOS, pad_token=EOS)
    made.chat_template = CHAT_TEMPLATE
    return made


def models(folder: Path, tokens: int) -> None:
    """Write a teacher and a student of one vocabulary."""
    made = tokenizer(tokens)
    from tiny import build_model

    for number, name in enumerate(("teacher", "student")):
        model = build_model("llama", layers=1, vocabulary=tokens, tokenizer=made, seed=number)
        model.config.max_position_embeddings = 1 << 14
        model.save_pretrained(folder / name)
        made.save_pretrained(folder / name)


def spec(folder: Path, longest: int = 256) -> Path:
    """Write a spec of two updates."""
    values = {
        "name": "run",
        "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},
        "student": {"model": str(folder / "student"), "export_dtype": "float32"},
        "data": {"train": str(folder / "data.jsonl"), "held_out": 0.2, "max_prompt_tokens": longest},
        "stages": [{"kind": "distill", "updates": 2, "objective": {"kind": "reverse_kl"}}],
        "rollout": {"max_new_tokens": 4, "prompts": 2},
        "training": {"batch_size": 2, "precision": "fp32"},
        "checkpoint": {"every": 100, "measure_prompts": 2},
        "handoff": {"data": str(folder / "data.jsonl")},
        "evaluation": {"samples": 2},
    }
    path = folder / "spec.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


# --- cases ------------------------------------------------------------------------------------------------------------


def of_spec(
    verb: str, *arguments: str, vocabulary: bool = False, turns: bool = False
) -> Callable[[Path, int], list[str]]:
    """Return ``prepare`` for a verb that reads a spec."""

    def prepare(folder: Path, size: int) -> list[str]:
        models(folder, size if vocabulary else 1024)
        data(folder, 20 if vocabulary else 100 if turns else size, size if turns else 2)
        longest = 1 << 13 if turns else 256
        return [verb, str(spec(folder, longest)), *(each.format(folder=folder) for each in arguments)]

    return prepare


def of_run(verb: str, *arguments: str, **axis: bool) -> Prepare:
    """Return ``prepare`` for a verb that reads a finished run."""

    def prepare(folder: Path, size: int) -> list[str]:
        run = of_spec("run", "--runs", "{folder}/runs", **axis)(folder, size)
        measure(run, (0,))
        return [verb, str(folder / "runs" / "run"), *(each.format(folder=folder) for each in arguments)]

    return prepare


def of_logs(*, turns: bool = False, files: bool = False) -> Prepare:
    """Return ``prepare`` for ``diagnose``."""

    def prepare(folder: Path, size: int) -> list[str]:
        if files:
            return ["diagnose", *(str(log(folder / f"{number}.jsonl", 100)) for number in range(size))]
        return ["diagnose", str(log(folder / "log.jsonl", 1000 if turns else size, size if turns else 1))]

    return prepare


def of_generations(*, turns: bool = False) -> Prepare:
    """Return ``prepare`` for ``evaluate`` of saved generations: four responses to each prompt."""

    def prepare(folder: Path, size: int) -> list[str]:
        rows, length = (100, size) if turns else (size, 2)
        sides: list[str] = []
        for who in ("teacher", "student"):
            each = (
                {"messages": conversation(row, length)[:-1], "response": text(row * 4 + sample, 30)}
                for row in range(rows)
                for sample in range(4)
            )
            sides += [f"--{who}-generations", str(write_lines(folder / f"{who}.jsonl", each))]
        return ["evaluate", *sides, "-o", str(folder / "eval")]

    return prepare


VERDICTS = (0, 3, 4)
ATTENTION = "attention reads every earlier token"
PREFIXES = f"{ATTENTION}, and the chat template renders the conversation again for each answer"
FEW = ("--no-latency",)
CASES = (
    Case("validate", ROWS, of_spec("validate")),
    Case("validate", VOCABULARY, of_spec("validate", vocabulary=True)),
    Case("plan", ROWS, of_spec("plan")),
    Case("plan", VOCABULARY, of_spec("plan", vocabulary=True)),
    Case("plan", TURNS, of_spec("plan", turns=True)),
    Case("generate", ROWS, of_spec("generate", "--out", "{folder}/out")),
    Case("diagnose", ROWS, of_logs()),
    Case("diagnose", TURNS, of_logs(turns=True)),
    Case("diagnose", FILES, of_logs(files=True)),
    Case("evaluate, saved generations", ROWS, of_generations(), VERDICTS),
    Case("evaluate, saved generations", TURNS, of_generations(turns=True), VERDICTS),
    Case("run", ROWS, of_spec("run", "--runs", "{folder}/runs")),
    Case("run", VOCABULARY, of_spec("run", "--runs", "{folder}/runs", vocabulary=True)),
    Case("run", MORE_TURNS, of_spec("run", "--runs", "{folder}/runs", turns=True), known=PREFIXES),
    Case("evaluate, a run", VOCABULARY, of_run("evaluate", *FEW, vocabulary=True), VERDICTS),
    Case("evaluate, a run", TURNS, of_run("evaluate", *FEW, turns=True), VERDICTS, known=ATTENTION),
    Case("handoff", VOCABULARY, of_run("handoff", vocabulary=True)),
    Case("handoff", ROWS, of_run("handoff")),
    Case("handoff", TURNS, of_run("handoff", turns=True)),
)
"""``backends``, ``schema``, ``advise`` and ``prove`` read nothing that grows on these axes; ``demo`` is a run."""


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(arguments: list[str], codes: tuple[int, ...]) -> dict[str, float]:
    """Run a verb as a process of its own. Return its seconds on a clock and on processors.

    Raises:
        SystemExit: it ended with another exit code.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "skill_kd", *arguments]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in codes:
        named = " ".join(arguments)[:200]
        raise SystemExit(f"error: skill-kd {named} ended with {done.returncode}: {done.stderr[-800:]}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}


def grown(case: Case, work: Path, *, tiny: bool) -> dict[str, Any]:
    """Measure a case at its three sizes."""
    sizes = case.axis.tiny if tiny else case.axis.sizes
    points = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            arguments = case.prepare(Path(folder), size)
            points.append({"size": size, **measure(arguments, case.codes)})
    found = power([point["size"] for point in points], [point["cpu_seconds"] for point in points])
    return {"verb": case.verb, "axis": case.axis.name, "points": points, "power": found, "known": case.known}


def power(sizes: list[float], seconds: list[float]) -> float | None:
    """Return the exponent of the growing part, or None if it is too short."""
    (none, some, most), (constant, middle, long) = sizes, seconds
    if middle - constant < NOISE:
        return None
    return round(math.log((long - constant) / (middle - constant)) / math.log((most - none) / (some - none)), 2)


def main() -> int:
    """Measure, print, keep; 1 if something grows faster than linearly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="sizes of a test")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose 'verb: axis' begins with it")
    parser.add_argument("--limit", type=float, default=LIMIT)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    names = [name(case.verb, case.axis.name) for case in CASES]
    again = {each for each in names if each.startswith(options.only)}
    kept = json.loads(options.out.read_text(encoding="utf-8"))["cases"] if options.only and options.out.exists() else []
    found = {name(row["verb"], row["axis"]): row for row in kept}
    versions = machine("skill-kd", "torch", "transformers", "tokenizers")
    for case in CASES:
        if (named := name(case.verb, case.axis.name)) not in again:
            continue
        row = found[named] = grown(case, options.work, tiny=options.tiny)
        rows = [found[each] for each in names if each in found]
        keep(options.out, {"machine": versions, "load_before": load, "limit": options.limit, "cases": rows})
        spent = "  ".join(f"{point['size']:,}: {point['cpu_seconds']} s" for point in row["points"])
        print(f"{named:<54}{spent}  power {row['power']}", flush=True)
    judged = [row["power"] for row in found.values() if row["power"] is not None and row["known"] is None]
    return int(any(power > options.limit for power in judged))


def name(verb: str, axis: str) -> str:
    """Return the name of a case, as ``--only`` and the output have it."""
    return f"{verb}: {axis}"


if __name__ == "__main__":
    sys.exit(main())
