"""From a need to a start: objective, settings, reasons, and a spec to fill in. From a finding to a pilot."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from skill_kd.errors import UsageError
from skill_kd.guidance.table import BY_KEY, CHOICES, LONG, ON_POLICY, Budget, Choice, Matters, Teacher
from skill_kd.specfile import parse_spec


@dataclass(frozen=True)
class Advice:
    """What to start with. ``skeleton`` is a valid spec; its models and data are to be filled in."""

    objective: str
    settings: tuple[tuple[str, object, str], ...]
    """Spec path, value, why."""
    why: tuple[str, ...]
    would_change: tuple[str, ...]
    skeleton: dict[str, Any]

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON-ready values."""
        keys = ("path", "value", "why")
        return {**asdict(self), "settings": [dict(zip(keys, each, strict=True)) for each in self.settings]}

    def yaml(self) -> str:
        """Return the skeleton as a spec file."""
        import yaml

        return yaml.safe_dump(self.skeleton, sort_keys=False, allow_unicode=True)

    def table(self) -> str:
        """Return the advice as text for a terminal."""
        width = max(len(path) for path, _, _ in self.settings)
        lines = [f"objective  {self.objective}", *(f"  why      {each}" for each in self.why), "", "start with"]
        lines += [f"  {path:<{width}}  {_plain(value):<10} {why}" for path, value, why in self.settings]
        lines += ["", "what would change this", *(f"  - {each}" for each in self.would_change)]
        return "\n".join([*lines, "", "# a spec to fill in", self.yaml().rstrip()])


def advise(
    *,
    matters: str = "balanced",
    teacher: str = "logits",
    budget: str = "normal",
    output_tokens: int = 256,
    prompts: int | None = None,
    lora: bool = False,
    seen: str | None = None,
) -> Advice:
    """Return what to start with.

    Args:
        matters: ``coverage`` (many valid answers, pass@k), ``precision`` (no odd tokens), or ``balanced``.
        teacher: ``logits`` (weights here), ``served`` (an endpoint with log-probabilities), ``text`` (text only).
        budget: of training time.
        output_tokens: length of a long answer, in tokens.
        prompts: how many there are to train on, if known.
        lora: train adapters instead of all weights.
        seen: key of a finding in a student trained before.

    Raises:
        UsageError: an argument that is none of these.
    """
    given: tuple[tuple[str, Any, str], ...] = (
        (matters, Matters, "matters"),
        (teacher, Teacher, "teacher"),
        (budget, Budget, "budget"),
    )
    for value, known, name in given:
        if value not in get_args(known):
            raise UsageError(f"{name}: '{value}' is unknown; take one of: {', '.join(get_args(known))}")
    if seen is not None and seen not in BY_KEY:
        raise UsageError(f"seen: '{seen}' is unknown; take one of: {', '.join(BY_KEY)}")
    if output_tokens < 1 or (prompts is not None and prompts < 1):
        raise UsageError(f"output_tokens {output_tokens} and prompts {prompts} must be above 0")
    choice = next(each for each in CHOICES if each.fits(matters, teacher, budget, output_tokens > LONG))
    settings = _settings(choice, matters, teacher, budget, output_tokens, prompts, lora)
    skeleton = _skeleton(choice, teacher, lora, settings)
    why, would_change = [choice.why], [choice.unless]
    if seen is not None:
        why.append(f"seen before: {BY_KEY[seen].seen}; it means: {BY_KEY[seen].means}")
        would_change.append(f"counter-evidence: {BY_KEY[seen].against}")
        changed = pilot(skeleton, seen)
        if changed is not None:
            path, new, skeleton = changed
            settings = (*settings, (path, new, f"against '{seen}'"))
    would_change.append("the student without distillation is as good: always compare with it")
    objective = next(stage for stage in skeleton["stages"] if stage["kind"] == "distill")["objective"]["kind"]
    return Advice(objective, settings, tuple(why), tuple(would_change), skeleton)


