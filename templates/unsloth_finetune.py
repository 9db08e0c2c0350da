"""Fine-tune a distilled student with Unsloth: adapters or all weights, on the assistant's turns, then save.

The script reads from top to bottom: settings, training, saving. It needs the student's folder, and the data and ``kd/``
next to it. ``kd/`` encodes conversations as in the student's training. The script does not need skill-kd. Run it in its
own process, ``python finetune.py``: after a full fine-tune in a process, Unsloth silently attaches no adapters.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

if torch.cuda.is_available() and find_spec("bitsandbytes") is None:
    sys.stderr.write("error: on a GPU Unsloth needs bitsandbytes, in 16 bits too; run pip install bitsandbytes\n")
    sys.exit(5)
# Unsloth writes the trainers it patches into a folder, by default in the working directory.
os.environ["UNSLOTH_COMPILE_LOCATION"] = str(Path(__file__).resolve().parent / "compiled")

from unsloth import FastLanguageModel, is_bfloat16_supported  # isort: skip -- it patches what is imported after it

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from skill_kd.kd.dataset.encoding import Encoded
from skill_kd.kd.dataset.reading import read_examples
from skill_kd.kd.model.export import exported_encoder
from skill_kd.kd.reporting import reporting


@dataclass(frozen=True)
class Config:
    """The settings of this fine-tune. All are explicit, because importing Unsloth changes the trainers' defaults."""

    student: str = "../student"
    """Folder of the distilled student, relative to this script."""
    data: str = "data.jsonl"
    """JSONL file with ``messages`` in each row."""
    method: str = "lora"
    """``lora``: adapters on a 16-bit base, ``qlora``: on a 4-bit base, ``full``: all weights."""
    export: tuple[str, ...] = ("merged",)
    """``merged``: a 16-bit folder, which can be converted to GGUF; ``lora``: only the adapter."""
    push_to: str | None = None
    """Hub repository that the merged model is pushed to."""
    responses_only: bool = True
    """True if the loss covers only the assistant's turns, as in the student's training."""
    template_options: tuple[tuple[str, object], ...] = ()
    """Options of the chat template, by name."""
    max_tokens: int = 2048
    """Longer rows are cut."""
    epochs: float = 1.0
    max_steps: int = -1
    """Optimizer steps, for a trial run; -1 means that ``epochs`` decides."""
    batch_size: int = 2
    accumulate: int = 4
    learning_rate: float = 2e-4
    warmup: int = 5
    """Optimizer steps in which the learning rate rises from 0."""
    r: int = 16
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    seed: int = 42


CONFIG = Config()  # kd: config
HERE = Path(__file__).resolve().parent
STUDENT = (HERE / CONFIG.student).resolve()
OUT = HERE / "out"


