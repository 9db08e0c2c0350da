"""The proxy of an address is the environment's, loopback has none, and a password in an address is found."""

from __future__ import annotations

import pytest

from skill_kd.kd.addresses import holds_credentials, is_loopback, proxy_for

LOOPBACKS = ("127.0.0.1:8000", "127.8.9.1", "localhost:8000", "LOCALHOST", "me.localhost.", "[::1]:8000")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("host", [*LOOPBACKS, "[::ffff:127.0.0.1]"])
def test_a_loopback_address_has_no_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    assert is_loopback(f"http://{host}/v1")
    assert proxy_for(f"http://{host}/v1") is None


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost.invalid", "127.0.0.1.invalid", "[::2]", "a.invalid:127"])
def test_another_address_has_the_proxy_of_the_environment(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://{host}/v1"
    monkeypatch.setenv("all_proxy", "http://other.invalid:3128")
    assert proxy_for(url) is None
    monkeypatch.setenv("http_proxy", "proxy.invalid:3128")  # without a scheme
    assert proxy_for(url) == "http://proxy.invalid:3128"
    assert proxy_for(url.replace("http:", "https:")) is None


def test_no_proxy_excludes_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "teacher.invalid")
    assert proxy_for("http://teacher.invalid/v1") is None


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        ("http://host/v1", False),
        ("http://host:8000/v1?note=a@b", False),
        ("http://host/@scope/v1", False),
        ("http://[::1]/@scope/v1", False),
        ("http://host:8000/@scope/v1", False),
        ("http://me:secret@host/v1", True),
        ("http://token@host/v1", True),
        ("me:secret@host/v1", True),
        ("http://:@host", True),
        ("http://me:se/cret@host/v1", True),  # to a URL, the host here is "me"
        ("http://me:se?cret@host/v1", True),
    ],
)
def test_credentials_in_an_address_are_found(url: str, holds: bool) -> None:
    assert holds_credentials(url) is holds
