"""A served teacher equals a loaded one; short faults are retried, and wrong servers are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model, make_tokenizer, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from skill_kd.errors import MissingRequirementError
from skill_kd.evaluate.generations import Prompt
from skill_kd.evaluate.pairwise_judge import Judge, compare
from skill_kd.evaluate.samples import Samples
from skill_kd.kd.addresses import proxy_for
from skill_kd.kd.config import SelfTrain, Served, Training
from skill_kd.kd.config import Teacher as TeacherConfig
from skill_kd.kd.dataset.batch import Row, collate
from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.dataset.reading import Example
from skill_kd.kd.endpoint import Endpoint, Names, client, retries
from skill_kd.kd.errors import BadInput, Missing, StoppedBySignal
from skill_kd.kd.losses import divergences
from skill_kd.kd.losses.divergences import log_probs
from skill_kd.kd.model.teacher_distribution import TopK, on_shared_outcomes
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, requests_for
from skill_kd.kd.signals import StopRequest
from skill_kd.kd.teacher.served import ServedTeacher
from skill_kd.kd.teacher.teacher import Teacher, open_teacher
from skill_kd.kd.train.held_out import HeldOut
from skill_kd.kd.train.self_training import own_best_samples
from skill_kd.spec.file import parse_spec

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[3]
CPU = torch.device("cpu")
KEY, KEY_VARIABLE = "sk-never-written-anywhere", "SKILL_KD_TEST_ENTRY"
"""The name is none that `skill-kd run` knows for a secret's: nothing is scrubbed here that should not be there."""
WROTE = "hello world the lazy dog"


