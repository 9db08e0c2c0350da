"""Redact text of a log: replace what looks like contact data, a card, an address or a key. It is not anonymous then."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from hashlib import blake2b

_EMAIL = re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_KEYS = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,4000}?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)"
    r"|\b(?:sk|pk|rk|ak|key|token|ghp|gho|ghs|ghu|github_pat|glpat|hf|xox[abprs]|ls[_v]|lsv2|npm|pypi|AIza|ya29|whsec"
    r"|shpat|dop_v1|SG)[-_.][A-Za-z0-9_.-]{12,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b|\bAIza[A-Za-z0-9_-]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"
    r"|(?i:\b(?:password|passwd|pwd|secret|api[_ -]?key|access[_ -]?token|bearer)\b[\"']?\s*(?:[:=]|is)?\s*[\"']?)"
    r"[^\s\"']{6,}"
    r"|\b[0-9a-fA-F]{32,}\b|\b(?=[A-Za-z0-9+/_-]*\d)(?=[A-Za-z0-9+/_-]*[A-Z])(?=[A-Za-z0-9+/_-]*[a-z])[A-Za-z0-9+/_-]{32,}",
    re.DOTALL,
)
_IPV4 = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]\d)")
_IPV6 = re.compile(r"(?<![\w:])(?=(?:[0-9a-fA-F]{0,4}:){3})[0-9a-fA-F:]{6,45}(?![\w:])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
_DIGITS = re.compile(r"(?<![\w.])\+?\(?\d(?:[ ().\-/]{0,3}\d){6,18}(?!\w)")


def redact(text: str, most: int = 300) -> str:
    """Return the first ``most`` characters with emails, phones, cards, IP addresses and key shapes replaced.

    Names, addresses and other identifying text stay: the result is not anonymous.
    """
    # Read more than is shown, so that a secret at the end still matches its pattern.
    text = text[: most + 400]
    text = _KEYS.sub("[key]", text)
    text = _EMAIL.sub("[email]", text)
    text = _IBAN.sub("[account]", text)
    text = _IPV6.sub("[ip]", _IPV4.sub("[ip]", text))
    text = _DIGITS.sub(_number, text)
    return text if len(text) <= most else text[:most] + "…"


def _number(match: re.Match[str]) -> str:
    digits = [int(each) for each in match[0] if each.isdigit()]
    if len(digits) >= 13 and _luhn(digits):
        return "[card]"
    return "[phone]"


def _luhn(digits: list[int]) -> bool:
    doubled = [digit if place % 2 == 0 else digit * 2 - 9 * (digit > 4) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def salted(salt: bytes | None = None) -> Callable[[int], str]:
    """Return a function from hashes to short ids. Without the salt, they cannot be compared between reports."""
    key = salt if salt is not None else secrets.token_bytes(16)
    return lambda value: blake2b(value.to_bytes(8, "little"), digest_size=4, key=key).hexdigest()
