"""Several processes: rows have random streams of their own, so how a batch is split over processes changes nothing."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from processes import (
    ENVIRONMENT,
    KEPT,
    REPOSITORY,
    UPDATES,
    losses_of,
    make_models,
    same_weights,
    spec_of,
    start,
    train,
)
from safetensors.torch import load_file

from skill_kd.jobs.folder import write_folder
from skill_kd.jobs.job import generate
from skill_kd.plan import exchange
from skill_kd.plan.setup import read_setup
from skill_kd.plugins import get_backend

pytestmark = pytest.mark.script


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """The run of one process, and its losses."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, train(folder, models, 1)


@pytest.mark.parametrize(
    ("strategy", "processes", "shard_teacher"),
    [("ddp", 2, True), ("ddp", 4, False), ("fsdp2", 2, False), ("fsdp2", 4, True)],
)
def test_several_processes_train_to_the_weights_of_one(
    strategy: str,
    processes: int,
    shard_teacher: bool,
    models: Path,
    alone: tuple[Path, list[float]],
    tmp_path: Path,
) -> None:
    """With activations recomputed, which changes nothing either."""
    folder, losses = alone
    launch = {"strategy": strategy, "processes": processes, "shard_teacher": shard_teacher}
    training = {"batch_size": 4, "precision": "fp32", "learning_rate": 1e-3, "gradient_checkpointing": True}
    found = train(tmp_path / "several", models, processes, launch=launch, training=training)
    assert found == pytest.approx(losses, abs=1e-5)
    same_weights(tmp_path / "several", folder)


def test_a_teacher_in_shards_writes_and_scores_though_processes_need_it_unequally(models: Path, tmp_path: Path) -> None:
    """Of four rows the student samples the last: one process has two of the teacher's to be written, the other one."""
    stages = [
        {"kind": "warm_start", "epochs": 0.3, "objective": {"kind": "forward_kl", "responses": "teacher"}},
        {"kind": "distill", "updates": 3, "objective": {"kind": "reverse_kl", "on_policy": 0.25}},
    ]
    losses = train(tmp_path / "alone", models, 1, stages=stages)
    launch = {"strategy": "ddp", "processes": 2, "shard_teacher": True}
    assert train(tmp_path / "run", models, 2, stages=stages, launch=launch) == pytest.approx(losses, abs=1e-5)
    same_weights(tmp_path / "run", tmp_path / "alone")