@dataclass
class Server:
    """A tiny llama behind the two endpoints, as vLLM answers them, with faults to switch on."""

    folder: Path
    fail_first: int = 0
    status: int = 503
    drop: bool = False
    shift: bool = False
    foreign: bool = False
    hang: float = 0.0
    raw: bytes | None = None
    most: int = 1000
    """Largest number of log-probabilities given."""
    unsteady: float = 0.0
    """Of three rows in four, the first request fails: refused, cut midway, or this many seconds late."""
    dies_at: int = 0
    """Number of the request in which the server dies."""
    stays_dead: float | None = None
    """Seconds until it is back; None: for ever."""
    lists: tuple[str, ...] | None = ("tiny",)
    redirect: str = ""
    redirects_with: int = 302
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    under_way: int = 0
    peak: int = 0
    """Most requests under way at once."""
    url: str = ""

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    @contextmanager
    def listening(self) -> Iterator[Server]:
        """Be there on one and the same port, from the first time on."""
        self.start(0)
        try:
            yield self
        finally:
            self.stop()

    def start(self, port: int) -> None:
        self.http = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"fake": self}))
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.port: int = self.http.server_address[1]
        self.url, self.up = f"http://127.0.0.1:{self.port}/v1", True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}).start()

    def stop(self) -> None:
        self.up = False
        self.http.shutdown()
        self.http.server_close()

    def die(self) -> None:
        self.stop()
        if self.stays_dead is not None:
            threading.Timer(self.stays_dead, self.start, (self.port,)).start()

    def fault(self, body: dict[str, Any]) -> str | None:
        """Return what goes wrong with a request; in which order the requests come makes no difference."""
        if not self.unsteady or self.seen.count(body) > 1:
            return None
        return (None, "refused", "cut", "late")[sum(body.get("prompt", ())) % 4]

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self.under_way += 1
            self.peak = max(self.peak, self.under_way)
        try:
            yield
        finally:
            with self.lock:
                self.under_way -= 1

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        if len(self.seen) <= self.fail_first:
            return self.status, b'{"error": "Bearer ' + KEY.encode() + b'"}'
        if self.raw is not None:
            return 200, self.raw
        if body.get("prompt_logprobs", 0) > self.most:
            return 400, json.dumps({"message": f"at most {self.most} logprobs"}).encode()
        choice = self.scores(body) if path.endswith("/v1/completions") else self.chat()
        return 200, json.dumps({"choices": [choice]}).encode()

    def chat(self) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": WROTE}, "finish_reason": "stop"}

    def scores(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, top = body["prompt"], body["prompt_logprobs"]
        with torch.no_grad():
            logp = log_probs(self.model(torch.tensor([ids])).logits[0])
        listed: list[Any] = [None]
        for position, token in enumerate(ids[1:]):
            named = {token, *logp[position].topk(min(top, logp.shape[1])).indices.tolist()}
            listed.append({str(i): {"logprob": float(logp[position, i]), "decoded_token": self.text(i)} for i in named})
        if self.shift:
            listed = [None, *listed[2:], listed[1]]
        return {"text": "", "finish_reason": "length", **({} if self.drop else {"prompt_logprobs": listed})}

    def text(self, token: int) -> str:
        return str(self.tokenizer.decode([(token * 7 + 11) % 250 + 3 if self.foreign else token]))


class Handler(BaseHTTPRequestHandler):
    fake: Server

    def do_GET(self) -> None:
        self.fake.keys.add(self.headers["Authorization"])
        names = self.fake.lists
        listed = {"object": "list", "data": [{"id": name} for name in names or ()]}
        self.send(404 if names is None else 200, json.dumps(listed).encode())

    def do_POST(self) -> None:
        fake, body = self.fake, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.keys.add(self.headers["Authorization"])
        with fake.counted():
            if fake.hang:
                time.sleep(fake.hang)
            with fake.lock:
                fake.seen.append(body)
                fault = fake.fault(body)
                dying = len(fake.seen) == fake.dies_at
                status, content = fake.reply(self.path, body)
        if dying:
            fake.die()
            return
        if fault == "late":
            time.sleep(fake.unsteady)
        self.send(500 if fault == "refused" else status, content, len(content) // 2 if fault == "cut" else None)

    def send(self, status: int, content: bytes, until: int | None = None) -> None:
        with suppress(OSError):  # the client gave up waiting
            self.send_response(self.fake.redirects_with if self.fake.redirect else status)
            self.send_header("Location", self.fake.redirect)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:until])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "teacher", layers=2, seed=0)
    make_model(folder / "other", layers=2, seed=5)
    make_model(folder / "student", layers=1, seed=1, vocabulary=384)
    return folder


@pytest.fixture
def server(models: Path) -> Iterator[Server]:
    with Server(models / "teacher").listening() as fake:
        yield fake


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "BACKOFF", 0.001)
    monkeypatch.setattr(StopRequest, "asked", 0)


def address(server: Server, **changes: Any) -> Served:
    values = {
        "url": server.url,
        "model": "tiny",
        "top_logprobs": 5,
        "api_key_env": None,
        "timeout": 20.0,
        "patience": 0.0,
    }
    return Served(**{**values, "concurrency": 4, **changes})


def served_teacher(served: Served) -> ServedTeacher:
    return ServedTeacher(served, vocabulary=384)


class Setting:
    """A student and a served teacher, as a run opens them."""

    def __init__(self, models: Path, server: Server, **changes: Any) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(models / "student")
        self.student = AutoModelForCausalLM.from_pretrained(models / "student", dtype=torch.float32).eval()
        ends = frozenset({int(self.tokenizer.eos_token_id)})
        self.encoder = Encoder(self.tokenizer, ends)
        decoding = Decoding(8, 1.0, 1.0, ends, len(self.tokenizer))
        self.sampler = Sampler(decoding, int(self.tokenizer.pad_token_id), CPU)
        self.config = tiny_config(
            seed=1,
            teacher=TeacherConfig(served=address(server, **changes)),
            training=Training(batch_size=4, accumulate=2),
        )
        self.examples = [Example((("user", text),), None) for text in ("hello", "what is a quick brown fox", "a dog")]
        self.requests = requests_for([self.encoder.prompt(example) for example in self.examples], (1, "held_out"))

    def teacher(self) -> Teacher:
        return open_teacher(self.config, self.tokenizer, self.sampler, self.encoder)

    def loaded(self, server: Server) -> Teacher:
        """The same teacher as a model in this process, writing what the server writes."""
        return Teacher(server.model, self.sampler.decoding.vocabulary, self.teacher().write)

    def rows(self) -> list[Row]:
        return self.sampler.sample(self.student, self.requests, "student")


