"""Compare the peak memory that `plan` estimates with the measured one, on a CPU.

Each case runs in a separate process, on random weights, with the trainer's policy, losses, batches and sampler. There
are two measures. ``rss`` is the highest resident memory less that of the imports, as the operating system counts it.
``live`` is the highest sum of live tensors, which a GPU's allocator would provide.

    nice python benchmarks/plan_memory.py [--out benchmarks/results/plan_memory.json] [--only NAME]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results" / "plan_memory.json"
ROUNDS = 2

PHASES = {
    "update": ("teacher's forward pass", "loss", "backward pass", "end of the backward", "optimizer"),
    "rollouts": ("rollouts",),
    "measure": ("held-out",),
}
"""The plan's name for the work of a case."""


@dataclass(frozen=True)
class Case:
    """One run: the shapes of its models, and the parts of a spec that decide its memory."""

    name: str
    hidden: int = 256
    layers: int = 4
    teacher_layers: int = 6
    vocabulary: int = 8192
    rows: int = 4
    prompt: int = 32
    new: int = 64
    objective: str = "reverse_kl"
    estimator: str | None = None
    accumulate: int = 1
    precision: str = "fp32"
    checkpointing: bool = False
    lora: str | tuple[str, ...] | None = None
    """Target modules; a head among them keeps the loss from working in chunks."""
    model_type: str = "llama"
    tied: bool = True
    work: Literal["update", "rollouts", "measure"] = "update"
    """The work that is run and measured."""

    def config(self, layers: int) -> dict[str, object]:
        """Return a config.json."""
        if self.model_type == "gpt2":
            sizes = {"n_embd": self.hidden, "n_layer": layers, "n_head": self.hidden // 64, "n_positions": 1024}
            # No attention dropout: with it, SDPA on a CPU computes the whole attention matrix.
            return {"model_type": "gpt2", "vocab_size": self.vocabulary, "attn_pdrop": 0.0, **sizes}
        return {
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": max(1, self.hidden // 192),
            "head_dim": 64,
            "intermediate_size": self.hidden * 8 // 3 // 32 * 32,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": self.tied,
        }

    def spec(self, folder: Path) -> dict[str, Any]:
        """Return the spec of a case, and write the configs that it names to ``folder``."""
        for name, layers in (("student", self.layers), ("teacher", self.teacher_layers)):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "config.json").write_text(json.dumps(self.config(layers)), encoding="utf-8")
        objective = {"kind": self.objective}
        if self.estimator:
            objective["estimator"] = self.estimator
        batch = self.rows * self.accumulate
        return {
            "name": "measured",
            "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},
            "student": {
                "model": str(folder / "student"),
                "lora": {"r": 16, "targets": self.lora} if self.lora else None,
            },
            "data": {"train": "prompts.jsonl", "max_prompt_tokens": self.prompt},
            "stages": [{"kind": "distill", "objective": objective}],
            "checkpoint": {"measure_prompts": self.rows},
            "rollout": {"max_new_tokens": self.new, "prompts": batch},
            "training": {
                "batch_size": batch,
                "accumulate": self.accumulate,
                "precision": self.precision,
                "gradient_checkpointing": self.checkpointing,
            },
        }


