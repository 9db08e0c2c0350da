"""checkpoints: one that exists is whole, the best is never lost, and what is loaded is what was saved."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from skill_kd.kd.dataset.batch import Row
from skill_kd.kd.errors import BadInput, Missing, TrainingStopped
from skill_kd.kd.train import checkpoints
from skill_kd.kd.train.checkpoint_files import CHECKSUMS, STATE, seal
from skill_kd.kd.train.checkpoints import AccelerateState, Checkpoints, Progress
from skill_kd.kd.train.roll_back import BadUpdate, check_loss, roll_back

ROWS = [[Row((1, 2), (3,), (True,), "student", (-0.5,))], [Row((4,), (5, 6), (True, False), "teacher")]]


class Trained:
    """A linear model and its optimizer, prepared as a run prepares them."""

    def __init__(self, folder: Path, keep: int = 2, **inputs: str) -> None:
        self.accelerator = Accelerator(cpu=True)
        # Another test's models would be saved with ours: accelerate keeps them for the whole process.
        self.accelerator.free_memory()
        model = nn.Linear(3, 2)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        self.checkpoints = Checkpoints(folder, self.accelerator, keep, AccelerateState(self.accelerator), inputs)

    def step(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model(torch.randn(4, 3, generator=generator)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> torch.Tensor:
        return torch.cat([weight.detach().flatten().clone() for weight in self.model.parameters()])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def newest_name(run: Trained) -> str | None:
    newest = run.checkpoints.newest()
    return newest and newest.name


def saved(folder: Path, *updates: int, keep: int = 2) -> Trained:
    """A run that has written checkpoints at ``updates``, none of them with a figure."""
    run = Trained(folder, keep)
    for update in updates:
        run.checkpoints.save(Progress(update=update), ROWS)
    return run


def test_weights_optimizer_progress_and_rollouts_come_back_as_they_were(tmp_path: Path) -> None:
    first = Trained(tmp_path)
    first.step(1)
    progress = Progress(
        stage=1, update=7, measures={"before:0": {"reverse_kl": 0.5}}, samples={"before:0": [{"p": "q"}]}
    )
    first.checkpoints.save(progress, ROWS, figure=0.25)
    saved = first.weights()
    first.step(2)
    went_on = first.weights()

    second = Trained(tmp_path)
    newest = second.checkpoints.newest()
    assert newest is not None
    again, pending = second.checkpoints.load(newest)
    assert again == progress
    assert (again.best, again.best_figure) == ("1-00000007", 0.25)
    assert pending == ROWS
    assert torch.equal(second.weights(), saved)
    second.step(2)
    assert torch.equal(second.weights(), went_on)


def test_the_teachers_states_of_pending_rollouts_come_back_bit_by_bit(tmp_path: Path) -> None:
    run = Trained(tmp_path)
    states = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    run.checkpoints.save(Progress(update=1), [[ROWS[0][0], replace(ROWS[1][0], teacher_states=states)]])
    newest = run.checkpoints.newest()
    assert newest is not None
    _, [[first, second]] = run.checkpoints.load(newest)
    assert first.teacher_states is None
    assert torch.equal(second.teacher_states, states)


def test_rollouts_of_several_processes_come_back_as_whole_batches(tmp_path: Path) -> None:
    """In the order of the processes, ten after nine, for any number of them to share."""
    run = Trained(tmp_path)
    run.checkpoints.save(Progress(update=1), [[Row((0,), (1,), (True,), "student")]] * 2)
    newest = run.checkpoints.newest()
    assert newest is not None
    for process in range(1, 12):
        for suffix in ("json", "safetensors"):
            text = (newest / f"rollouts-0.{suffix}").read_bytes()
            (newest / f"rollouts-{process}.{suffix}").write_bytes(
                text.replace(b'"prompt": [0]', b'"prompt": [%d]' % process)
            )
    _, batches = run.checkpoints.load(newest)
    assert [[row.prompt for row in batch] for batch in batches] == [[(process,) for process in range(12)]] * 2


DAMAGED = {
    "progress is a list": (STATE, [], "not a JSON object"),
    "stage": (STATE, {"stage": "1"}, "stage cannot be '1'"),
    "negative": (STATE, {"update": -1}, "cannot be negative"),
    "huge": (STATE, {"update": 10**30}, "update cannot be"),
    "best elsewhere": (STATE, {"best": "../../other"}, "'../../other' is not the name of a checkpoint"),
    "best is a list": (STATE, {"best": []}, "best cannot be"),
    "measures": (STATE, {"measures": {"before:0": [1]}}, "measures cannot be"),
    "inputs": (STATE, {"inputs": {"data.train": 1}}, "inputs cannot be"),
    "unknown": (STATE, {"other": 1}, "unknown field 'other'"),
    "rollouts are an object": ("rollouts-0.json", {}, "not a list of batches"),
    "a row is a list": ("rollouts-0.json", [[[]]], "not an object"),
    "a token": ("rollouts-0.json", [[{**ROWS[0][0].to_json(), "response": ["x"]}]], "response cannot be"),
    "a negative token": ("rollouts-0.json", [[{**ROWS[0][0].to_json(), "response": [-1]}]], "token id -1 is negative"),
    "no token": ("rollouts-0.json", [[{**ROWS[0][0].to_json(), "prompt": []}]], "no prompt"),
    "a writer": ("rollouts-0.json", [[{**ROWS[0][0].to_json(), "source": "me"}]], "source cannot be 'me'"),
    "too few values": ("rollouts-0.json", [[{**ROWS[0][0].to_json(), "scored": []}]], "one value for each token"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_checkpoint_with_other_values_is_refused_by_file_though_its_checksums_match(
    name: str, tmp_path: Path
) -> None:
    file, value, reason = DAMAGED[name]
    run = saved(tmp_path, 1)
    newest = run.checkpoints.newest()
    assert newest is not None
    before = json.loads((newest / file).read_text())
    (newest / file).write_text(json.dumps({**before, **value} if isinstance(value, dict) and value else value))
    (newest / CHECKSUMS).unlink()
    seal(newest)
    assert newest_name(run) == newest.name
    with pytest.raises(BadInput, match=reason) as refused:
        run.checkpoints.load(newest)
    assert f"'{newest / file}'" in str(refused.value)


def test_the_newest_few_and_the_best_are_kept(tmp_path: Path) -> None:
    run = Trained(tmp_path, keep=2)
    progress = Progress()
    for update, figure in enumerate((0.9, 0.1, 0.5, 0.6, 0.7), start=1):
        progress.update = update
        run.checkpoints.save(progress, [], figure)
    assert names(tmp_path) == ["0-00000002", "0-00000004", "0-00000005"]
    assert progress.best == "0-00000002"


def test_a_best_that_is_beaten_may_go(tmp_path: Path) -> None:
    run = Trained(tmp_path, keep=1)
    progress = Progress()
    for update, figure in enumerate((0.2, 0.5, 0.1, 0.3), start=1):
        progress.update = update
        run.checkpoints.save(progress, [], figure)
    assert names(tmp_path) == ["0-00000003", "0-00000004"]


def test_a_checkpoint_without_a_figure_is_kept_as_newest_and_never_best(tmp_path: Path) -> None:
    run = Trained(tmp_path, keep=1)
    run.checkpoints.save(Progress(update=1), [])
    progress = Progress(update=2, best="0-00000001", best_figure=0.5)
    run.checkpoints.save(progress, [])
    assert progress.best == "0-00000001"
    assert names(tmp_path) == ["0-00000001", "0-00000002"]


def test_a_nan_is_never_the_best(tmp_path: Path) -> None:
    run = Trained(tmp_path)
    progress = Progress(update=1)
    run.checkpoints.save(progress, [], float("nan"))
    assert progress.best is None
    progress.update = 2
    run.checkpoints.save(progress, [], 0.5)
    assert progress.best == "0-00000002"


def test_the_newest_is_by_stage_then_update(tmp_path: Path) -> None:
    run = Trained(tmp_path, keep=5)
    for stage, update in ((0, 9), (0, 100), (1, 2)):
        run.checkpoints.save(Progress(stage=stage, update=update), [])
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest.name == "1-00000002"


# --- torn ones --------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ["model.safetensors", "optimizer.bin", "rollouts-0.json", "rollouts-0.safetensors", STATE, CHECKSUMS]


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", FILES)
def test_a_torn_checkpoint_is_named_and_the_one_before_it_is_taken(
    name: str, harm: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved(tmp_path, 1, 2)
    assert newest_name(run) == "0-00000002"
    harm(tmp_path / "checkpoints" / "0-00000002" / name)
    assert newest_name(run) == "0-00000001"
    told = capsys.readouterr().err
    assert told.startswith("note: checkpoint 0-00000002 is torn, so it is skipped: ")
    assert name in told or (name, harm) == (CHECKSUMS, flip)  # which then accuses another file


def test_no_checkpoint_or_none_that_is_whole_is_none(tmp_path: Path) -> None:
    assert newest_name(Trained(tmp_path)) is None
    run = saved(tmp_path, 1)
    flip(tmp_path / "checkpoints" / "0-00000001" / "optimizer.bin")
    assert newest_name(run) is None


def test_the_last_good_checkpoint_is_kept_while_later_ones_are_torn(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20, 30, keep=3)
    for update in (20, 30):
        cut(tmp_path / "checkpoints" / f"0-000000{update}" / "model.safetensors")
    run = Trained(tmp_path, keep=1)
    assert newest_name(run) == "0-00000010"
    run.checkpoints.save(Progress(update=15), ROWS)
    assert names(tmp_path) == ["0-00000015"]
    assert newest_name(run) == "0-00000015"


def test_one_that_was_found_torn_takes_no_good_ones_place(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, keep=2)
    cut(tmp_path / "checkpoints" / "0-00000002" / "model.safetensors")
    run = Trained(tmp_path, keep=2)
    assert newest_name(run) == "0-00000001"
    run.checkpoints.save(Progress(update=5), ROWS)  # behind the torn one, as after a request to stop
    assert names(tmp_path) == ["0-00000001", "0-00000005"]


def test_a_torn_one_is_replaced_by_a_whole_one_of_its_name(tmp_path: Path) -> None:
    run = saved(tmp_path, 1, 2)
    cut(tmp_path / "checkpoints" / "0-00000002" / STATE)
    run.checkpoints.save(Progress(update=2), ROWS)
    assert newest_name(run) == "0-00000002"
    assert names(tmp_path) == ["0-00000001", "0-00000002"]


@pytest.mark.parametrize("theirs", ["a folder", "nowhere"])
@pytest.mark.parametrize("name", ["partial-0-00000003", "partial-old", "0-00000000", "0-00000003", "0-00000009"])
def test_a_link_among_checkpoints_is_never_written_or_deleted_through(name: str, theirs: str, tmp_path: Path) -> None:
    run = saved(tmp_path, 1, 2)
    target = tmp_path / "theirs"
    if theirs == "a folder":
        target.mkdir()
        (target / STATE).write_text("precious")
    (tmp_path / "checkpoints" / name).symlink_to(target)
    run.checkpoints.save(Progress(update=3), ROWS)
    assert names(tmp_path) == ["0-00000002", "0-00000003"]
    assert newest_name(run) == "0-00000003"
    assert not (tmp_path / "checkpoints" / "0-00000003").is_symlink()
    assert [path.read_text() for path in target.glob("*")] == (["precious"] if theirs == "a folder" else [])


STEPS = (
    (shutil, "rmtree"),
    (Path, "mkdir"),
    (Accelerator, "save_state"),
    (checkpoints, "save_file"),
    (checkpoints, "write_atomically"),
    (os, "fsync"),
    (os, "replace"),
    (Path, "rename"),
)
"""Whatever touches the disk while a checkpoint is written."""


class Ending:
    """Lets ``before`` steps pass, and raises at the next one."""

    def __init__(self, before: int, error: BaseException) -> None:
        self.left, self.error = before, error

    def within(self, step: Callable[..., object]) -> Callable[..., object]:
        def watched(*args: object, **kwargs: object) -> object:
            self.left -= 1
            if self.left == -1:
                raise self.error
            return step(*args, **kwargs)

        return watched


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")], ids=repr)
def test_a_save_that_fails_at_any_step_leaves_the_last_good_checkpoint_and_a_free_place(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in itertools.count():
        run, ending = saved(tmp_path / str(number), 1, 2), Ending(number, error)
        cut(tmp_path / str(number) / "checkpoints" / "0-00000002" / STATE)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt, TrainingStopped):
            for owner, name in STEPS:
                patch.setattr(owner, name, ending.within(getattr(owner, name)))
            run.checkpoints.save(Progress(update=2), ROWS)
        if ending.left >= 0:  # the save was done before
            break
        newest = run.checkpoints.newest()
        assert newest is not None, number
        assert newest.name in {"0-00000001", "0-00000002"}
        run.checkpoints.save(Progress(update=3), ROWS)
        assert newest_name(run) == "0-00000003"
        assert not [name for name in names(tmp_path / str(number)) if name.startswith("partial")]
    assert number > 15, "fewer steps than a save has"


def test_everything_is_forced_to_the_disk_before_the_rename_and_the_rename_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may undo what was not forced: a name that stands must stand for whole files."""
    run, forced, before_rename, fsync, rename = Trained(tmp_path), {}, {}, os.fsync, Path.rename

    def force(descriptor: int) -> None:
        fsync(descriptor)
        stat = os.fstat(descriptor)
        forced[stat.st_ino] = (stat.st_size, stat.st_mtime_ns)

    def publish(path: Path, target: Path) -> Path:
        before_rename.update(forced)
        forced.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", force)
    monkeypatch.setattr(Path, "rename", publish)
    run.checkpoints.save(Progress(update=1), ROWS)
    folder = tmp_path / "checkpoints"
    made = [folder / "0-00000001", *(folder / "0-00000001").rglob("*")]
    assert {path.name for path in made} >= {*FILES}
    for path in made:
        stat = path.stat()
        assert before_rename.get(stat.st_ino) == (stat.st_size, stat.st_mtime_ns), f"{path.name} was written later"
    assert folder.stat().st_ino in forced, "the new name is not forced to the disk"