def _settings(
    choice: Choice, matters: str, teacher: str, budget: str, tokens: int, prompts: int | None, lora: bool
) -> tuple[tuple[str, object, str], ...]:
    kind = choice.objective["kind"]
    rate = 1e-4 if lora else 5e-6 if kind == "minillm" else 1e-5
    updates = {"small": 200, "normal": 500, "large": 2000}[budget]
    best = "held_out_nll" if teacher == "text" else "forward_kl" if matters == "coverage" else "reverse_kl"
    policy = "text-only" if teacher == "text" else "creative" if matters == "coverage" else "assistant"
    few = prompts is not None and prompts < 1000
    return (
        ("training.learning_rate", rate, "for adapters" if lora else "2e-5 went well for all weights, 4e-5 did not"),
        ("distill.updates", updates, f"a {budget} budget; read the held-out curve and stop when it is flat"),
        ("rollout.max_new_tokens", tokens, "as long as the answers: samples that are cut teach not to stop"),
        ("rollout.temperature", 1.0, "the distribution that is trained"),
        ("rollout.prompts", 16 if budget == "small" else 64, "sampled together; a multiple of the batch"),
        ("data.held_out", 0.2 if few else 0.05, "few prompts" if few else "enough to measure with"),
        ("checkpoint.best_by", best, "the figure that matches what matters"),
        ("evaluation.policy", policy, "200 prompts × 8 samples give a verdict, fewer than 50 none"),
    )


def _skeleton(
    choice: Choice, teacher: str, lora: bool, settings: tuple[tuple[str, object, str], ...]
) -> dict[str, Any]:
    served = {
        "url": "http://127.0.0.1:8000/v1",
        "model": "TEACHER",
        **({"top_logprobs": 64} if teacher == "served" else {}),
    }
    distill = {"kind": "distill", "updates": 1, "objective": dict(choice.objective)}
    spec: dict[str, Any] = {
        "name": "first-try",
        "seed": 42,
        "teacher": {"model": "TEACHER"} if teacher == "logits" else {"served": served},
        "student": {"model": "STUDENT", **({"lora": {"r": 16, "alpha": 32}} if lora else {})},
        "data": {"train": "prompts.jsonl"},
        "stages": [*_warm_start(choice, teacher), distill],
        **{name: {} for name in ("rollout", "training", "checkpoint", "evaluation")},
    }
    for path, value, _ in settings:
        _place(spec, path)[path.rpartition(".")[2]] = value
    return spec


def _warm_start(choice: Choice, teacher: str) -> list[dict[str, Any]]:
    """On-policy training corrects what the student samples, so those samples must be worth correcting first."""
    if choice.objective["kind"] not in ("minillm", *ON_POLICY):
        return []
    objective = {"kind": "forward_kl", "responses": "teacher"} if teacher == "logits" else {"kind": "sequence_kd"}
    return [{"kind": "warm_start", "objective": objective}]


# --- pilots -----------------------------------------------------------------------------------------------------------


def pilot(spec: Mapping[str, Any], key: str) -> tuple[str, object, dict[str, Any]] | None:
    """Return path, value and the changed spec of the first remedy that fits ``spec`` and is valid; None if none does.

    ``spec`` holds plain values, as in a file. Exactly one knob differs.
    """
    before = parse_spec(spec).hash
    for knob in (knob for remedy in BY_KEY[key].remedies for knob in remedy.knobs):
        changed = copy.deepcopy(dict(spec))
        stage = next(stage for stage in changed["stages"] if stage["kind"] == "distill")
        if stage.setdefault("objective", {"kind": "minillm"})["kind"] not in knob.kinds:
            continue
        path = f"distill.{knob.path}" if knob.path.startswith("objective") else knob.path
        place, name = _place(changed, path), path.rpartition(".")[2]
        value = copy.deepcopy(knob.value)
        if knob.scale:
            value = int(place.get(name, 256) * float(str(knob.value)))
        place[name] = value
        try:
            if parse_spec(changed).hash != before:
                return path, value, changed
        except UsageError:
            continue
    return None


def _place(spec: dict[str, Any], path: str) -> dict[str, Any]:
    """The mapping that a path's last part lies in; ``distill`` is the stage of that kind."""
    place = spec
    for part in path.split(".")[:-1]:
        if part == "distill":
            place = next(stage for stage in place["stages"] if stage["kind"] == "distill")
        else:
            place = place.setdefault(part, {})
    return place


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
