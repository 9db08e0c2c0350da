"""How the work of each verb grows with the vocabulary, the rows of data, the turns of a conversation and the files.

Every verb runs as a process of its own, at three sizes, on one thread. Its work is the processor time of the process
and of those that it starts. Other programs on the machine make that time longer, never shorter, so the least of
``--repeats`` is kept. The smallest size gives the constant part, which is taken off the other two. ``power`` is the
exponent that leads from the second size to the third: 1 is linear, 2 is quadratic. The verdict is one of

- constant: the largest size takes at most a second or a fifth more than the smallest, which can be chance.
- linear: the power is at most ``--limit``.
- faster than linear. If the reason is not known, this script ends with exit code 1.
- too short: the second size is too small for a fit.

A model's attention is quadratic in the tokens that it reads. Cases "without attention" replace it by a sum, so the rest
of the work remains. ``--only`` measures some cases again and keeps the other results.

The models have random weights of hidden size 32, so that the work outside of the models is what grows. Byte-level BPE
tokenizers are made from merges of the byte alphabet.

    python benchmarks/verb_growth.py [--tiny] [--only TEXT] [--repeats N] [--work DIR] [--out FILE]
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from machine import keep, machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "verb_growth.json"
LIMIT = 1.15
"""Highest power that counts as linear: caches get slower as they fill."""
FASTER = "faster than linear"
NOISE, SHARE = 1.0, 0.2
"""A growing part is not judged if it is shorter than so many seconds, or than this share of the constant part."""
Prepare = Callable[[Path, int], list[str]]
WORDS = ("refund", "order", "parcel", "late", "thanks", "please", "where", "when", "account", "price", "cancel", "help")


TINY = {"vocabulary": (400, 500, 600), "rows": (4, 8, 16), "turns of a conversation": (2, 4, 8), "files": (1, 2, 4)}
"""Quantities that grow, each with the sizes of a test."""
VOCABULARY, ROWS, TURNS, FILES = TINY
WITHOUT_ATTENTION = """
import torch
from transformers.masking_utils import AttentionMaskInterface

def attention(query, key, value, *_, **__):
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    return query + (key + value)[:, :, -tokens:].repeat_interleave(groups, dim=1)

torch.nn.functional.scaled_dot_product_attention = attention
AttentionMaskInterface.register("sdpa", lambda *_, **__: None)
"""
"""Every token then reads only itself. Python runs this text, as ``sitecustomize.py``, when it starts."""


@dataclass(frozen=True)
class Case:
    """A verb and a quantity that grows. ``prepare`` fills a folder for a size and returns the verb's arguments."""

    verb: str
    axis: str
    sizes: tuple[int, int, int]
    prepare: Prepare
    codes: tuple[int, ...] = (0,)
    """Exit codes of a verb that did its work."""
    known: str | None = None
    """The reason why this grows faster than linearly. It is then not judged."""
    attention: bool = True
    """False to replace the attention of models by a sum."""

    @property
    def name(self) -> str:
        """The verb, with what is different about it."""
        return self.verb if self.attention else f"{self.verb}, without attention"


# --- inputs -----------------------------------------------------------------------------------------------------------


def text(number: int, words: int = 12) -> str:
    """Return words that differ from row to row."""
    return " ".join([*(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(words)), str(number)])


