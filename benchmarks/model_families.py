"""Try each family of causal language models on a tiny random model: load, grow, sample, train, export.

    python benchmarks/model_families.py [--only qwen3,mamba2] [--again] [--results FILE]

Each family runs in its own process, for at most 60 s. It is loaded from a folder; a student grows from its layers; both
sample in a padded batch; one update trains; the student is exported and loaded again. A stage holds only if a row gets
the same tokens and log-probabilities alone, in a batch, in cached chunks and in the training pass. A family whose model
cannot be built from a config alone is untested. Families that the result already has are skipped, so a stopped walk
resumes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import keep, machine
from tiny_families import LAYERS, class_name, families, tiny_tokenizer, write_tiny
from torch import nn
from transformers import PreTrainedModel

from skill_kd.evaluate.probabilities import segments
from skill_kd.kd.config import FromTeacher, Student, Teacher
from skill_kd.kd.dataset.batch import Row, collate
from skill_kd.kd.dataset.encoding import Encoded
from skill_kd.kd.losses.divergences import log_probs, reverse_kl
from skill_kd.kd.losses.estimators import Estimator, token_logp
from skill_kd.kd.model import families as known_families
from skill_kd.kd.model.cached import CachedModel
from skill_kd.kd.model.export import export_student
from skill_kd.kd.model.loading import load_model, load_student
from skill_kd.kd.model.student import StudentWithLoss, find_head, response_hidden_states, response_logits
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, requests_for
from skill_kd.kd.teacher.teacher import HiddenStateTeacher

RESULTS = Path(__file__).with_name("results") / "model_families.json"
SECONDS = 60
STAGES = ("load", "grow", "sample", "mixed", "score", "update", "export")
"""Stages that each family must pass."""
EXTRA = ("several",)
"""Stages that some families pass."""
TOLERANCE = 2e-4
"""Largest difference between two log-probabilities that are the same in exact arithmetic, in nats."""
CPU = torch.device("cpu")
TOKENIZER = tiny_tokenizer()
EOS_IDS = frozenset(range(2, len(TOKENIZER), 6))
"""So many tokens end a response that the rows of a batch end at different times."""
PROMPTS = ((70, 71, 72), (80, 9, 17, 33, 65, 129, 200), (101,), (50, 60, 70, 80, 90), (44, 45, 46))
VOCABULARY = len(TOKENIZER)


class DiffersError(Exception):
    """Two computations of one quantity differ."""


def equal(name: str, found: Any, expected: Any) -> None:
    """Compare lists of numbers, or raise ``DiffersError``."""
    found, expected = (torch.as_tensor(each, dtype=torch.float64) for each in (found, expected))
    if found.shape != expected.shape:
        raise DiffersError(f"{name}: {list(found.shape)} numbers, not {list(expected.shape)}")
    worst = float((found - expected).abs().max())
    if not worst <= TOLERANCE:
        raise DiffersError(f"{name}: off by {worst:.2g}")


class Trial:
    """The stages of one family, in their order."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        self.requests = requests_for([Encoded(prompt) for prompt in PROMPTS], ("families",))

    def build(self) -> None:
        """Write the tiny model."""
        write_tiny(self.family, self.folder / "teacher")

    def load(self) -> None:
        """Load the model from its folder, as teacher and as student."""
        self.spec = Teacher(model=str(self.folder / "teacher"), dtype="float32")
        self.teacher = load_model(self.spec, str(self.folder / "teacher")).train(False)
        self.student = self._student(Student(model=str(self.folder / "teacher")))
        with torch.no_grad():
            spread = float(self.teacher(input_ids=torch.tensor([PROMPTS[1]])).logits.std())
        # At this temperature the tokens of a random model differ.
        self.temperature = max(1.0, spread)
        decoding = Decoding(10, self.temperature, top_p=1.0, eos_ids=EOS_IDS, vocabulary=VOCABULARY)
        self.sampler = Sampler(decoding, pad=0, device=CPU)

    def _student(self, student: Student) -> PreTrainedModel:
        return load_student(student, self.spec)[0].train(False)

    def grow(self) -> None:
        """Grow a student without one of the teacher's layers. All layers kept must give the teacher's logits."""
        ids = torch.tensor([PROMPTS[1]])
        with torch.no_grad():
            whole = self._student(Student(from_teacher=FromTeacher(layers=LAYERS)))
            equal("logits with all layers kept", whole(input_ids=ids).logits, self.teacher(input_ids=ids).logits)
        grown = self._student(Student(from_teacher=FromTeacher(layers=LAYERS - 1)))
        with torch.no_grad():
            grown(input_ids=ids)
        type(grown.config).from_dict(grown.config.to_dict())  # as the export will be read
        self.student = grown

    def sample(self) -> None:
        """Sample from the student: in a batch, alone, and against the pass that trains."""
        together = self.sampler.sample(self.student, self.requests, "student")
        alone = [self.sampler.sample(self.student, [each], "student")[0] for each in self.requests]
        same_rows(together, alone)
        self.rows = together
        if len({len(row.response) for row in together}) == 1:
            raise DiffersError("all rows ended at the same time: choose other prompts")
        with torch.no_grad():
            for rows in (together, *([row] for row in together)):
                batch = collate(rows, 0, CPU)
                logits = response_logits(self.student, batch, VOCABULARY)
                own = token_logp(log_probs(logits, self.temperature), batch.response_BT)[batch.mask_BT]
                name = f"training pass of {len(rows)} rows"
                equal(name, own, [logp for row in rows for logp in row.behaviour_logp or ()])

    def mixed(self) -> None:
        """Sample from the mixture of teacher and student; the model that did not draw reads cached chunks."""
        head = find_head(self.teacher, VOCABULARY)
        teacher: nn.Module = self.teacher if head is None else HiddenStateTeacher(self.teacher, head)
        together = self.sampler.sample_mixed(self.student, teacher, 0.5, self.requests)
        alone = [self.sampler.sample_mixed(self.student, teacher, 0.5, [each])[0] for each in self.requests]
        same_rows(together, alone)
        batch = collate(together, 0, CPU)
        with torch.no_grad():
            logp = log_probs(response_logits(self.student, batch, VOCABULARY), self.temperature)
            told = [each for row in together for each in row.student_logp or ()]
            equal("student in chunks", told, token_logp(logp, batch.response_BT)[batch.mask_BT])
            if head is not None:
                states = torch.cat([row.teacher_states for row in together if row.teacher_states is not None])
                again = head.transform(head.linear(states))[..., :VOCABULARY]
                whole = response_logits(self.teacher, batch, VOCABULARY)[batch.mask_BT]
                equal("teacher in chunks", log_probs(again, self.temperature), log_probs(whole, self.temperature))

    def score(self) -> None:
        """Read the responses in the cached segments that ``evaluate`` reads."""
        batch = collate(self.rows, 0, CPU)
        with torch.no_grad():
            cached = torch.cat(list(segments(self.student, batch, VOCABULARY, 3)), dim=1)
            whole = response_logits(self.student, batch, VOCABULARY)
        found, expected = (log_probs(each, self.temperature)[batch.mask_BT] for each in (cached, whole))
        equal("segments", found, expected)

    def several(self) -> None:
        """Read several tokens at once after a cache, as ``score`` does for all models but the recurrent ones."""
        batch = collate(self.rows, 0, CPU)
        ids_BL, real_BL = batch.ids_BL[:, :-1], batch.attention_mask_BL[:, :-1]
        begin = batch.ids_BL.shape[1] - batch.width
        reader = CachedModel(self.student)
        reader.one_by_one = False
        with torch.no_grad():
            reader.read(ids_BL[:, :begin], real_BL[:, :begin], 1)
            cached = reader.read(ids_BL[:, begin:], real_BL, batch.width - 1)
            whole = response_logits(self.student, batch, VOCABULARY)[:, 1:]
        mask = batch.mask_BT[:, 1:]
        found, expected = (each[..., :VOCABULARY][mask].float() for each in (cached.logits, whole))
        equal("logits", log_probs(found, self.temperature), log_probs(expected, self.temperature))

    def update(self) -> None:
        """Take up to five optimizer steps of reverse KL. They must lower the loss, by gradients that are all finite."""
        batch, loss = collate(self.rows, 0, CPU), Estimator(reverse_kl_loss)
        learner = StudentWithLoss(self.student.train(True), VOCABULARY)
        head = find_head(self.teacher, VOCABULARY)
        with torch.no_grad():
            told: Any = (
                log_probs(response_logits(self.teacher, batch, VOCABULARY), self.temperature)
                if head is None
                else response_hidden_states(self.teacher, batch, head)
            )
            for weight in self.student.parameters():  # away from the teacher, whose own loss is 0
                weight.add_(0.02 * torch.randn_like(weight))
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5, weight_decay=0)
        losses: list[float] = []
        while len(losses) < 6 and not (losses and losses[-1] < losses[0]):
            optimizer.zero_grad()
            value = learner(batch, loss, told, self.temperature)
            value.backward()
            gradients = [each.grad for each in self.student.parameters() if each.grad is not None]
            if not gradients or not all(bool(each.isfinite().all()) for each in gradients):
                raise DiffersError("a gradient is not finite")
            optimizer.step()
            losses.append(value.item())
        if not losses[-1] < losses[0]:
            raise DiffersError(f"the loss rose from {losses[0]:.4g} to {losses[-1]:.4g}")
        self.student.train(False)

    def export(self) -> None:
        """Export the student, load the folder again, and sample the same rows from it."""
        export_student(self.student, TOKENIZER, EOS_IDS, self.folder / "student", "float32")
        again = load_model(Teacher(dtype="float32"), str(self.folder / "student"))
        same_rows(*(self.sampler.sample(model, self.requests, "student") for model in (again, self.student)))


