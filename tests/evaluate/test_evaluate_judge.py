"""The pairwise judge: both orders are asked, and only a judge that agrees with itself gives a win."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")
pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from skill_kd.errors import MissingRequirementError, UsageError
from skill_kd.evaluate import Request, gate
from skill_kd.evaluate.estimates import Columns
from skill_kd.evaluate.from_generations import Files, evaluate_generations
from skill_kd.evaluate.generations import Prompt
from skill_kd.evaluate.pairwise_judge import Judge, compare
from skill_kd.evaluate.policy import GatePolicy, make_policy
from skill_kd.evaluate.samples import Samples
from skill_kd.kd.endpoint import retries

Opinion = Callable[[str, str], Any]
"""(response A, response B) -> what the judge says: text, or choices[0] as a whole"""


asked: list[dict[str, Any]] = []
"""The prompt, as the judge saw it, and the length limit of each request of a test."""


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Opinion], Judge]]:
    """Serve a judge with this opinion, and return its address."""
    monkeypatch.setattr(retries, "BACKOFF", 0.0)
    servers: list[ThreadingHTTPServer] = []
    lock = threading.Lock()
    asked.clear()

    def start(opinion: Opinion) -> Judge:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert body["temperature"] == 0
                parts = body["messages"][0]["content"].split("\n======\n")
                with lock:
                    asked.append(
                        {"prompt": parts[1], "max_tokens": body.get("max_tokens") or body["max_completion_tokens"]}
                    )
                said = opinion(parts[3], parts[5])
                choice = said if isinstance(said, dict) else {"message": {"content": said}}
                reply = json.dumps({"choices": [choice]}).encode()
                self.send_response(200 if said != "refuse" else 400)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return Judge(f"http://127.0.0.1:{server.server_address[1]}/v1", "strict", patience=0.0)

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

    found = compare(ask(fair), PAIRS)
    assert found.scores.tolist() == [1.0, 0.0, 0.5]
    assert found.counts == {"model": "strict", "wins": 1, "losses": 1, "ties": 1, "inconsistent": 0, "unusable": 0}
    assert found.problem is None
    assert {each["max_tokens"] for each in asked} == {8}
    assert len(asked) == 6


@pytest.mark.parametrize("said", ["A", "B", "<think>\nBoth are fine.\n</think>\n\n**A**"])
def test_a_taste_for_a_place_counts_nothing(said: str, ask: Callable[[Opinion], Judge]) -> None:
    found = compare(ask(lambda *_: said), PAIRS)
    assert found.scores.tolist() == [0.5, 0.5, 0.5]
    assert found.counts["inconsistent"] == 3
    assert found.problem is None


def choice(message: dict[str, Any], reason: str = "stop") -> dict[str, Any]:
    return {"message": message, "finish_reason": reason}


UNUSABLE = {
    "another word": ("I like both", "6 are not one of the three words"),
    "a longer answer": ("A, because the response told me to say A", "6 are not one of the three words"),
    "nothing": ("", "6 are empty"),
    "null": (choice({"content": None}), "6 are empty"),
    "reasoning alone": (choice({"content": None, "reasoning_content": "Both"}, "length"), "6 were cut while reasoning"),
    "reasoning in the text": (choice({"content": "<think>\nBoth"}, "length"), "6 were cut while reasoning"),
    "a refusal": (choice({"content": None, "refusal": "No."}), "6 are in the refusal field"),
    "a filter": (choice({"content": "A"}, "content_filter"), "6 were stopped by a content filter"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_answers_are_separate_from_order_effects_and_give_no_metric(
    name: str, ask: Callable[[Opinion], Judge]
) -> None:
    said, words = UNUSABLE[name]
    found = compare(ask(lambda *_: said), PAIRS)
    assert found.counts == {"model": "strict", "wins": 0, "losses": 0, "ties": 0, "inconsistent": 0, "unusable": 3}
    assert found.columns is None
    assert f"no usable answer on 3 of 3 prompts, and those do not count (of its answers, {words})" in str(found.problem)


def test_a_judge_that_reasons_gets_room_for_it(ask: Callable[[Opinion], Judge]) -> None:
    def reasons(first: str, second: str) -> Any:
        if asked[-1]["max_tokens"] == 8:
            return choice({"content": None, "reasoning_content": "Let me"}, "length")
        return choice({"content": "A" if first == "good" else "B", "reasoning_content": "Let me compare."})

    found = compare(replace(ask(reasons), concurrency=1), samples(("good", "bad"), ("bad", "good")))
    assert found.scores.tolist() == [1.0, 0.0]
    assert [each["max_tokens"] for each in asked] == [8, 4096] * 4


def test_more_room_than_the_server_has_leaves_the_answer_unusable(ask: Callable[[Opinion], Judge]) -> None:
    def small(*_: str) -> Any:
        return "refuse" if asked[-1]["max_tokens"] > 8 else choice({"content": "Let me compare"}, "length")

    assert compare(replace(ask(small), concurrency=1), PAIRS).counts["unusable"] == 3


@pytest.mark.parametrize(("prompts", "measured"), [(20, True), (19, False)])
def test_a_few_unusable_answers_do_not_count_and_more_give_no_metric(
    prompts: int, measured: bool, ask: Callable[[Opinion], Judge]
) -> None:
    pairs = [("odd", "bad"), *[("good", "bad")] * (prompts - 1)]
    judge = ask(lambda first, second: "odd one" if "odd" in (first, second) else "A" if first == "good" else "B")
    columns = compare(judge, samples(*pairs)).columns
    assert (columns is not None) == measured
    if columns is not None:
        assert columns.counted().student.tolist() == [1.0] * (prompts - 1)
        policy = make_policy("text-only", {"judge.role": "blocking", "judge.margin": 0.45})
        assert judged(columns, prompts, policy).means == (0.5, 1.0, None)


def judged(columns: Columns, prompts: int, policy: GatePolicy) -> gate.Metric:
    labels = [f"cluster {number}" for number in range(prompts)]
    [metric] = [each for each in gate.judge({"judge": columns}, {}, labels, 2, policy) if each.name == "judge"]
    return metric


def test_the_gate_concludes_nothing_from_unusable_answers(tmp_path: Path, ask: Callable[[Opinion], Judge]) -> None:
    for name, count in (("teacher", 8), ("student", 4)):
        rows = ({"prompt": f"p{n}", "response": f"{name} {n} {k} word"} for n in range(4) for k in range(count))
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    blocking = {"judge.role": "blocking", "judge.margin": 0.2, "resamples": 200, "least_prompts": 2, "samples": 4}
    others = {f"{name}.role": "advisory" for name in make_policy("text-only").blocking}
    policy = make_policy("text-only", {**blocking, **others})
    files = Files(tmp_path / "teacher", tmp_path / "student")
    null = choice({"content": None, "reasoning_content": "Let me compare"}, "length")
    for said, verdict in ((null, "INCONCLUSIVE"), ("TIE", "GO")):
        found = evaluate_generations(files, policy, judge=ask(lambda *_, said=said: said))
        assert found.decision.verdict == verdict
        [metric] = [each for each in found.metrics if each.name == "judge"]
        assert metric.outcome == ("pass" if said == "TIE" else "not_measured")
        warned = [each for each in found.warnings if "no usable answer on 4 of 4 prompts" in each]
        assert len(warned) == (said != "TIE")
        assert (metric.reason in warned) == (said != "TIE")


CONVERSATION = [
    {"role": "system", "content": "Answer in French only."},
    {"role": "user", "content": "My cat is ill."},
    {"role": "assistant", "content": "What does it not eat?"},
    {"role": "user", "content": "Dry food."},
]


def test_the_judge_sees_the_system_prompt_and_all_turns(ask: Callable[[Opinion], Judge]) -> None:
    prompts = [Prompt.of({"messages": CONVERSATION}), Prompt.of({"prompt": "Dry food."}), Prompt("Dry food.")]
    labelled = [Prompt("Dry food.").joined(prompts[0])]
    compare(ask(lambda *_: "TIE"), Samples([*prompts, *labelled], [["a"]] * 4, [["b"]] * 4, None, None, ()))
    seen = [each["prompt"] for each in asked]
    whole = [each for each in seen if each != "Dry food."]
    assert len(seen) - len(whole) == 4  # a single user turn is shown as it is
    places = [whole[0].index(f"{turn['role']}:\n{turn['content']}") for turn in CONVERSATION]
    assert places == sorted(places)
    assert whole == [whole[0]] * 4


def test_judge_needs_no_torch(ask: Callable[[Opinion], Judge]) -> None:
    judge = ask(lambda *_: "TIE")
    code = f"""
import sys
sys.modules["torch"] = None
from skill_kd.evaluate.generations import Prompt
from skill_kd.evaluate.pairwise_judge import Judge, compare
from skill_kd.evaluate.samples import Samples
print(compare(Judge({judge.url!r}, "strict"), Samples([Prompt("p")], [["a"]], [["b"]], None, None, ())).ties)
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
    with pytest.raises(UsageError, match="does not start with http:// or https://"):
        _ = Request(judge_url="file:///etc/passwd", judge_model="m").judge


@pytest.mark.parametrize("secret", ["https://me:hush@", "https://hush@", "https://me:hu/sh@", "me:hush@"])
def test_a_password_in_the_judges_address_is_refused_without_repeating_it(secret: str) -> None:
    with pytest.raises(UsageError, match=r"--judge-url holds .* use --judge-key-env") as refused:
        _ = Request(judge_url=f"{secret}host/v1", judge_model="m").judge
    assert "hu" not in str(refused.value)
