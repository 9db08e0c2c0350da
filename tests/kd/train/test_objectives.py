"""objectives: what a spec names becomes the loss it describes, with its temperature, labels and normalizer."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import reference
import torch
from divergence_cases import BOUND, CASES, PARAMETERS
from torch import Tensor

from skill_kd.guidance.table import FINDINGS
from skill_kd.kd import config
from skill_kd.kd.dataset.batch import Batch, Row, collate
from skill_kd.kd.losses import divergences, estimators
from skill_kd.kd.losses.divergences import DIVERGENCES, log_probs, parameters
from skill_kd.kd.train.objectives import build_objective, coverage_objective
from skill_kd.plan.loss import LOGIT_COPIES
from skill_kd.prove.known import KNOWN
from skill_kd.spec import Distill, Divergence, Objective, OffPolicyObjective, SelfTrain, WarmStart

torch.set_num_threads(1)

V = 11
CPU = torch.device("cpu")


def objective(kind: str, **values: Any) -> Any:
    """Build an objective from a spec's values, defaults filled in as the spec fills them."""
    stage = Distill.model_validate({"kind": "distill", "objective": {"kind": kind, **values}})
    return build_objective(config.Distill.of(stage.model_dump()).objective)


def rows(source: Literal["student", "teacher", "data"] = "teacher", behaviour: bool = False) -> list[Row]:
    lengths = ((1, 4, 7), (3, 2))
    return [
        Row(
            (5, 6),
            ids,
            (True,) * len(ids),
            source,
            tuple(-0.5 - 0.1 * i for i in range(len(ids))) if behaviour else None,
        )
        for ids in lengths
    ]


def batch(*given: Row) -> Batch:
    return collate(given or rows(), pad=0, device=CPU)