# --- its answers ------------------------------------------------------------------------------------------------------


def test_a_server_that_returns_every_token_equals_a_loaded_teacher(models: Path, server: Server) -> None:
    setting = Setting(models, server, top_logprobs=len(make_tokenizer()))
    layout = collate(setting.rows(), setting.sampler.pad, CPU)
    view, dense = setting.teacher().logp(layout), setting.loaded(server).logp(layout)
    assert isinstance(view, TopK)
    assert isinstance(dense, torch.Tensor)
    student = log_probs(torch.randn(dense.shape, generator=torch.Generator().manual_seed(0)))
    shared_logp, teacher_logp, _ = on_shared_outcomes(student, view, layout)
    assert teacher_logp is not None
    for divergence in (divergences.forward_kl, divergences.reverse_kl):
        named, whole = divergence(shared_logp, teacher_logp), divergence(student, dense)
        torch.testing.assert_close(named[layout.mask_BT], whole[layout.mask_BT], rtol=1e-5, atol=1e-5)


def test_a_token_outside_the_likeliest_has_its_own_probability(models: Path, server: Server) -> None:
    setting = Setting(models, server, top_logprobs=1)
    layout = collate(setting.rows(), setting.sampler.pad, CPU)
    told, exact = setting.teacher().token_logp(layout), setting.loaded(server).token_logp(layout)
    torch.testing.assert_close(told[layout.mask_BT], exact[layout.mask_BT], rtol=1e-4, atol=1e-4)


def test_held_out_bounds_have_names_of_their_own_and_the_rest_is_exact(models: Path, server: Server) -> None:
    setting = Setting(models, server)
    told, exact = (
        HeldOut(teacher, setting.sampler, setting.examples, setting.requests, 2).measure(setting.student)[0]
        for teacher in (setting.teacher(), setting.loaded(server))
    )
    bounded = {"forward_kl", "reverse_kl", "teacher_entropy"}
    assert told.keys() == {f"{name}_topk" if name in bounded else name for name in exact}
    for name, value in exact.items():
        if name in bounded:
            assert 0 < told[f"{name}_topk"] < value
        else:
            assert told[name] == pytest.approx(value, rel=1e-4)


def test_the_students_best_samples_are_those_the_served_teacher_finds_likely(models: Path, server: Server) -> None:
    setting = Setting(models, server, top_logprobs=1)
    many_ends = replace(setting.sampler.decoding, eos_ids=frozenset(range(60)))
    sampler = replace(setting.sampler, decoding=many_ends)
    prompts = [request.prompt for request in setting.requests]
    stage = SelfTrain(samples=8, keep=0.5)
    told, exact = (
        own_best_samples(setting.config, stage, setting.student, teacher, prompts, sampler)
        for teacher in (setting.teacher(), setting.loaded(server))
    )
    assert len(exact) > 2
    assert told == exact


def test_text_is_all_a_server_without_log_probabilities_is_asked_for(models: Path, server: Server) -> None:
    teacher = Setting(models, server, top_logprobs=0).teacher()
    assert not teacher.scores
    assert server.seen == []


# --- faults that pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_passing_faults_are_waited_for(status: int, server: Server) -> None:
    server.fail_first, server.status = 3, status
    [[position]] = served_teacher(address(server)).score([([4, 5, 6], [7])])
    assert 7 in position