def test_an_unwritable_checkpoint_is_reported_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved(tmp_path, 1)

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(TrainingStopped, match=r"cannot write checkpoint 0-00000002: .*Input/output error.*--resume"):
        run.checkpoints.save(Progress(update=2), ROWS)
    assert names(tmp_path) == ["0-00000001"]


# --- what the run reads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [{"train": "b" * 64}, {}, {"train": "a" * 64, "held_out": "b" * 64}])
def test_a_run_resumes_only_with_its_own_data(now: dict[str, str], tmp_path: Path) -> None:
    first = Trained(tmp_path, train="a" * 64)
    first.checkpoints.save(Progress(update=1), ROWS)
    newest = first.checkpoints.newest()
    assert newest is not None
    assert Trained(tmp_path, train="a" * 64).checkpoints.load(newest)[0].update == 1
    with pytest.raises(BadInput, match=r"changed since checkpoint 0-00000001 \(SHA-256 .*; put the old file back"):
        Trained(tmp_path, **now).checkpoints.load(newest)


# --- the best one -----------------------------------------------------------------------------------------------------


def with_a_torn_best(folder: Path) -> tuple[Trained, Progress]:
    run, progress = Trained(folder, keep=1), Progress(update=1)
    run.checkpoints.save(progress, [], 0.1)
    run.step(1)
    progress.update = 2
    run.checkpoints.save(progress, [], 0.2)
    flip(folder / "checkpoints" / "0-00000001" / "model.safetensors")
    return run, progress


