"""The plan of a run: memory by part, changes that lower it, times, costs and their assumptions."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import load_script

from skill_kd.errors import MissingRequirementError, UsageError
from skill_kd.plan import Plan, loss, plan, size
from skill_kd.plan import exchange as exchanges
from skill_kd.plan.changes import changed
from skill_kd.plan.devices import find_device, known_devices
from skill_kd.plan.duration import BANDWIDTH_EFFICIENCY, RANGE, RECOMMENDED_PROMPTS
from skill_kd.plan.loss import HARD_LABEL_COPIES, LOGIT_COPIES, MEASURE_COPIES, SERVED_COPIES, WHOLE_COPIES
from skill_kd.plan.setup import read_setup
from skill_kd.plan.sizing import EVALUATIONS, MEASURED
from skill_kd.plan.weights import Phase
from skill_kd.spec import Spec

ROOT = Path(__file__).parents[2]
GB = 10**9

QWEN3 = {
    "model_type": "qwen3",
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
MODELS: dict[str, dict[str, Any]] = {
    "small": {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072},
    "large": {**QWEN3, "hidden_size": 2048, "intermediate_size": 6144},
    "huge": {**QWEN3, "hidden_size": 8192, "intermediate_size": 32768, "num_hidden_layers": 80},
    "short": {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 300},
    "mixture": {
        **QWEN3,
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return a folder with one config per model; plan reads nothing else of a model."""
    for name, config in MODELS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def spec(models: Path, teacher: str = "large", student: str = "small", **changes: object) -> Spec:
    """Return a spec with these models. The keyword ``training__batch_size`` sets the key training.batch_size."""
    plain = Spec.model_validate(
        {
            "name": "planned",
            "teacher": {"model": str(models / teacher)},
            "student": {"model": str(models / student)},
            "data": {"train": "nowhere.jsonl"},
        }
    )
    settings = tuple((key.replace("__", "."), value) for key, value in changes.items())
    after = changed(plain, settings)
    assert after is not None, settings
    return after


def peak(models: Path, **changes: object) -> int:
    return plan(spec(models, **changes)).peak


def part(phase: Phase, name: str) -> int:
    return sum(part.bytes for part in phase.parts if part.name == name)


def phase(found: Plan, name: str) -> Phase:
    return next(phase for phase in found.phases if phase.name.startswith(name))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_bytes_of_weights_gradients_and_optimizer_states(models: Path) -> None:
    found = plan(spec(models))
    step = phase(found, "optimizer step")
    parameters = found.student.parameters
    assert part(step, "student weights") == 4 * parameters
    assert part(step, "gradients") == 4 * parameters
    assert part(step, "optimizer states") == 8 * parameters
    assert part(step, "teacher weights") == 2 * found.teachers[0].parameters


def test_peak_is_the_highest_phase_and_its_parts_add_up(models: Path) -> None:
    found = plan(spec(models))
    assert found.peak == max(phase.bytes for phase in found.phases)
    assert all(phase.bytes == sum(part.bytes for part in phase.parts) for phase in found.phases)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"rollout__max_new_tokens": 128}, {"rollout__max_new_tokens": 256}),
        ({"data__max_prompt_tokens": 128}, {"data__max_prompt_tokens": 256}),
        ({"training__batch_size": 8}, {"training__batch_size": 16}),
        ({"training__accumulate": 4}, {"training__accumulate": 1}),
        ({"training__gradient_checkpointing": True}, {}),
        ({"training__precision": "bf16"}, {"training__precision": "fp32"}),
        ({"student__dtype": "bfloat16"}, {"student__dtype": "float32"}),
        ({"student__lora": {"r": 16}}, {}),
        ({"student__lora": {"r": 8}}, {"student__lora": {"r": 64}}),
        (
            {"student__lora": {"r": 16}, "student__quantization": "4bit"},
            {"student__lora": {"r": 16}, "student__quantization": "8bit"},
        ),
        ({"teacher__dtype": "bfloat16"}, {"teacher__dtype": "float32"}),
        ({"teacher__quantization": "8bit"}, {"teacher__quantization": None}),
        ({"teacher__quantization": "4bit"}, {"teacher__quantization": "8bit"}),
        ({"student__model": None, "student__from_teacher": 14}, {"student__model": None, "student__from_teacher": 21}),
        (
            {"launch__processes": 4, "launch__strategy": "fsdp2", "training__batch_size": 16},
            {"launch__processes": 4, "launch__strategy": "ddp", "training__batch_size": 16},
        ),
    ],
    ids=lambda changes: " ".join(f"{key.split('__')[-1]}={value}" for key, value in changes.items()),
)
def test_setting_lowers_the_peak(models: Path, less: dict[str, object], more: dict[str, object]) -> None:
    assert peak(models, **less) < peak(models, **more)


