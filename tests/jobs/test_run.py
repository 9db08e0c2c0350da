"""Runs: the content of a run folder, the report of each ending, and that nothing is lost or half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from skill_kd import plugins
from skill_kd.errors import (
    InterruptedRunError,
    MissingRequirementError,
    OutOfMemoryError,
    RunLockedError,
    SkillKDError,
    SpecError,
    TrainingFailedError,
    UsageError,
)
from skill_kd.jobs.folder import write_folder
from skill_kd.jobs.job import check_generated, generate, prepare
from skill_kd.jobs.manifest import Manifest, locked
from skill_kd.jobs.process import Event, Transcript
from skill_kd.jobs.run import RunResult, run, run_script
from skill_kd.render import fill
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec
from skill_kd.testing import FakeBackend

TEMPLATE = '''"""A trainer that trains nothing; student.model says how it ends."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from skill_kd.kd.config import Config

CONFIG = Config.read(sys.argv[1])  # kd: config
HERE = Path(__file__).parent


def event(**values: object) -> None:
    with (HERE / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\\n")


def wait(stopped: list[int]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    event(event="note", text="ready")
    while not stopped or CONFIG.student.model == "stubborn":
        time.sleep(0.01)
    if CONFIG.student.model == "launcher":
        sys.exit(1)
    (HERE / "checkpoints").mkdir()
    print("error: stopped", file=sys.stderr)
    sys.exit(128 + stopped[0])


def main(how: str) -> None:
    print("\\rstep 0\\rstep 1\\rstep 2")
    print("note: \\x1b[31m\\u202e\\rGO")
    print("environment", os.environ["TQDM_MININTERVAL"], "PYTHONDONTWRITEBYTECODE" in os.environ, file=sys.stderr)
    if how in ("wait", "stubborn", "launcher") and "--resume" not in sys.argv:
        wait([])
    if how == "defenceless":
        event(event="note", text="ready")
        time.sleep(60)
    if how == "slow writer":
        with (HERE / "metrics.jsonl").open("a", buffering=1) as file:
            file.write('not JSON\\n{"event": ')
            file.flush()
            time.sleep(0.3)
            file.write('"note"}\\n')
    if how == "leaky":
        print("Authorization: Bearer", os.environ["THEIR_API_KEY"])
        print(os.environ["DEPLOY_KEY"], os.environ["DB_PASSWORD"], os.environ["CI_TOKEN"], os.environ["KEYBOARD"])
        print(os.environ["CLIENT_SECRET"], os.environ["my_api_key"])
        print("error: refused", os.environ["SESSION_TOKEN"], file=sys.stderr)
        sys.exit(5)
    if how == "crash":
        raise KeyError("no such token")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("memory "):
        print("error: out of memory: it asked for too much", file=sys.stderr)
        sys.exit(int(how.removeprefix("memory ")))
    if how.isdigit():
        print(f"error: ends with {how}\\nand a launcher's farewell", file=sys.stderr)
        sys.exit(int(how))
    event(event="done", resumed="--resume" in sys.argv, cwd=os.getcwd())
    if how == "studentless":
        return
    (HERE / "student").mkdir(exist_ok=True)
    (HERE / "student" / "config.json").write_text("{}")
    header = b'{"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    (HERE / "student" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (HERE / "checkpoints" / "0-00000001").mkdir(parents=True, exist_ok=True)
    (HERE / "summary.json").write_text(json.dumps({"reverse_kl": 0.5}))


main(CONFIG.student.model)
'''


class Trainer(FakeBackend):
    needs: tuple[str, ...] = ()

    @property
    def requirements(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.needs

    def render(self, spec: Spec) -> str:
        if spec.student.model == "unrenderable":
            raise RuntimeError("the template is broken")
        return fill(TEMPLATE, spec, self)

    assert not Path("runs").exists()

    def command(self, script: Path, spec: Spec) -> list[str]:
        program = "no-such-launcher" if spec.student.model == "unlaunchable" else sys.executable
        return [program, str(script)]


@pytest.fixture(autouse=True)
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainer:
    backend = Trainer()
    monkeypatch.setattr(plugins, "backends", lambda: {"fake": backend})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return backend


def spec_that(ends: str = "well", **changes: object) -> Spec:
    values = {"name": "demo", "backend": "fake", "teacher": {"model": "t"}, "data": {"train": "prompts.jsonl"}}
    return parse_spec({**values, "student": {"model": ends}, **changes})


def events_of(result: RunResult) -> list[Event]:
    return [json.loads(line) for line in result.metrics.read_text().splitlines()]


def on_ready(*numbers: int) -> Callable[[Event], None]:
    """Send us ``numbers`` when the trainer waits to be stopped."""

    def on_event(event: Event) -> None:
        if event.get("text") == "ready":
            for number in numbers:
                os.kill(os.getpid(), number)

    return on_event


def stop(spec: Spec, *numbers: int) -> InterruptedRunError:
    with pytest.raises(InterruptedRunError) as caught:
        run(spec, on_event=on_ready(*numbers))
    return caught.value


# --- a run that ends well ---------------------------------------------------------------------------------------------


def test_a_run_leaves_everything_in_its_folder(tmp_path: Path) -> None:
    spec = spec_that(data={"train": 'prömpts: "#\n\u2028{{x}}'})
    seen: list[Event] = []
    result = run(spec, on_event=seen.append)
    folder = Path("runs") / "demo"
    assert result.folder == folder
    assert result.student.is_dir()
    assert result.summary == {"reverse_kl": 0.5}
    assert result.seconds > 0
    expected = {"spec.yaml", "train.py", "kd", "manifest.json", "metrics.jsonl", "train.log", "student", "summary.json"}
    assert expected <= {path.name for path in folder.iterdir()}
    assert parse_spec(yaml.safe_load((folder / "spec.yaml").read_text())) == spec
    assert (folder / "kd" / "config.py").is_file()
    assert seen == events_of(result) == [{"event": "done", "resumed": False, "cwd": str(tmp_path)}]
    assert [path.name for path in Path("runs").iterdir()] == ["demo"]


def test_the_manifest_of_a_run_that_is_done() -> None:
    spec = spec_that()
    folder = run(spec).folder
    manifest = Manifest.read(folder)
    assert (manifest.status, manifest.exit_code, manifest.reason) == ("done", 0, None)
    assert (manifest.spec_hash, manifest.backend, manifest.edited) == (spec.hash, "fake", False)
    assert manifest.command == (sys.executable, str((folder / "train.py").absolute()))
    assert manifest.finished is not None
    assert manifest.started <= manifest.finished
    assert manifest.started.endswith("+00:00")


def test_an_event_is_reported_when_its_line_is_complete() -> None:
    seen: list[Event] = []
    run(spec_that("slow writer"), on_event=seen.append)
    assert [event["event"] for event in seen] == ["note", "done"]


def test_bars_reach_the_terminal_alive_and_the_log_dead_and_nothing_steers_either(
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = run(spec_that()).folder
    shown, note = capfd.readouterr(), r"note: \x1b[31m\u202e"
    assert f"\rstep 0\rstep 1\rstep 2\n{note}\\rGO\n" in shown.err
    assert shown.out == ""
    assert (folder / "train.log").read_text().splitlines() == ["step 2", rf"{note}\rGO", "environment 1 False"]


# --- refusals before anything is written ------------------------------------------------------------------------------


def test_an_existing_name_is_refused_and_stays_as_it_is() -> None:
    folder = run(spec_that()).folder
    before = (folder / "manifest.json").read_text()
    with pytest.raises(UsageError, match=r"'runs/demo' exists; resume with --resume"):
        run(spec_that())
    assert (folder / "manifest.json").read_text() == before


def test_all_problems_of_the_backend_are_reported_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "check", lambda self, spec: ["a: 1 is refused", "b: 2 is refused"])
    with pytest.raises(SpecError, match=r"a: 1 is refused\n.*b: 2 is refused"):
        run(spec_that())
    assert not Path("runs").exists()


def test_missing_packages_are_named_with_the_command_that_installs_them(trainer: Trainer) -> None:
    trainer.needs = ("no-such-package>=2", "click", "nor-this-one")
    with pytest.raises(MissingRequirementError, match=r"pip install 'no-such-package>=2' nor-this-one$"):
        run(spec_that())
    assert not Path("runs").exists()


def test_nothing_half_written_stays_when_rendering_breaks() -> None:
    with pytest.raises(RuntimeError, match="the template is broken"):
        run(spec_that("unrenderable"))
    assert not Path("runs").exists()


@pytest.mark.parametrize("in_the_way", ["runs", "runs/demo"])
def test_a_file_in_the_way_is_one_clear_message(in_the_way: str) -> None:
    Path(in_the_way).parent.mkdir(exist_ok=True)
    Path(in_the_way).write_text("mine")
    with pytest.raises(UsageError, match="'runs/demo'"):
        run(spec_that())
    assert Path(in_the_way).read_text() == "mine"


KILLED = (
    "killed, probably out of memory: raise training.accumulate, set training.gradient_checkpointing: true, or lower "
    "rollout.max_new_tokens; `skill-kd plan` shows what uses the memory"
)

# --- runs that end badly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "error", "reason"),
    [
        ("2", UsageError, "ends with 2"),
        ("5", MissingRequirementError, "ends with 5"),
        ("6", TrainingFailedError, "ends with 6"),
        ("1", TrainingFailedError, "ends with 1"),
        ("memory 6", OutOfMemoryError, "out of memory: it asked for too much"),
        ("memory 1", OutOfMemoryError, "out of memory: it asked for too much"),
        ("memory 2", UsageError, "out of memory: it asked for too much"),
        ("130", InterruptedRunError, "stopped by SIGINT; resume with --resume"),
        ("143", InterruptedRunError, "stopped by SIGTERM; resume with --resume"),
        ("137", OutOfMemoryError, KILLED),
        ("killed", OutOfMemoryError, KILLED),
        ("crash", TrainingFailedError, "KeyError: 'no such token'"),
        ("unlaunchable", MissingRequirementError, "cannot start 'no-such-launcher': No such file or directory"),
    ],
)
def test_a_failed_run_keeps_its_reason_its_code_and_its_log(ends: str, error: type[SkillKDError], reason: str) -> None:
    with pytest.raises(error) as caught:
        run(spec_that(ends))
    assert type(caught.value) is error
    manifest = Manifest.read(Path("runs/demo"))
    assert str(caught.value) == manifest.reason == reason
    assert manifest.exit_code == caught.value.exit_code
    assert manifest.status == ("interrupted" if error is InterruptedRunError else "failed")
    assert ("step 2" in Path("runs/demo/train.log").read_text()) == (ends != "unlaunchable")


def test_a_failed_run_names_its_log() -> None:
    with pytest.raises(TrainingFailedError) as caught:
        run(spec_that("6"))
    assert caught.value.__notes__ == [f"log: {Path('runs/demo/train.log')}"]


def test_an_error_of_the_caller_ends_the_trainer_and_the_manifest() -> None:
    pids: list[int] = []

    def on_event(event: Event) -> None:
        pids.append(Manifest.read(Path("runs/demo")).pid or 0)
        raise ZeroDivisionError("in the caller")

    with pytest.raises(ZeroDivisionError):
        run(spec_that("stubborn"), on_event=on_event)
    manifest = Manifest.read(Path("runs/demo"))
    assert (manifest.status, manifest.exit_code, manifest.reason) == ("failed", 1, "in the caller")
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)], ids=str
)
def test_a_signal_lets_the_trainer_write_its_checkpoint(number: int, code: int) -> None:
    handler = signal.getsignal(number)
    error = stop(spec_that("wait"), number)
    assert error.exit_code == code
    assert Path("runs/demo/checkpoints").is_dir()
    manifest = Manifest.read(Path("runs/demo"))
    assert (manifest.status, manifest.exit_code) == ("interrupted", code)
    assert signal.getsignal(number) == handler


@pytest.mark.parametrize("ends", ["defenceless", "launcher"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_a_signal_ended_was_interrupted_whatever_the_trainer_returns(ends: str, number: int, code: int) -> None:
    assert stop(spec_that(ends), number).exit_code == code


def test_a_second_interrupt_kills_a_trainer_that_will_not_stop() -> None:
    assert stop(spec_that("stubborn"), signal.SIGINT, signal.SIGINT).exit_code == 130
    assert Manifest.read(Path("runs/demo")).status == "interrupted"


def test_a_second_termination_still_waits_for_the_checkpoint() -> None:
    stop(spec_that("wait"), signal.SIGTERM, signal.SIGTERM)
    assert Path("runs/demo/checkpoints").is_dir()


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        error = stop(spec_that("wait"), signal.SIGHUP, signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert error.exit_code == 130


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_stopped_run_resumes_where_it_stopped() -> None:
    spec = spec_that("wait")
    stop(spec, signal.SIGTERM)
    seen: list[Event] = []
    result = run(spec, resume=True, on_event=seen.append)
    assert [event["resumed"] for event in seen] == [True]
    manifest = Manifest.read(result.folder)
    assert (manifest.status, manifest.reason, manifest.command[-1]) == ("done", None, "--resume")
    assert (result.folder / "train.log").read_text().count("step 2") == 2


def test_resuming_a_run_that_is_done_does_nothing() -> None:
    result = run(spec_that())
    assert run(spec_that(), resume=True).folder == result.folder
    assert len(events_of(result)) == 1


def test_a_run_that_was_never_started_is_not_resumed() -> None:
    with pytest.raises(
        UsageError, match="run folder 'runs/demo' does not exist, so it cannot be resumed; start without --resume"
    ):
        run(spec_that(), resume=True)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"command": []}'])
def test_a_folder_that_is_not_a_run_is_not_resumed(content: str | None) -> None:
    Path("runs/demo").mkdir(parents=True)
    if content is not None:
        Path("runs/demo/manifest.json").write_text(content)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        run(spec_that(), resume=True)


def test_another_spec_cannot_take_over_a_run() -> None:
    stop(spec_that("wait"), signal.SIGINT)
    with pytest.raises(SpecError, match="the difference is in 'seed', 'rollout'; undo"):
        run(spec_that("wait", seed=7, rollout={"temperature": 0.5}), resume=True)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"processes": 2, "strategy": "ddp"}),
        ({"processes": 2, "strategy": "ddp"}, {}),
        ({"processes": 2, "strategy": "fsdp2"}, {"processes": 4, "nodes": 2, "strategy": "fsdp2"}),
    ],
)
def test_another_number_of_processes_resumes_a_run(before: dict[str, object], now: dict[str, object]) -> None:
    spec = spec_that("wait", launch=before)
    stop(spec, signal.SIGINT)
    folder = run(spec_that("wait", launch=now), resume=True).folder
    manifest = Manifest.read(folder)
    assert (manifest.status, manifest.spec_hash) == ("done", spec.hash)
    assert parse_spec(yaml.safe_load((folder / "spec.yaml").read_text())) == spec


@pytest.mark.parametrize(
    "now",
    [
        {"processes": 2, "strategy": "fsdp2"},
        {"processes": 2, "strategy": "ddp", "shard_teacher": True},
    ],
)
def test_a_run_is_not_resumed_with_another_sharding(now: dict[str, object]) -> None:
    stop(spec_that("wait", launch={"processes": 2, "strategy": "ddp"}), signal.SIGINT)
    with pytest.raises(SpecError, match="the difference is in 'launch'; undo"):
        run(spec_that("wait", launch=now), resume=True)


def test_a_run_of_a_version_with_fewer_keys_is_resumed() -> None:
    spec = spec_that("wait")
    stop(spec, signal.SIGINT)
    folder = Path("runs/demo")
    replace(Manifest.read(folder), spec_hash="0" * 64).write(folder)
    assert run(spec, resume=True).student.is_dir()


def test_a_script_edited_under_its_checkpoints_is_not_resumed() -> None:
    spec = spec_that("wait")
    stop(spec, signal.SIGINT)
    script = Path("runs/demo/train.py")
    script.write_text(script.read_text().replace("step 2", "step 3"))
    with pytest.raises(UsageError, match=r"was edited since the run began; to run the edited script: .* --name NEW"):
        run(spec, resume=True)


# --- one process at a time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "0", "-1", "1 -9", "$(reboot)", "9" * 5000, "\x1b[2J", "٣"])
def test_only_a_number_in_a_lock_is_named_as_a_process(text: str) -> None:
    with locked(Path()):
        Path(".lock").write_text(text, encoding="utf-8")
        with pytest.raises(RunLockedError) as refused, locked(Path()):
            pass
    assert str(refused.value).startswith("'.' is in use by another process; wait for it")
    assert "kill" not in str(refused.value)


def test_a_second_run_in_one_folder_is_refused_while_the_first_one_runs() -> None:
    spec = spec_that("wait")

    def on_event(event: Event) -> None:
        trainer = Manifest.read(Path("runs/demo")).pid
        with pytest.raises(RunLockedError, match=rf"'runs/demo' is in use by process {trainer}; .* kill {trainer}$"):
            run(spec, resume=True)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        run(spec, on_event=on_event)
    assert run(spec, resume=True).student.is_dir()


def test_a_lock_outlives_the_launcher_as_long_as_the_trainer_lives(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        trainer = subprocess.Popen(["sleep", "60"], pass_fds=[lock.descriptor])
        lock.name_holder(2**40)
        lock.name_holder(trainer.pid)
    try:
        with pytest.raises(RunLockedError, match=rf"process {trainer.pid};"), locked(tmp_path):
            pass
    finally:
        trainer.kill()
        trainer.wait()
    with locked(tmp_path):
        pass


# --- generated scripts ------------------------------------------------------------------------------------------------


def edited_script(spec: Spec) -> Path:
    write_folder(Trainer().render(spec), Path("mine"))
    script = Path("mine/train.py")
    script.write_text(script.read_text().replace("step 2", "my step"))
    return script


def test_an_edited_script_runs_as_it_is() -> None:
    script = edited_script(spec_that())
    cache = Path("kd", "__pycache__", "stale.pyc")
    (script.parent / cache).parent.mkdir()
    (script.parent / cache).touch()
    folder = run_script(script).folder
    assert not (folder / cache).exists()
    assert (folder / "train.py").read_bytes() == script.read_bytes()
    assert (folder / "train.log").read_text().startswith("my step\n")
    assert Manifest.read(folder).edited
    assert yaml.safe_load((folder / "spec.yaml").read_text())["name"] == "demo"


def test_an_untouched_script_is_not_called_edited_and_takes_another_name() -> None:
    write_folder(Trainer().render(spec_that()), Path("mine"))
    result = run_script(Path("mine/train.py"), Path("elsewhere"), name="again")
    assert result.folder == Path("elsewhere/again")
    assert not Manifest.read(result.folder).edited


def test_an_edited_kd_is_an_edit() -> None:
    write_folder(Trainer().render(spec_that()), Path("mine"))
    with Path("mine/kd/config.py").open("a") as file:
        file.write("# mine\n")
    assert Manifest.read(run_script(Path("mine/train.py")).folder).edited


def test_an_edited_run_resumes_only_with_its_own_script() -> None:
    script = edited_script(spec_that("wait"))
    with pytest.raises(InterruptedRunError):
        run_script(script, on_event=on_ready(signal.SIGTERM))
    assert run_script(script, resume=True).student.is_dir()
    script.write_text(script.read_text().replace("my step", "my other step"))
    with pytest.raises(UsageError, match=r"differs from 'mine/train\.py'"):
        run_script(script, resume=True)


def test_an_edited_run_may_be_edited_again_in_its_folder() -> None:
    spec = spec_that("wait")
    with pytest.raises(InterruptedRunError):
        run_script(edited_script(spec), on_event=on_ready(signal.SIGTERM))
    script = Path("runs/demo/train.py")
    script.write_text(script.read_text().replace("my step", "my other step"))
    folder = run(spec, resume=True).folder
    assert Manifest.read(folder).edited
    assert "my other step" in (folder / "train.log").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("# /// script", "# nothing"), "header"),
        (('name="demo"', 'name="de" + "mo"'), "CONFIG"),
        (("seed=42", "sede=42"), "did you mean 'seed'"),
        (("def main(", "def main("), "there is no kd/ next to"),
    ],
)
def test_a_script_that_was_not_generated_is_refused(change: tuple[str, str], message: str) -> None:
    text = Trainer().render(spec_that())
    Path("lost.py").write_text(text.replace(*change))
    if change[0] != change[1]:
        Path("kd").mkdir()
    with pytest.raises(UsageError, match=message):
        run_script(Path("lost.py"))
    assert not Path("runs").exists()


def test_a_script_that_is_not_there_or_too_long_is_refused() -> None:
    Path("long.py").write_text("#" * 1_000_001)
    with pytest.raises(UsageError, match=r"long\.py' has 1000001 bytes, and at most 1000000 are read"):
        run_script(Path("long.py"))
    with pytest.raises(UsageError, match=r"cannot read script 'train\.py': No such file"):
        run_script(Path("train.py"))


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", [False, True])
def test_generated_files_are_recognized_and_edits_are_not_overwritten(notebook: bool) -> None:
    spec, target = spec_that(), Path("out")
    with pytest.raises(UsageError, match="missing"):
        check_generated(spec, target, notebook=notebook)
    written = generate(spec, target, notebook=notebook)
    assert all(path.exists() for path in written)
    check_generated(spec, target, notebook=notebook)
    written[0].write_text(written[0].read_text().replace("step 2", "my step"))
    with pytest.raises(UsageError, match=r"edited|changed"):
        check_generated(spec, target, notebook=notebook)
    with pytest.raises(UsageError, match="--force"):
        generate(spec, target, notebook=notebook)
    generate(spec, target, notebook=notebook, force=True)
    check_generated(spec, target, notebook=notebook)


def test_a_notebook_that_cannot_be_written_is_one_clear_message() -> None:
    Path("out").write_text("mine")
    with pytest.raises(UsageError, match=r"cannot write 'out/train\.ipynb'"):
        generate(spec_that(), Path("out"), notebook=True)


def test_the_script_of_a_run_is_the_one_that_generate_writes() -> None:
    spec = spec_that()
    script, _ = generate(spec, Path("out"))
    assert (run(spec).folder / "train.py").read_bytes() == script.read_bytes()
    assert prepare(spec).command()[-1].endswith("runs/demo/train.py")


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_of_a_redrawn_line_the_log_keeps_the_last_state_however_it_is_cut(size: int, tmp_path: Path) -> None:
    output = b"plain\n\r 0%\r 50%\r100%\r\nwindows\r\n\r\x1b[A 1/2\r 2/2\nerror: a\rb\nlast"
    with (tmp_path / "log").open("wb", buffering=0) as file:
        transcript = Transcript(file)
        for start in range(0, len(output), size):
            transcript.feed(output[start : start + size])
        transcript.close()
    assert (tmp_path / "log").read_bytes() == b"plain\n100%\nwindows\n 2/2\nerror: a\\rb\nlast\n"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (b"error: first\nerror: second\nbye\n", "second"),
        (b"[rank0]: error: of a rank\nTraceback\n", "of a rank"),
        (b"no error: here\n\n  \n", "no error: here"),
        (b"\r50%|###\r\r  \rerror: after a bar", "after a bar"),
        (b"error: \x1b[31mred\x07\n", r"\x1b[31mred\x07"),
        (b"\r 1/2\n\r 1/2\r\x1b[Aerror: between bars\n", "between bars"),
        (b"", ""),
    ],
)
def test_the_last_words_are_the_last_error_else_the_last_line(output: bytes, words: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        transcript = Transcript(file)
        transcript.feed(output)
        transcript.close()
    assert transcript.last_words == words


SECRETS = {
    "THEIR_API_KEY": "sk-0123456789",
    "SESSION_TOKEN": "sk-0123456789-and-more",
    "DB_PASSWORD": "four words with gaps",
    "DEPLOY_KEY": "first line\nsecond line",
    "CLIENT_SECRET": "a secret of a client",
    "my_api_key": "lower-case-0123456789",
}


def test_secrets_of_the_environment_are_left_out_of_log_and_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, "CI_TOKEN": "1234567", "KEYBOARD": "qwertz-layout"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MissingRequirementError, match="refused <SESSION_TOKEN>"):
        run(spec_that("leaky"))
    written = b"".join(path.read_bytes() for path in Path("runs/demo").rglob("*") if path.is_file())
    assert not [line for value in SECRETS.values() for line in value.split("\n") if line.encode() in written]
    log = Path("runs/demo/train.log").read_text().splitlines()
    assert "Authorization: Bearer <THEIR_API_KEY>" in log
    assert "<DEPLOY_KEY> <DB_PASSWORD> 1234567 qwertz-layout" in log  # too short, and not called a secret
    assert Manifest.read(Path("runs/demo")).reason == "refused <SESSION_TOKEN>"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_does_not_cost_the_last_words() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        transcript = Transcript(file)
        transcript.feed(b"error: no space left\n")
        transcript.close()
    assert transcript.last_words == "no space left"
