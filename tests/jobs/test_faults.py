"""Faults of a real machine, through the command line: one message, its exit code, and no half-written files."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file, save_file
from tiny import make_model, tiny_config

from skill_kd.kd.train.journal import Journal

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "examples" / "data" / "sft.jsonl"
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "teacher", layers=2, seed=0)
    make_model(folder / "student", layers=1, seed=1)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_spec(models: Path, **sections: Any) -> str:
    values: dict[str, Any] = {
        "name": "tiny",
        "teacher": {"model": str(models / "teacher"), "dtype": "float32"},
        "student": {"model": str(models / "student")},
        "data": {"train": str(DATA), "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [{"kind": "distill", "updates": 12, "objective": {"kind": "sft"}}],
        "rollout": {"max_new_tokens": 4, "prompts": 4},
        "training": {"batch_size": 4, "precision": "fp32", "schedule": "constant", "warmup": 0},
        "checkpoint": {"every": 1, "keep": 20, "measure_prompts": 1},
    }
    for section, changes in sections.items():
        values[section] = {**values[section], **changes} if isinstance(changes, Mapping) else changes
    Path("spec.yaml").write_text(yaml.safe_dump(values))
    return "spec.yaml"


def skill_kd(*args: str, within: Sequence[str] = (), setup: Callable[[], None] | None = None) -> Done:
    return subprocess.run(
        [*within, sys.executable, "-m", "skill_kd", *args],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        preexec_fn=setup,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def error_of(done: Done, code: int) -> str:
    """Return the one error. Both the trainer and the command may have printed it."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = {line.rstrip() for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert len(errors) == 1, done.stderr
    return errors.pop()


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return what a folder holds, by path; None stands for a folder. Caches of Python are nobody's files."""
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def failed_run(folder: Path, message: str, code: int) -> None:
    """Assert what a failed run leaves: its reason, its log, and nothing that looks like a result or is half of one."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], manifest["exit_code"]) == ("failed", code)
    assert f"error: {manifest['reason']}" == message
    assert message in (folder / "train.log").read_text()
    assert not (folder / "student").exists()
    assert not (folder / "summary.json").exists()
    assert not list(folder.rglob("*partial*"))


# --- folders that cannot be written -----------------------------------------------------------------------------------

LIBC = ctypes.CDLL(None)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def heed_permissions() -> None:
    """Let the next program obey permission bits even when it runs as root."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture(params=["a read-only folder", "a file"])
def obstacle(request: pytest.FixtureRequest, here: Path) -> Iterator[Path]:
    """A place under which nothing can be written."""
    place = here / "place"
    if request.param == "a file":
        place.write_text("mine")
        yield place
        return
    place.mkdir()
    (place / "theirs").write_text("mine")
    place.chmod(0o555)
    attempt = [sys.executable, "-c", "import os; os.mkdir('place/attempt')"]
    if subprocess.run(attempt, preexec_fn=heed_permissions, capture_output=True, check=False).returncode == 0:
        place.chmod(0o755)
        pytest.skip("root here cannot give up its right to write into read-only folders")
    yield place
    place.chmod(0o755)


@pytest.mark.parametrize(
    "command",
    [
        ("run", "spec.yaml", "--runs", "place"),
        ("run", "spec.yaml", "--runs", "place/runs"),
        ("generate", "spec.yaml", "--out", "place"),
        ("generate", "spec.yaml", "--out", "place/script"),
        ("generate", "spec.yaml", "--format", "ipynb", "--out", "place/notebook"),
        ("demo", "--out", "place"),
    ],
    ids=" ".join,
)
def test_a_read_only_folder_is_one_message(command: tuple[str, ...], obstacle: Path, here: Path, models: Path) -> None:
    write_spec(models)
    before = tree(here)
    message = error_of(skill_kd(*command, setup=heed_permissions), 2)
    assert f"cannot write {'' if command[0] == 'generate' else 'run folder '}'{command[-1]}" in message
    assert (os.strerror(errno.EACCES) if obstacle.is_dir() else "'place' is not a folder") in message
    assert "another" in message  # what to do about it
    assert tree(here) == before


# --- full disks -------------------------------------------------------------------------------------------------------