def test_only_adapters_have_gradients(models: Path) -> None:
    found = plan(spec(models, student__lora={"r": 16}))
    width, heads, keys, wide = 1024, 16 * 128, 8 * 128, 3072
    attention = 16 * ((width + heads) + 2 * (width + keys) + (heads + width))
    assert found.trainable_parameters == 28 * (attention + 3 * 16 * (width + wide))
    assert part(phase(found, "optimizer step"), "gradients") == 4 * found.trainable_parameters
    queries = plan(spec(models, student__lora={"r": 16, "targets": ["q_proj"]}))
    assert queries.trainable_parameters == 28 * 16 * (width + heads)


def test_quantization_does_not_change_embeddings(models: Path) -> None:
    found = plan(spec(models, teacher__quantization="4bit"))
    teacher = found.teachers[0]
    assert part(found.phases[0], "teacher weights") > 2 * teacher.embedding_parameters
    assert part(found.phases[0], "teacher weights") < 2 * teacher.parameters / 2


def test_fsdp2_shards_the_student_but_not_the_teacher(models: Path) -> None:
    launch = {"launch__processes": 4, "launch__strategy": "fsdp2"}
    one, four = plan(spec(models)), plan(spec(models, **launch))
    for name in ("student weights", "optimizer states"):
        assert part(four.phases[0], name) == part(one.phases[0], name) // 4
    assert part(four.phases[0], "teacher weights") == part(one.phases[0], "teacher weights")


def test_sharded_teacher_has_embeddings_two_layers_and_a_share_on_each_process(models: Path) -> None:
    launch = {"launch__processes": 4, "launch__strategy": "ddp", "launch__shard_teacher": True}
    found = plan(spec(models, **launch))
    teacher = found.teachers[0]
    layers = 2 * sum(linear.parameters for linear in teacher.linears) // teacher.layers
    here = teacher.parameters // 4 + teacher.embedding_parameters + layers
    assert part(found.phases[0], "teacher weights") == 2 * here
    assert any("sharded teacher" in note for note in found.notes)
    alone = plan(spec(models, launch__strategy="ddp", launch__shard_teacher=True))
    assert part(alone.phases[0], "teacher weights") == 2 * teacher.parameters


def test_deepspeed_splits_gradients_and_moments_and_copies_a_part_of_the_weights(models: Path) -> None:
    one, four = plan(spec(models)), plan(spec(models, launch__processes=4, launch__strategy="deepspeed"))
    weights = part(one.phases[0], "student weights")
    assert part(four.phases[0], "student weights") == weights + weights // 4
    assert part(four.phases[0], "optimizer states") == part(one.phases[0], "optimizer states") // 4


def test_served_teacher_needs_no_local_memory(models: Path) -> None:
    served = {"url": "http://127.0.0.1:8000/v1", "model": "x", "top_logprobs": 64}
    found = plan(
        spec(
            models,
            teacher__model=None,
            teacher__served=served,
            stages=[{"kind": "distill", "objective": {"kind": "reverse_kl"}}],
        )
    )
    assert not any("teacher" in part.name for phase in found.phases for part in phase.parts)
    assert any("served teacher" in note for note in found.notes)


# --- the loss in chunks, or with all logits ---------------------------------------------------------------------------


def logits(found: Plan) -> int:
    return part(phase(found, "loss"), "logits")


def test_logits_do_not_grow_beyond_a_chunk(models: Path) -> None:
    short, long = (plan(spec(models, rollout__max_new_tokens=new)) for new in (256, 1024))
    assert logits(short) == logits(long)
    vocabulary = short.student.vocab_size
    chunk = max(loss.CHUNK_BYTES, 4 * loss.CHUNK_TOKENS * vocabulary)
    assert logits(short) <= 2 * chunk + LOGIT_COPIES["minillm"] * loss.BLOCK_BYTES
    assert short.peak < long.peak


@pytest.mark.parametrize(
    "changes",
    [
        {"student__lora": {"targets": ["q_proj", "lm_head"]}},
        {"teacher__model": ["large", "small"]},
        {
            "teacher__model": None,
            "teacher__served": {"url": "http://127.0.0.1:8000/v1", "model": "x", "top_logprobs": 64},
        },
    ],
    ids=["adapters on the head", "ensemble", "served"],
)
def test_loss_without_a_plain_lm_head_needs_all_logits(models: Path, changes: dict[str, Any]) -> None:
    if isinstance(changes.get("teacher__model"), list):
        changes = {"teacher__model": [{"model": str(models / name)} for name in changes["teacher__model"]]}
    stages = [{"kind": "distill", "objective": {"kind": "reverse_kl"}}]
    short, long = (plan(spec(models, stages=stages, rollout__max_new_tokens=new, **changes)) for new in (256, 1024))
    assert logits(long) == pytest.approx(4 * logits(short), rel=0.01)
    whole = 4 * 16 * 1024 * 151936
    assert logits(long) > LOGIT_COPIES["reverse_kl"] * whole


