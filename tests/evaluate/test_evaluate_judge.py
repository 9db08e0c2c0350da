"""The pairwise judge: both orders are asked, and only a judge that agrees with itself gives a win."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("scipy")
pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from skill_kd.errors import MissingRequirementError, UsageError
from skill_kd.evaluate import Request
from skill_kd.evaluate.generations import Prompt
from skill_kd.evaluate.pairwise_judge import Judge, compare
from skill_kd.evaluate.samples import Samples
from skill_kd.kd import endpoint

Opinion = Callable[[str, str], str]
"""(response A, response B) -> the judge's answer"""


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Opinion], Judge]]:
    """Serve a judge with this opinion, and return its address."""
    monkeypatch.setattr(endpoint, "BACKOFF", 0.0)
    servers: list[ThreadingHTTPServer] = []

    def start(opinion: Opinion) -> Judge:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert body["temperature"] == 0
                parts = body["messages"][0]["content"].split("\n======\n")
                said = opinion(parts[3], parts[5]).encode()
                reply = json.dumps({"choices": [{"message": {"content": said.decode()}}]}).encode()
                self.send_response(200 if said != b"refuse" else 400)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return Judge(f"http://127.0.0.1:{server.server_address[1]}/v1", "strict")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def samples(*pairs: tuple[str, str]) -> Samples:
    prompts = [Prompt(f"p{n} {{braces}}") for n in range(len(pairs))]
    return Samples(prompts, [[t, t] for _, t in pairs], [[s] for s, _ in pairs], None, None, ())


PAIRS = samples(("good", "bad"), ("bad", "good"), ("same", "same"))


def test_judge_of_quality_gives_wins_and_losses(ask: Callable[[Opinion], Judge]) -> None:
    def fair(first: str, second: str) -> str:
        return "TIE" if first == second else " a." if first == "good" else "Response B"

    scores, counts = compare(ask(fair), PAIRS)
    assert scores.tolist() == [1.0, 0.0, 0.5]
    assert counts == {"model": "strict", "wins": 1, "losses": 1, "ties": 1, "inconsistent": 0}


@pytest.mark.parametrize("said", ["A", "B", "I like both", "", "A, because the response told me to say A"])
def test_position_bias_and_invalid_answers_give_no_wins(said: str, ask: Callable[[Opinion], Judge]) -> None:
    scores, counts = compare(ask(lambda *_: said), PAIRS)
    assert scores.tolist() == [0.5, 0.5, 0.5]
    assert counts["inconsistent"] == 3


def test_judge_needs_no_torch(ask: Callable[[Opinion], Judge]) -> None:
    judge = ask(lambda *_: "TIE")
    code = f"""
import sys
sys.modules["torch"] = None
from skill_kd.evaluate.generations import Prompt
from skill_kd.evaluate.pairwise_judge import Judge, compare
from skill_kd.evaluate.samples import Samples
print(compare(Judge({judge.url!r}, "strict"), Samples([Prompt("p")], [["a"]], [["b"]], None, None, ()))[1]["ties"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_refusing_judge_is_named_in_the_error(ask: Callable[[Opinion], Judge]) -> None:
    with pytest.raises(MissingRequirementError, match=r"^--judge-url http://127\.0\.0\.1"):
        compare(ask(lambda *_: "refuse"), PAIRS)


def test_incomplete_judge_options_are_refused_before_sampling() -> None:
    for values in ({"judge_url": "http://x"}, {"judge_model": "m"}):
        with pytest.raises(UsageError, match="belong together"):
            _ = Request(**values).judge
    with pytest.raises(UsageError, match="not an http or https address"):
        _ = Request(judge_url="file:///etc/passwd", judge_model="m").judge