def conversation(number: int, turns: int = 2) -> list[dict[str, str]]:
    """Return messages that end with the assistant's."""
    roles, words = ("user", "assistant"), 12 if turns == 2 else 1
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
    """Write a spec of two updates, which learn from samples and from the answers of the data."""
    objective = {"kind": "reverse_kl", "on_policy": 0.5, "responses": "data"}
    values = {
        "name": "run",
        "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},
        "student": {"model": str(folder / "student"), "export_dtype": "float32"},
        "data": {"train": str(folder / "data.jsonl"), "held_out": 0.2, "max_prompt_tokens": longest},
        "stages": [{"kind": "distill", "updates": 2, "objective": objective}],
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


def of_spec(verb: str, *arguments: str, vocabulary: bool = False, turns_of: int = 0) -> Prepare:
    """Return ``prepare`` for a verb that reads a spec. The turns of ``turns_of`` rows grow, if there are any."""

    def prepare(folder: Path, size: int) -> list[str]:
        models(folder, size if vocabulary else 1024)
        data(folder, 20 if vocabulary else turns_of or size, size if turns_of else 2)
        longest = 1 << 13 if turns_of else 256
        return [verb, str(spec(folder, longest)), *(each.format(folder=folder) for each in arguments)]

    return prepare


def of_run(verb: str, *arguments: str, vocabulary: bool = False, turns_of: int = 0) -> Prepare:
    """Return ``prepare`` for a verb that reads a finished run."""

    def prepare(folder: Path, size: int) -> list[str]:
        run = of_spec("run", "--runs", "{folder}/runs", vocabulary=vocabulary, turns_of=turns_of)(folder, size)
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
ATTENTION = "attention reads every earlier token; see the case without it"
RENDERING = "the chat template writes the conversation again for each answer, to find where its prompt ends"
FEW = ("--no-latency",)
MANY_ROWS = (200, 50_000, 200_000)
TOKENS = (1024, 131_072, 524_288)
SOME_TURNS, MANY_TURNS = (2, 50, 200), (2, 100, 400)
CASES = (
    Case("validate", ROWS, (200, 100_000, 400_000), of_spec("validate")),
    Case("validate", VOCABULARY, TOKENS, of_spec("validate", vocabulary=True)),
    Case("plan", ROWS, MANY_ROWS, of_spec("plan")),
    Case("plan", VOCABULARY, TOKENS, of_spec("plan", vocabulary=True)),
    Case("plan", TURNS, MANY_TURNS, of_spec("plan", turns_of=100)),
    Case("generate", ROWS, MANY_ROWS, of_spec("generate", "--out", "{folder}/out")),
    Case("diagnose", ROWS, MANY_ROWS, of_logs()),
    Case("diagnose", TURNS, MANY_TURNS, of_logs(turns=True)),
    Case("diagnose", FILES, (4, 250, 1000), of_logs(files=True)),
    Case("evaluate, saved generations", ROWS, (200, 5000, 20_000), of_generations(), VERDICTS),
    Case("evaluate, saved generations", TURNS, MANY_TURNS, of_generations(turns=True), VERDICTS),
    Case("run", ROWS, (200, 10_000, 40_000), of_spec("run", "--runs", "{folder}/runs")),
    Case("run", VOCABULARY, TOKENS, of_spec("run", "--runs", "{folder}/runs", vocabulary=True)),
    Case("run", TURNS, SOME_TURNS, of_spec("run", "--runs", "{folder}/runs", turns_of=400), known=ATTENTION),
    Case(
        "run",
        TURNS,
        SOME_TURNS,
        of_spec("run", "--runs", "{folder}/runs", turns_of=400),
        known=RENDERING,
        attention=False,
    ),
    Case("evaluate, a run", ROWS, (50, 1000, 8000), of_run("evaluate", *FEW), VERDICTS),
    Case("evaluate, a run", VOCABULARY, TOKENS, of_run("evaluate", *FEW, vocabulary=True), VERDICTS),
    Case("evaluate, a run", TURNS, SOME_TURNS, of_run("evaluate", *FEW, turns_of=100), VERDICTS, ATTENTION),
    Case("evaluate, a run", TURNS, SOME_TURNS, of_run("evaluate", *FEW, turns_of=400), VERDICTS, attention=False),
    Case("handoff", VOCABULARY, TOKENS, of_run("handoff", vocabulary=True)),
    Case("handoff", ROWS, (200, 10_000, 40_000), of_run("handoff")),
    Case("handoff", TURNS, SOME_TURNS, of_run("handoff", turns_of=100)),
)
"""``backends``, ``schema``, ``advise`` and ``prove`` read nothing that grows on these axes; ``demo`` is a run."""


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(arguments: list[str], codes: tuple[int, ...], *, attention: bool = True) -> float:
    """Run a verb as a process of its own. Return the seconds of processor time of this process and of its children.

    Raises:
        SystemExit: it ended with another exit code.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "skill_kd", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        if not attention:
            (Path(folder) / "sitecustomize.py").write_text(WITHOUT_ATTENTION, encoding="utf-8")
            environment["PYTHONPATH"] = os.pathsep.join((folder, os.environ.get("PYTHONPATH", "")))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in codes:
        named = " ".join(arguments)[:200]
        raise SystemExit(f"error: skill-kd {named} ended with {done.returncode}: {done.stderr[-800:]}")
    return round(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, 2)


def grown(case: Case, work: Path, limit: float, repeats: int, *, tiny: bool) -> dict[str, Any]:
    """Measure a case at its three sizes."""
    sizes = TINY[case.axis] if tiny else case.sizes
    spent: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size in sizes:  # in turn, because the load of the machine changes
            with tempfile.TemporaryDirectory(dir=work) as folder:
                arguments = case.prepare(Path(folder), size)
                spent[size].append(measure(arguments, case.codes, attention=case.attention))
    points = [{"size": size, "cpu_seconds": min(each), "repeats": each} for size, each in spent.items()]
    seconds = [min(each) for each in spent.values()]
    exponent = power(list(sizes), seconds)
    verdict = judged(seconds, exponent, limit)
    return {
        "verb": case.name,
        "axis": case.axis,
        "points": points,
        "power": exponent,
        "verdict": verdict,
        "known": case.known if verdict == FASTER else None,
    }


def power(sizes: list[int], seconds: list[float]) -> float | None:
    """Return the exponent of the growing part, or None if it is too short."""
    (none, some, most), (constant, middle, long) = sizes, seconds
    if middle - constant < noise(constant):
        return None
    return round(math.log((long - constant) / (middle - constant)) / math.log((most - none) / (some - none)), 2)


def noise(constant: float) -> float:
    """Return the difference in seconds that two measurements may have by chance."""
    return max(NOISE, SHARE * constant)


def judged(seconds: list[float], exponent: float | None, limit: float) -> str:
    """Return the verdict: see the top of this file."""
    if seconds[-1] - seconds[0] < noise(seconds[0]):
        return "constant"
    if exponent is None:
        return "too short"
    return "linear" if exponent <= limit else FASTER


def main() -> int:
    """Measure, print, keep; 1 if something grows faster than linearly and the reason is not known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="sizes of a test")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose 'verb: axis' begins with it")
    parser.add_argument("--repeats", type=int, default=3, help="times that each size is measured (default: 3)")
    parser.add_argument("--limit", type=float, default=LIMIT)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    names = [named(case.name, case.axis) for case in CASES]
    again = {each for each in names if each.startswith(options.only)}
    kept = json.loads(options.out.read_text(encoding="utf-8"))["cases"] if options.only and options.out.exists() else []
    found = {named(row["verb"], row["axis"]): row for row in kept}
    versions = machine("skill-kd", "torch", "transformers", "tokenizers")
    for case in CASES:
        if (name := named(case.name, case.axis)) not in again:
            continue
        row = found[name] = grown(case, options.work, options.limit, options.repeats, tiny=options.tiny)
        rows = [found[each] for each in names if each in found]
        keep(options.out, {"machine": versions, "load_before": load, "limit": options.limit, "cases": rows})
        spent = "  ".join(f"{point['size']:,}: {point['cpu_seconds']} s" for point in row["points"])
        print(f"{name:<62}{spent}  power {row['power']}  {row['verdict']}", flush=True)
    return int(any(row["verdict"] == FASTER and row["known"] is None for row in found.values()))


def named(verb: str, axis: str) -> str:
    """Return the name of a case, as ``--only`` and the output have it."""
    return f"{verb}: {axis}"


if __name__ == "__main__":
    sys.exit(main())