def test_sequence_kd_works_in_chunks_with_any_teacher(models: Path) -> None:
    both = [{"model": str(models / "large")}, {"model": str(models / "small")}]
    stages = [{"kind": "distill", "objective": {"kind": "sequence_kd"}}]
    assert logits(plan(spec(models, teacher__model=both, stages=stages))) == logits(plan(spec(models, stages=stages)))


def test_held_out_measure_needs_one_chunk_of_logits(models: Path) -> None:
    found = plan(spec(models, rollout__max_new_tokens=64, training__batch_size=16))
    assert part(phase(found, "held-out measure"), "logits") < 1.05 * MEASURE_COPIES * loss.CHUNK_BYTES
    # One row is processed even if it is longer than a chunk.
    row = 4 * 151936 * 1024
    found = plan(spec(models, rollout__max_new_tokens=1024))
    assert part(phase(found, "held-out measure"), "logits") == pytest.approx(MEASURE_COPIES * row, rel=0.01)


def test_self_training_reads_the_teacher_before_it_trains(models: Path) -> None:
    stages = [{"kind": "distill", "objective": {"kind": "sequence_kd"}}, {"kind": "self_train"}]
    found = plan(spec(models, stages=stages))
    assert part(phase(found, "teacher's scores"), "logits") > 3 * 4 * 16 * 256 * 151936
    assert not any(phase.name.startswith("teacher's forward pass") for phase in found.phases)


def test_several_teachers_are_all_in_memory(models: Path) -> None:
    both = [{"model": str(models / "large")}, {"model": str(models / "small")}]
    found = plan(spec(models, teacher__model=both))
    assert part(found.phases[0], "teacher weights") == 2 * sum(teacher.parameters for teacher in found.teachers)


def test_teacher_mixed_rollouts_hold_both_caches(models: Path) -> None:
    def caches(mix: float) -> tuple[int, int]:
        stages = [{"kind": "distill", "objective": {"kind": "minillm", "teacher_mix": mix}}]
        rollouts = phase(plan(spec(models, stages=stages)), "rollouts")
        return part(rollouts, "student KV cache"), part(rollouts, "teacher KV cache")

    assert caches(0.2)[1] > 0
    assert caches(0.0)[1] == 0
    # 64 rows at once instead of groups of 16.
    assert caches(0.0)[0] == 4 * caches(0.2)[0]


# --- compared with real training --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/plan_memory.py as a module."""
    pytest.importorskip("torch")
    return load_script("benchmarks/plan_memory.py")


def test_chunk_and_block_sizes_equal_those_of_the_trainer() -> None:
    pytest.importorskip("torch")
    from skill_kd.kd.losses import chunked

    assert loss.CHUNK_BYTES == chunked.CHUNK_BYTES
    assert loss.CHUNK_TOKENS == chunked.CHUNK_TOKENS
    assert loss.BLOCK_TOKENS == chunked.BLOCK_TOKENS
    assert loss.CACHE_BYTES == chunked.CACHE_BYTES
    assert loss.BLOCK_BYTES == chunked.BLOCK_BYTES


KINDS = [{"kind": kind} for kind in LOGIT_COPIES]
EXACT = {"kind": "minillm", "estimator": "exact"}
HARD = {"kind": "reverse_kl", "on_policy": 0.0, "responses": "data", "hard_label_weight": 0.5}
ROWS, NEW, VOCABULARY = 2, 16, 4096


@pytest.mark.parametrize("objective", [*KINDS, EXACT], ids=lambda objective: "-".join(objective.values()))
def test_logit_copies_equal_the_live_tensors_of_each_loss(benchmark: ModuleType, objective: dict[str, Any]) -> None:
    assert block_copies(benchmark, objective) == pytest.approx(LOGIT_COPIES[objective["kind"]], abs=0.1)


def test_hard_label_term_adds_one_copy(benchmark: ModuleType) -> None:
    assert block_copies(benchmark, HARD) == pytest.approx(LOGIT_COPIES["reverse_kl"] + HARD_LABEL_COPIES, abs=0.1)


@pytest.mark.parametrize(
    "objective", [*KINDS, EXACT, HARD], ids=lambda objective: "-".join(map(str, objective.values()))
)
def test_whole_rows_need_the_copies_of_a_block_and_of_the_selected_positions(
    benchmark: ModuleType, objective: dict[str, Any]
) -> None:
    planned = LOGIT_COPIES[objective["kind"]] + HARD_LABEL_COPIES * ("hard_label_weight" in objective)
    planned += WHOLE_COPIES * (objective["kind"] not in {"sft", "sequence_kd"})
    assert whole_copies(benchmark, objective) == pytest.approx(planned, abs=0.1)