def test_a_torn_best_checkpoint_leaves_the_weights_in_memory_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, progress = with_a_torn_best(tmp_path)
    before = run.weights()
    run.checkpoints.load_best(progress)
    assert torch.equal(run.weights(), before)
    assert progress.best == "0-00000002"
    assert "checkpoint 0-00000001 is torn" in capsys.readouterr().err


def test_a_torn_best_checkpoint_is_replaced_after_a_resume(tmp_path: Path) -> None:
    with_a_torn_best(tmp_path)
    run = Trained(tmp_path, keep=1)
    newest = run.checkpoints.newest()
    assert newest is not None
    progress, _ = run.checkpoints.load(newest)
    assert (progress.best, progress.best_figure) == (None, None)
    progress.update = 3
    run.checkpoints.save(progress, [], 0.3)
    assert progress.best == "0-00000003"


def test_the_best_weights_are_put_back_where_later_ones_are_in_memory(tmp_path: Path) -> None:
    run = Trained(tmp_path, keep=1)
    progress = Progress(update=1)
    run.checkpoints.save(progress, [], 0.1)
    best = run.weights()
    run.step(1)
    progress.update = 2
    run.checkpoints.save(progress, [], 0.2)
    assert not torch.equal(run.weights(), best)
    run.checkpoints.load_best(progress)
    assert torch.equal(run.weights(), best)


