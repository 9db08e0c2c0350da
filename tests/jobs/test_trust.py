"""A run folder of somebody else gets no code, server or data without an option, and its verdict does not count."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import py_compile
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import COMMIT, model_with_code, repository, use_cache
from made_run import ANSWER
from tiny import make_model

from skill_kd import evaluate as gate
from skill_kd import plugins
from skill_kd.cli import main
from skill_kd.errors import ExitCode, UsageError
from skill_kd.evaluate import sampling
from skill_kd.handoff import interpreter
from skill_kd.jobs import trust
from skill_kd.jobs.manifest import Manifest
from skill_kd.jobs.run import run
from skill_kd.spec.file import parse_spec
from skill_kd.testing import FakeBackend, minimal_spec

REVERSE = {"kind": "distill", "updates": 2, "objective": {"kind": "reverse_kl"}}
SPEC = parse_spec({**minimal_spec("fake").model_dump(mode="json"), "stages": [REVERSE]})

CODE = {"trust_remote_code": True, "revision": COMMIT}
TEACHER = {"teacher": {"model": "them/teacher", **CODE}}
STUDENT = {"student": {"model": "them/student", **CODE}}
BOTH = {
    "teacher": {"model": [{"model": f"them/{name}", "revision": COMMIT} for name in "ab"], "trust_remote_code": True}
}

ASKED: dict[str, tuple[list[str], dict[str, Any], list[str]]] = {
    "evaluate": (["evaluate", "runs/minimal"], TEACHER, ["'them/teacher'"]),
    "evaluate, its baseline": (["evaluate", "runs/minimal", "--teacher", "ours"], STUDENT, ["'them/student'"]),
    "handoff": (["handoff", "runs/minimal"], STUDENT, ["'them/student'"]),
    "handoff, its teacher": (["handoff", "runs/minimal"], TEACHER, ["'them/teacher'"]),
    "handoff, two teachers": (["handoff", "runs/minimal"], BOTH, ["'them/a'", "'them/b'"]),
    "run": (["run", "runs/minimal/spec.yaml", "--name", "new"], TEACHER, ["'them/teacher'"]),
    "resume": (["run", "runs/minimal/spec.yaml", "--resume"], TEACHER, ["'them/teacher'"]),
}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a finished run, in runs/minimal of the working folder."""
    use_cache(tmp_path, monkeypatch)
    monkeypatch.setattr(plugins, "backends", lambda: {"fake": FakeBackend()})
    monkeypatch.chdir(tmp_path)
    return run(SPEC).folder