@pytest.mark.parametrize("kind", ["reverse_kl", "adaptive_kl", "minillm"])
def test_served_teacher_needs_the_same_copies_for_every_loss(benchmark: ModuleType, kind: str) -> None:
    import torch

    from skill_kd.kd.model.teacher_distribution import TopK

    served = TopK.of([[{1: -1.0, 2: -2.0}] * NEW] * ROWS, VOCABULARY, torch.device("cpu"))
    mix = {"teacher_mix": 0.0} if kind == "minillm" else {}
    assert whole_copies(benchmark, {"kind": kind, **mix}, served) == pytest.approx(SERVED_COPIES, abs=0.1)


def built(objective: dict[str, Any]) -> Any:
    """The trainer's objective from that of a spec."""
    from skill_kd.kd.config import Distill
    from skill_kd.kd.train.objectives import build_objective

    plain: dict[str, Any] = {
        "name": "x",
        "teacher": {"model": "t"},
        "student": {"model": "s"},
        "data": {"train": "d"},
        "rollout": {"prompts": 16},
        "stages": [{"kind": "distill", "objective": objective}],
    }
    return build_objective(Distill.of(Spec.model_validate(plain).stages[0].model_dump()).objective)


def block_copies(benchmark: ModuleType, objective: dict[str, Any]) -> float:
    """Return the number of tensors [n, V] that the trainer adds for a block, in addition to the models' logits."""
    import torch

    from skill_kd.kd.losses.chunked import _descend, _Rule
    from skill_kd.kd.losses.lm_head import LogitTransform

    kind = built(objective)
    student = torch.randn(ROWS * NEW, VOCABULARY)
    teacher = torch.randn_like(student) if kind.reads_teacher else None
    ids = torch.randint(VOCABULARY, (ROWS * NEW,))
    count = {"minillm": 2}.get(objective["kind"], int("hard_label_weight" in objective))
    rule = _Rule(kind.loss.loss, 1.0, LogitTransform(), LogitTransform() if kind.reads_teacher else None)
    weights = [torch.full((ROWS * NEW,), 0.5)] * count
    return copies(benchmark, lambda: _descend(rule, student, teacher, ids, *weights), student, teacher)


def whole_copies(benchmark: ModuleType, objective: dict[str, Any], served: Any = None) -> float:
    """Return the number of tensors [B, T, V] alive at the peak of a loss on whole rows, including the teacher's."""
    import torch

    from skill_kd.kd.dataset.batch import Row, collate
    from skill_kd.kd.losses.divergences import log_probs
    from skill_kd.kd.losses.masking import masked_sum
    from skill_kd.kd.model.teacher_distribution import on_shared_outcomes

    kind = built(objective)
    row = Row((1,), tuple(range(1, NEW + 1)), (True,) * NEW, "data", (-1.0,) * NEW)
    batch = collate([row] * ROWS, 0, torch.device("cpu"))
    hidden = torch.randn(ROWS, NEW, 8, requires_grad=True)
    head, teacher_head = torch.randn(8, VOCABULARY), torch.randn(8, VOCABULARY)

    def student(teacher: Any) -> torch.Tensor:
        # As in the trainer, only the graph refers to the student's log-probabilities.
        return masked_sum(kind.loss(*on_shared_outcomes(log_probs(hidden @ head), teacher, batch)), batch.mask_BT)

    def work() -> None:
        own = served is None and kind.reads_teacher
        student(log_probs(hidden.detach() @ teacher_head) if own else served).backward()

    return copies(benchmark, work, hidden, head, teacher_head)


def copies(benchmark: ModuleType, work: Any, *known: Any) -> float:
    """Return the number of float32 tensors [rows, positions, V] that ``work`` adds to the known ones at its peak."""
    mode = benchmark.live_bytes()
    for tensor in known:
        if tensor is not None:
            mode.watch(tensor)
    before = mode.live
    with mode:
        work()
    return float(mode.peak - before) / (4 * ROWS * NEW * VOCABULARY)


ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False},
        {"lora": "all-linear"},
        {"lora": ADAPTED, "tied": False, "vocabulary": 16384},
        {"accumulate": 2},
        {"checkpointing": True, "layers": 8},
        {"model_type": "qwen3"},
        {"rows": 6, "vocabulary": 49152, "objective": "jsd"},
        {"rows": 1, "new": 4, "vocabulary": 16384, "accumulate": 2, "tied": False},
        {"work": "rollouts"},
        {"work": "measure", "rows": 8, "vocabulary": 32000},
    ],
    ids=lambda changes: " ".join(changes) or "plain",
)
def test_planned_tensors_equal_the_live_tensors_of_real_updates(
    benchmark: ModuleType, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "lora" in changes:
        pytest.importorskip("peft")
    case = benchmark.Case("tiny", **{"hidden": 192, "vocabulary": 2048, "new": 32, "objective": "minillm", **changes})
    planned = benchmark.planned(case, tmp_path)["live"]
    assert planned == pytest.approx(benchmark.measure(case, tmp_path)["live"], rel=0.06)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_tied_embeddings_get_their_gradient_in_two_parts(
    benchmark: ModuleType, tmp_path: Path, accumulate: int
) -> None:
    case = benchmark.Case("tied", hidden=192, vocabulary=16384, rows=1, new=4, accumulate=accumulate)
    # While the live tensors are watched, autograd adds the parts out of place; otherwise it adds them in place.
    sum_of_parts = 4 * case.vocabulary * case.hidden
    planned = benchmark.planned(case, tmp_path)["live"]
    assert planned == pytest.approx(benchmark.measure(case, tmp_path)["live"] - sum_of_parts, rel=0.03)


def test_saved_measurements_match_the_stated_errors() -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "plan_memory.json").read_text(encoding="utf-8"))
    assert abs(kept["errors"]["live"]["median"]) < 0.01
    assert abs(kept["errors"]["live"]["worst"]) < 0.05
    assert abs(kept["errors"]["rss"]["median"]) < 0.10
    assert abs(kept["errors"]["rss"]["worst"]) < 0.30


