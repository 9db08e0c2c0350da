"""checkpoints: one that exists is whole, the best is never lost, and what is loaded is what was saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from skill_kd.runtime.batching import Row
from skill_kd.runtime.checkpoints import STATE, Checkpoints, Progress

ROWS = [[Row((1, 2), (3,), (True,), "student", (-0.5,))], [Row((4,), (5, 6), (True, False), "teacher")]]


class Trained:
    """A linear model and its optimizer, prepared as a run prepares them."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.accelerator = Accelerator(cpu=True)
        # Another test's models would be saved with ours: accelerate keeps them for the whole process.
        self.accelerator.free_memory()
        model = nn.Linear(3, 2)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        self.checkpoints = Checkpoints(folder, self.accelerator, keep)

    def step(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model(torch.randn(4, 3, generator=generator)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> torch.Tensor:
        return torch.cat([weight.detach().flatten().clone() for weight in self.model.parameters()])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


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


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    run = Trained(tmp_path)
    progress = Progress(update=1)
    run.checkpoints.save(progress, [], float("nan"))
    assert progress.best is None
    progress.update = 2
    run.checkpoints.save(progress, [], 0.5)
    assert progress.best == "0-00000002"


def test_the_newest_is_by_stage_then_update(tmp_path: Path) -> None:
    run = Trained(tmp_path, keep=5)
    for stage, update in ((0, 100), (1, 2), (0, 9)):
        run.checkpoints.save(Progress(stage=stage, update=update), [])
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest.name == "1-00000002"


def test_a_checkpoint_without_its_progress_is_not_taken(tmp_path: Path) -> None:
    run = Trained(tmp_path)
    assert run.checkpoints.newest() is None
    run.checkpoints.save(Progress(update=1), [])
    run.checkpoints.save(Progress(update=2), [])
    (tmp_path / "checkpoints" / "0-00000002" / STATE).unlink()
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest.name == "0-00000001"


def test_a_save_that_is_cut_off_is_never_taken_and_does_not_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Trained(tmp_path)
    run.checkpoints.save(Progress(update=1), [])

    def cut_off(_folder: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.accelerator, "save_state", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.checkpoints.save(Progress(update=2), [])
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest.name == "0-00000001"
    monkeypatch.undo()
    run.checkpoints.save(Progress(update=2), [])
    assert names(tmp_path) == ["0-00000001", "0-00000002"]


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