def reverse_kl_loss(student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, _ids: torch.Tensor) -> torch.Tensor:
    assert teacher_NV is not None
    return reverse_kl(student_NV, teacher_NV)


def same_rows(found: list[Row], expected: list[Row]) -> None:
    """Compare responses and their log-probabilities."""
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.response != other.response:
            raise DiffersError(f"row {number}: other tokens alone than in a batch")
        equal(f"row {number}, alone and in a batch", one.behaviour_logp, other.behaviour_logp)


def attempt(family: str, answer: Connection | None = None) -> dict[str, str]:
    """Return what became of each stage: ``ok``, or the error. Send it after each stage too, in case of a time-out."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    stages: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        trial = Trial(family, Path(scratch))
        for stage in ("build", *STAGES, *EXTRA):
            try:
                getattr(trial, stage)()
                stages[stage] = "ok"
            except Exception as error:
                stages[stage] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
                if answer is None:
                    traceback.print_exc()
            if answer is not None:
                answer.send(stages)
            if stages[stage] != "ok" and stage in ("build", "load", "sample"):
                break
    return stages


def attempt_unchecked(family: str, answer: Connection) -> None:
    """Try a family even if loading it is refused: this walk finds which families to refuse."""
    known_families.REFUSED = {}
    attempt(family, answer)


def in_own_process(family: str) -> dict[str, Any]:
    """Return the stages of a family, tried in a process that has ``SECONDS``."""
    context = multiprocessing.get_context("fork")
    began, (ours, theirs) = time.monotonic(), context.Pipe(duplex=False)
    process = context.Process(target=attempt_unchecked, args=(family, theirs))
    process.start()
    theirs.close()
    stages: dict[str, str] = {}
    ending = "the process died"
    try:
        while True:
            if not ours.poll(max(0.0, began + SECONDS - time.monotonic())):
                ending = f"longer than {SECONDS} s"
                process.kill()
                break
            stages = ours.recv()
    except EOFError:
        pass  # it has ended
    process.join()
    if process.exitcode:
        stages[next(stage for stage in ("build", *STAGES, *EXTRA) if stage not in stages)] = ending
    return {"class": class_name(family), "seconds": round(time.monotonic() - began, 1), "stages": stages}


def main() -> int:
    """Walk the families that the result lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--again", action="store_true", help="also walk families that the result has")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else families()
    known = json.loads(options.results.read_text(encoding="utf-8"))["families"] if options.results.exists() else {}
    for family in wanted:
        if family not in known or options.again:
            known[family] = in_own_process(family)
            about = {"machine": machine("torch", "transformers"), "layers": LAYERS, "stages": list(STAGES)}
            keep(options.results, {**about, "families": dict(sorted(known.items()))})
            failed = {stage: told for stage, told in known[family]["stages"].items() if told != "ok"}
            print(f"{family}: {failed or 'ok'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
