"""HTML and SVG as values: what is not `Markup` is escaped, and only this module makes `Markup`."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable
from hashlib import sha256

_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202d\u202e]")
"""Controls, lone surrogates, non-characters, and the overrides that write text backwards."""
_VOID = frozenset({"meta", "br", "input"})


class Markup(str):
    """HTML or SVG that is safe to put into a page. Joined with a plain string it is a plain string again."""

    __slots__ = ()


Child = object
"""Markup, or anything whose `str` is shown as text."""


def clean(text: object) -> str:
    """Return ``str(text)`` with what must not reach a page or a terminal replaced by U+FFFD."""
    return _UNSEEN.sub("\ufffd", str(text).replace("\r\n", "\n"))


def escape(value: Child) -> Markup:
    """Return ``value`` as it is where it is `Markup`, else as escaped text."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(value), quote=True))


def join(parts: Iterable[Child], separator: str = "") -> Markup:
    """Return all ``parts``, escaped where they are not `Markup`."""
    return Markup(escape(separator).join(escape(part) for part in parts))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Return one element.

    Attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``; None and False are left out, True is bare.
    A link leads inside the page only: ``href`` must start with ``#``.
    """
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    if key == "href" and not str(value).startswith("#"):
        raise ValueError(f"href {value!r} leads out of the page")
    return f" {key}" if value is True else f' {key}="{escape(value)}"'


def inline(name: str, source: str) -> Markup:
    """Return our own style sheet or script as an element; nothing of a user's belongs in ``source``."""
    if "</" in source:
        raise ValueError(f"a {name} must not hold '</'")
    return Markup(f"<{name}>{source}</{name}>")


def source_hash(source: str) -> str:
    """Return the hash by which a content security policy lets ``source`` in."""
    return f"'sha256-{base64.b64encode(sha256(source.encode()).digest()).decode()}'"


def data_block(identifier: str, document: object) -> Markup:
    """Return ``document`` as JSON that a script can read and no text can break out of; NaN is refused (ValueError)."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and surrogates are escapes
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')