SMOLLM2 = {"hidden": 576, "layers": 24, "teacher_layers": 30, "vocabulary": 49152}
WITH_HEAD = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
CASES = (
    Case("small"),
    Case("large vocabulary", vocabulary=49152, new=128),
    Case("large vocabulary, minillm", vocabulary=49152, objective="minillm"),
    Case("large vocabulary, jsd", vocabulary=32000, objective="jsd"),
    Case("several chunks", vocabulary=32000, rows=12, new=128, objective="minillm"),
    Case("deep", hidden=512, layers=12, teacher_layers=12, rows=8, prompt=64, new=128, objective="minillm"),
    Case("untied", hidden=384, layers=8, vocabulary=32000, rows=8, prompt=64, tied=False),
    Case("accumulate", hidden=384, layers=8, vocabulary=16384, accumulate=4),
    Case("checkpointing", hidden=512, layers=8, vocabulary=16384, rows=8, prompt=128, new=128, checkpointing=True),
    Case("bf16 autocast", hidden=384, precision="bf16"),  # small: without bfloat16 units it takes minutes
    Case("lora", hidden=512, layers=8, vocabulary=16384, rows=8, prompt=128, lora="all-linear"),
    Case("lora on the head", hidden=384, layers=4, vocabulary=16384, rows=8, lora=WITH_HEAD, tied=False),
    Case("qwen3", hidden=384, layers=8, vocabulary=16384, rows=8, prompt=64, model_type="qwen3"),
    Case("gemma3", hidden=384, layers=6, vocabulary=16384, rows=8, prompt=64, model_type="gemma3_text"),
    Case("gpt2", hidden=384, layers=8, vocabulary=16384, rows=8, prompt=64, model_type="gpt2"),
    Case("SmolLM2, 24 layers", **SMOLLM2, rows=4, prompt=64, objective="minillm"),
    Case(
        "SmolLM2, sampling",
        **SMOLLM2,
        rows=16,
        prompt=96,
        new=24,
        objective="minillm",
        estimator="exact",
        work="rollouts",
    ),
    Case("SmolLM2, mixed sampling", **SMOLLM2, rows=16, prompt=96, new=24, objective="minillm", work="rollouts"),
    Case("held-out measure", hidden=384, vocabulary=32000, rows=8, work="measure"),
)


# --- in the measured process ------------------------------------------------------------------------------------------