def test_a_checkpoint_is_not_resumed_with_another_strategy_or_an_indivisible_batch(
    models: Path, alone: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(alone[0] / "checkpoints", folder / "checkpoints")
    two = {"strategy": "fsdp2", "processes": 2}
    refused = start(folder, models, "--resume", launch=two)
    assert refused.returncode != 0
    assert "was written with another launch.strategy" in refused.stderr
    spec = {"launch": two, "training": {"batch_size": 6, "precision": "fp32"}, "rollout": {"prompts": 6}}
    write_folder(get_backend("transformers").render(spec_of(models, **spec)), tmp_path / "uneven")
    refused = start(tmp_path / "uneven", models, launch={"strategy": "fsdp2", "processes": 4})
    assert "batch_size 6 is not divisible by accumulate 1 × 4 started processes" in refused.stderr


STOPPING = """
import os, signal, threading, time
from pathlib import Path

if os.environ.get("RANK") == "1":
    def stop():
        metrics = Path(os.environ["METRICS"])
        while not (metrics.exists() and metrics.read_text().count('"update"') >= 3):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
"""


def test_a_signal_that_reaches_one_process_stops_all_at_the_same_update(
    models: Path, alone: tuple[Path, list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOPPING)
    folder, losses = tmp_path / "run", alone[1]
    monkeypatch.setitem(ENVIRONMENT, "METRICS", str(folder / "metrics.jsonl"))
    with monkeypatch.context() as signalled:
        signalled.setitem(ENVIRONMENT, "PYTHONPATH", str(tmp_path))
        start(folder, models, launch={"strategy": "ddp", "processes": 2})
    done = len(losses_of(folder))
    assert 0 < done < UPDATES
    assert (folder / "checkpoints" / f"0-{done:08d}").is_dir()
    assert train(folder, models, 2, "--resume") == pytest.approx(losses, abs=1e-5)
    same_weights(folder, alone[0])


COUNTING = """
import json, os

if "RANK" in os.environ:
    import torch.distributed as dist

    calls = {}

    def count(name, other, argument, place):
        name = name if hasattr(dist, name) else other  # the name before torch 2.13
        real = getattr(dist, name)

        def counted(*given, **named):
            tensor = named.get(argument, named.get(f"{argument}_tensor"))
            calls[other] = calls.get(other, 0) + (given[place] if tensor is None else tensor).nbytes
            with open(f"{os.environ['COUNTS']}-{os.environ['RANK']}", "w") as file:
                json.dump(calls, file)
            return real(*given, **named)

        setattr(dist, name, counted)

    count("all_gather_single", "all_gather_into_tensor", "output", 0)
    count("reduce_scatter_single", "reduce_scatter_tensor", "input", 1)
"""


@pytest.mark.parametrize("shard_teacher", [False, True])
def test_shards_exchange_what_the_formula_of_scaling_says(
    shard_teacher: bool, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an update: two runs that differ in their number of updates are held against each other."""
    (tmp_path / "sitecustomize.py").write_text(COUNTING)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(tmp_path))
    accumulate, found = 2, []
    for updates in (1, 3):
        monkeypatch.setitem(ENVIRONMENT, "COUNTS", str(tmp_path / f"counts-{updates}"))
        changes = {
            "launch": {"strategy": "fsdp2", "processes": 2, "shard_teacher": shard_teacher},
            "stages": [{"kind": "distill", "updates": updates, "objective": {"kind": "minillm", "teacher_mix": 0.0}}],
            "rollout": {"max_new_tokens": 8, "prompts": 4},
            "training": {"batch_size": 4, "accumulate": accumulate, "precision": "fp32"},
            "checkpoint": {"every": 100, "measure_prompts": 2},
        }
        train(tmp_path / f"of-{updates}", models, 2, **changes)
        found.append([json.loads((tmp_path / f"counts-{updates}-{rank}").read_text()) for rank in (0, 1)])
    setup = read_setup(spec_of(models, **changes))
    stage = setup.spec.stages[0]
    whole, blocks = sizes(models / "student")
    read = sizes(models / "teacher")[1] if shard_teacher else 0
    for fewer, more in zip(*found, strict=True):  # a GPU receives (P − 1) / P of these
        an_update = {name: (more[name] - fewer[name]) / 2 for name in more}
        assert an_update == {
            "all_gather_into_tensor": accumulate * (whole + blocks + read) + whole,
            "reduce_scatter_tensor": accumulate * whole,
        }
        assert sum(an_update.values()) / 2 == exchange.of_update(setup, stage) + exchange.of_gathering(setup)


def sizes(model: Path) -> tuple[int, int]:
    """Return the bytes of all weights, and of those in blocks."""
    of = {name: each.nbytes for name, each in load_file(model / "model.safetensors").items()}
    blocks = sum(size for name, size in of.items() if ".layers." in name)
    assert 0 < blocks < sum(of.values())
    return sum(of.values()), blocks


def test_two_machines_each_started_by_its_own_launcher(
    models: Path, alone: tuple[Path, list[float]], tmp_path: Path
) -> None:
    """On the loopback interface, in one folder that both see."""
    spec = spec_of(models, launch={"strategy": "ddp", "nodes": 2, "processes": 2})
    generate(spec, tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = ["bash", str(tmp_path / "run" / "launch.sh")]
    machines = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env={**ENVIRONMENT, **place, "NODE_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    for machine in machines:
        _, told = machine.communicate(timeout=280)
        assert machine.returncode == 0, told[-4000:]
    folder, losses = alone
    assert losses_of(tmp_path / "run") == pytest.approx(losses, abs=1e-5)
    same_weights(tmp_path / "run", folder)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"strategy": "ddp", "processes": 2}),
        ({"strategy": "fsdp2", "processes": 4}, {"strategy": "fsdp2", "processes": 2}),
    ],
    ids=["one, then two", "four shards, then two"],
)
def test_another_number_of_processes_resumes_a_checkpoint(
    first: dict[str, Any], then: dict[str, Any], models: Path, alone: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder, losses = alone
    train(tmp_path / "run", models, first.get("processes", 1), **({"launch": first} if first else {}))
    # As if it had been stopped at its first checkpoint, inside a round of rollouts.
    (last,) = (tmp_path / "run" / "checkpoints").glob(f"*-{UPDATES:08d}")
    last.rename(tmp_path / "set aside")
    resumed = train(tmp_path / "run", models, then["processes"], "--resume", launch=then)
    assert resumed[UPDATES:] == pytest.approx(losses[KEPT:], abs=1e-5)
    same_weights(tmp_path / "run", folder)
