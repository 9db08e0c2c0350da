"""Families of models that cannot be trained here, with the reasons. This module imports no torch, so checks stay quick.

``benchmarks/model_families.py`` tries every family of the installed transformers. A test checks that each family that
fails there is in this table, and no other.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import BadInput

_COLUMNS = "it counts positions from the first column, so padding would change its responses"
_NO_CACHE = "it returns no cache of keys or states, so each sampled token would read the whole text again"
_NO_MASK = "it has no attention mask, so padding would enter its recurrent state"
_NO_RELOAD = "transformers cannot load the text model that it saves"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian"), _COLUMNS),
    **dict.fromkeys(("mbart", "mvp", "pegasus", "plbart", "prophetnet", "trocr"), _COLUMNS),
    **dict.fromkeys(("openai-gpt", "reformer", "xlm", "xlnet"), _NO_CACHE),
    **dict.fromkeys(("rwkv", "xlstm"), _NO_MASK),
    **dict.fromkeys(("emu3", "mllama"), _NO_RELOAD),
    "blt": "transformers cannot make its cache",
    "cpmant": "it puts a prompt of its own before the tokens of each pass, also after a cache",
    "deepseek_v4": "it compresses windows of columns, so padding would change its responses",
    "minimax": "its cache counts no tokens if the first layer is recurrent",
    "git": "it counts positions from the first column after a cache, so padding would change its responses",
    "moshi": "only its cache has a sliding window, so training would read more than sampling did",
    "recurrent_gemma": "its modules keep their states, and it returns no cache",
    "youtu": "transformers sets the embedding of its pad token to zero when it loads it",
}
"""Reasons by ``model_type``. Each continues a sentence after "because"."""


def refusal(config: Mapping[str, object]) -> str | None:
    """Return why a model cannot be trained or sampled here, or None if nothing is known against it.

    Args:
        config: the content of config.json. The text part of a multimodal model counts too.
    """
    for part in (config, config.get("text_config")):
        family = part.get("model_type") if isinstance(part, Mapping) else None
        if isinstance(family, str) and family in REFUSED:
            return f"models of type {family!r} cannot be trained here, because {REFUSED[family]}"
    return None


def check_family(config: Mapping[str, object], whose: str) -> None:
    """Refuse a model that cannot be trained or sampled here.

    Args:
        config: the content of config.json.
        whose: the model, for the message.

    Raises:
        BadInput: the message has the reason.
    """
    if reason := refusal(config):
        raise BadInput(f"{whose}: {reason}; take another model")
