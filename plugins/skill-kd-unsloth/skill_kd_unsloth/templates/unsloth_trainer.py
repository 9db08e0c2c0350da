"""Distill a teacher into a student that Unsloth loads: 4-bit, 16-bit or full. The loop and the losses are in ``kd/``.

``CONFIG`` holds the settings of the run. Next to this file, ``kd/train/setup.py`` builds the parts of a run,
``kd/train/loop.py`` is the training loop, ``kd/losses/`` has the losses and ``kd/rollouts/`` the sampler.
Run it with ``python train.py``; stop it with Ctrl-C and resume with ``python train.py --resume``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

if torch.cuda.is_available() and find_spec("bitsandbytes") is None:
    sys.stderr.write("error: on a GPU Unsloth needs bitsandbytes, in 16 bits too; run pip install bitsandbytes\n")
    sys.exit(5)
# Unsloth writes the trainers it patches into a folder, by default in the working directory.
os.environ["UNSLOTH_COMPILE_LOCATION"] = str(Path(__file__).resolve().parent / "compiled")

import unsloth  # isort: skip -- it patches what is imported after it

from accelerate import Accelerator
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from skill_kd.kd.config import Config, output_folder
from skill_kd.kd.dataset.batch import collate
from skill_kd.kd.errors import Missing, TrainingStopped
from skill_kd.kd.losses.divergences import log_probs
from skill_kd.kd.losses.estimators import token_logp
from skill_kd.kd.model.adapter_folder import CONFIG as ADAPTER_CONFIG
from skill_kd.kd.model.loading import load_pair, load_student
from skill_kd.kd.model.packaged import resolve
from skill_kd.kd.model.student import response_logits
from skill_kd.kd.reporting import reporting
from skill_kd.kd.rollouts.sampler import Sampler, SampleRequest
from skill_kd.kd.train.loop import Run, train
from skill_kd.kd.train.setup import open_accelerator, open_run
from skill_kd.kd.train.strategy import open_strategy

CONFIG = Config.read(sys.argv[1])  # kd: config
FOLDER = output_folder(__file__, sys.argv)
LONGEST = CONFIG.data.max_prompt_tokens + CONFIG.rollout.max_new_tokens

SAMPLING_ERROR = 0.2
"""Limit of the mean difference (nats per token) between sampling and scoring. 16-bit rounding stays below it."""


# --- the student ------------------------------------------------------------------------------------------------------


def student_folder() -> str:
    """Return the model that Unsloth loads: the named one, or a folder that is written once.

    It is written for a student grown from the teacher, and for an adapter, whose base Unsloth would train around it.
    """
    named = CONFIG.student.model and resolve(CONFIG.student.model)
    if named and not Path(named, ADAPTER_CONFIG).is_file():
        return named
    folder = FOLDER / "grown"
    if not folder.is_dir():
        model, tokenizer = load_student(replace(CONFIG.student, lora=None), CONFIG.teacher)
        partial = FOLDER / "partial-grown"
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    return str(folder)


def load_unsloth_student() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the student with Unsloth, and its original tokenizer: Unsloth's copy has another length and padding side."""
    source, folder = CONFIG.student, student_folder()
    # Unsloth does not report missing weights. Shapes are enough to find them.
    _, tokenizer = load_pair(replace(source, quantization=None), folder, weights=False)
    lora, checkpointing = source.lora, "unsloth" if CONFIG.training.gradient_checkpointing else False
    try:
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            model_name=folder,
            max_seq_length=LONGEST,
            dtype=getattr(torch, source.dtype),
            load_in_4bit=source.quantization == "4bit",
            full_finetuning=lora is None,
            use_gradient_checkpointing=checkpointing,
            revision=source.revision,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        raise Missing(f"Unsloth cannot load '{folder}': {' '.join(str(error).split())[:400]}") from error
    if lora is not None:
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
            bias="none",
            use_gradient_checkpointing=checkpointing,
            random_state=CONFIG.seed,
        )
        if not hasattr(model, "peft_config"):
            raise TrainingStopped(
                "Unsloth attached no adapters: another model was fully trained in this process before"
            )
    elif checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = True
    model.generation_config = GenerationConfig.from_pretrained(folder, revision=source.revision or "main")
    # Unsloth cuts sequences with only a warning, and may return no logits at all.
    Guard().watch(model)
    return model, tokenizer