# --- code in one ------------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("file", ["optimizer.bin", "pytorch_model.bin"])
@pytest.mark.parametrize("load", ["load", "load_best"])
def test_a_checkpoint_that_holds_code_is_refused_in_our_words(
    load: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, progress = Trained(tmp_path), Progress(update=1)
    run.checkpoints.save(progress, [], 0.1)
    checkpoint = tmp_path / "checkpoints" / "0-00000001"
    if file == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    (checkpoint / file).write_bytes(pickle.dumps(Bomb(), 2))
    (checkpoint / CHECKSUMS).unlink()
    seal(checkpoint)
    run.checkpoints.in_memory = None
    with pytest.raises(
        Missing, match=r"checkpoint '.*0-00000001': .* could run code; delete this checkpoint"
    ) as raised:
        run.checkpoints.load(checkpoint) if load == "load" else run.checkpoints.load_best(progress)
    assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "exploded").exists()


# --- back to an earlier one -------------------------------------------------------------------------------------------

BAD = BadUpdate(7, "loss nan, gradient norm nan")


def going_back(folder: Path, *figures: float | None) -> tuple[Trained, Progress, list[torch.Tensor]]:
    """Return a run with a checkpoint of each figure, and their weights; those in memory are others."""
    run, progress, weights = Trained(folder, keep=5), Progress(), []
    for figure in figures:
        run.step(progress.update)
        progress.update += 1
        run.checkpoints.save(progress, ROWS, figure)
        weights.append(run.weights())
    run.step(9)
    return run, progress, weights


