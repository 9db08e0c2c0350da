"""No server can hold a run for ever or fill its memory: size, time and nesting of an answer are bounded."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from skill_kd.kd.endpoint import Endpoint, Names, exchange, retries
from skill_kd.kd.errors import Missing

NAMES = Names("the.url", "the.model", "the.key")
OK = b"HTTP/1.1 200 OK\r\n"
Serve = Callable[[socket.socket], None]


@contextmanager
def listening(serve: Serve) -> Iterator[tuple[str, list[int]]]:
    """Give every connection to ``serve`` after its request; yield the address, and a list that counts requests."""
    server, count = socket.create_server(("127.0.0.1", 0)), []

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            received = b""
            while not received.endswith(b"{}"):  # the body of every request here
                received += connection.recv(65536)
            count.append(1)
            serve(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", count
    finally:
        server.close()


@pytest.fixture(autouse=True)
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "BACKOFF", 0.0)
    monkeypatch.setattr(retries, "ATTEMPTS", 2)


def refusal(serve: Serve, timeout: float = 5.0, most_bytes: int = exchange.MOST_BYTES) -> tuple[str, int]:
    """Return the message of the error, and the number of requests."""
    with listening(serve) as (url, count):
        endpoint = Endpoint(url, "m", NAMES, timeout=timeout, patience=0.0)
        with pytest.raises(Missing) as refused:
            endpoint.post("/x", {}, most_bytes)
    assert str(refused.value).startswith("the.url http://127.0.0.1")
    assert "\n" not in str(refused.value)
    return str(refused.value), len(count)


def drip(connection: socket.socket, piece: bytes) -> None:
    while True:
        connection.sendall(piece)
        time.sleep(0.02)


def endless(connection: socket.socket) -> None:
    connection.sendall(OK + b"\r\n[")
    while True:
        connection.sendall(b"1," * 2**15)


def chunked(connection: socket.socket) -> None:
    connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"[" * 2**16 + b"\r\n")


@pytest.mark.parametrize("serve", [endless, chunked])
def test_a_body_without_an_end_is_read_up_to_the_bound(serve: Serve) -> None:
    message, requests = refusal(serve, most_bytes=2**20)
    assert "the answer is longer than 1048576 bytes; check the.url, the.model" in message
    assert requests == 1


def test_the_bound_itself_is_allowed() -> None:
    with listening(lambda connection: connection.sendall(OK + b"Content-Length: 10\r\n\r\n[1, 2, 34]")) as (url, _):
        endpoint = Endpoint(url, "m", NAMES, patience=0.0)
        assert endpoint.post("/x", {}, 10) == [1, 2, 34]
        with pytest.raises(Missing, match="longer than 9 bytes"):
            endpoint.post("/x", {}, 9)


DRIPS = {
    "body": OK + b"Content-Length: 100000\r\n\r\n",
    "body until the connection ends": OK + b"\r\n",
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n",
    "headers": OK + b"X-Long: ",
    "status line": b"HTTP/1.1 200 O",
}


@pytest.mark.parametrize("name", DRIPS)
def test_an_answer_that_drips_in_ends_with_the_time_of_the_request(name: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(DRIPS[name])
        drip(connection, b"1\r\n1\r\n" if name == "chunks" else b"1")

    began = time.monotonic()
    message, requests = refusal(serve, timeout=0.2)
    assert "does not answer (timed out" in message
    assert requests == 2  # the server may be slow, so it is asked again
    assert time.monotonic() - began < 5


def test_an_answer_within_the_time_is_whole_and_its_watch_ends() -> None:
    def serve(connection: socket.socket) -> None:
        for piece in (OK + b"Content-", b"Length: 2\r\n", b"\r\n[", b"]"):
            connection.sendall(piece)
            time.sleep(0.01)

    with listening(serve) as (url, _):
        assert Endpoint(url, "m", NAMES, timeout=5.0).post("/x", {}) == []
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(1.0)
            assert not thread.is_alive()


@pytest.mark.parametrize("depth", [exchange.DEEPEST + 1, 20_000])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"data":', b"}")])
def test_nesting_is_bounded(depth: int, begin: bytes, end: bytes) -> None:
    body = begin * depth + b"1" + end * depth
    message, requests = refusal(lambda c: c.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body))
    assert "the answer is nested" in message
    assert requests == 1


def test_the_deepest_nesting_is_allowed() -> None:
    body = b"[" * exchange.DEEPEST + b"]" * exchange.DEEPEST
    with listening(lambda c: c.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as (url, _):
        assert Endpoint(url, "m", NAMES).post("/x", {})


HEADS = {
    "a length beyond any memory": b"Content-Length: 99999999999999999999\r\n\r\n{}",
    "a length of 23 digits": b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "a length of 5000 digits": b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "a negative length": b"Content-Length: -5\r\n\r\n{}",
    "a chunk beyond any memory": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n{}",
    "a chunk of 5000 digits": b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n{}",
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-5\r\n{}",
    "no number": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    "a header without an end": b"X: " + b"x" * 200_000,
    "a number of 5000 digits": b"Content-Length: 5000\r\n\r\n" + b"9" * 5000,
}


@pytest.mark.parametrize("name", HEADS)
def test_a_broken_answer_is_one_clear_error(name: str) -> None:
    message, requests = refusal(lambda connection: connection.sendall(OK + HEADS[name]))
    assert "does not answer (" in message
    assert requests == 2


def test_an_encoded_answer_is_refused_unread() -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Encoding: gzip\r\nContent-Length: 1000000000\r\n\r\n")
        drip(connection, b"x")

    message, requests = refusal(serve)
    assert "is encoded (gzip), which the request excluded" in message
    assert requests == 1


def test_only_the_start_of_an_error_is_read() -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\nno such thing ")
        while True:
            connection.sendall(b"x" * 2**15)

    message, requests = refusal(serve)
    assert "refused the request with HTTP 400 Bad: no such thing xxx" in message
    assert len(message) < 600
    assert requests == 1
