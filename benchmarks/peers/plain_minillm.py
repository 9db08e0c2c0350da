"""A plain MiniLLM (arXiv 2306.08543): both models decode at every step, and all logits are in memory.

A peer of ``end_to_end.py`` in the usual style, in the paper's final form: teacher-mixed sampling (Eq 4) with
two key-value caches, one scoring pass of each model, per-token weights, length-normalized returns (Eq 6), PPO clipping,
autograd.

    python plain_minillm.py settings.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

TEACHER_MIX, CLIP = 0.2, 0.2


def positions(mask_BL: Tensor) -> Tensor:
    """Count from the first real token of each row."""
    return (mask_BL.cumsum(dim=1) - 1).clamp(min=0)


@torch.no_grad()
def sample(
    student: nn.Module, teacher: nn.Module, ids_BL: Tensor, mask_BL: Tensor, tokens: int, eos: int, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return prompt and response, their mask, and the log-probability with which each response token was sampled."""
    unseen, drawn = ids_BL, []
    caches: list[Any] = [None, None]
    ended_B = torch.zeros(len(ids_BL), dtype=torch.bool)
    for _ in range(tokens):
        chances = []
        for index, model in enumerate((student, teacher)):
            output = model(
                input_ids=unseen,
                attention_mask=mask_BL,
                position_ids=positions(mask_BL)[:, -unseen.shape[1] :],
                past_key_values=caches[index],
                use_cache=True,
                logits_to_keep=1,
            )
            caches[index] = output.past_key_values
            chances.append(output.logits[:, -1].softmax(dim=-1))
        mixed_BV = (1 - TEACHER_MIX) * chances[0] + TEACHER_MIX * chances[1]
        unseen = torch.multinomial(mixed_BV, 1)
        drawn.append(mixed_BV.gather(1, unseen).log())
        unseen = unseen.masked_fill(ended_B.unsqueeze(1), pad)
        ids_BL = torch.cat([ids_BL, unseen], dim=1)
        mask_BL = torch.cat([mask_BL, (~ended_B).long().unsqueeze(1)], dim=1)
        ended_B |= unseen.squeeze(1) == eos
        if ended_B.all():
            break
    return ids_BL, mask_BL, torch.cat(drawn, dim=1)


def response_logits(model: nn.Module, ids_BL: Tensor, mask_BL: Tensor, width: int) -> Tensor:
    """Return the logits that predict the last ``width`` tokens."""
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL, "position_ids": positions(mask_BL)}
    logits: Tensor = model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
    return logits


def minillm_loss(
    student_logits_BTV: Tensor, teacher_logits_BTV: Tensor, ids_BT: Tensor, mask_BT: Tensor, behaviour_logp_BT: Tensor
) -> Tensor:
    """Return the mean over response tokens of the weighted single-step KL less the clipped long-term gain."""
    student_BTV, teacher_BTV = student_logits_BTV.log_softmax(dim=-1), teacher_logits_BTV.log_softmax(dim=-1)
    single_BT = (student_BTV.exp() * (student_BTV - teacher_BTV)).sum(dim=-1)
    student_BT, teacher_BT = (each.gather(-1, ids_BT.unsqueeze(-1)).squeeze(-1) for each in (student_BTV, teacher_BTV))
    reward_BT = ((teacher_BT - student_BT) * mask_BT).detach()
    later_BT, left_BT = (each.flip(1).cumsum(1).flip(1) - each for each in (reward_BT, mask_BT))
    advantage_BT = later_BT / left_BT.clamp(min=1)
    weight_BT = (student_BT - behaviour_logp_BT).exp()
    gain_BT = torch.minimum(weight_BT * advantage_BT, weight_BT.clamp(1 - CLIP, 1 + CLIP) * advantage_BT)
    return ((weight_BT.detach() * single_BT - gain_BT) * mask_BT).sum() / mask_BT.sum()


def main() -> None:
    """Train for as many updates as the settings say; write one line for each, and the student."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(sys.argv[1]).parent
    torch.manual_seed(settings["seed"])
    tokenizer = AutoTokenizer.from_pretrained(settings["student"], padding_side="left")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(settings[name], dtype=torch.float32).train(False)
        for name in ("student", "teacher")
    )
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        student.parameters(), settings["learning_rate"], settings["betas"], weight_decay=settings["weight_decay"]
    )
    rows = settings["rows"]
    for update in range(settings["updates"]):
        began = time.perf_counter()
        chats = [
            [{"role": "user", "content": text}] for text in settings["prompts"][update * rows : (update + 1) * rows]
        ]
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        prompts = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        prompt_BP, prompt_mask_BP = prompts["input_ids"], prompts["attention_mask"]
        ends = tokenizer.eos_token_id, tokenizer.pad_token_id
        ids_BL, mask_BL, behaviour_BT = sample(
            student, teacher, prompt_BP, prompt_mask_BP, settings["new_tokens"], *ends
        )
        width = behaviour_BT.shape[1]
        with torch.no_grad():
            teacher_logits_BTV = response_logits(teacher, ids_BL, mask_BL, width)
        student_logits_BTV = response_logits(student, ids_BL, mask_BL, width)
        mask_BT = mask_BL[:, -width:].float()
        loss = minillm_loss(student_logits_BTV, teacher_logits_BTV, ids_BL[:, -width:], mask_BT, behaviour_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        line = {"event": "update", "seconds": time.perf_counter() - began, "tokens": int(mask_BT.sum())}
        with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "loss": float(loss.detach())}) + "\n")
    student.save_pretrained(out / "student")


if __name__ == "__main__":
    main()
