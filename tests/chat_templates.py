"""Chat templates in the styles of several families, and tokenizers that have them."""

from __future__ import annotations

from typing import Any

from tiny import CHAT_TEMPLATE, make_tokenizer
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% if tools %}<tools>{{ tools }}</tools>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"

FAMILIES: dict[str, tuple[str | None, tuple[str, ...], str, str | None]] = {
    # template, special tokens, EOS of the base model, end of turn
    "qwen": (CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>"), "<|endoftext|>", "<|im_end|>"),
    "llama 3": (
        LLAMA,
        ("<|begin|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        "<|eot_id|>",
    ),
    "gemma": (GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<end_of_turn>"),
    "mistral": (MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>"),
    "gpt-2": (None, ("<|endoftext|>",), "<|endoftext|>", None),
    "plain text": (PLAIN, ("<s>", "</s>"), "</s>", None),
}
BEGINS = {"llama 3": "<|begin|>", "gemma": "<bos>", "mistral": "<s>"}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of one of FAMILIES."""
    template, special, eos, _ = FAMILIES[family]
    tokenizer = make_tokenizer(chat=False, pad=None, special=("<unk>",))
    tokenizer.add_special_tokens({"extra_special_tokens": list(special)})
    tokenizer.add_tokens(["\n\n"])  # Gemma lists whitespace among its added tokens
    tokenizer.eos_token, tokenizer.bos_token = eos, BEGINS.get(family)
    tokenizer.chat_template = template
    return tokenizer


# --- reasoning --------------------------------------------------------------------------------------------------------

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As that of Qwen3: it thinks unless an option says no."""
REASONING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}"
    "{% else %}<|Answer|>{{ m['content'].split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Answer|><think>\n{% endif %}"
)
"""As that of DeepSeek-R1: it opens the reasoning in the prompt, and drops it from every answer."""
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
"""As that of Gemma: no system turns, and the other roles in turn."""
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Drops the reasoning of earlier answers."""

# --- other forms ------------------------------------------------------------------------------------------------------

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHAT_TEMPLATE
)
THINKS_LAST = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}<think>"
    "</think>{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
NO_TURNS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT_TEMPLATE, {}),
    "thinks": (THINKING, {}),
    "does not think": (THINKING, {"enable_thinking": False}),
    "opens reasoning": (REASONING, {}),
    "drops reasoning": (REASONING.replace("<think>\n{% endif %}", "{% endif %}"), {}),
    "closes reasoning": (REASONING.replace("<think>\n{% endif %}", "<think></think>{% endif %}"), {}),
    "forgets reasoning": (FORGETFUL, {}),
    "strict": (STRICT, {}),
    "names of turns": (LLAMA3, {}),
    "system turn of its own": (DEFAULT_SYSTEM, {}),
    "reasoning in the last answer": (THINKS_LAST, {}),
    "no turns": (NO_TURNS, {}),
}
"""Templates for the tokenizer of ``tiny``, with options."""


def styled(style: str) -> tuple[PreTrainedTokenizerFast, dict[str, Any]]:
    """Return the tokenizer of one of STYLES or FAMILIES, and the options of its template."""
    if style in FAMILIES:
        return tokenizer_of(style), {}
    template, options = STYLES[style]
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer, options