# --- the fit, and changes that make a plan fit ------------------------------------------------------------------------


def test_fits_a_large_device_and_not_a_small_one(models: Path) -> None:
    assert plan(spec(models), device="H200").fits is True
    crowded = plan(spec(models), device="T4")
    assert crowded.fits is False
    assert crowded.changes
    assert plan(spec(models)).fits is None


def test_reserve_is_not_used(models: Path) -> None:
    found = plan(spec(models), device="H100")
    assert found.device is not None
    assert found.reserve == found.device.memory // 10
    assert found.fits == (found.peak <= 72 * GB)


@pytest.mark.parametrize("device", ["T4", "L4", "A100-40"])
def test_each_change_has_the_stated_peak(models: Path, device: str) -> None:
    before = spec(models, training__batch_size=64, rollout__max_new_tokens=512)
    found = plan(before, device=device)
    assert found.changes
    for change in found.changes:
        after = changed(before, change.settings)
        assert after is not None
        again = plan(after, device=device)
        assert (again.peak, again.fits) == (change.peak, change.fits)
        assert change.fits or change.peak < found.peak


@pytest.mark.parametrize(("device", "teacher"), [("T4", "large"), ("L4", "large"), ("A100-80", "mixture")])
def test_recipe_fits_and_is_minimal(models: Path, device: str, teacher: str) -> None:
    before = spec(models, teacher, rollout__max_new_tokens=512)
    found = plan(before, device=device)
    assert found.fits is False
    assert found.recipe is not None
    after = changed(before, found.recipe.settings)
    assert after is not None
    assert plan(after, device=device).fits
    assert found.recipe.peak == plan(after, device=device).peak


def test_one_cheap_change_is_enough_for_a_large_batch(models: Path) -> None:
    found = plan(spec(models, training__batch_size=64, rollout__max_new_tokens=256), device="A100-40")
    assert found.recipe is not None
    assert [key for key, _ in found.recipe.settings] == ["training.accumulate"]
    assert found.changes[0].settings == found.recipe.settings


def test_table_says_if_nothing_fits(models: Path) -> None:
    found = plan(spec(models, teacher="huge"), device="T4")
    assert found.recipe is None
    assert "no combination of these fits" in found.table()


@pytest.mark.parametrize("changes", [{"rollout__prompts": 10**10}, {"training__batch_size": 10**10}], ids=str)
def test_the_work_does_not_grow_with_the_numbers_of_a_spec(models: Path, changes: dict[str, int]) -> None:
    """It once listed every smaller number, which took gigabytes."""
    values = {"rollout__prompts": 10**10, "rollout__max_new_tokens": 512, **changes}
    found = plan(spec(models, **values), device="L4")
    tried = [dict(change.settings) for change in found.changes]
    assert any(each.get("rollout.prompts", 10**10) < 10**10 or "training.accumulate" in each for each in tried)


def test_no_change_invalidates_the_exact_estimator(models: Path) -> None:
    stages = [{"kind": "distill", "objective": {"kind": "minillm", "estimator": "exact"}}]
    before = spec(models, stages=stages, rollout__prompts=16, rollout__max_new_tokens=1024)
    for change in plan(before, device="L4").changes:
        assert changed(before, change.settings) is not None


def test_no_change_needs_a_gpu_library_on_a_cpu(models: Path) -> None:
    found = plan(spec(models, teacher="huge"), device="cpu")
    assert found.changes
    assert not any("quantization" in key for change in found.changes for key, _ in change.settings)


# --- devices ----------------------------------------------------------------------------------------------------------


def test_unknown_device_is_refused_with_the_known_ones(models: Path) -> None:
    with pytest.raises(UsageError, match=r"'H300'.*did you mean 'H200'|'H300'.*did you mean 'H100'") as caught:
        plan(spec(models), device="H300")
    assert all(name in str(caught.value) for name in known_devices())