def logits(seed: int, width: int = 3) -> Tensor:
    return torch.randn(2, width, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = logits(1), logits(2)


def scored(loss_BT: Tensor) -> Tensor:
    """Put 0 where the second row of ``batch()`` is padded."""
    return torch.where(batch().mask_BT, loss_BT, 0.0)


def gradient(kind: str, temperature: float, **values: Any) -> Tensor:
    """Return the gradient of the summed loss by the student's logits."""
    student = STUDENT.clone().requires_grad_()
    built = objective(kind, temperature=temperature, **values)
    assert built.temperature == temperature
    loss = built.loss(log_probs(student, temperature), log_probs(TEACHER, temperature), batch())
    loss.sum().backward()
    assert student.grad is not None
    return student.grad


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_at_high_temperature_the_gradient_is_that_of_matching_logits(kind: str) -> None:
    """Hinton et al. 2015, Eq 4: (z_i − v_i) / N for logits of zero mean; T² makes it independent of T."""
    z, v = (each - each.mean(dim=-1, keepdim=True) for each in (STUDENT, TEACHER))
    expected = torch.where(batch().mask_BT.unsqueeze(-1), (z - v) / V, 0.0)
    torch.testing.assert_close(gradient(kind, 1e4), expected, rtol=1e-3, atol=1e-5)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    warm, hot = gradient("forward_kl", 50.0).norm(), gradient("forward_kl", 100.0).norm()
    assert float(warm / hot) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_kind_is_its_divergence_with_the_parameters_of_the_spec(kind: str) -> None:
    student, teacher = log_probs(STUDENT), log_probs(TEACHER)
    built = objective(kind, **PARAMETERS.get(kind, {}))
    expected = BOUND[kind](student, teacher)
    assert torch.equal(built.loss(student, teacher, batch()), scored(expected))
    assert (built.loss.normalizer, built.reads_teacher) == ("tokens", True)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_hard_label_is_the_plain_likelihood_whatever_the_temperature(temperature: float) -> None:
    labelled = batch(*rows("data"))
    built = objective("forward_kl", temperature=temperature, responses="data", hard_label_weight=0.3)
    student, teacher = log_probs(STUDENT, temperature), log_probs(TEACHER, temperature)
    soft = temperature**2 * divergences.forward_kl(student, teacher)
    hard = -estimators.token_logp(log_probs(STUDENT), labelled.response_BT)
    torch.testing.assert_close(built.loss(student, teacher, labelled), scored(0.7 * soft + 0.3 * hard))


def test_hard_labels_count_on_rows_of_the_data_only() -> None:
    (first, _), (_, second) = rows("data"), rows("student")
    built = objective("jsd", responses="data", hard_label_weight=0.5)
    plain = objective("jsd", responses="data")
    student, teacher = log_probs(STUDENT), log_probs(TEACHER)
    mixed, soft = (each.loss(student, teacher, batch(first, second)) for each in (built, plain))
    assert not torch.allclose(mixed[0], soft[0])
    assert torch.equal(mixed[1], soft[1])


@pytest.mark.parametrize("kind", ["sft", "sequence_kd"])
def test_fine_tuning_is_the_likelihood_of_the_responses_and_reads_no_teacher(kind: str) -> None:
    built = build_objective(config.Sft() if kind == "sft" else config.SequenceKD())
    student = log_probs(STUDENT)
    expected = -estimators.token_logp(student, batch().response_BT)
    assert torch.equal(built.loss(student, None, batch()), scored(expected))
    assert (built.reads_teacher, built.on_policy, built.loss.normalizer) == (False, 0.0, "tokens")
    assert built.responses == ("data" if kind == "sft" else "teacher")


def test_exact_minillm_is_normalized_by_rollouts_and_the_papers_by_tokens() -> None:
    exact, paper = objective("minillm", estimator="exact"), objective("minillm", estimator="paper")
    assert exact.count(rows()) == 2
    assert paper.count(rows()) == 5
    assert exact.on_policy == paper.on_policy == 1.0


def test_tokens_that_are_not_scored_are_not_counted() -> None:
    row = Row((5,), (1, 2, 3), (True, False, True), "data")
    assert build_objective(config.Sft()).count([row, row]) == 4


def test_exact_minillm_takes_its_weights_as_one_when_the_student_alone_sampled() -> None:
    student, teacher, sampled = log_probs(STUDENT), log_probs(TEACHER), batch(*rows("student", behaviour=True))
    arguments = (student, teacher, sampled.response_BT, sampled.mask_BT)
    alone = objective("minillm", estimator="exact", teacher_mix=0.0)
    mixed = objective("minillm", estimator="exact", teacher_mix=0.2)
    assert torch.equal(alone.loss(student, teacher, sampled), estimators.minillm_exact(*arguments))
    weighted = estimators.minillm_exact(*arguments, sampled.behaviour_logp_BT)
    assert torch.equal(mixed.loss(student, teacher, sampled), weighted)
    assert not torch.allclose(weighted, estimators.minillm_exact(*arguments))


def test_the_exact_estimator_that_trains_is_the_one_that_is_proven() -> None:
    assert objective("minillm", estimator="exact", teacher_mix=0.2).loss is estimators.EXACT
    assert KNOWN["Single + Long, per-decision weights (`exact`)"] == estimators.EXACT.of_tensors
    assert KNOWN["per-token weight, length normalization, clip (`paper`)"] == estimators.PAPER.of_tensors


def test_the_papers_minillm_passes_on_its_options() -> None:
    student, teacher, sampled = log_probs(STUDENT), log_probs(TEACHER), batch(*rows("student", behaviour=True))
    arguments = (student, teacher, sampled.response_BT, sampled.mask_BT, sampled.behaviour_logp_BT)
    for options in ({"clip": 0.1, "length_normalization": True}, {"clip": None, "length_normalization": False}):
        built = objective("minillm", estimator="paper", **options)
        assert torch.equal(built.loss(student, teacher, sampled), estimators.paper(**options).of_tensors(*arguments))


@pytest.mark.parametrize("kind", ["sft", *DIVERGENCES, "minillm"])
def test_losses_of_rows_add_up_however_they_are_cut_into_micro_batches(kind: str) -> None:
    built = build_objective(config.Sft()) if kind == "sft" else objective(kind)
    both = rows("student", behaviour=True)
    student, teacher = log_probs(STUDENT), log_probs(TEACHER)

    def total(index: slice, given: list[Row]) -> Tensor:
        piece = batch(*given)
        loss = built.loss(student[index, : piece.width], teacher[index, : piece.width], piece)
        return torch.where(piece.mask_BT, loss, 0.0).sum()

    whole = total(slice(0, 2), both)
    parts = total(slice(0, 1), both[:1]) + total(slice(1, 2), both[1:])
    torch.testing.assert_close(whole, parts)
    assert built.count(both) == built.count(both[:1]) + built.count(both[1:])


def test_the_coverage_term_is_forward_kl_on_what_the_teacher_writes() -> None:
    student, teacher = log_probs(STUDENT), log_probs(TEACHER)
    term = coverage_objective()
    assert torch.equal(term.loss(student, teacher, batch()), scored(divergences.forward_kl(student, teacher)))
    assert (term.on_policy, term.responses, term.loss.normalizer) == (0.0, "teacher", "tokens")


@pytest.mark.parametrize("stage", [Distill(), WarmStart(), SelfTrain()])
def test_the_default_objective_of_every_stage_builds(stage: Any) -> None:
    values = getattr(config, type(stage).__name__).of(stage.model_dump())
    assert build_objective(getattr(values, "objective", config.Sft())).count(rows()) == 5


# --- completeness -----------------------------------------------------------------------------------------------------

TESTS = Path(__file__).parents[2]
REFERENCE = (TESTS.parent / "references" / "objectives.md").read_text(encoding="utf-8")


def kinds(union: Any) -> dict[str, Any]:
    """Return the spec's models of a union by kind."""
    return {model.model_fields["kind"].default: model for model in get_args(get_args(union)[0])}


HOMES: dict[str, Collection[str]] = {
    "a model to Objective in skill_kd/spec": kinds(Objective),
    "its dataclass to skill_kd/kd/config.py: run dev/make_config.py": [
        each.kind for each in get_args(config.Objective)
    ],
    "its kind to ON_POLICY (if its on_policy is above 0), _OFF or _TEXT in skill_kd/guidance/table.py": {
        kind for finding in FINDINGS for remedy in finding.remedies for knob in remedy.knobs for kind in knob.kinds
    },
    "its copies to LOGIT_COPIES in plan/loss.py: 0, then what tests/plan/test_plan.py -k live obtains": LOGIT_COPIES,
    "a row to 'All objectives' in references/objectives.md": re.findall(r"^\| `(\w+)` \|", REFERENCE, re.MULTILINE),
    "a spec to OBJECTIVES in tests/kd/train/test_trainer.py, and its losses with SKILL_KD_WRITE_GOLDEN=1": json.loads(
        (TESTS / "golden_losses.json").read_text(encoding="utf-8")
    ),
}
"""The parts to add for a new objective, and the kinds that have each."""
HOMES_OF_DIVERGENCES: dict[str, Collection[str]] = {
    "the function to DIVERGENCES in skill_kd/kd/losses/divergences.py": DIVERGENCES,
    "the model to OffPolicyObjective in skill_kd/spec": kinds(OffPolicyObjective),
    "its formula in plain Python to tests/reference.py": dict(inspect.getmembers(reference, inspect.isfunction)),
    "its parameters to CASES (a symmetric one also to SYMMETRIC), and other values than the defaults to PARAMETERS, in "
    "tests/kd/losses/divergence_cases.py": [kind for kind, _ in CASES],
}


def lacking(kind: str) -> list[str]:
    """Return, in words, what an objective lacks."""
    homes = HOMES if kind in {"sft", "sequence_kd", "minillm"} else HOMES_OF_DIVERGENCES | HOMES
    return [f"{kind}: add {home}" for home, found in homes.items() if kind not in found]


def test_every_objective_is_in_all_its_homes() -> None:
    failures = [line for kind in sorted({*kinds(Objective), *DIVERGENCES}) for line in lacking(kind)]
    assert not failures, "\n".join(failures)


def test_a_new_objective_gets_a_list_of_missing_parts() -> None:
    assert lacking("new_kl") == [f"new_kl: add {home}" for home in (*HOMES_OF_DIVERGENCES, *HOMES)]


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_divergence_names_its_paper_and_takes_its_parameters_from_its_spec(kind: str) -> None:
    assert re.search(r"arXiv \d{4}\.\d{5}", str(DIVERGENCES[kind].__doc__))
    model = kinds(Objective)[kind]
    assert set(parameters(kind)) == set(model.model_fields) - {*Divergence.model_fields, "kind"}
    assert set(parameters(kind)) == set(PARAMETERS.get(kind, {}))
    assert all(model.model_fields[name].default != value for name, value in PARAMETERS.get(kind, {}).items())
