"""Compare the cost of the loss from hidden states with that of its matrix products and of TRL's kernel.

Reverse KL(student ‖ teacher) of N tokens, forward and backward, float32: the gradients of the student's hidden states
and of its head. All do the same work on the same numbers, and their results are compared before anything is timed:

    products   the four matrix products that every method needs, into memory that is already allocated
    autograd   all logits of both models, torch's own backward pass
    eager      summed_loss
    compiled   summed_loss with torch.compile around the element-wise part
    trl        TRL's ChunkedDivergenceFunction, beta = 1, as its DistillationTrainer calls it

    pip install --no-deps trl==1.16.0
    python benchmarks/loss.py [--threads 2] [--repeats 5] [--out benchmarks/results/loss.json]

Only this kernel of TRL is imported, so TRL's dependencies are not needed. Without TRL, its row is left out. Plain
autograd takes some 10 GB at the larger vocabulary.

Repeats are interleaved, so a slow phase of the machine affects all methods. ``cpu`` is the processor time of all
threads, which other work on the machine disturbs less than ``wall`` time. Memory is the growth of a separate
process to its highest resident size, gradients included.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import keep, machine

RESULTS = Path(__file__).parent / "results" / "loss.json"
SHAPES = ((49152, 576), (151936, 896))
TOKENS = 2048
METHODS = ("products", "autograd", "eager", "compiled", "trl")
MIB = 2**20

Work = Callable[[], Any]


class Problem:
    """Hidden states and heads of two models, and every method to compute the gradients."""

    def __init__(self, vocabulary: int, hidden: int, tokens: int) -> None:
        import torch
        from torch import nn

        torch.manual_seed(0)
        self.student, self.teacher = (nn.Linear(hidden, vocabulary, bias=False) for _ in range(2))
        for linear in (self.student, self.teacher.requires_grad_(False)):
            # Logits spread by 2 nats, not the near-uniform ones of a fresh layer.
            nn.init.normal_(linear.weight, std=2 / hidden**0.5)
        self.states = torch.randn(1, tokens, hidden, requires_grad=True)
        self.teacher_states = torch.randn(1, tokens, hidden)
        self.vocabulary, self.tokens = vocabulary, tokens
        self.ids = torch.zeros(1, tokens, dtype=torch.long)
        self.mask = torch.ones(1, tokens, dtype=torch.bool)

    def work(self, method: str) -> Work:
        """Return a function that computes the gradients by this method, and returns the value if it has one."""
        return {
            "products": self._products,
            "autograd": lambda: self._autograd,
            "eager": lambda: lambda: self._ours(compiled=False),
            "compiled": lambda: lambda: self._ours(compiled=True),
            "trl": self._trl,
        }[method]()

    def _products(self) -> Work:
        import torch

        states, weight = self.states.detach()[0], self.student.weight.detach()
        logits = torch.empty(self.tokens, self.vocabulary), torch.empty(self.tokens, self.vocabulary)
        gradients = torch.empty_like(states), torch.empty_like(weight)

        def work() -> None:
            torch.mm(states, weight.T, out=logits[0])
            torch.mm(self.teacher_states[0], self.teacher.weight.T, out=logits[1])
            torch.mm(logits[0], weight, out=gradients[0])
            torch.mm(logits[0].T, states, out=gradients[1])

        return work

    def _autograd(self) -> Any:
        from skill_kd.kd.losses.divergences import log_probs, reverse_kl

        teacher_logp = log_probs(self.teacher(self.teacher_states))
        return self._descended(reverse_kl(log_probs(self.student(self.states)), teacher_logp).sum())

    def _ours(self, compiled: bool) -> Any:
        from skill_kd.kd.losses.chunked import summed_loss
        from skill_kd.kd.losses.estimators import Estimator, Responses
        from skill_kd.kd.losses.lm_head import Head
        from skill_kd.kd.losses.projection import HiddenStates

        student = HiddenStates(self.states, Head(self.student, self.vocabulary))
        teacher = HiddenStates(self.teacher_states, Head(self.teacher, self.vocabulary))
        given = Responses(self.ids, self.mask), Estimator(reverse_kl_at)
        return self._descended(summed_loss(student, teacher, *given, compiled=compiled))

    def _trl(self) -> Work:
        kernel = importlib.import_module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction

        def work() -> Any:
            states, teacher_states = self.states[0], self.teacher_states[0]
            weights = self.student.weight, self.teacher.weight
            divergence, _entropy = kernel.apply(states, weights[0], None, teacher_states, weights[1], None, 1.0)
            return self._descended(divergence.sum())

        return work

    def _descended(self, value: Any) -> Any:
        value.backward()
        return value.detach()

    def gradients(self) -> list[Any]:
        """Return the gradients and clear them."""
        found = [self.states.grad, self.student.weight.grad]
        self.states.grad = self.student.weight.grad = None
        return found


def reverse_kl_at(student_logp: Any, teacher_logp: Any, _ids: Any) -> Any:
    """Reverse KL as a loss of positions."""
    from skill_kd.kd.losses.divergences import reverse_kl

    return reverse_kl(student_logp, teacher_logp)


def compared(problem: Problem, methods: list[str]) -> dict[str, float]:
    """Return the largest error of the gradients, relative to the largest of plain autograd's."""
    errors, expected = {}, None
    for method in sorted(methods, key=lambda each: each != "autograd"):
        problem.work(method)()
        found = problem.gradients()
        if method == "products":
            continue
        expected = expected or found
        pairs = zip(found, expected, strict=True)
        errors[method] = max(float((f - e).abs().max() / e.abs().max()) for f, e in pairs)
        assert errors[method] < 1e-3, f"{method} computes something else: {errors}"
    return errors