def live_bytes() -> Any:
    """Return a mode that adds up the storages of all tensors alive: ``peak`` is the highest sum so far, in bytes.

    Under any mode, autograd adds gradients out of place, so a tied table has one more copy at the end of a step.
    """
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LiveBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.live = self.peak = 0
            self.storages: dict[int, int] = {}

        def watch(self, tensor: torch.Tensor) -> None:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                key, size, owner = storage._cdata, storage.nbytes(), storage
            else:  # A weight in a library's own layout has no storage.
                key, size, owner = id(tensor), tensor.numel() * tensor.element_size(), tensor
            if key not in self.storages:
                self.storages[key] = size
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(owner, self.forget, key)

        def forget(self, key: int) -> None:
            self.live -= self.storages.pop(key)

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self.watch(leaf)
            return result

    return LiveBytes()


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Return peaks in bytes and the seconds of the last undisturbed round of work."""
    import resource

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    # A first product sets up threads and kernels. Their memory counts as that of the imports.
    torch.nn.Linear(64, 64)(torch.ones(8, 64)).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    models = [AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / n)) for n in ("student", "teacher")]
    student, teacher = models[0], models[1].train(False).requires_grad_(False)
    prepare = {"update": updating, "rollouts": sampling, "measure": measuring}[case.work]
    work, optimizer = prepare(case, student, teacher)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
    rss = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    mode = live_bytes()
    states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    for tensor in (*student.parameters(), *teacher.parameters(), *states):
        mode.watch(tensor)
    with mode:
        work()
    return {"rss": rss, "live": mode.peak, "seconds": round(seconds, 3)}


def updating(case: Case, student: Any, teacher: Any) -> tuple[Callable[[], None], Any]:
    """Return one optimizer step of the trainer on random rows, and its optimizer."""
    from types import SimpleNamespace

    import torch
    from accelerate import Accelerator

    from skill_kd.kd.config import Config
    from skill_kd.kd.dataset.batch import Row
    from skill_kd.kd.model.student import StudentWithLoss, find_head
    from skill_kd.kd.rollouts.decoding import Decoding
    from skill_kd.kd.rollouts.sampler import Sampler
    from skill_kd.kd.teacher.teacher import Teacher
    from skill_kd.kd.train.checkpoints import AccelerateState
    from skill_kd.kd.train.experience import Sampling, Term
    from skill_kd.kd.train.loop import optimizer_step
    from skill_kd.kd.train.objectives import build_objective
    from skill_kd.kd.train.stepper import AccelerateStepper
    from skill_kd.kd.train.strategy import WrappedStudent
    from skill_kd.spec import Spec

    config = Config.of(Spec.model_validate(case.spec(Path(tempfile.mkdtemp()))).model_dump(mode="json"))
    if case.checkpointing:
        student.gradient_checkpointing_enable()
    if case.lora:
        from peft import LoraConfig, get_peft_model

        student = get_peft_model(student, LoraConfig(r=16, target_modules=case.lora, task_type="CAUSAL_LM"))
    policy = StudentWithLoss(student, case.vocabulary)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if case.precision == "bf16" else "no")
    policy, optimizer = accelerator.prepare(policy, torch.optim.AdamW(weights, lr=1e-5, fused=True))

    def batch(_update: int, _student: Any) -> list[Row]:
        # Every fourth prompt is shorter, so that there is a padding mask.
        lengths = [case.prompt - 8 * (row % 4 == 1) for row in range(case.rows * case.accumulate)]
        texts = [torch.randint(1, case.vocabulary, (length + case.new,)).tolist() for length in lengths]
        return [
            Row(tuple(ids[: -case.new]), tuple(ids[-case.new :]), (True,) * case.new, "student", (-1.0,) * case.new)
            for ids in texts
        ]

    wrapped = WrappedStudent(
        model=student,
        policy=policy,
        optimizer=optimizer,
        stepper=AccelerateStepper(accelerator, policy, optimizer, config.training.max_grad_norm),
        state=AccelerateState(accelerator),
        whole=lambda: student,
    )
    reading = Teacher(teacher, case.vocabulary, lambda *_: [], head=find_head(teacher, case.vocabulary))
    sampler = Sampler(Decoding(case.new, 1.0, 1.0, frozenset({0}), case.vocabulary), 0, torch.device("cpu"))
    experience = SimpleNamespace(objective=build_objective(config.stages[0].objective), batch=batch)
    parts = accelerator, wrapped, Sampling(sampler, reading, 0, 1), config.training, [Term(experience)]
    return lambda: optimizer_step(*parts, update=0), optimizer


def sampling(case: Case, student: Any, teacher: Any) -> tuple[Callable[[], None], Any]:
    """Return a function that samples one batch of rollouts, and an optimizer that keeps its states meanwhile."""
    import torch

    from skill_kd.kd.model.student import find_head
    from skill_kd.kd.rollouts.decoding import Decoding, sample
    from skill_kd.kd.rollouts.reordered import reordered_weights
    from skill_kd.kd.seeds import uniforms
    from skill_kd.kd.teacher.teacher import HiddenStateTeacher

    student.train(False)
    mix = 0.0 if case.estimator == "exact" else 0.2
    decoding = Decoding(case.new, 1.0, 1.0, frozenset({0}), case.vocabulary)
    helper = HiddenStateTeacher(teacher, find_head(teacher, case.vocabulary)) if mix else None

    def rollouts() -> None:
        prompts = torch.randint(1, case.vocabulary, (case.rows, case.prompt))
        uniform = uniforms([(row,) for row in range(case.rows)], case.new)
        coins = torch.rand(case.new, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        given = prompts, torch.ones_like(prompts, dtype=torch.bool), uniform, decoding, helper, mix, coins
        with reordered_weights(student, *([helper] if helper else [])):
            sample(student, *given)

    return rollouts, _idle_optimizer(student)


def measuring(case: Case, student: Any, teacher: Any) -> tuple[Callable[[], None], Any]:
    """Return the trainer's held-out measure, and an optimizer that keeps its states meanwhile."""
    import torch

    from skill_kd.kd.dataset.encoding import Encoded
    from skill_kd.kd.dataset.reading import Example
    from skill_kd.kd.rollouts.decoding import Decoding
    from skill_kd.kd.rollouts.sampler import Sampler, requests_for
    from skill_kd.kd.teacher.teacher import Teacher
    from skill_kd.kd.train.held_out import HeldOut

    decoding = Decoding(case.new, 1.0, 1.0, frozenset({0}), case.vocabulary)
    sampler = Sampler(decoding, 0, torch.device("cpu"))
    own = Teacher(teacher, case.vocabulary, lambda _, requests, __: sampler.sample(teacher, requests, "teacher"))
    prompts = torch.randint(1, case.vocabulary, (case.rows, case.prompt)).tolist()
    requests = requests_for([Encoded(tuple(ids)) for ids in prompts], ("measured",))
    examples = [Example((), None)] * len(requests)
    held_out = HeldOut(own, sampler, examples, requests, case.rows)
    return lambda: held_out.measure(student), _idle_optimizer(student)


