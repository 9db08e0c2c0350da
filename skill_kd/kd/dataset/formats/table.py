"""All formats. To add one, write a class after the ``Format`` protocol and add it here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .braintrust import Braintrust
from .conversation import Format
from .endpoints import Anthropic, Helicone, LiteLLM, Ollama, OpenAI, OpenAIBatch
from .generic import Generic
from .langfuse import Langfuse
from .langsmith import LangSmith
from .mlflow import MLflow
from .openinference import OpenInference
from .otel import OpenTelemetry
from .values import Row
from .vercel import VercelAI
from .weave import Weave

FORMATS: tuple[Format, ...] = (
    LangSmith(),
    Weave(),
    Braintrust(),
    MLflow(),
    OpenInference(),
    VercelAI(),
    OpenTelemetry(),
    LiteLLM(),
    Helicone(),
    Anthropic(),
    OpenAIBatch(),
    Langfuse(),
    OpenAI(),
    Ollama(),
    Generic(),
)
"""The first that matches a row is its format, so a format comes before those that its rows would also match."""

BY_NAME = {each.name: each for each in FORMATS}


def detect(rows: Iterable[Row]) -> Format | None:
    """Return the format of most rows; None if no row is in a known format."""
    votes: Counter[str] = Counter()
    for row in rows:
        try:
            found = next((each for each in FORMATS if each.matches(row)), None)
        except RecursionError:  # nested too deeply
            continue
        votes.update([found.name] if found else [])
    return BY_NAME[votes.most_common(1)[0][0]] if votes else None