def ask_for_code(folder: Path, sections: dict[str, Any]) -> None:
    values = yaml.safe_load((folder / "spec.yaml").read_text())
    values.update({name: {**values[name], **section} for name, section in sections.items()})
    (folder / "spec.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize("case", ASKED)
def test_a_run_that_asks_for_code_needs_the_option(case: str, theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sections, models = ASKED[case]
    ask_for_code(theirs, sections)
    assert main(arguments) == ExitCode.USAGE
    message = capsys.readouterr().err
    assert message.startswith(f"error: {next(iter(sections))}.trust_remote_code: 'runs/minimal/spec.yaml' asks to run")
    assert message.count("\n") == 1
    for words in (*models, f"at revision {COMMIT}", "add --trust-remote-code"):
        assert words in message
    main([*arguments, "--trust-remote-code"])
    assert "asks to run" not in capsys.readouterr().err


def test_a_model_that_the_command_line_replaces_needs_no_option(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask_for_code(theirs, TEACHER)
    main(["evaluate", "runs/minimal", "--teacher", "ours"])
    assert "asks to run" not in capsys.readouterr().err


def test_evaluate_runs_code_only_with_the_option(theirs: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    ran = tmp_path / "ran"
    model_with_code(repository(tmp_path, "them/teacher"), ran)
    make_model(theirs / "student")
    make_model(theirs / "base")
    Path("fresh.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    ask_for_code(theirs, TEACHER)
    asked = ["evaluate", "runs/minimal", "--prompts", "fresh.jsonl", "--baseline", str(theirs / "base")]
    asked += ["--no-latency", "--policy", "text-only", "--max-new-tokens", "2"]
    assert main(asked) == ExitCode.USAGE
    assert not ran.exists()
    assert main([*asked, "--trust-remote-code"]) == ExitCode.INCONCLUSIVE
    assert ran.exists()


def test_the_option_never_allows_the_code_of_the_student_s_folder(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    model_with_code(theirs / "student", tmp_path / "ran")
    make_model("teacher")
    Path("fresh.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    asked = ["--teacher", "teacher", "--prompts", "fresh.jsonl", "--trust-remote-code"]
    assert main(["evaluate", "runs/minimal", *asked]) == ExitCode.ENVIRONMENT
    assert "it needs Python code of its own, which does not run" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_the_option_is_for_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--trust-remote-code"]) == ExitCode.USAGE
    assert "--trust-remote-code allows what a run's spec asks for" in capsys.readouterr().err


def test_a_spec_of_the_user_is_the_consent(theirs: Path) -> None:
    ask_for_code(theirs, TEACHER)
    (theirs / "spec.yaml").rename("spec.yaml")
    assert main(["run", "spec.yaml", "--name", "ours"]) == ExitCode.OK


# --- whose run it is --------------------------------------------------------------------------------------------------

SERVER = {"url": "http://them.test/v1", "model": "m", "top_logprobs": 5, "api_key_env": "MY_KEY"}
SERVED = {"teacher": {"model": None, "served": SERVER}}
VLLM = {"rollout": {"engine": "vllm", "vllm_url": "http://them.test:8000"}}


def change_spec(folder: Path, **sections: dict[str, Any]) -> None:
    values = yaml.safe_load((folder / "spec.yaml").read_text())
    values.update({name: {**(values[name] or {}), **section} for name, section in sections.items()})
    (folder / "spec.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture
def by_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function that seals a run folder with the key of another user."""

    def seal_again(folder: Path) -> None:
        with monkeypatch.context() as patched:
            patched.setenv("XDG_STATE_HOME", str(tmp_path / "their state"))
            trust.sealed(Manifest.read(folder), trust.read_spec(folder)).write(folder)

    return seal_again


def test_a_run_is_the_user_s_own_also_after_it_was_moved_copied_and_resumed(theirs: Path, tmp_path: Path) -> None:
    assert trust.is_own(theirs)
    assert trust.is_own(Path(shutil.copytree(theirs, tmp_path / "copy")))
    moved = theirs.rename(tmp_path / "moved")
    assert trust.is_own(moved)
    moved.rename(theirs)
    replace(Manifest.read(theirs), status="interrupted", exit_code=130, finished=None, pid=1).write(theirs)
    assert trust.is_own(theirs)
    run(SPEC, resume=True)
    assert Manifest.read(theirs).status == "done"
    assert trust.is_own(theirs)


def test_a_run_that_became_longer_is_still_the_user_s_own(theirs: Path) -> None:
    (theirs / "checkpoints" / "0-1").mkdir(parents=True)
    longer = parse_spec({**SPEC.model_dump(mode="json"), "stages": [{**REVERSE, "updates": 3}]})
    before = {name: (theirs / name).read_bytes() for name in ("spec.yaml", "train.py")}
    run(longer, resume=True)
    assert trust.is_own(theirs)
    # As if it had been killed after it wrote the manifest.
    for name, content in before.items():
        assert (theirs / name).read_bytes() != content
        (theirs / name).write_bytes(content)
    assert not trust.is_own(theirs)
    run(longer, resume=True)
    assert trust.is_own(theirs)


@pytest.mark.parametrize("field", ["script_hash", "spec_hash", "cwd", "edited", "seal"])
def test_a_manifest_that_somebody_changed_is_not_the_user_s_own(field: str, theirs: Path) -> None:
    value = True if field == "edited" else None if field == "seal" else "other"
    replace(Manifest.read(theirs), **{field: value}).write(theirs)
    assert not trust.is_own(theirs)


def test_a_spec_that_somebody_changed_and_another_user_s_seal_are_not_the_user_s_own(
    theirs: Path, by_them: Callable[[Path], None]
) -> None:
    with (theirs / "spec.yaml").open("a") as file:
        file.write("\n")
    assert not trust.is_own(theirs)
    by_them(theirs)
    assert Manifest.read(theirs).seal
    assert not trust.is_own(theirs)


def test_resume_makes_a_foreign_run_the_user_s_own_only_with_the_option(
    theirs: Path, by_them: Callable[[Path], None]
) -> None:
    by_them(theirs)
    shutil.rmtree(theirs / "student")
    assert main(["run", "runs/minimal/spec.yaml", "--resume"]) == ExitCode.OK
    assert not trust.is_own(theirs)
    shutil.rmtree(theirs / "student")
    assert main(["run", "runs/minimal/spec.yaml", "--resume", "--trust-run"]) == ExitCode.OK
    assert trust.is_own(theirs)


# --- the key ----------------------------------------------------------------------------------------------------------


def seal_elsewhere(_: int) -> str | None:
    return trust.seal("part")


def test_processes_that_start_together_make_one_key_which_only_the_user_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        seals = pool.map(seal_elsewhere, range(8), chunksize=1)
    assert seals == [trust.seal("part")] * 8
    assert None not in seals
    [key] = (tmp_path / "state" / "skill-kd").iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32


def test_a_seal_fits_only_its_parts() -> None:
    sealed = trust.seal("a", "bc")
    assert trust.fits(sealed, "a", "bc")
    for parts in (("ab", "c"), ("a", "bd"), ("a",), ("a", "bc", "")):
        assert not trust.fits(sealed, *parts)
    for other in (None, 3, "", "é", [sealed]):
        assert not trust.fits(other, "a", "bc")


def test_a_relative_state_folder_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert trust.seal("part")
    assert (tmp_path / "home/.local/state/skill-kd/key").is_file()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("broken", ["no folder", "cut", "a link"])
def test_without_a_key_a_run_ends_well_and_one_note_says_what_follows(
    broken: str, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    if broken == "no folder":
        state.write_text("")
    else:
        (state / "skill-kd").mkdir(parents=True)
        (state / "other").write_bytes(bytes(32))
        key = state / "skill-kd" / "key"
        key.write_bytes(b"short") if broken == "cut" else key.symlink_to(state / "other")
    shutil.copy(theirs / "spec.yaml", "spec.yaml")
    assert main(["run", "spec.yaml", "--name", "new"]) == ExitCode.OK
    said = capsys.readouterr().err
    assert said.count("note: the key in ") == said.count("may ask for --trust-run") == 1
    assert not trust.is_own(Path("runs/new"))


# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "named", "arguments"),
    [
        (SERVED, "spec.yaml", ["--name", "new"]),
        (SERVED, "train.py", ["--resume"]),
        (SERVED, "train.py", ["--name", "new", "--dry-run"]),
        (VLLM, "spec.yaml", ["--resume"]),
    ],
)
def test_a_server_of_a_foreign_run_gets_nothing_without_the_option(
    sections: dict[str, Any],
    named: str,
    arguments: list[str],
    theirs: Path,
    by_them: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(theirs)
    values = SPEC.model_dump(mode="json")
    values = {**values, **{name: {**values[name], **section} for name, section in sections.items()}}
    Path("ours.yaml").write_text(yaml.safe_dump(values))
    assert main(["run", "ours.yaml"]) == ExitCode.OK
    assert main(["run", f"runs/minimal/{named}", "--name", "mine"]) == ExitCode.OK  # the user's own
    by_them(theirs)
    capsys.readouterr()
    assert main(["run", f"runs/minimal/{named}", *arguments]) == ExitCode.USAGE
    said = capsys.readouterr().err
    words = ["teacher.served.url", "'http://them.test/v1'", "MY_KEY"]
    words = words if sections is SERVED else ["rollout.vllm_url", "'http://them.test:8000'"]
    for each in (*words, f"'runs/minimal/{named}'", "add --trust-run"):
        assert each in said
    assert not Path("runs/new").exists()
    assert main(["run", f"runs/minimal/{named}", *arguments, "--trust-run"]) == ExitCode.OK


def test_another_spec_in_an_own_run_folder_is_not_the_user_s(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(theirs / "spec.yaml", theirs / "other.yaml")
    values = yaml.safe_load((theirs / "other.yaml").read_text())
    (theirs / "other.yaml").write_text(
        yaml.safe_dump({**values, "teacher": {**values["teacher"], **SERVED["teacher"]}})
    )
    assert main(["run", "runs/minimal/other.yaml", "--name", "new"]) == ExitCode.USAGE
    assert "teacher.served.url" in capsys.readouterr().err


# --- data -------------------------------------------------------------------------------------------------------------


class SampledError(Exception):
    """Sampling began."""


@pytest.fixture
def ready(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the run with a teacher that is there, in a folder with a private file. It is not sampled."""

    def sampled(task: sampling.SamplingTask, *_: object) -> None:
        raise SampledError(task.prompts)

    monkeypatch.setattr(sampling, "sample", sampled)
    make_model(tmp_path / "teacher")
    Path("private.jsonl").write_text('{"prompt": "my secret", "reference": "x"}\n' * 2)
    change_spec(theirs, teacher={"model": str(tmp_path / "teacher")})
    return theirs


def begins(folder: Path, **asked: Any) -> Path:
    """Return the prompts that an evaluation would sample."""
    with pytest.raises(SampledError) as caught:
        gate.evaluate(gate.Request(str(folder), **{"policy": "text-only", **asked}))
    return Path(caught.value.args[0])


DATA: dict[str, dict[str, Any]] = {
    "evaluation.prompts": {"evaluation": {"prompts": "private.jsonl"}},
    "data.train": {"data": {"train": "private.jsonl"}},
    "data.train ": {"data": {"train": "me/private@main"}},
    "data.held_out": {"data": {"train": "runs/minimal/p.jsonl", "held_out": "private.jsonl"}},
}


@pytest.mark.parametrize("field", DATA)
def test_evaluate_reads_no_private_data_for_a_foreign_run(field: str, ready: Path) -> None:
    (ready / "p.jsonl").write_text('{"prompt": "theirs"}\n')
    change_spec(ready, **DATA[field])
    (section,) = DATA[field].values()
    value = list(section.values())[-1]
    with pytest.raises(UsageError, match=rf"{field.strip()}: '{value}' is outside of .* add --trust-run"):
        gate.evaluate(gate.Request(str(ready)))
    assert not (ready / "eval").exists()


def test_an_own_run_and_the_option_read_the_data(ready: Path) -> None:
    change_spec(ready, evaluation={"prompts": "private.jsonl"})
    assert begins(ready, trust_run=True).name == "private.jsonl"
    trust.sealed(Manifest.read(ready), trust.read_spec(ready)).write(ready)
    assert begins(ready).name == "private.jsonl"


def test_a_foreign_run_may_read_files_of_its_own_but_not_through_a_link(ready: Path) -> None:
    (ready / "data").mkdir()
    inside = ready / "data" / "p.jsonl"
    inside.write_text('{"prompt": "theirs", "reference": "x"}\n')
    change_spec(ready, evaluation={"prompts": "runs/minimal/data/p.jsonl"})
    assert begins(ready).name == "p.jsonl"
    inside.unlink()
    inside.symlink_to(Path("private.jsonl").absolute())
    with pytest.raises(UsageError, match=r"evaluation\.prompts: .* is outside of the run folder"):
        gate.evaluate(gate.Request(str(ready)))


def test_a_foreign_run_is_evaluated_on_given_prompts_without_the_option(ready: Path) -> None:
    change_spec(ready, data={"train": "private.jsonl"}, evaluation={"prompts": "private.jsonl"})
    Path("fresh.jsonl").write_text('{"prompt": "my secret"}\n')
    # The prompts are those of the private file, which is not read to find that out.
    assert begins(ready, prompts=Path("fresh.jsonl")).name == "fresh.jsonl"
    with pytest.raises(UsageError, match=r"are also in 'private\.jsonl'"):
        gate.evaluate(gate.Request(str(ready), prompts=Path("fresh.jsonl"), training_data=Path("private.jsonl")))


# --- handoff ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the questions that a hand-off asks about the run, which is the user's own."""
    questions: list[dict[str, Any]] = []
    (theirs / "student" / "config.json").write_text('{"dtype": "float32"}')
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (theirs / "student" / name).write_text("{}")
    monkeypatch.setattr(interpreter, "ask", lambda _python, question, _where: questions.append(question) or ANSWER)
    monkeypatch.setattr(interpreter, "version", lambda *_: "1")
    Path("private.jsonl").write_text('{"prompt": "p", "response": "secret"}\n')
    return questions


HANDED: dict[str, tuple[list[str], dict[str, Any], list[str], list[str]]] = {
    "data": (
        [],
        {"handoff": {"data": "private.jsonl"}},
        ["handoff.data: 'private.jsonl'"],
        ["--data", "private.jsonl"],
    ),
    "drift": (["--execute"], {"data": {"train": "private.jsonl"}}, ["data.train: 'private.jsonl'"], ["--no-drift"]),
    "server": (
        ["--execute"],
        SERVED,
        ["teacher.served.url: ", "'http://them.test/v1'", "the key in MY_KEY"],
        ["--no-drift"],
    ),
}


@pytest.mark.parametrize("case", HANDED)
def test_handoff_of_a_foreign_run_reads_no_private_data_and_calls_no_server(
    case: str,
    theirs: Path,
    asked: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("skill_kd.handoff.step.finetune", lambda *_, **_options: [])
    options, sections, words, instead = HANDED[case]
    change_spec(theirs, **sections)
    assert main(["handoff", "runs/minimal", *options]) == ExitCode.USAGE
    said = capsys.readouterr().err
    for each in (*words, instead[0], "add --trust-run"):
        assert each in said
    assert not asked
    for more in (["--trust-run"], instead):
        main(["handoff", "runs/minimal", *options, *more])
        assert "--trust-run" not in capsys.readouterr().err.partition("error: ")[2]
        assert asked


def test_a_verdict_counts_only_in_an_own_run(
    theirs: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], by_them: Callable[[Path], None]
) -> None:
    (theirs / "eval").mkdir()
    (theirs / "eval" / "evaluation.json").write_text('{"verdict": "GO"}')
    record = theirs / "handoff" / "manifest.json"
    assert main(["handoff", "runs/minimal"]) == ExitCode.OK
    assert "the gate's verdict is GO" in capsys.readouterr().out
    assert json.loads(record.read_text())["verdict"] == "GO"
    by_them(theirs)
    assert main(["handoff", "runs/minimal"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "eval/evaluation.json' is not counted" in said
    assert "GO" not in said
    assert json.loads(record.read_text())["verdict"] is None
    assert main(["handoff", "runs/minimal", "--trust-run"]) == ExitCode.OK
    assert json.loads(record.read_text())["verdict"] == "GO"


@pytest.mark.parametrize("name", ["finetune.py", "kd/__init__.py"])
def test_an_edited_script_of_a_foreign_run_does_not_run(
    name: str,
    theirs: Path,
    asked: list[dict[str, Any]],
    by_them: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    execute = ["handoff", "runs/minimal", "--data", "private.jsonl", "--execute", "--no-drift"]
    assert main(["handoff", "runs/minimal"]) == ExitCode.OK
    script, ran = theirs / "handoff" / "finetune.py", theirs.parent / "ran"
    code = f"open({str(ran)!r}, 'a').close()\n"
    script.write_text("import kd\n" if name.startswith("kd") else code)
    if name.startswith("kd"):
        (theirs / "handoff" / name).write_text(code)
    by_them(theirs)
    assert main(execute) == ExitCode.USAGE
    edited = "finetune.py and kd" if name.startswith("kd") else "finetune.py"
    assert (
        f"'{theirs.absolute()}/handoff' has an edited {edited}, and --execute would run it; somebody else"
        in capsys.readouterr().err
    )
    assert not ran.exists()
    main([*execute, "--trust-run"])
    assert ran.exists()


@pytest.mark.parametrize("planted", ["json.py", "kd/__pycache__"])
@pytest.mark.usefixtures("asked")
def test_code_that_no_hash_covers_does_not_run_with_the_fine_tune(
    planted: str, theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["handoff", "runs/minimal"]) == ExitCode.OK
    folder, ran = theirs / "handoff", theirs.parent / "ran"
    (folder / "finetune.py").write_text("import json, kd\n")
    (folder / "kd" / "mine.py").write_text("")  # an edited kd/ stays
    if planted == "json.py":
        (folder / planted).write_text(f"open({str(ran)!r}, 'a').close()")
    else:
        source = theirs / "other.txt"
        source.write_text(f"open({str(ran)!r}, 'a').close()")
        cache = importlib.util.cache_from_source(str(folder / "kd" / "__init__.py"))
        py_compile.compile(str(source), cache, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    main(["handoff", "runs/minimal", "--data", "private.jsonl", "--execute", "--no-drift"])
    assert ("handoff/json.py' instead of an installed package" in capsys.readouterr().err) == (planted == "json.py")
    assert not ran.exists()