def timed(problem: Problem, methods: list[str], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return wall and processor seconds of each method. Each repeat runs all methods once, and the first is dropped."""
    works = {method: problem.work(method) for method in methods}
    seconds: dict[str, dict[str, list[float]]] = {method: {"wall": [], "cpu": []} for method in methods}
    for repeat in range(repeats + 1):
        for method, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            problem.gradients()
            for clock in taken if repeat else ():
                seconds[method][clock].append(round(taken[clock], 4))
    return seconds


def peak(method: str, vocabulary: int, hidden: int, tokens: int) -> int:
    """Return the growth of this process to its highest resident size, in bytes. It must be new, on Linux."""
    small = Problem(vocabulary, hidden, 64)
    small.work(method)()  # threads, kernels and the compiler
    del small
    problem = Problem(vocabulary, hidden, tokens)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest resident size starts anew
    before = _resident("VmRSS")
    problem.work(method)()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def ratios(seconds: dict[str, dict[str, list[float]]], clock: str) -> dict[str, dict[str, list[float]]]:
    """Return [lowest, median, highest] of the time of each yardstick divided by the time of a method."""
    found: dict[str, dict[str, list[float]]] = {}
    for yardstick in {"products", "trl"} & seconds.keys():
        for method in seconds:
            each = sorted(a / b for a, b in zip(seconds[yardstick][clock], seconds[method][clock], strict=True))
            found.setdefault(yardstick, {})[method] = [
                round(x, 3) for x in (each[0], statistics.median(each), each[-1])
            ]
    return found


def side_by_side(vocabulary: int, hidden: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return one shape's figures."""
    methods = [method for method in options.methods if method != "trl" or importlib.util.find_spec("trl")]
    problem = Problem(vocabulary, hidden, options.tokens)
    errors = compared(problem, methods)
    seconds = timed(problem, methods, options.repeats)
    del problem
    result: dict[str, Any] = {"vocabulary": vocabulary, "hidden": hidden, "tokens": options.tokens, "errors": errors}
    result |= {"seconds": seconds, "times_faster_than": {clock: ratios(seconds, clock) for clock in ("wall", "cpu")}}
    result["peak_bytes"] = {method: _peak_of(method, vocabulary, hidden, options) for method in methods}
    return result


def _peak_of(method: str, vocabulary: int, hidden: int, options: argparse.Namespace) -> int:
    shape = [str(vocabulary), str(hidden)]
    command = [sys.executable, __file__, "--peak", method, *shape, "--tokens", str(options.tokens)]
    command += ["--threads", str(options.threads)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def show(result: dict[str, Any]) -> None:
    """Print a shape's table. A ratio to products below 1 is the share of the time that is not products."""
    print(f"N = {result['tokens']}, V = {result['vocabulary']}, H = {result['hidden']}")
    print(f"{'':<10}{'wall s: min':>12}{'median':>8}{'cpu s: min':>12}{'median':>8}{'trl/this':>20}{'MiB':>8}")
    for method, seconds in result["seconds"].items():
        times = "".join(
            f"{min(seconds[clock]):>12.2f}{statistics.median(seconds[clock]):>8.2f}" for clock in ("wall", "cpu")
        )
        ratio = result["times_faster_than"]["wall"].get("trl", {}).get(method)
        spread = f"{ratio[1]:.2f} ({ratio[0]:.2f}–{ratio[2]:.2f})" if ratio else ""
        print(f"{method:<10}{times}{spread:>20}{result['peak_bytes'][method] / MIB:>8.0f}", flush=True)


def main() -> None:
    """Run both shapes, print tables, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--dry", action="store_true", help="print, and save nothing")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    if options.peak:
        method, vocabulary, hidden = options.peak
        print(peak(method, int(vocabulary), int(hidden), options.tokens))
        return
    results = []
    for vocabulary, hidden in SHAPES:
        results.append(side_by_side(vocabulary, hidden, options))
        show(results[-1])
    if not options.dry:
        named = ["torch", "skill-kd", *(["trl"] if importlib.util.find_spec("trl") else [])]
        keep(options.out, {"machine": machine(*named), "threads": options.threads, "shapes": results})


if __name__ == "__main__":
    main()