@pytest.mark.parametrize(("written", "name"), [("rtx4090", "RTX 4090"), ("a100-80gb", ""), ("H100 SXM", "H100")])
def test_device_names_ignore_case_spaces_and_dashes(written: str, name: str) -> None:
    if name:
        assert find_device(written).name == name
    else:
        with pytest.raises(UsageError, match="did you mean 'A100-80'"):
            find_device(written)


def test_every_device_has_plausible_numbers() -> None:
    for name in known_devices():
        device = find_device(name)
        assert device.memory > GB
        assert device.bandwidth > 10**9
        assert device.link >= 10**9
        assert device.fp32_flops > 10**9


# --- time and cost ----------------------------------------------------------------------------------------------------


def test_cost_is_hours_times_price_times_devices(models: Path) -> None:
    found = plan(spec(models, launch__processes=4, launch__strategy="fsdp2"), device="H100", price_per_hour=3.0)
    assert found.seconds is not None
    assert found.cost is not None
    assert found.cost[0] == pytest.approx(found.seconds[0] / 3600 * 3.0 * 4)
    assert found.cost[1] / found.cost[0] == pytest.approx(RANGE[1] / RANGE[0])
    assert plan(spec(models), device="H100").cost is None


def test_time_grows_with_the_work_and_falls_with_the_device(models: Path) -> None:
    def estimate(device: str = "A100-80", **changes: object) -> float:
        seconds = plan(spec(models, **changes), device=device).seconds
        assert seconds is not None
        return seconds[1]

    updates = [{"kind": "distill", "updates": 1000}]
    assert estimate(stages=updates) == pytest.approx(2 * estimate(), rel=0.01)
    assert estimate("L4") > estimate("A100-80") > estimate("H100")
    assert estimate(rollout__max_new_tokens=512) > estimate()


def test_evaluation_is_planned_with_the_prompts_of_the_spec(models: Path) -> None:
    def evaluated(device: str | None = "H100", **changes: object) -> Any:
        return plan(spec(models, **changes), device=device).evaluation

    prompts = models / "fresh.jsonl"
    prompts.write_text('{"prompt": "a"}\n' * 30, encoding="utf-8")
    counted, usual = evaluated(evaluation__prompts=str(prompts)), evaluated()
    assert (counted.prompts, usual.prompts) == (30, RECOMMENDED_PROMPTS)
    assert usual.seconds == pytest.approx(counted.seconds * RECOMMENDED_PROMPTS / 30, rel=0.1)
    assert evaluated(evaluation__samples=4).tasks[1].seconds == pytest.approx(usual.tasks[1].seconds / 2)
    assert [task.name for task in usual.tasks] == ["sampling", "reading probabilities"]
    assert [task.name for task in evaluated(evaluation__policy="text-only").tasks] == ["sampling"]
    assert evaluated(None).seconds is None
    served = {"url": "http://127.0.0.1:1/v1", "model": "t", "top_logprobs": 20}
    stages = [{"kind": "distill", "objective": {"kind": "reverse_kl"}}]
    assert evaluated(teacher__model=None, teacher__served=served, stages=stages) is None
    assert "\nthen evaluate: 200 prompts × 8 responses, " in plan(spec(models), device="H100").table()


def test_held_out_prompts_are_evaluated_if_a_spec_names_no_others(models: Path) -> None:
    train = models / "train.jsonl"
    train.write_text('{"prompt": "a"}\n' * 400, encoding="utf-8")
    found = plan(spec(models, data={"train": str(train), "held_out": 0.1})).evaluation
    assert found is not None
    assert found.prompts == 40


# --- sizes for a given time -------------------------------------------------------------------------------------------


def two(models: Path, **changes: object) -> list[Spec]:
    """Two specs with a warm start that differ in the objective."""
    warm = {"kind": "warm_start", "objective": {"kind": "forward_kl", "responses": "teacher"}}
    kinds = ("minillm", "entropy_aware")
    stages = [[warm, {"kind": "distill", "updates": 500, "objective": {"kind": kind}}] for kind in kinds]
    return [spec(models, stages=each, **changes) for each in stages]


def planned(each: Spec, settings: dict[str, Any], prompts: int) -> float:
    """Minutes of the run and its evaluation with these sizes."""
    stages = [stage.model_dump(mode="json") for stage in each.stages]
    stages[0]["epochs"] = settings.get("warm_start.epochs", stages[0]["epochs"])
    stages[1]["updates"] = settings["distill.updates"]
    sections = [
        (key, value) for key, value in settings.items() if key.partition(".")[0] in ("evaluation", "checkpoint")
    ]
    sized = changed(each, (("stages", stages), *sections))
    assert sized is not None
    found = plan(sized, device="L4", rows=2000)
    assert found.seconds is not None
    assert found.evaluation is not None
    assert found.evaluation.seconds is not None
    evaluating = found.evaluation.seconds * prompts / found.evaluation.prompts
    return (found.seconds[1] / RANGE[1] + evaluating) / 60


