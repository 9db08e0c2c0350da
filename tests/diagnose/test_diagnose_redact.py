"""Redaction: no secret of any format is shown, wherever it stands, and ordinary text stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secret_formats import invented

from skill_kd.diagnose.report.redact import redact, salted

REPOSITORY = Path(__file__).parents[2]
LABEL = re.compile(r"\[(?:key|email|phone|card|account|ip|number|id)\]")
PLACES: dict[str, Callable[[str], str]] = {
    "alone": lambda secret: secret,
    "in a sentence": lambda secret: f"Here you are: {secret}, as you asked.",
    "in JSON": lambda secret: json.dumps({"text": f"It is {secret}"}, ensure_ascii=False),
    "in Markdown": lambda secret: f"Run this:\n```\n{secret}\n```\n",
    "at the end of what is shown": lambda secret: "x " * 146 + secret,
    "after other secrets": lambda secret: "a@b.example " * 120 + secret,
}


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_shown(place: str) -> None:
    secrets = list(invented(len(place)))
    assert len(secrets) > 160
    shown = [(each, redact(PLACES[place](each.text))) for each in secrets]
    failures = [f"{each.name}: {text}" for each, text in shown if each.shown_in(text)]
    assert not failures, "\n".join(failures)


def test_no_part_of_a_secret_is_shown_where_the_text_is_cut() -> None:
    """redact(text, 1500) reads 3500 characters. The addresses before the secret shrink, so all of them are shown."""
    long = [each for each in invented(0) if len(each.hidden) > 30]
    assert len(long) > 70
    for number, secret in enumerate(long):
        start = 3500 - secret.text.index(secret.hidden) - (9, 12, 15)[number % 3]
        text = ("x@mail.example.org " * 200)[: start - 1] + " " + secret.text + " and so on" * 30
        assert not secret.shown_in(redact(text, 1500)), secret.name


@pytest.mark.parametrize(
    ("secret", "label"),
    [
        ("maria.lopez@example.org", "[email]"),
        ("+41 79 555 12 34", "[phone]"),
        ("4111 1111 1111 1111", "[card]"),
        ("192.168.17.4", "[ip]"),
        ("DE89 3704 0044 0532 0130 00", "[account]"),
        ("4155550132", "[number]"),
        ("1" * 5000, "[number]"),
        ("9f1c2b3a-4d5e-4f60-8a7b-1c2d3e4f5a6b", "[id]"),
        ("password=hunter22", "password=[key]"),
        ('"api_key": "abc12345"', '"api_key": "[key]"'),
        ("post" + "gres://maria:p/a@b@db/x", "postgres://[key]@db/x"),
    ],
)
def test_a_label_says_what_was_there(secret: str, label: str) -> None:
    assert redact(f"It is {secret} now.", 6000) == f"It is {label} now."


@pytest.mark.parametrize(
    "text",
    [
        "On 2024-01-05 at 12:30:45 the price rose from $1,234.56 to 1 234 567 EUR (3.1415926535).",
        "The dates 05.01.2024, 01/05/2024 and 2019-2024; pages 100-2000; ISBN 978-3-16-148410-0; 02110-1301.",
        "Use key=value pairs. Your password is required, and the token is invalid. The secret is patience.",
        "Passwords must have at least 8 characters. The bearer of this certificate has a basic right.",
        "A cookie: a small treat. Authorization: required for admins. Secret: Santa brings gifts.",
        "def f(password: str = None, api_key: Optional[str] = None, token=os.environ['TOKEN'], key=lambda x: x[1]):",
        "password = getpass(prompt); user.password = self.password; pwd=${PASSWORD}; secret_key = '<your key>'",
        "max_tokens=4096, token_type=Bearer, primary_key=True, sort_key='created_at', foreign_key: users.id",
        "git commit a1b2c3d; issue #12345678; v1.2.3; SHA-256; CVE-2024-12345; arXiv 2306.08543; DOI 10.1000/182",
        "torch 2.1.0+cu121 on Python 3.11.4 listens at 127.0.0.1:8000.",
        "x = np.random.randn(1000000); for i in range(2147483647): print(f'{i:08d}', string.digits == '0123456789')",
        "8000000000 people; 7,900,000,000; 299792458 m/s; 6.02214076e23; 0x1F; #ff00aa; 2 > 1; 1.5 x 2.5 x 3.5",
        "https://example.org/docs/v2/how-to-train-a-model-in-2024?lang=en#section-3",
        "/usr/lib/python3.11/site-packages/torch/nn/modules/linear.py",
        "AutoModelForCausalLM.from_pretrained('meta-llama/Llama-3.2-1B-Instruct', revision='finetuned-2023-v12')",
        "value.convertBase64ToUtf8String().getElementsByClassName('x1')",
        "SELECT id FROM users WHERE created_at > '2024-01-01' AND id IN (1001, 1002, 1003);",
        "Die Nummer steht auf Seite 12. Le mot de passe est oublié. 価格は12,800円です。 ٢٠٢٤",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_labels_are_rare_in_documents_and_code() -> None:
    """The documents quote some addresses."""
    paths = [*REPOSITORY.glob("references/*.md"), *REPOSITORY.glob("skill_kd/kd/**/*.py")]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    labels = sum(len(LABEL.findall(redact(text, len(text)))) - len(LABEL.findall(text)) for text in texts)
    assert labels < sum(len(text.split()) for text in texts) / 5_000


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters() | st.sampled_from("aA1 .:=/@-+\\\"'"), max_size=200))
def test_any_text_is_redacted(text: str) -> None:
    assert len(redact(text)) <= 301


def test_only_the_first_characters_are_shown() -> None:
    assert redact("a b " * 75) == "a b " * 75
    assert redact("a b " * 76) == "a b " * 75 + "…"
    assert redact("a b " * 10_000) == "a b " * 75 + "…"


def test_ids_differ_between_reports() -> None:
    assert salted(b"one")(5) == salted(b"one")(5) != salted(b"two")(5)
    assert salted()(5) != salted()(5)