def test_a_roll_back_takes_up_the_newest_and_the_second_in_a_row_the_best(tmp_path: Path) -> None:
    run, progress, weights = going_back(tmp_path, 0.1, 0.2, 0.3)
    assert roll_back(run.checkpoints, run.optimizer, progress, BAD, next_update=8) == "0-00000003"
    assert torch.equal(run.weights(), weights[2])
    assert roll_back(run.checkpoints, run.optimizer, progress, BAD, next_update=9) == "0-00000001"
    assert torch.equal(run.weights(), weights[0])
    assert (progress.update, progress.best, progress.best_figure) == (9, "0-00000001", 0.1)
    newest = run.checkpoints.newest()
    assert newest is not None
    again, pending = Trained(tmp_path).checkpoints.load(newest)
    assert (again, pending) == (progress, [])


def test_the_moments_of_another_stage_are_not_taken_over(tmp_path: Path) -> None:
    run, progress, _ = going_back(tmp_path, 0.1)
    roll_back(run.checkpoints, run.optimizer, progress, BAD, next_update=8)
    assert run.optimizer.state
    progress.stage = 1
    roll_back(run.checkpoints, run.optimizer, progress, BAD, next_update=1)
    assert not run.optimizer.state


def test_a_run_rolls_back_three_times_at_most_and_only_to_what_is_there(tmp_path: Path) -> None:
    run, progress, _ = going_back(tmp_path / "three", 0.1)
    for next_update in (8, 9, 10):
        roll_back(run.checkpoints, run.optimizer, progress, BAD, next_update)
    with pytest.raises(TrainingStopped, match=r"update 7: loss nan.*\(rolled back 3 times before\)"):
        roll_back(run.checkpoints, run.optimizer, progress, BAD, next_update=11)
    run, progress, _ = going_back(tmp_path / "none")
    with pytest.raises(TrainingStopped, match=r"\(no checkpoint to roll back to\)"):
        roll_back(run.checkpoints, run.optimizer, progress, BAD, next_update=8)


@pytest.mark.parametrize("loss", [3.1, -3.1, float("nan"), float("inf")])
def test_a_loss_beyond_its_limit_counts_as_nan(loss: float) -> None:
    check_loss(4, 2.9, 1.0, limit=3)
    check_loss(4, 1e30, 1.0, limit=None)
    with pytest.raises(BadUpdate, match=rf"update 4: loss {loss} \(training.loss_limit: 3\), gradient norm 1.0; "):
        check_loss(4, loss, 1.0, limit=3)
    with pytest.raises(BadUpdate, match="gradient norm inf"):
        check_loss(4, 1.0, float("inf"), limit=None)
    with pytest.raises(BadUpdate, match="loss inf, gradient norm"):
        check_loss(4, float("inf"), 1.0, limit=None)