@pytest.mark.parametrize("minutes", [200, 600])
def test_sizes_fill_the_time_of_the_slower_spec(models: Path, minutes: int) -> None:
    specs = two(models)
    sizes = size(specs, minutes=minutes, device="L4", rows=2000)
    times = [planned(each, sizes.settings, sizes.prompts) for each in specs]
    assert max(times) == pytest.approx(minutes, rel=0.05)
    assert sizes.settings.keys() == sizes.reasons.keys()


def test_more_time_gives_more_updates_and_a_larger_evaluation(models: Path) -> None:
    less, more = (size(two(models), minutes=minutes, device="L4", rows=2000) for minutes in (25, 3000))
    assert less.settings["distill.updates"] < more.settings["distill.updates"]
    assert less.settings["evaluation.samples"] * less.prompts < more.settings["evaluation.samples"] * more.prompts
    assert (more.settings["evaluation.samples"], more.prompts) == EVALUATIONS[0]


def test_held_out_measures_stay_a_small_part_however_long_the_run_is(models: Path) -> None:
    # Ten updates of two rows come before each measure, which samples more responses than they have.
    quick = two(models, training={"batch_size": 2}, rollout={"prompts": 2}, checkpoint={"every": 10})
    sizes = size(quick, minutes=6000, device="L4", rows=2000)
    assert sizes.settings["checkpoint.measure_prompts"] < MEASURED[0]
    share = re.search(r"held-out measures take about (\d+)%", sizes.reasons["checkpoint.measure_prompts"])
    assert share is not None
    assert int(share[1]) <= 20