def _idle_optimizer(student: Any) -> Any:
    import torch

    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    for weight in student.parameters():
        optimizer.state[weight] = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
    return optimizer


# --- side by side -----------------------------------------------------------------------------------------------------


def planned(case: Case, folder: Path) -> dict[str, float]:
    """Return the plan's peak in bytes over the phases that were run, and its seconds."""
    from skill_kd.plan import plan
    from skill_kd.spec import Spec

    found = plan(Spec.model_validate(case.spec(folder)), device="cpu")
    phase = next(phase for phase in found.phases if phase.name.startswith(PHASES[case.work]))
    parts = {part.name: part.bytes for part in phase.parts}
    resident = phase.bytes - parts["libraries"]
    tensors = resident - parts["allocator slack"]
    works = {"rollouts"} if case.work == "rollouts" else {"training", "teacher's forward passes"}
    updates = found.stages[0].updates or 1
    seconds = sum(task.seconds for task in found.stages[0].tasks if task.name in works) / updates
    return {"rss": resident, "live": tensors, "phase": phase.name, "seconds": round(seconds, 3)}


def run(case: Case) -> dict[str, Any]:
    """Measure a case in a separate process and compare it with the plan: errors are (planned − measured) / measured."""
    with tempfile.TemporaryDirectory() as scratch:
        plan = planned(case, Path(scratch))
        command = [sys.executable, __file__, "--measure", json.dumps(asdict(case)), "--folder", scratch]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    errors = {f"{kind}_error": round(plan[kind] / measured[kind] - 1, 4) for kind in ("rss", "live")}
    return {"case": asdict(case), "planned": plan, "measured": measured, **errors}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the median of the signed errors, and the worst one, for each measure."""
    kinds = {kind: [row[f"{kind}_error"] for row in rows] for kind in ("rss", "live")}
    return {
        kind: {"median": round(statistics.median(errors), 4), "worst": max(errors, key=abs)}
        for kind, errors in kinds.items()
    }


def main() -> None:
    """Run all cases, print a table, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", help="run only cases with this in their name, and save nothing")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Case(**json.loads(options.measure)), options.folder)))
        return
    print(
        f"{'case':<26}"
        + f"{'planned':>9}{'rss':>9}{'error':>8}"
        + f"{'planned':>9}{'live':>9}{'error':>8}"
        + "  seconds"
    )
    rows = []
    for case in CASES:
        if options.only is None or options.only in case.name:
            rows.append(run(case))
            show(rows[-1])
    worst = summary(rows)
    for kind, errors in worst.items():
        print(f"{kind}: median error {errors['median']:+.1%}, worst {errors['worst']:+.1%}")
    if options.only is None:
        from machine import keep, machine  # a test loads this file without its folder on the path

        versions = machine("torch", "transformers", "skill-kd")
        keep(options.out, {"machine": versions, "errors": worst, "rows": rows})


def show(row: dict[str, Any]) -> None:
    """Print a row: megabytes, signed errors, seconds."""
    plan, measured = row["planned"], row["measured"]
    memory = "".join(
        f"{plan[kind] / 1e6:>9.0f}{measured[kind] / 1e6:>9.0f}{row[f'{kind}_error']:>+8.1%}" for kind in ("rss", "live")
    )
    print(f"{row['case']['name']:<26}{memory}  {plan['seconds']:.2f} / {measured['seconds']:.2f}", flush=True)


if __name__ == "__main__":
    main()