def check_weights() -> None:
    """Stop if the student's folder lacks weights, which Unsloth would replace by random ones. Load only shapes."""
    _, found = AutoModelForCausalLM.from_pretrained(
        STUDENT, device_map="meta", output_loading_info=True, use_safetensors=True, trust_remote_code=False
    )
    for problem in ("missing_keys", "mismatched_keys"):
        assert not found[problem], f"{STUDENT}: {problem} {sorted(found[problem])[:3]}; run skill-kd handoff again"


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the student and attach adapters to it, unless all weights are trained."""
    check_weights()
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(STUDENT),
        max_seq_length=CONFIG.max_tokens,
        dtype=None,  # bfloat16 where the device has it
        load_in_4bit=CONFIG.method == "qlora",
        full_finetuning=CONFIG.method == "full",
        use_gradient_checkpointing="unsloth",
        use_safetensors=True,
        trust_remote_code=False,
    )
    if CONFIG.method != "full":
        model = FastLanguageModel.get_peft_model(
            model,
            r=CONFIG.r,
            lora_alpha=CONFIG.alpha,
            lora_dropout=0,
            bias="none",
            target_modules=list(CONFIG.targets),
            use_gradient_checkpointing="unsloth",
            random_state=CONFIG.seed,
        )
        assert hasattr(model, "peft_config"), (
            "Unsloth attached no adapters: was another model fine-tuned in this process before?"
        )
    return model, tokenizer


def encoded_data() -> Dataset:
    """Return the data as token ids and labels, encoded as in the student's training.

    Text, boundaries, end tokens and loss mask are those of the trainer: an answer keeps its reasoning even if the chat
    template drops it, and of answers that the template rewrites later, only the last is learned.
    """
    encoder = exported_encoder(STUDENT, dict(CONFIG.template_options))
    assert encoder.tokenizer.chat_template, "the student has no chat template"
    examples = read_examples(str(HERE / CONFIG.data), "train", 0.0)
    for example in examples:
        assert example.response is not None, f"{CONFIG.data} {example.place}: the last turn is not the assistant's"
    return Dataset.from_list([labeled(encoder.conversation(each).cut(CONFIG.max_tokens)) for each in examples])


def labeled(row: Encoded) -> dict[str, list[int]]:
    """Return the ids and the labels of a row. The loss leaves out tokens with the label -100."""
    ids = [*row.prompt, *row.response]
    learned = [*[False] * len(row.prompt), *row.scored] if CONFIG.responses_only else [True] * len(ids)
    return {"input_ids": ids, "labels": [token if learn else -100 for token, learn in zip(ids, learned, strict=True)]}


def trainer_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SFTTrainer:
    """Return the trainer of the model on the data."""
    gpu, half = torch.cuda.is_available(), is_bfloat16_supported()
    return SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=encoded_data(),
        args=SFTConfig(
            output_dir=str(OUT / "trainer"),
            max_length=CONFIG.max_tokens,
            packing=False,
            padding_free=False,
            loss_type="nll",
            num_train_epochs=CONFIG.epochs,
            max_steps=CONFIG.max_steps,
            per_device_train_batch_size=CONFIG.batch_size,
            gradient_accumulation_steps=CONFIG.accumulate,
            auto_find_batch_size=False,
            gradient_checkpointing=True,
            learning_rate=CONFIG.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=CONFIG.warmup,
            optim="adamw_8bit" if gpu else "adamw_torch",
            adam_beta1=0.9,
            adam_beta2=0.999,
            adam_epsilon=1e-8,
            weight_decay=0.01,
            max_grad_norm=1.0,
            bf16=half,
            fp16=gpu and not half,
            seed=CONFIG.seed,
            data_seed=CONFIG.seed,
            torch_empty_cache_steps=250,
            dataloader_pin_memory=gpu,
            logging_steps=1,
            logging_nan_inf_filter=False,
            include_num_input_tokens_seen=False,
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
        ),
    )


def check_labels(trainer: SFTTrainer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Stop before training if the loss covers prompts, or if it misses the end of a response."""
    for number, row in enumerate(trainer.train_dataset):
        learned = [label for label in row["labels"] if label != -100]
        assert 0 < len(learned) < len(row["labels"]), (
            f"row {number}: the loss covers {len(learned)} of {len(row['labels'])} tokens"
        )
        assert tokenizer.decode(row["input_ids"][-1:]) == tokenizer.decode(learned[-1:]), (
            f"row {number}: the loss does not cover the end of the response"
        )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write each export into ``out/``."""
    if "lora" in CONFIG.export:
        model.save_pretrained(OUT / "lora")
        keep_tokenizer(OUT / "lora")
    if "merged" in CONFIG.export:
        if CONFIG.method == "full":
            model.to(torch.bfloat16).save_pretrained(OUT / "merged")
        else:
            model.save_pretrained_merged(str(OUT / "merged"), tokenizer, save_method="merged_16bit")
        keep_tokenizer(OUT / "merged")
        keep_config(OUT / "merged")
    if CONFIG.push_to:
        model.push_to_hub_merged(CONFIG.push_to, tokenizer, save_method="merged_16bit")


def keep_tokenizer(folder: Path) -> None:
    """Copy the student's own tokenizer files: the tokenizer was not trained, and saving changes some files."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "chat_template.jinja", "generation_config.json"):
        for file in STUDENT.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def keep_config(folder: Path) -> None:
    """Write the student's own config, with the dtype of the new weights."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = json.loads((STUDENT / "config.json").read_text(encoding="utf-8"))
    dtype = saved.get("dtype") or saved.get("torch_dtype")
    config.update({"dtype": dtype, "torch_dtype": dtype, "use_cache": True})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Load, train, save."""
    model, tokenizer = load()
    trainer = trainer_for(model, tokenizer)
    if CONFIG.responses_only:
        check_labels(trainer, tokenizer)
    trainer.train()
    save(model, tokenizer)


if __name__ == "__main__":
    with reporting():
        main()