@pytest.mark.parametrize(
    ("minutes", "rows", "words"),
    [
        (0, 2000, "minutes: 0 is not a valid time"),
        (0.01, 2000, "the smallest evaluation, 60 prompts with 4 responses"),
        (600, None, "give --prompts N"),
    ],
)
def test_impossible_time_is_refused(models: Path, minutes: float, rows: int | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        size(two(models), minutes=minutes, device="L4", rows=rows)


def test_time_without_room_for_updates_is_refused(models: Path) -> None:
    # The evaluation has its share, but twenty updates of long responses do not fit into the rest.
    long = two(models, rollout={"max_new_tokens": 1024, "prompts": 2048}, training={"batch_size": 512})
    with pytest.raises(UsageError, match="is too short for 20 updates on L4"):
        size(long, minutes=120, device="L4", rows=2000)


def test_time_of_a_mixture_depends_on_its_active_weights(models: Path) -> None:
    stages = [{"kind": "distill", "objective": {"kind": "forward_kl", "responses": "data"}}]

    def passes(teacher: str) -> float:
        stage = plan(spec(models, teacher, stages=stages), device="H100").stages[0]
        return next(task.seconds for task in stage.tasks if task.name == "teacher's forward passes")

    mixture = plan(spec(models, "mixture")).teachers[0]
    assert mixture.parameters > 5 * mixture.active_parameters
    assert passes("mixture") < 2 * passes("large")


def exchange(models: Path, *, mix: float = 0.0, device: str = "H100", **launch: object) -> float:
    """Seconds of 200 updates in two micro-batches, by four processes unless ``launch`` says otherwise."""
    stages = [{"kind": "distill", "updates": 200, "objective": {"kind": "minillm", "teacher_mix": mix}}]
    launch = {"processes": 4, "strategy": "fsdp2", **launch}
    found = plan(spec(models, stages=stages, launch=launch, training__accumulate=2), device=device).stages[0]
    return sum(task.seconds for task in found.tasks if task.name == "exchange between processes")


def test_first_stage_includes_the_first_measure_and_the_teacher_samples(models: Path) -> None:
    stage = {"kind": "distill", "updates": 200, "objective": {"kind": "reverse_kl"}}
    launch = {"processes": 4, "strategy": "fsdp2", "shard_teacher": True}
    changes = {"launch": launch, "checkpoint__every": 70, "checkpoint__measure_prompts": 64}
    alone = spec(models, stages=[stage], **changes)
    second = spec(models, stages=[{"kind": "warm_start", "objective": {"kind": "forward_kl"}}, stage], **changes)

    def measured(planned: Spec) -> float:
        tasks = plan(planned, device="H100").stages[-1].tasks
        return next(task.seconds for task in tasks if task.name == "held-out measures")

    assert measured(alone) > 4 / 3 * measured(second)  # at 70, 140 and 200, and before; with the teacher's samples
    setup = read_setup(alone)
    received, later = (exchanges.of_stage(read_setup(each), each.stages[-1], 200, None) for each in (alone, second))
    a_pass = 2 * exchanges.block_parameters(setup.teachers[0]) * 3 / 4
    passes = 2 * math.ceil(64 / setup.rows) + setup.new  # both kinds of samples are scored, 64 written at once
    assert received - later == pytest.approx(exchanges.of_gathering(setup) + passes * a_pass)


def test_exchange_between_processes_takes_time(models: Path) -> None:
    assert exchange(models, processes=1, strategy="none") == 0
    assert 0 < exchange(models, strategy="ddp") < exchange(models, strategy="deepspeed") < exchange(models)
    assert exchange(models) < exchange(models, shard_teacher=True) < exchange(models, shard_teacher=True, mix=0.2)
    assert exchange(models) < exchange(models, nodes=2) < exchange(models, device="L4")


def test_exchange_time_is_bytes_over_bandwidth(models: Path) -> None:
    """DDP of two processes: half of an all-reduce of float32 gradients, which is a reduce-scatter and an all-gather."""
    student = plan(spec(models)).student
    seconds = 200 * 2 * 4 * student.parameters * (1 / 2) / (BANDWIDTH_EFFICIENCY * find_device("H100").link)
    assert exchange(models, processes=2, strategy="ddp") == pytest.approx(seconds)


STAGES = [{"kind": "warm_start", "epochs": 2}, {"kind": "distill", "updates": 10}]


def test_epochs_need_a_number_of_rows(models: Path) -> None:
    found = plan(spec(models, stages=STAGES), device="H100", price_per_hour=1)
    assert (found.stages[0].updates, found.stages[1].updates) == (None, 10)
    assert found.seconds is None
    assert found.cost is None
    assert "unknown" in found.table()


def test_rows_of_a_local_file_are_counted_without_held_out_rows(models: Path) -> None:
    data = models / "prompts.jsonl"
    data.write_text('{"prompt": "x"}\n' * 100 + "\n", encoding="utf-8")
    counted = plan(spec(models, stages=STAGES, data__train=str(data), data__held_out=0.2), device="H100")
    assert counted.stages[0].updates == 10  # 2 epochs of 80 rows in batches of 16
    given = plan(spec(models, stages=STAGES, data__train=str(data)), device="H100", rows=160)
    assert given.stages[0].updates == 20
    assert given.seconds is not None


@pytest.mark.parametrize(
    ("keyword", "value"), [("price_per_hour", -1.0), ("price_per_hour", float("nan")), ("rows", 0)]
)
def test_invalid_arguments_are_refused(models: Path, keyword: str, value: float) -> None:
    with pytest.raises(UsageError, match=keyword):
        plan(spec(models), **{keyword: value})


# --- problems, text and JSON ------------------------------------------------------------------------------------------


def test_prompts_and_responses_longer_than_the_context_are_a_problem(models: Path) -> None:
    found = plan(spec(models, student="short"))
    assert any("512 tokens, but the student has 300 positions" in problem for problem in found.problems)
    assert not plan(spec(models)).problems


def test_missing_device_features_are_a_problem(models: Path) -> None:
    assert any("no bfloat16 units" in problem for problem in plan(spec(models), device="T4").problems)
    quantized = plan(spec(models, teacher__quantization="4bit"), device="cpu")
    assert any("teacher.quantization: 4bit needs a GPU" in problem for problem in quantized.problems)


def test_hub_id_offline_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(models))
    with pytest.raises(MissingRequirementError, match=r"'Qwen/Qwen3-1.7B' is not in the local hub cache"):
        plan(spec(models, teacher__model="Qwen/Qwen3-1.7B"))


def test_text_shows_the_peak_its_largest_part_and_the_fit(models: Path) -> None:
    found = plan(spec(models), device="T4", price_per_hour=0.5)
    text = found.table()
    first = text[text.index("at the peak") :].splitlines()[1]
    assert found.phases[0].largest.name in first
    assert "does not fit T4" in text
    assert str(found.changes[0]) in text
    assert "cost:" in text


def test_json_has_what_the_text_shows(models: Path) -> None:
    found = plan(spec(models), device="T4", price_per_hour=0.5)
    data: Any = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["memory"]["peak_bytes"] == found.peak
    assert data["memory"]["largest_part"] == found.phases[0].largest.name
    assert data["fits"] is False
    assert data["models"]["student"]["parameters"] == found.student.parameters
    assert data["recipe"]["peak_bytes"] == found.recipe.peak if found.recipe else data["recipe"] is None
    assert data["cost"] == list(found.cost or ())


def test_planning_imports_no_torch(models: Path) -> None:
    (models / "spec.json").write_text(spec(models).model_dump_json(), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path\n"
        "from skill_kd.plan import plan; from skill_kd.spec.file import load_spec;"
        "found = plan(load_spec(Path(sys.argv[1])), device='T4'); found.table(); found.to_json();"
        "sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(models / "spec.json")]
    assert subprocess.run(command, check=False).returncode == 0