class Disk:
    """A disk of its own in memory, in a mount namespace that a waiting process keeps open."""

    def __init__(self, mount: Path, megabytes: int) -> None:
        mount.mkdir()
        hold = 'mount -t tmpfs -o size="$1"m tmpfs "$2" && echo ready && exec cat'
        self.holder = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", hold, "sh", str(megabytes), str(mount)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.holder.stdout is not None
        self.ready = self.holder.stdout.readline() == b"ready\n"
        self.folder = Path(f"/proc/{self.holder.pid}/root{mount}")
        """The disk as it is seen from outside."""

    @property
    def within(self) -> list[str]:
        """First words of a command that sees the disk."""
        enter = ["nsenter", "--target", str(self.holder.pid), "--user", "--mount", "--preserve-credentials"]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(Path.cwd())]

    def fill(self, leave: int) -> Path:
        """Write a file that leaves ``leave`` bytes free, and return it."""
        filler = self.folder / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while (room := shutil.disk_usage(self.folder).free - leave) > 0:
                file.write(bytes(min(room, 1 << 20)))
                file.flush()
        return filler

    def close(self) -> None:
        self.holder.communicate()


@pytest.fixture
def disk(here: Path) -> Iterator[Disk]:
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        pytest.skip("a disk of its own needs unshare and nsenter (util-linux)")
    made = Disk(here / "disk", 24)
    if not made.ready:
        made.close()
        pytest.skip("a disk of its own needs user namespaces, which are refused here")
    yield made
    made.close()


def test_a_full_disk_costs_neither_the_script_that_was_there_nor_the_message(disk: Disk, models: Path) -> None:
    spec, place = write_spec(models), ("--out", "disk/script")
    assert skill_kd("generate", spec, *place, within=disk.within).returncode == 0
    before = tree(disk.folder / "script")
    filler = disk.fill(leave=40_000)
    write_spec(models, rollout={"temperature": 0.5})
    for kind in ("py", "ipynb"):
        message = error_of(skill_kd("generate", spec, *place, "--format", kind, within=disk.within), 2)
        assert "disk/script" in message
        assert os.strerror(errno.ENOSPC) in message
        assert tree(disk.folder / "script") == before
    filler.unlink()
    assert skill_kd("generate", spec, *place, within=disk.within).returncode == 0
    assert tree(disk.folder / "script") != before


def test_a_disk_too_full_for_the_run_folder_keeps_nothing_of_it(disk: Disk, models: Path) -> None:
    disk.fill(leave=40_000)
    message = error_of(skill_kd("run", write_spec(models), "--runs", "disk/runs", within=disk.within), 2)
    assert "'disk/runs/tiny'" in message
    assert os.strerror(errno.ENOSPC) in message
    assert tree(disk.folder / "runs") == {}


@pytest.mark.script
def test_a_full_disk_costs_one_checkpoint_and_the_run_resumes_when_there_is_room(disk: Disk, models: Path) -> None:
    filler = disk.fill(leave=2_500_000)  # the run folder and a few of its twelve checkpoints
    command = ("run", write_spec(models), "--runs", "disk/runs")
    message = error_of(skill_kd(*command, within=disk.within), 6)
    assert "checkpoint" in message
    assert "space" in message
    assert "--resume" in message
    folder = disk.folder / "runs" / "tiny"
    failed_run(folder, message, 6)
    kept = sorted((folder / "checkpoints").iterdir())
    assert 1 <= len(kept) < 12
    assert all((each / "progress.json").is_file() for each in kept)
    before = tree(kept[0])
    filler.unlink()
    resumed = skill_kd(*command, "--resume", within=disk.within)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from checkpoint {kept[-1].name}" in resumed.stderr
    assert load_file(folder / "student" / "model.safetensors")
    assert tree(kept[0]) == before


