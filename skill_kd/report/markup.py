"""HTML and SVG as values. Everything except `Markup` is escaped, and only this module creates `Markup`."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable
from hashlib import sha256

from skill_kd.kd.terminal import visible

_VOID = frozenset({"meta", "br", "input"})


class Markup(str):
    """HTML or SVG that is safe to put into a page. Concatenation with a plain string gives a plain string."""

    __slots__ = ()


Child = object
"""Markup, or any value whose `str` is shown as text."""


def escape(value: Child) -> Markup:
    """Return ``value`` unchanged if it is `Markup`, else as escaped text."""
    return value if isinstance(value, Markup) else Markup(html.escape(visible(value), quote=True))


def join(parts: Iterable[Child], separator: str = "") -> Markup:
    """Return all ``parts`` joined; those that are not `Markup` are escaped."""
    return Markup(escape(separator).join(escape(part) for part in parts))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Return one element.

    ``class_`` becomes ``class``, and ``aria_label`` becomes ``aria-label``. None and False are skipped; True gives an
    attribute without a value. Links stay inside the page: ``href`` must start with ``#``.
    """
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    if key == "href" and not str(value).startswith("#"):
        raise ValueError(f"href {value!r} is not a link within the page")
    return f" {key}" if value is True else f' {key}="{escape(value)}"'


def inline(name: str, source: str) -> Markup:
    """Return our own style sheet or script as an element; ``source`` must not contain user text."""
    if "</" in source:
        raise ValueError(f"a {name} must not contain '</'")
    return Markup(f"<{name}>{source}</{name}>")


def source_hash(source: str) -> str:
    """Return the hash that allows ``source`` in a content security policy."""
    return f"'sha256-{base64.b64encode(sha256(source.encode()).digest()).decode()}'"


def data_block(identifier: str, document: object) -> Markup:
    """Return ``document`` as a JSON script element that no text can break out of; raises ValueError for NaN."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and surrogates are escaped
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')
