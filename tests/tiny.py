"""Tiny model folders, made in code in well under a second: a real fast tokenizer, a chat template, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from skill_kd.kd.config import Config, Data, Student, Teacher

UNK, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["hello world the quick brown fox jumps over the lazy dog", "user assistant system"]
WIDTH = 32
POSITIONS = 1024


def tiny_config(**sections: Any) -> Config:
    """Return a configuration with the given sections, and the spec's defaults where it needs none."""
    needed = {
        "teacher": Teacher(model="teacher"),
        "student": Student(model="student"),
        "data": Data(train="train.jsonl"),
    }
    return Config(**{"name": "tiny", **needed, **sections})


def make_tokenizer(
    *, chat: bool = True, pad: str | None = EOS, special: tuple[str, ...] = (UNK, BOS, EOS)
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of a few hundred tokens; the special tokens take the first ids.

    With one special token, as in GPT-2, it is bos, eos and unk at once.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    unk, bos, eos = special[:3] if len(special) >= 3 else (special[0],) * 3
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    kind: str, *, layers: int, vocabulary: int, tokenizer: PreTrainedTokenizerFast, seed: int = 0
) -> PreTrainedModel:
    """Return a random llama, gpt2 or qwen2 in eval mode, its weights tripled for distinct distributions."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    model: PreTrainedModel
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_embd=WIDTH, n_layer=layers, n_head=4, n_positions=POSITIONS, **ids)
        )
    else:
        config, architecture = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        }[kind]
        model = architecture(
            config(
                vocab_size=vocabulary,
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=POSITIONS,
                tie_word_embeddings=True,
                **ids,
            )
        )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model.eval()


def make_model(
    folder: Path | str,
    kind: str = "llama",
    layers: int = 2,
    seed: int = 0,
    vocabulary: int | None = None,
    chat: bool = True,
    pad: str | None = EOS,
    special: tuple[str, ...] = (UNK, BOS, EOS),
) -> Path:
    """Write a model folder and return it; ``vocabulary`` pads the embedding beyond the tokenizer."""
    folder = Path(folder)
    tokenizer = make_tokenizer(chat=chat, pad=pad, special=special)
    model = build_model(kind, layers=layers, vocabulary=vocabulary or len(tokenizer), tokenizer=tokenizer, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
