"""Spans of OpenTelemetry, however they were exported: OTLP JSON, an SDK's JSON, or a table with dotted columns."""

from __future__ import annotations

from typing import Any, NamedTuple

from .conversation import Call
from .values import Row, first, mapping, objects, parsed, seconds

_TIMES = (
    "start_time", "startTimeUnixNano", "start_time_unix_nano", "startTime", "timestamp", "timeUnixNano", "time",
    "_time",
)  # fmt: skip
_FAILED = (2, "STATUS_CODE_ERROR", "ERROR")


class Span(NamedTuple):
    """One span or event."""

    row: Row
    """The span as it was exported."""
    facts: Row
    """Its attributes by their dotted names."""

    @property
    def time(self) -> float | None:
        """Seconds since 1970."""
        return seconds(first(self.row, _TIMES))

    @property
    def failed(self) -> bool:
        """True if the span ended with an error."""
        status = mapping(self.row.get("status"))
        codes = (status.get("code"), status.get("status_code"), self.row.get("status_code"), self.row.get("status"))
        return bool(self.facts.get("error.type")) or any(
            code in _FAILED for code in codes if isinstance(code, str | int)
        )


class SpanFormat:
    """Base class of the formats of spans. A row holds one span, or an OTLP request with several."""

    def is_known(self, span: Span) -> bool:
        """Return True if the span's attributes are in this format."""
        raise NotImplementedError

    def calls(self, span: Span) -> list[Call]:
        """Return the calls of a span; an empty list if it is not a model call."""
        raise NotImplementedError

    def matches(self, row: Row) -> bool:
        """Return True if the row holds a span of this format."""
        return any(map(self.is_known, spans(row)))

    def read(self, row: Row) -> list[Call] | None:
        """Return the calls of all spans in a row."""
        return [call for span in spans(row) for call in self._read(span)]

    def _read(self, span: Span) -> list[Call]:
        if not self.is_known(span):
            return []
        return [Call(failed=True)] if span.failed else self.calls(span)


def spans(row: Row) -> list[Span]:
    """Return the spans and log records in a row."""
    groups = row.get("resourceSpans") or row.get("resourceLogs")
    if not isinstance(groups, list):
        return [_span(row)]
    scopes = [scope for group in objects(groups) for scope in objects(first(group, ("scopeSpans", "scopeLogs")))]
    return [_span(each) for scope in scopes for each in objects(first(scope, ("spans", "logRecords")))]


def _span(row: Row) -> Span:
    attributes = row.get("attributes")
    columns = {key.removeprefix("attributes."): value for key, value in row.items() if "." in key}
    return Span(row, {**columns, **_dotted(flat(attributes))} if attributes else columns)


def flat(attributes: object) -> dict[str, Any]:
    """Return attributes as one mapping; OTLP has them as a list of keys and typed values."""
    if isinstance(attributes, str):
        attributes = parsed(attributes)
    if isinstance(attributes, dict):
        return dict(attributes)
    return {
        pair["key"]: value_of(pair.get("value")) for pair in objects(attributes) if isinstance(pair.get("key"), str)
    }


def value_of(typed: object) -> Any:
    """Return the value of one of OTLP's typed values, such as ``{"stringValue": "x"}``."""
    if not isinstance(typed, dict):
        return typed
    for kind, value in typed.items():
        if kind == "arrayValue":
            return [value_of(each) for each in mapping(value).get("values") or ()]
        if kind == "kvlistValue":
            return flat(mapping(value).get("values"))
        if kind in ("stringValue", "intValue", "doubleValue", "boolValue"):
            return value
    return dict(typed)


def _dotted(attributes: Row, prefix: str = "") -> dict[str, Any]:
    """Return attributes with dotted names; some exports nest them by the parts of their names."""
    found: dict[str, Any] = {}
    for key, value in attributes.items():
        found[prefix + key] = value
        if isinstance(value, dict) and "." not in key:
            found.update(_dotted(value, f"{prefix}{key}."))
    return found


def listed(facts: Row, prefix: str) -> list[object]:
    """Return a list attribute: a list, JSON text, or one attribute for each leaf (``PREFIX.0.role``)."""
    whole = parsed(facts.get(prefix))
    if isinstance(whole, list):
        return [nested(each) if isinstance(each, dict) else each for each in whole]
    if whole is not None and not isinstance(whole, dict):
        return [whole]
    start = f"{prefix}."
    leaves = {key.removeprefix(start): value for key, value in facts.items() if key.startswith(start)}
    if not leaves:
        return [] if whole is None else [whole]
    found = nested(leaves)
    if isinstance(found, list):
        return found
    return [found if whole is None else whole]


def nested(leaves: Row) -> Any:
    """Return a tree of dotted names as nested objects; a level whose names are all numbers becomes a list."""
    groups: dict[str, Any] = {}
    for key, value in leaves.items():
        head, dot, rest = str(key).partition(".")
        if dot:
            known = groups.get(head)
            groups[head] = {**(known if isinstance(known, dict) else {}), rest: value}
        elif not isinstance(groups.get(head), dict):
            groups[head] = value
    tree = {key: nested(value) if isinstance(value, dict) else value for key, value in groups.items()}
    if tree and all(key.isdecimal() for key in tree):
        return [tree[key] for key in sorted(tree, key=int)]
    return tree