class Guard:
    """Hooks that move the padding of scoring passes to the right, and refuse unexpected outputs."""

    def __init__(self) -> None:
        self.columns_BK: Tensor | None = None
        """Columns of the requested hidden states before the head; None outside a scoring pass."""
        self.kept = 0
        """Number of hidden states per row that the head must get."""
        self.width: int | None = None
        """Tokens per row in the current forward pass."""

    def watch(self, model: PreTrainedModel) -> None:
        """Register hooks before and after every forward pass, after the backbone and before the LM head."""
        model.register_forward_pre_hook(self.before, with_kwargs=True)
        model.get_decoder().register_forward_hook(self.at_backbone)
        model.get_output_embeddings().register_forward_pre_hook(self.at_head)
        model.register_forward_hook(self.after, with_kwargs=True)

    def before(self, _model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Turn left padding into right padding, which Unsloth's kernels expect, if the pass uses no cache."""
        assert kwargs.get("labels") is None, "with labels Unsloth returns no logits, or wrong ones"
        self.columns_BK, self.width = None, kwargs["input_ids"].shape[1]
        if kwargs.get("use_cache", True) or kwargs.get("attention_mask") is None:
            return args, kwargs
        mask_BL, kept = kwargs["attention_mask"], kwargs["logits_to_keep"]
        pads_B1 = mask_BL.argmax(dim=1, keepdim=True)
        places_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        source_BL = (places_L + pads_B1) % len(places_L)
        most = int(pads_B1.max())
        self.columns_BK, self.kept = most - pads_B1 + places_L[:kept], kept + most
        moved = {name: kwargs[name].gather(1, source_BL) for name in ("input_ids", "attention_mask")}
        positions_BL = places_L.expand_as(source_BL)
        return args, {**kwargs, **moved, "position_ids": positions_BL, "logits_to_keep": self.kept}

    def at_backbone(self, _backbone: nn.Module, _args: Any, output: Any) -> None:
        """Refuse a sequence that was cut: the columns are counted from its end, and would belong to other tokens."""
        read = output[0].shape[1]
        if self.width not in {None, read}:
            raise TrainingStopped(f"Unsloth read {read} of {self.width} tokens; lower data.max_prompt_tokens")

    def at_head(self, _head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Give the head the requested columns at their current places."""
        if self.columns_BK is None:
            return None
        if args[0].shape[1] != self.kept:
            raise TrainingStopped(f"Unsloth returned {args[0].shape[1]} hidden states, not {self.kept}")
        hidden_BKH = args[0].gather(1, self.columns_BK.unsqueeze(-1).expand(-1, -1, args[0].shape[-1]))
        if not bool(torch.isfinite(hidden_BKH).all()):
            raise TrainingStopped("Unsloth returned hidden states that are not finite; set student.dtype: float32")
        return (hidden_BKH,)

    def after(self, _model: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Check the logits. They have no columns if the loss uses the hidden states directly.

        Raises:
            TrainingStopped: the logits are missing, have another shape, or are not finite.
        """
        self.width, logits = None, output.logits
        rows, width = kwargs["input_ids"].shape
        expected = min(width, kwargs.get("logits_to_keep") or width)
        if self.columns_BK is not None:
            expected, self.columns_BK = self.columns_BK.shape[1], None
        shape = tuple(logits.shape[:2]) if isinstance(logits, Tensor) else "none"
        if shape not in {(rows, expected), (rows, 0)}:
            raise TrainingStopped(f"Unsloth returned logits of shape {shape}, not {(rows, expected)}")
        if not bool(torch.isfinite(logits).all()):
            raise TrainingStopped("Unsloth returned logits that are not finite; set student.dtype: float32")


@torch.no_grad()
def check_sampling(
    student: nn.Module, sampler: Sampler, requests: Sequence[SampleRequest], accelerator: Accelerator
) -> None:
    """Refuse a student that samples from another distribution than the one that is trained.

    Unsloth uses different kernels for decoding and for training, so they are compared before the first step.

    Raises:
        TrainingStopped: their log-probabilities differ by more than rounding.
    """
    with accelerator.autocast():
        rows = sampler.sample(student, requests, "student")
        batch = collate(rows, sampler.pad, sampler.device)
        student.train(False)
        logits_BTV = response_logits(student, batch, sampler.decoding.vocabulary)
        student.train()
    assert batch.behaviour_logp_BT is not None
    apart_BT = token_logp(log_probs(logits_BTV), batch.response_BT) - batch.behaviour_logp_BT
    apart = float(apart_BT.abs()[batch.mask_BT].mean())
    if not apart < SAMPLING_ERROR:
        raise TrainingStopped(
            f"Unsloth's log-probabilities in sampling and in training differ by {apart:.2g} nats per token, so "
            "on-policy training would be wrong; use backend: transformers"
        )


# --- the whole run ----------------------------------------------------------------------------------------------------


def prepare() -> Run:
    """Build the run. Plain transformers loads the teacher, and Unsloth's patches do not affect it.

    Raises:
        TrainingStopped: Unsloth cannot train the student, or it samples from another distribution.
    """
    accelerator = open_accelerator(CONFIG, FOLDER)
    student, tokenizer = load_unsloth_student()
    run = open_run(CONFIG, FOLDER, accelerator, open_strategy(CONFIG, accelerator), student, tokenizer)
    held_out = run.measures.held_out
    check_sampling(student, held_out.sampler, held_out.requests[:4], accelerator)
    return run


if __name__ == "__main__":
    with reporting():
        train(prepare(), resume="--resume" in sys.argv)