@pytest.mark.script
def test_a_limit_on_file_sizes_is_reported_like_a_full_disk(models: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # more than any script, less than any weights

    message = error_of(skill_kd("run", write_spec(models), setup=limit), 6)
    assert "checkpoint" in message
    failed_run(Path("runs/tiny"), message, 6)


# --- input ------------------------------------------------------------------------------------------------------------

BAD_ROWS = b'{"prompt": "fine"}\n\xff\xfe\n{"prompt": 3}\n[1]\n{"prompt": "cut off\n'


@pytest.mark.script
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bad.jsonl", BAD_ROWS, ("4 of 5 rows", "line 2", "line 3", "line 4", "max_bad_rows")),
        ("bad.parquet", b"PAR1 and nothing more", ("cannot read",)),
    ],
)
def test_data_that_cannot_be_used_is_named_with_its_first_bad_rows(
    name: str, content: bytes, words: tuple[str, ...], models: Path
) -> None:
    Path(name).write_bytes(content)
    message = error_of(skill_kd("run", write_spec(models, data={"train": name})), 2)
    assert all(word in message for word in (f"'{name}'", *words)), message
    failed_run(Path("runs/tiny"), message, 2)
    assert not Path("runs/tiny/checkpoints").exists()
    assert Path(name).read_bytes() == content