def test_waits_grow_and_no_two_are_alike(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    for _ in range(4):
        server.fail_first = len(server.seen) + 3
        served_teacher(address(server)).score([([4, 5], [7])])
    for wait, full in zip(waits, (0.001, 0.002, 0.004) * 4, strict=True):
        assert full / 2 <= wait <= full
    assert len(set(waits)) == len(waits)  # or all requests under way would come again at one moment


def test_where_some_rows_of_a_batch_fail_all_come_back_as_if_none_had(server: Server) -> None:
    rows = [([4, 5, 6], [token, 7]) for token in range(40, 60)]
    teacher = served_teacher(address(server, timeout=0.5))
    undisturbed = served_teacher(address(server)).score(rows)
    server.seen.clear()
    server.unsteady = 1.0
    assert teacher.score(rows) == undisturbed
    assert len(server.seen) == 20 + 15  # each kind of failure befell five of them


def test_a_server_that_has_answered_is_waited_for(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = served_teacher(address(server, patience=60.0))
    teacher.score([([4, 5], [7])])
    server.fail_first = len(server.seen) + 2 * retries.ATTEMPTS  # it comes back after more than the usual attempts
    [[position]] = teacher.score([([4, 5], [7])])
    assert 7 in position
    assert capsys.readouterr().err.count("waiting at most 60 s") == 1
    server.fail_first = 10**6
    with pytest.raises(Missing, match="does not answer"):
        served_teacher(address(server, patience=60.0)).score([([4, 5], [7])])  # this one has not answered yet


def test_patience_ends_once_for_all_requests(server: Server) -> None:
    teacher = served_teacher(address(server, patience=1.0, concurrency=2))
    teacher.score([([4, 5], [7])])
    server.fail_first = 10**6
    began = time.monotonic()
    with pytest.raises(Missing, match="does not answer"):
        teacher.score([([4, 5], [token]) for token in range(20, 40)])
    assert time.monotonic() - began < 1.9  # not once more for the rows that wait their turn


def test_a_server_that_is_there_and_fails_is_not_waited_for(server: Server) -> None:
    teacher = served_teacher(address(server, patience=60.0))
    teacher.score([([4, 5], [7])])
    server.fail_first, server.status = 10**6, 500
    with pytest.raises(Missing, match="HTTP 500"):
        teacher.score([([4, 5], [7])])


def test_a_run_that_waits_for_its_server_heeds_a_signal(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = served_teacher(address(server, patience=60.0))
    teacher.score([([4, 5], [7])])
    server.fail_first = 10**6
    monkeypatch.setattr(StopRequest, "asked", 15)
    with pytest.raises(StoppedBySignal) as stopped:
        teacher.score([([4, 5], [7])])
    assert stopped.value.exit_code == 143


def test_requests_are_under_way_together_and_never_more_than_asked_for(server: Server) -> None:
    server.hang = 0.05
    served_teacher(address(server, concurrency=3)).score([([4, 5], [token]) for token in range(40, 52)])
    assert 1 < server.peak <= 3


@pytest.mark.parametrize("outage", ["short", "long"])
def test_a_server_that_comes_back_with_another_model_is_refused(
    outage: str, models: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(models, server, patience=60.0, concurrency=1)
    teacher, layout = setting.teacher(), collate(setting.rows(), setting.sampler.pad, CPU)
    before = teacher.token_logp(layout)
    monkeypatch.setattr(retries.time, "sleep", lambda _: None if server.up else server.start(server.port))

    def go_away() -> None:
        if outage == "short":  # nobody listens, until the first attempt has failed
            server.stop()
        else:
            server.fail_first = len(server.seen) + retries.ATTEMPTS

    go_away()
    torch.testing.assert_close(teacher.token_logp(layout), before, rtol=0, atol=0)  # the same one is welcome
    server.model = AutoModelForCausalLM.from_pretrained(models / "other", dtype=torch.float32).eval()
    go_away()
    with pytest.raises(BadInput, match=r"came back with another model as 'tiny'.*--resume"):
        teacher.token_logp(layout)


def test_rows_come_back_in_the_order_they_were_sent(server: Server) -> None:
    rows = [([4, 5], [token]) for token in range(40, 60)]
    scored = served_teacher(address(server, concurrency=8)).score(rows)
    assert all(response[0] in positions[0] for (_, response), positions in zip(rows, scored, strict=True))


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "it stays down": ({"fail_first": 99}, {}, "HTTP 503"),
    "no key": ({"fail_first": 99, "status": 401}, {}, "teacher.served.api_key_env"),
    "no JSON": ({"raw": b"<html>"}, {}, "does not answer"),
    "JSON of another shape": ({"raw": b"[1]"}, {}, "without choices[0].prompt_logprobs"),
    "null log-probabilities": ({"raw": b'{"choices": [{"prompt_logprobs": null}]}'}, {}, "set top_logprobs: 0"),
    "no log-probabilities": ({"drop": True}, {}, "set top_logprobs: 0"),
    "log-probabilities shifted by one": ({"shift": True}, {"top_logprobs": 1000}, "shifted by one"),
    "more than it gives": ({"most": 20}, {"top_logprobs": 64}, "at most 20 logprobs"),
    "another model": ({"lists": ("other", "third")}, {}, "'tiny' is not on"),
    "another model, and only text is asked for": ({"lists": ("other",)}, {"top_logprobs": 0}, "which lists 'other'"),
    "it hangs": ({"hang": 0.3}, {"timeout": 0.05}, "timed out"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_server_that_cannot_be_trusted_is_refused_in_one_line(name: str, models: Path, server: Server) -> None:
    faults, changes, words = REFUSALS[name]
    for fault, value in faults.items():
        setattr(server, fault, value)
    with pytest.raises(Missing) as refused:
        Setting(models, server, **changes).teacher()
    message = str(refused.value)
    assert words in message
    assert "teacher.served" in message
    assert "\n" not in message
    assert refused.value.exit_code == 5


def test_another_tokenizer_behind_the_server_is_refused(models: Path, server: Server) -> None:
    server.foreign = True
    with pytest.raises(BadInput, match="another tokenizer"):
        Setting(models, server).teacher()


@pytest.mark.parametrize("top", [0, 5])
def test_a_server_that_lists_no_models_is_believed(top: int, models: Path, server: Server) -> None:
    server.lists = None
    assert Setting(models, server, top_logprobs=top).teacher().scores == (top > 0)


def test_a_refusal_is_not_asked_for_again(models: Path, server: Server) -> None:
    server.fail_first, server.status = 99, 401
    with pytest.raises(Missing):
        Setting(models, server).teacher()
    assert len(server.seen) == 1


def test_a_key_that_is_not_set_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(Missing, match=KEY_VARIABLE):
        served_teacher(address(server, api_key_env=KEY_VARIABLE)).score([([4], [5])])


@pytest.mark.parametrize("status", [403, 400])
def test_a_refused_key_is_not_repeated(status: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    server.fail_first, server.status = 99, status
    with pytest.raises(Missing) as refused:
        served_teacher(address(server, api_key_env=KEY_VARIABLE)).score([([4], [5])])
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in str(refused.value)


class Echo(BaseHTTPRequestHandler):
    """Answers every request with its own headers, in the status line and in the body."""

    status: str

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        key = self.headers["Authorization"]
        body = json.dumps({"data": [{"id": key}], "error": key})
        head = f"{self.status} refused {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write((head + body).encode())
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def echo(status: str) -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Echo,), {"status": status}))
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    finally:
        http.shutdown()
        http.server_close()


ECHOES = ("HTTP/1.1 401", "HTTP/1.1 400", "HTTP/1.1 418", "HTTP/1.1 503", "HTTP/1.1 200", "no HTTP", "HTTP/1.1 abc")


def test_a_key_that_the_server_echoes_is_in_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    leaked, refused = [], 0
    for status in ECHOES:
        with echo(status) as url:
            asked = {"url": url, "model": "m", "api_key_env": KEY_VARIABLE, "timeout": 5.0}
            teacher = Served(**asked, top_logprobs=3, concurrency=1, patience=0.0)
            judge = Judge(url, "m", KEY_VARIABLE, concurrency=1, timeout=5.0, patience=0.0)
            for ask in (
                lambda teacher=teacher: served_teacher(teacher).endpoint.check_model(),
                lambda teacher=teacher: served_teacher(teacher).score([([4], [5])]),
                lambda judge=judge: compare(judge, Samples([Prompt("p")], [["a"]], [["b"]], None, None, ())),
            ):
                try:
                    ask()
                except (Missing, MissingRequirementError) as error:
                    refused += 1
                    leaked += [status] * (KEY in str(error))
    assert refused == 3 * len(ECHOES)
    assert not leaked
    assert KEY not in "".join(capsys.readouterr())


def test_a_key_follows_no_redirect(models: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with Server(models / "other").listening() as other:
        for host in ("127.0.0.1", "localhost"):
            server.redirect = f"{other.url.replace('127.0.0.1', host)}/models"
            with pytest.raises(Missing, match=f"HTTP 302.*redirects to {server.redirect}; use that address"):
                served_teacher(address(server, api_key_env=KEY_VARIABLE)).endpoint.check_model()
    assert server.keys == {f"Bearer {KEY}"}
    assert other.keys == set()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_prompt_follows_no_redirect(
    status: int, models: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with Server(models / "other").listening() as other:
        server.redirect, server.redirects_with = f"{other.url}/completions?key={KEY}", status
        with pytest.raises(Missing, match=rf"HTTP {status}.*redirects to {other.url}/completions\?key=<the key>"):
            served_teacher(address(server, api_key_env=KEY_VARIABLE)).score([([4], [5])])
    assert len(server.seen) == 1
    assert (other.keys, other.seen) == (set(), [])


@pytest.mark.parametrize("key", [KEY + "\n", " " + KEY, KEY[:5] + "…" + KEY[5:]], ids=["line", "space", "no ASCII"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(
    key: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(Missing, match=rf"teacher\.served\.api_key_env: '{KEY_VARIABLE}' must hold") as refused:
        served_teacher(address(server, api_key_env=KEY_VARIABLE)).score([([4], [5])])
    assert KEY[:5] not in str(refused.value)
    assert server.seen == []


@pytest.mark.parametrize("named", [True, False], ids=["with a key", "without"])
def test_no_password_of_a_netrc_is_sent(
    named: bool, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hush\ndefault login me password hush\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    key = KEY_VARIABLE if named else None
    served_teacher(address(server, api_key_env=key)).score([([4], [5])])
    assert server.keys == {f"Bearer {KEY}" if named else None}


@pytest.mark.parametrize("secret", ["me:hush@", "me:hu/sh@", "hush@"])
def test_an_address_with_a_password_is_refused_without_repeating_it(secret: str, server: Server) -> None:
    url = server.url.replace("//", f"//{secret}")
    with pytest.raises(BadInput, match=r"teacher\.served\.url holds a user name or password") as refused:
        served_teacher(address(server, url=url))
    assert "hu" not in str(refused.value)
    assert server.keys == set()


def test_a_proxy_is_the_one_that_the_environment_names_for_the_address(
    models: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    far = "http://teacher.invalid/v1"
    with Server(models / "other").listening() as proxy:
        monkeypatch.setenv("all_proxy", proxy.url.removesuffix("/v1"))
        assert proxy_for(far) is None
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        served_teacher(address(server, url=far)).endpoint.check_model()
        assert len(proxy.keys) == 1
        monkeypatch.setenv("no_proxy", "teacher.invalid")
        assert proxy_for(far) is None


LOOPBACKS = ("127.0.0.1:8000", "127.8.9.1", "localhost:8000", "LOCALHOST", "me.localhost.", "[::1]:8000")


@pytest.mark.parametrize("host", [*LOOPBACKS, "[::ffff:127.0.0.1]"])
def test_a_loopback_address_has_no_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "proxy.invalid:3128")
    assert proxy_for(f"http://{host}/v1") is None
    for other in ("10.0.0.1", "localhost.invalid", "127.0.0.1.invalid", "[::2]"):
        assert proxy_for(f"http://{other}/v1") == "http://proxy.invalid:3128"


def test_a_key_that_the_server_echoes_is_in_no_log_of_the_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with echo("HTTP/1.1 200") as url, caplog.at_level("DEBUG"):
        names = Names("url", "model", "key")
        assert Endpoint(url, "m", names, KEY_VARIABLE).get("/models")["error"] == "Bearer <the key>"
    assert KEY not in caplog.text


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "find_spec", lambda name: None if name == "tenacity" else name)
    with pytest.raises(Missing, match="need tenacity; run pip install tenacity"):
        served_teacher(address(server)).endpoint.check_model()


# --- whole runs -------------------------------------------------------------------------------------------------------


REVERSE_KL = {"kind": "reverse_kl"}
RUN = Path("runs/served")


def write_spec(folder: Path, models: Path, server: Server, objective: dict[str, Any], top: int, **address: Any) -> None:
    teacher = {"url": server.url, "model": "tiny", "top_logprobs": top, "api_key_env": KEY_VARIABLE, **address}
    values = {
        "name": "served",
        "teacher": {"served": teacher},
        "student": {"model": str(models / "student")},
        "data": {"train": str(REPOSITORY / "examples/data/sft.jsonl"), "held_out": 0.2, "max_prompt_tokens": 200},
        "stages": [{"kind": "distill", "updates": 3, "objective": objective}],
        "rollout": {"max_new_tokens": 6, "prompts": 2},
        "training": {"batch_size": 2, "precision": "fp32", "learning_rate": 1e-3},
        "checkpoint": {"every": 1, "measure_prompts": 2},
    }
    (folder / "spec.json").write_text(json.dumps(values), encoding="utf-8")


def skill_kd(folder: Path, *arguments: str) -> Any:
    """Call it on the spec that lies in ``folder``, where it then writes; return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "skill_kd", arguments[0], "spec.json", *arguments[1:]],
        cwd=folder,
        env={**os.environ, KEY_VARIABLE: KEY, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def weights(folder: Path) -> bytes:
    return (folder / RUN / "student" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The weights of a run whose server was always there, and how many requests that took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Server(models / "teacher").listening() as server:
        write_spec(folder, models, server, REVERSE_KL, 5)
        done = skill_kd(folder, "run")
    assert done.returncode == 0, done.stderr
    return weights(folder), len(server.seen)


@pytest.mark.script
@pytest.mark.parametrize("fault", ["unsteady", "dies"])
def test_a_run_whose_server_fails_and_comes_back_gives_the_weights_of_an_undisturbed_one(
    fault: str, undisturbed: tuple[bytes, int], tmp_path: Path, models: Path, server: Server
) -> None:
    expected, requests = undisturbed
    if fault == "unsteady":
        server.unsteady = 1.5
    else:
        server.dies_at, server.stays_dead = requests * 2 // 3, 9.0  # longer than a passing fault is waited for
    write_spec(tmp_path, models, server, REVERSE_KL, 5, timeout=1.0)
    done = skill_kd(tmp_path, "run")
    assert done.returncode == 0, done.stderr
    assert len(server.seen) > requests
    assert weights(tmp_path) == expected
    assert ("waiting at most" in done.stderr) == (fault == "dies")


@pytest.mark.script
def test_a_run_whose_patience_ends_is_resumed_to_the_weights_of_an_undisturbed_one(
    undisturbed: tuple[bytes, int], tmp_path: Path, models: Path, server: Server
) -> None:
    expected, requests = undisturbed
    server.dies_at = requests * 2 // 3
    write_spec(tmp_path, models, server, REVERSE_KL, 5, patience=0.0)
    done = skill_kd(tmp_path, "run")
    assert done.returncode == 5, done.stderr
    manifest = json.loads((tmp_path / RUN / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["status"], manifest["exit_code"]) == ("failed", 5)
    assert f"{server.url} does not answer" in manifest["reason"]
    server.start(server.port)
    done = skill_kd(tmp_path, "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert "resuming from checkpoint 0-" in done.stderr
    assert weights(tmp_path) == expected


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / RUN / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.script
@pytest.mark.parametrize(
    ("objective", "top", "best_by"),
    [
        ({"kind": "reverse_kl"}, 5, "reverse_kl_topk"),
        ({"kind": "minillm", "teacher_mix": 0.0, "coverage_weight": 0.5}, 5, "reverse_kl_topk"),
        ({"kind": "sequence_kd"}, 0, "held_out_nll"),
    ],
    ids=["reverse_kl", "minillm", "text only"],
)
def test_a_student_learns_from_a_server_and_the_key_is_written_nowhere(
    objective: dict[str, Any], top: int, best_by: str, tmp_path: Path, models: Path, server: Server
) -> None:
    server.fail_first = 1
    write_spec(tmp_path, models, server, objective, top)
    done = skill_kd(tmp_path, "run")
    assert done.returncode == 0, done.stderr
    generated = skill_kd(tmp_path, "generate", "--out", "generated")
    assert generated.returncode == 0, generated.stderr
    assert len(events(tmp_path, "update")) == 3
    measured = {event["update"]: event[best_by] for event in events(tmp_path, "held_out") if event["stage"] != "before"}
    assert "reverse_kl" not in events(tmp_path, "held_out")[-1]
    best = json.loads((tmp_path / RUN / "summary.json").read_text(encoding="utf-8"))["best"]
    assert best == f"0-{min(measured, key=lambda update: measured[update]):08d}"
    assert server.keys == {f"Bearer {KEY}"}
    written = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    looked_in = ("manifest.json", "train.log", "metrics.jsonl", "summary.json", "train.py", "student/config.json")
    assert {"generated/train.py", *(f"{RUN}/{name}" for name in looked_in)} <= written.keys()
    assert not [name for name, content in written.items() if KEY.encode() in content]
    assert not [done for done in (done, generated) if KEY in done.stdout + done.stderr]


@pytest.mark.script
@pytest.mark.parametrize(
    ("fault", "objective", "top", "words"),
    [
        (("drop", True), "reverse_kl", 5, "without choices[0].prompt_logprobs"),
        (("lists", ("other",)), "sequence_kd", 0, "teacher.served.model 'tiny' is not on"),
    ],
    ids=["no log-probabilities", "another model"],
)
def test_a_run_with_a_false_server_ends_with_one_line_and_its_exit_code(
    fault: tuple[str, Any], objective: str, top: int, words: str, tmp_path: Path, models: Path, server: Server
) -> None:
    setattr(server, *fault)
    write_spec(tmp_path, models, server, {"kind": objective}, top)
    done = skill_kd(tmp_path, "run")
    assert done.returncode == 5, done.stderr
    [told] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert words in told
    assert "Traceback" not in done.stderr
    assert server.seen == [] or top


def test_a_tempered_divergence_from_a_server_is_refused() -> None:
    values = {
        "name": "a",
        "teacher": {"served": {"url": "http://127.0.0.1:1/v1", "model": "m", "top_logprobs": 5}},
        "student": {"model": "a"},
        "data": {"train": "a.jsonl"},
        "stages": [{"kind": "distill", "objective": {"kind": "forward_kl", "temperature": 2.0}}],
    }
    with pytest.raises(Exception, match=r"temperature: 2\.0 .*top_logprobs: 5 .*set temperature: 1"):
        parse_spec(values)
