"""Redact text of a log: replace what looks like a secret or identifies a person. It is not anonymous then.

Scanners of source code cannot replace these rules: they find lines, not all characters of a secret, and no data of
people. dev/LOG.md has their results on the formats of tests/diagnose/secret_formats.py.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from hashlib import blake2b

Replacement = str | Callable[[re.Match[str]], str]
_WORDS = re.IGNORECASE | re.VERBOSE

# --- secrets by their context -----------------------------------------------------------------------------------------

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY[A-Z ]{0,10}-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY[A-Z ]{0,10}-----|\Z)",
    re.DOTALL,
)
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/?#\"'<>@]*:[^\s\"'<>]*(?=@)|(?<=://)\w{16,}(?=@)")
_WEBHOOK = re.compile(r"(?<=\bhooks\.slack\.com/)[\w/-]+|(?<=/webhooks/)[\w/-]+|(?<=/webhookb2/)[\w/@-]+")
_HEADER = re.compile(
    r"""(\b(?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:[a-z]+\s+)?)(?=\S*\d|\S{20})[^\s"',;]{6,}
    |(\b(?:set-)?cookie:\s*)\w[\w.-]*=[^\n"']*
    |(\bbearer\s+)(?=\S*\d|\S{20})[\w.~+/=-]{8,}""",
    _WORDS,
)
_ARGUMENT = re.compile(
    r"""(\s(?:-u|--user)\s+["']?[^\s:"']+:)[^\s"']+
    |(--[\w-]*(?:password|passphrase|secret|token|key)[\s=]+["']?)[^\s"'-][^\s"']{3,}
    |(\bsshpass\s+-p\s*|\bmysql\w*\s[^\n]{0,80}?\s-p)[^\s]+
    |(\blogin\s+\S+\s+password\s+)\S+
    |(<[\w:-]*(?:password|passphrase|secret|token)>)[^<\s]+""",
    _WORDS,
)
_LOGIN_WORDS = r"""(?:password|passwd|passphrase|passcode|pwd|passwort|kennwort|mot[ ]de[ ]passe|contrase[ñn]a|senha
    |пароль|密码|密碼|パスワード|비밀번호)"""
_PASSWORD = re.compile(
    rf"""(?P<name>(?:{_LOGIN_WORDS}|(?<![a-z])pass(?=[ ]?[:=])|[_-]secret|secret[_-]?key|secret(?=[ ]?=))\d?
    \\{{0,3}}["']?[ \t]*(?:=>|->|[:=：]|is:)[ \t]*)
    (?:(?P<quote>\\{{0,3}}["'`])(?P<quoted>(?:(?!(?P=quote))[^\n]){{4,}}?)(?P=quote)
    | ["'`]?(?P<value>[^\s"'`,;&<>]{{4,}}))
    |(?P<said>\b(?:{_LOGIN_WORDS}|secret)(?:[ \t]+(?:is|was|to|as|now|set|changed|:)){{0,3}}[ \t]+["'`]?)
    (?=[^\s"'`]*(?:[\d!$%*#^&]|(?-i:[a-z][A-Z])))(?=[^\s"'`]*[a-z])[^\s"'`,;<>]{{8,}}""",
    _WORDS,
)
_NAMED = re.compile(
    r"""((?:key|token|secret|auth|credentials?|signature|\bsig|session_?id|\bsid)\\{0,3}["']?
    [ \t]*(?:=>|[:=]|\bis\b|\bwas\b)[ \t]*\\{0,3}["'`]?)([\w+/=.~%$-]{6,})""",
    _WORDS,
)
_API_KEY = re.compile(
    r"""((?:api|access|private|auth|client|session|bot)[_ -]?(?:key|token|secret|id)\\{0,3}["']?
    [ \t]*(?:=>|[:=]|\bis\b)[ \t]*\\{0,3}["'`]?)(?=[\w+/=.~%-]*\d)[\w+/=.~%-]{6,}""",
    _WORDS,
)
_CODE = re.compile(
    r"(\b(?:pin|cvv|cvc|otp|(?:verification|security|access|login|one-time) code)\b(?: is|:| =|=)?[ \t]*)\d{3,8}\b",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"\*+|\[key\].*|\$?\{[^}]*\}|\$[A-Z_]+|<[^>]*>?|%\(?\w*\)?s")
_CODE_VALUE = re.compile(
    r"""(?:none|null|nil|true|false|str|string|text|bytes|any|optional|required|[a-z_.]+[(\[].*
    |(?:[a-z]+[_.])*(?:password|passwd|pwd|secret))[\])}.:|]*""",
    _WORDS,
)

# --- secrets by their form --------------------------------------------------------------------------------------------

_PREFIXED = re.compile(
    r"""\b(?:
    (?:sk|pk|rk|gh[oprsu]|github_pat|gl[a-z]{2,8}|hf|api_org|xox[a-z]|xapp|whsec|shp[a-z]{2}|sq0[a-z]{3}|npm|pypi
      |dckr_pat|rubygems|do[oprt]_v1|lin_api|ntn|fig[du]|xkeysib|gsk|r8|pplx|xai|nvapi|lsv2|pcsk|glsa|glc|sntry[su]
      |PMAK|NRAK|HRKU|GOCSPX|pscale_[a-z]+|dp\.[a-z]{2,5}|sb[ps]|key|hv[bsr]|sl|ya29|SG|dapi|atlasv1|AGE-SECRET-KEY)
      [-_.](?=[\w.+/=~-]*[A-Z\d])[\w.+/=~-]{16,}
    |dapi[\da-f]{32} | (?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z\d]{12,} | AIza[\w-]{20,} | LTAI\w{12,} | AQVN[\w-]{20,}
    |AT(?:BB|ATT3)[\w=-]{20,} | EAA[A-Za-z][\w-]{20,} | (?:AC|SK)[\da-f]{32} | 1//0[\w-]{20,} | 0x[\da-fA-F]{64}
    |eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)? | \d{8,10}:[\w-]{35} | [\w.~-]{3}\dQ~[\w.~-]{31,34}
    |[MNO][\w-]{22,27}\.[\w-]{6}\.[\w-]{27,40} | [\da-f]{32}(?:-[\da-f]{8}){2} | [\da-f]{32}-us\d{1,2}
    )""",
    re.VERBOSE,
)
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9+/_~.$%-]{14,}[A-Za-z0-9]=*")
_RUN = re.compile(r"[A-Za-z0-9]+")
_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_HEX = re.compile(r"[0-9a-f]{32,}|[0-9A-F]{32,}")

# --- people and machines ----------------------------------------------------------------------------------------------

_EMAIL = re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_UUID = re.compile(r"\b[\da-f]{8}-(?:[\da-f]{4}-){3}[\da-f]{12}\b", re.IGNORECASE)
_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
_IPV4 = re.compile(
    r"(?<![\d.])(?!127\.|255\.|0\.0\.0\.0)(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]\d)"
)
_IPV6 = re.compile(r"(?<![\w:])(?=(?:[0-9a-fA-F]{0,4}:){3})[0-9a-fA-F:]{6,45}(?![\w:])")
_MAC = re.compile(r"\b[\da-fA-F]{2}(?:-[\da-fA-F]{2}){5}\b")
_CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?!\w)")
_PHONE = re.compile(
    r"""(?<![\w.+/-])(?:
    (?:\+|00)[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,11}\)?){1,7}         # international
    |\(0?\d{1,5}\)[ /-]?\d(?:[ /-]?\d){4,9}                     # area code in brackets
    |(?:1[-. ])?[2-9]\d\d[-. ]\d{3}[-. ]\d{4}                   # North America
    |(?!\d\d[./-]\d\d[./-]\d\d)0\d{1,4}(?:[ ./-]\d{2,8}){1,5}   # with a leading zero, no date
    |1\d\d[- ]\d{4}[- ]\d{4}                                    # China
    )(?!\w)""",
    re.VERBOSE,
)
_CALLED = re.compile(
    r"(\b(?:phone|tel|telephone|mobile|cell|fax|whatsapp|sms|call|dial|hotline)\b[^\d\n+(]{0,15})"
    r"\d(?:[ ().\-/]?\d){5,14}",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"(\b(?:ssn|social security|account|acct|routing|passport|tax|licen[sc]e|customer|order)\b[^\d\n]{0,15})"
    r"\d(?:[ -]?\d){5,16}\b",
    re.IGNORECASE,
)
_LONG_NUMBER = re.compile(r"(?<![\w.])\d{10,}(?![\w])(?!\.\d)")


def redact(text: str, most: int = 300) -> str:
    """Return the first ``most`` characters without contact data, numbers of people, addresses of machines, and secrets.

    Each is replaced by a label such as ``[key]``. Names, places and other identifying text stay: the result is not
    anonymous. A secret in plain words, such as a passphrase, stays too.
    """
    # Read more than is shown, so that a secret at the end still matches its pattern.
    window = text[: most + 2000]
    for pattern, replacement in _RULES:
        window = pattern.sub(replacement, window)
    if len(text) > most + 2000:
        window = window[:-200]  # its end may be a part of a secret
    return window if len(window) <= most and len(text) <= most + 2000 else window[:most] + "…"


def _after_name(match: re.Match[str]) -> str:
    """Replace all but the group that matched, which is the name of the value."""
    return str(next(filter(None, match.groups()))) + "[key]"


def _password(match: re.Match[str]) -> str:
    if match["said"]:
        return match["said"] + "[key]"
    value, quote = match["quoted"] or match["value"], match["quote"] or ""
    if _PLACEHOLDER.fullmatch(value) or (not quote and _CODE_VALUE.fullmatch(value)):
        return match[0]
    return f"{match['name']}{quote}[key]{quote}"


def _named(match: re.Match[str]) -> str:
    return match[1] + "[key]" if _random(match[2], named=True) else match[0]


def _token(match: re.Match[str]) -> str:
    return "[key]" if _random(match[0]) else match[0]


def _random(token: str, named: bool = False) -> bool:
    """Return True if a part of a token looks drawn at random. ``named``: something else shows that it is a secret."""
    runs = _RUN.findall(token)
    longest, whole = max(runs, key=len, default=""), "".join(runs)
    # A path has many separators, and none of base64's own.
    joined = named or "+" in token or "=" in token or len(whole) >= 8 * len(runs)
    return _drawn(longest, named) or (joined and len(whole) >= 32 and _drawn(whole, named))


def _drawn(run: str, named: bool) -> bool:
    """Return True if letters and digits look drawn at random: their pieces are shorter than words and numbers."""
    kinds = {"0" if each.isdigit() else "A" if each.isupper() else "a" for each in run}
    if len(kinds) == 1 or not run:
        return False
    digits, three = "0" in kinds, len(kinds) == 3
    shortest = 16 if three else 20 if digits else 24
    if len(run) < (shortest - 8 if named else shortest):
        return False
    longest_piece = 6.0 if named else 4.0 if digits and not three else 2.7 if len(run) < 32 else 3.4
    return bool(_HEX.fullmatch(run)) or len(run) / len(_PIECE.findall(run)) <= longest_piece


def _card(match: re.Match[str]) -> str:
    digits = [int(each) for each in match[0] if each.isdigit()]
    return "[card]" if _luhn(digits) else match[0]


def _luhn(digits: list[int]) -> bool:
    doubled = [digit if place % 2 == 0 else digit * 2 - 9 * (digit > 4) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _phone(match: re.Match[str]) -> str:
    """Keep decimals and short numbers."""
    fewest = 8 if match[0][0] in "+(" else 10
    digits = sum(map(str.isdigit, match[0]))
    return "[phone]" if fewest <= digits <= 15 and match[0].count(".") != 1 else match[0]


def _long_number(match: re.Match[str]) -> str:
    """Keep what anybody may write: round numbers, powers of two, and the row of digits."""
    digits = match[0]
    value = int(digits[:40])  # int refuses thousands of digits
    common = digits.endswith("00000") or 1 in (value.bit_count(), (value + 1).bit_count()) or digits in "01234567890"
    return digits if common else "[number]"


_RULES: tuple[tuple[re.Pattern[str], Replacement], ...] = (
    (_PRIVATE_KEY, "[key]"),
    (_IN_ADDRESS, "[key]"),
    (_WEBHOOK, "[key]"),
    (_HEADER, _after_name),
    (_ARGUMENT, _after_name),
    (_PREFIXED, "[key]"),
    (_PASSWORD, _password),
    (_UUID, "[id]"),
    (_API_KEY, _after_name),
    (_NAMED, _named),
    (_CODE, r"\1[key]"),
    (_EMAIL, "[email]"),
    (_TOKEN, _token),
    (_IBAN, "[account]"),
    (_SSN, "[id]"),
    (_MAC, "[ip]"),
    (_IPV6, "[ip]"),
    (_IPV4, "[ip]"),
    (_CARD, _card),
    (_PHONE, _phone),
    (_CALLED, r"\1[phone]"),
    (_NUMBERED, r"\1[number]"),
    (_LONG_NUMBER, _long_number),
)
"""Rules in their order: what a name or an address shows to be secret comes before what only looks like it."""


def salted(salt: bytes | None = None) -> Callable[[int], str]:
    """Return a function from hashes to short ids. Without the salt, they cannot be compared between reports."""
    key = salt if salt is not None else secrets.token_bytes(16)
    return lambda value: blake2b(value.to_bytes(8, "little"), digest_size=4, key=key).hexdigest()