@pytest.mark.script
@pytest.mark.parametrize(("fault", "code"), [("not here", 5), ("cut weights", 2)])
def test_a_model_that_cannot_be_loaded_is_named(fault: str, code: int, models: Path) -> None:
    model = "nobody/nothing"
    if fault != "not here":
        model = str(shutil.copytree(models / "student", "broken"))
        weights = Path("broken/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:1000])
    message = error_of(skill_kd("run", write_spec(models, student={"model": model})), code)
    assert f"cannot load '{model}'" in message
    failed_run(Path("runs/tiny"), message, code)


# --- numbers ----------------------------------------------------------------------------------------------------------


def spec_with_a_bad_row(here: Path, weight: float, **training: Any) -> str:
    """Write a run of two epochs; one row is so long that it meets positions whose embeddings are ``weight``."""
    for name in ("teacher", "student"):
        make_model(here / name, kind="gpt2", layers=1)
    weights = load_file("student/model.safetensors")
    weights["transformer.wpe.weight"][40:] = weight
    save_file(weights, "student/model.safetensors", {"format": "pt"})
    rows = [{"prompt": "hello", "response": "dog"}] * 23 + [{"prompt": "hello " * 30, "response": "dog"}]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("held-out.jsonl").write_text(json.dumps({"prompt": "the lazy dog"}) + "\n")
    return write_spec(here, data={"train": "train.jsonl", "held_out": "held-out.jsonl"}, training=training)


@pytest.mark.script
def test_a_nan_loss_ends_the_run_and_keeps_earlier_checkpoints(here: Path) -> None:
    message = error_of(skill_kd("run", spec_with_a_bad_row(here, math.nan)), 6)
    step = int(message.removeprefix("error: update ").partition(":")[0])
    assert "loss nan" in message
    failed_run(Path("runs/tiny"), message, 6)
    kept = sorted(path.name for path in Path("runs/tiny/checkpoints").iterdir())
    assert kept == [f"0-{update:08d}" for update in range(1, step + 1)]
    assert kept, "the long row came first; take another seed"


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.script
def test_a_run_rolls_back_skips_the_bad_rows_and_resumes_to_the_same_bits(here: Path) -> None:
    spec = spec_with_a_bad_row(here, 3e38, on_bad_loss="roll_back")  # finite, but its layer norm is NaN
    done = skill_kd("run", spec)
    assert done.returncode == 0, done.stderr
    whole = Path("runs/tiny")
    first, second = (event["bad"] for event in events(whole, "roll_back"))
    assert 0 < first < 6 <= second < 12  # once an epoch
    taken = [event["update"] - 1 for event in events(whole, "update")]
    assert taken == [update for update in range(12) if update not in {first, second}]
    assert f"rolled back to checkpoint 0-{first:08d} (update {first}: loss nan" in done.stderr
    weights = load_file(whole / "student" / "model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    whole = shutil.copytree(whole, here / "whole")
    for last in (first, first + 1):  # killed while it rolled back, or right behind that
        shutil.rmtree("runs/tiny")
        folder = interrupted(whole, here)
        for path in (*folder.glob("checkpoints/*"), folder / "student"):
            if path.name > f"0-{last:08d}":
                shutil.rmtree(path)
        resumed = skill_kd("run", spec, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert f"resuming from checkpoint 0-{last:08d}" in resumed.stderr
        for file in ("student/model.safetensors", "summary.json"):
            assert (folder / file).read_bytes() == (whole / file).read_bytes(), (last, file)


@pytest.mark.script
@pytest.mark.parametrize("objective", ["sft", "reverse_kl"])
def test_a_run_that_rolling_back_cannot_fix_ends(objective: str, models: Path) -> None:
    stages = [{"kind": "distill", "updates": 40, "objective": {"kind": objective}, "learning_rate": 0.9}]
    policy = {"on_bad_loss": "roll_back"}
    script = edited_script(models, "learning_rate=0.9", "learning_rate=1e30", stages=stages, training=policy)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=240)
    assert error_of(done, 6).endswith("(rolled back 3 times before)")
    assert len(events(script.parent, "roll_back")) == 3


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["torch.empty(1 << 50, dtype=torch.uint8)", "bytes(1 << 60)"])
def test_out_of_memory_names_the_settings_to_change(asked: str) -> None:
    script = f"import torch\nfrom skill_kd.kd.reporting import reporting\nwith reporting(): {asked}"
    command = [sys.executable, "-c", script]
    message = error_of(subprocess.run(command, capture_output=True, text=True, check=False, timeout=120), 6)
    assert message.startswith("error: out of memory: ")
    for knob in ("training.accumulate", "training.gradient_checkpointing", "rollout.max_new_tokens", "skill-kd plan"):
        assert knob in message


def edited_script(models: Path, before: str, after: str, **sections: Any) -> Path:
    """A generated folder whose train.py a person changed."""
    assert skill_kd("generate", write_spec(models, **sections), "--out", "mine").returncode == 0
    script = Path("mine/train.py")
    text = script.read_text()
    assert before in text
    script.write_text(text.replace(before, after))
    return script


@pytest.mark.script
def test_a_run_out_of_memory_shows_the_plan(models: Path) -> None:
    call = "        train(prepare(),"
    script = edited_script(models, call, f"        bytes(1 << 60)\n{call}")
    done = skill_kd("run", str(script))
    message = error_of(done, 6)
    assert "rollout.max_new_tokens" in message
    assert re.search(r"`plan` estimates a peak of [\d.]+ GB per process, in .+: .+ [\d.]+ GB", done.stderr)
    failed_run(Path("runs/tiny"), message, 6)


# --- the end of one process of several --------------------------------------------------------------------------------

ENDING = """
import atexit, os, sys, time
import torch, torch.distributed as dist
from pathlib import Path
from skill_kd.kd.errors import TrainingStopped
from skill_kd.kd.reporting import reporting

leaving = Path("leaving")

class Slow:
    def __del__(self):
        time.sleep(2)

def hold():
    # The exchange ends here: gloo's thread wants the interpreter, and gets it when there is none any more.
    sys.setswitchinterval(1000)
    leaving.touch()
    until = time.monotonic() + 2
    while time.monotonic() < until:
        pass

def check():
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=Path("store").resolve().as_uri(), rank=rank, world_size=2)
    if rank == 0:
        atexit.register(print, "its tracker ended")
        sys.last_value = Slow()  # what the interpreter lets go of first
        dist.all_reduce(torch.ones(1000), async_op=True)
        {ends}
    else:
        while not leaving.exists():
            time.sleep(0.1)
        dist.all_reduce(torch.ones(1000))

if os.environ["RANK"] == "0":
    atexit.register(hold)
with reporting():
    check()
"""


@pytest.mark.parametrize(("ends", "code"), [("print('done')", 0), ("raise TrainingStopped('no more')", 6)])
def test_what_is_still_exchanged_when_a_process_ends_does_not_abort_it(ends: str, code: int) -> None:
    command = [sys.executable, "-c", ENDING.replace("{ends}", ends)]
    with subprocess.Popen(command, env={**os.environ, "RANK": "1"}) as other:
        main = {**os.environ, "RANK": "0"}
        try:
            done = subprocess.run(command, env=main, capture_output=True, text=True, check=False, timeout=240)
        finally:
            other.kill()
    said = ["done"] * (code == 0)
    assert (done.returncode, done.stdout.splitlines()) == (code, [*said, "its tracker ended"]), done.stderr


# --- trackers and metrics ---------------------------------------------------------------------------------------------


@pytest.mark.script
def test_a_tracker_that_cannot_start_is_reported_once_and_training_continues(models: Path) -> None:
    spec = yaml.safe_load(Path(write_spec(models)).read_text())
    Path("spec.yaml").write_text(yaml.safe_dump({**spec, "trackers": ["tensorboard"]}))
    assert skill_kd("generate", "spec.yaml", "--out", "mine").returncode == 0
    Path("mine/tiny").write_text("where the tracker's folder would be")
    done = subprocess.run([sys.executable, "mine/train.py"], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trackers are off from here on (FileExistsError: ") == 1
    assert load_file("mine/student/model.safetensors")


class Down(GeneralTracker):  # type: ignore[misc]
    """A tracker whose server left after it had begun."""

    name = "down"
    requires_logging_directory = False
    tracker = None

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        pass

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        raise ConnectionError("the server is gone")

    def finish(self) -> None:
        raise ConnectionError("the server is gone")


@pytest.mark.parametrize("updates", [0, 3])
def test_a_tracker_that_fails_later_is_reported_once(updates: int, here: Path) -> None:
    journal = Journal(here, Accelerator(cpu=True, log_with=Down()), tiny_config(trackers=("down",)))
    for update in range(updates):
        journal.figures("update", "distill", update, {"loss": 1.5})
    journal.close()
    events = [json.loads(line) for line in (here / "metrics.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "update" for event in events) == updates
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert "ConnectionError: the server is gone" in note


def test_half_a_line_of_metrics_does_not_spoil_the_next_one(here: Path) -> None:
    (here / "metrics.jsonl").write_text('{"event": "first"}\n{"event": "upd')
    Journal(here, Accelerator(cpu=True), tiny_config()).event("last")
    events = [json.loads(line)["event"] for line in (here / "metrics.jsonl").read_text().splitlines()]
    assert events == ["first", "last"]


# --- a whole run, and what must not change it -------------------------------------------------------------------------

SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")
SECRET = "s3cret-never-written-anywhere"
CLOCK = """\
import datetime, random, time
draw, real, now = random.Random(0), time.time, datetime.datetime.now
def jump():
    return draw.choice([-1e8, -3600, 0, 3600, 1e8])
time.time = lambda: real() + jump()
class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return now(tz) + datetime.timedelta(seconds=jump())
datetime.datetime = Jumping
"""
"""A module that Python imports at its start: whoever asks for the time of day is sent years back and forth."""


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone, in an environment full of keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        for name in SECRETS:
            patch.setenv(name, SECRET)
        shutil.copy(DATA, "data.jsonl")
        data = str(Path("data.jsonl").absolute())
        done = skill_kd("run", write_spec(models, data={"train": data}))
        assert done.returncode == 0, done.stderr
        return Path("runs/tiny").absolute()


@pytest.mark.script
def test_keys_of_the_environment_are_written_nowhere(whole: Path) -> None:
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert whole / "manifest.json" in files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.script
def test_a_clock_that_jumps_changes_no_weight_and_makes_no_step_take_negative_time(
    models: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("clock").mkdir()
    Path("clock/sitecustomize.py").write_text(CLOCK)
    monkeypatch.setenv("PYTHONPATH", str(Path("clock").absolute()))
    done = skill_kd("run", write_spec(models))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    times = [event["time"] for event in events]
    assert times != sorted(times), "the clock did not jump"
    assert all(0 < event["seconds"] < 60 for event in events if event["event"] == "update")
    weights = "student/model.safetensors"
    assert (Path("runs/tiny") / weights).read_bytes() == (whole / weights).read_bytes()


def interrupted(whole: Path, here: Path) -> Path:
    """Return a copy of a whole run that its manifest says was stopped."""
    folder = shutil.copytree(whole, here / "runs" / "tiny")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    return folder


@pytest.mark.script
def test_a_torn_checkpoint_is_named_and_the_run_resumes_from_the_one_before_it(
    models: Path, whole: Path, here: Path
) -> None:
    folder = interrupted(whole, here)
    shutil.rmtree(folder / "student")
    weights = folder / "checkpoints" / "0-00000012" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = skill_kd("run", write_spec(models, data={"train": str(whole.parents[1] / "data.jsonl")}), "--resume")
    assert done.returncode == 0, done.stderr
    assert "checkpoint 0-00000012 is torn, so it is skipped: model.safetensors does not match" in done.stderr
    assert "resuming from checkpoint 0-00000011" in done.stderr
    weights = Path("student/model.safetensors")
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.script
def test_data_that_changed_since_the_checkpoint_is_refused_until_it_is_restored(
    models: Path, whole: Path, here: Path
) -> None:
    folder = interrupted(whole, here)
    shutil.rmtree(folder / "checkpoints" / "0-00000012")
    data = whole.parents[1] / "data.jsonl"
    before = data.read_bytes()
    data.write_bytes(before + b'{"prompt": "one more", "response": "row"}\n')
    try:
        refused = error_of(skill_kd("run", write_spec(models, data={"train": str(data)}), "--resume"), 2)
    finally:
        data.write_bytes(before)
    assert "data.train: its content has changed since checkpoint 0-00000011 (SHA-256 " in refused
    assert "put the old file back" in refused
    done = skill_kd("run", "spec.yaml", "--resume")
    assert done.returncode == 0, done.stderr
    weights = Path("student/model.safetensors")
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()


# --- links and foreign code -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["plain", "force"])
def test_a_link_in_the_way_is_refused_or_replaced_and_never_written_through(
    force: tuple[str, ...], models: Path, here: Path
) -> None:
    theirs = here / "theirs"
    (theirs / "kd").mkdir(parents=True)
    for name in ("train.py", "kd/precious.py"):
        (theirs / name).write_text("mine = True\n")
    before = tree(theirs)
    (here / "out").mkdir()
    for name in ("train.py", "kd"):
        (here / "out" / name).symlink_to(theirs / name)
    done = skill_kd("generate", write_spec(models), "--out", "out", *force)
    assert done.returncode == (0 if force else 2), done.stderr
    assert ("--force" in done.stderr) == (not force)
    assert tree(theirs) == before
    assert (here / "out" / "train.py").is_symlink() == (not force)


@pytest.mark.parametrize("target", ["theirs", "nowhere"])
def test_a_link_in_the_place_of_the_run_folder_is_refused(target: str, models: Path, here: Path) -> None:
    (here / "theirs").mkdir()
    (here / "runs").mkdir()
    (here / "runs" / "tiny").symlink_to(here / target)
    message = error_of(skill_kd("run", write_spec(models)), 2)
    assert "run folder 'runs/tiny' exists" in message
    assert tree(here / "theirs") == {}
    assert not (here / "nowhere").exists()


PICKLE = "import os, pickle\nclass Bomb:\n    def __reduce__(self): return (os.mkdir, ('exploded',))\n"


@pytest.mark.script
@pytest.mark.parametrize("kind", ["pickle", "index of a pickle", "remote code"])
def test_a_model_that_would_run_code_is_refused_and_runs_none(kind: str, models: Path, here: Path) -> None:
    model = shutil.copytree(models / "student", here / "model")
    if kind != "remote code":
        names = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        if kind == "index of a pickle":
            index = {"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model.bin")}
            (model / "model.safetensors.index.json").write_text(json.dumps(index))
        dump = f"{PICKLE}pickle.dump(Bomb(), open('model/pytorch_model.bin', 'wb'))"
        subprocess.run([sys.executable, "-c", dump], check=True)
    else:
        config = json.loads((model / "config.json").read_text())
        names = {"AutoConfig": "code.TheirConfig", "AutoModelForCausalLM": "code.Theirs"}
        (model / "config.json").write_text(json.dumps({**config, "model_type": "theirs", "auto_map": names}))
        (model / "code.py").write_text("import os\nos.mkdir('exploded')\n")
    message = error_of(skill_kd("run", write_spec(models, student={"model": str(model)})), 5)
    assert f"cannot load '{model}'" in message
    assert ("code of its own" if kind == "remote code" else "only safetensors are loaded") in message
    assert "weights_only" not in message
    assert not (here / "exploded").exists()
    failed_run(Path("runs/tiny"), message, 5)
