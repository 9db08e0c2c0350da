"""Turn a need into advice: an objective, settings, reasons and a spec to fill in; or a finding into a pilot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from skill_kd.errors import UsageError
from skill_kd.guidance.specs import pilot, put, skeleton, write_specs
from skill_kd.guidance.table import BY_KEY, CHOICES, LONG, ON_POLICY, Budget, Choice, Matters, Teacher
from skill_kd.spec import OBJECTIVE_KINDS
from skill_kd.spec.file import parse_spec

Settings = tuple[tuple[str, object, str], ...]
"""Triples of spec path, value and reason."""


@dataclass(frozen=True)
class Advice:
    """A recommended start. ``skeleton`` and ``alternative`` are valid specs; the user fills in models and data."""

    objective: str
    settings: Settings
    why: tuple[str, ...]
    would_change: tuple[str, ...]
    skeleton: dict[str, Any]
    alternative: dict[str, Any] | None = None
    """The same spec with another objective, to train on the same budget for comparison."""

    @property
    def specs(self) -> tuple[dict[str, Any], ...]:
        """The one or two specs to train."""
        return (self.skeleton,) if self.alternative is None else (self.skeleton, self.alternative)

    def write(self, folder: Path) -> list[Path]:
        """Write the specs into ``folder`` with `write_specs`."""
        return write_specs(self.specs, folder)

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON-ready values."""
        keys = ("path", "value", "why")
        return {**asdict(self), "settings": [dict(zip(keys, each, strict=True)) for each in self.settings]}

    def yaml(self) -> str:
        """Return the skeleton as a spec file."""
        import yaml

        return yaml.safe_dump(self.skeleton, sort_keys=False, allow_unicode=True)

    def table(self, *, spec: bool = True) -> str:
        """Return the advice as text for a terminal; ``spec`` appends the skeleton."""
        width = max(len(path) for path, _, _ in self.settings)
        lines = [f"objective  {self.objective}", *(f"  why      {each}" for each in self.why), "", "start with"]
        lines += [f"  {path:<{width}}  {_plain(value):<10} {why}" for path, value, why in self.settings]
        lines += ["", "what would change this", *(f"  - {each}" for each in self.would_change)]
        if self.alternative is not None:
            lines += ["", f"for comparison, also train on the same budget: {_of(self.alternative)}"]
        return "\n".join([*lines, *(["", "# a spec to fill in", self.yaml().rstrip()] if spec else [])])


def advise(
    *,
    matters: str = "balanced",
    teacher: str = "logits",
    budget: str = "normal",
    output_tokens: int = 256,
    prompts: int | None = None,
    lora: bool = False,
    distilled: bool = False,
    seen: str | None = None,
    objective: str | None = None,
    changes: Mapping[str, object] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> Advice:
    """Return the advice for a need.

    Args:
        matters: ``coverage`` (many valid answers, pass@k), ``precision`` (no odd tokens), or ``balanced``.
        teacher: ``logits`` (local weights), ``served`` (an endpoint with log-probabilities), ``text`` (text only).
        budget: training time: ``small``, ``normal`` or ``large``.
        output_tokens: length of a long response, in tokens.
        prompts: number of training prompts, if known.
        lora: train adapters instead of all weights.
        distilled: True if the student was distilled before.
        seen: key of a finding about a student trained before.
        objective: kind of the objective, if the user has chosen one. The recommended objective is then the alternative.
        changes: spec values by path, such as ``{"training.learning_rate": 1e-4}``; ``distill`` and
            ``warm_start`` name stages. Keys of ``distill.objective`` need ``objective``, and change only its spec.
        reasons: the reason of a change, by path, if it is not the user's.

    Raises:
        UsageError: an argument is not one of these, or the changes make the spec invalid.
    """
    given: tuple[tuple[str, Any, str], ...] = (
        (matters, Matters, "matters"),
        (teacher, Teacher, "teacher"),
        (budget, Budget, "budget"),
    )
    for value, known, name in given:
        if value not in get_args(known):
            raise UsageError(f"{name}: '{value}' is unknown; use one of: {', '.join(get_args(known))}")
    if seen is not None and seen not in BY_KEY:
        raise UsageError(f"seen: '{seen}' is unknown; use one of: {', '.join(BY_KEY)}")
    for count, name in ((output_tokens, "output_tokens"), (prompts, "prompts")):
        if count is not None and count < 1:
            raise UsageError(f"{name}: {count} is too small; give 1 or more")
    changes = dict(changes or {})
    keys = {path: changes.pop(path) for path in [*changes] if path.startswith("distill.objective")}
    if keys and (objective is None or not all(path.startswith("distill.objective.") for path in keys)):
        raise UsageError(f"{next(iter(keys))}: give the objective's kind with --objective; then --set changes its keys")
    choice = next(each for each in CHOICES if each.fits(matters, teacher, budget, output_tokens > LONG))
    if objective is not None:
        choice = _with_objective(choice, objective)
    settings = _settings(choice, matters, teacher, budget, output_tokens, prompts, lora)
    settings = _with_changes(settings, changes, reasons or {})
    # On-policy training corrects the student's samples. A warm start first makes these samples good enough.
    pair = [each for each in (choice.objective, choice.alternative) if each is not None]
    sampled = any(each["kind"] in ("minillm", *ON_POLICY) for each in pair)
    warm = sampled and not distilled
    spec = _filled(choice.objective, teacher, lora, warm, settings)
    for path, own in keys.items():
        put(spec, path, own)
    alternative = _filled(choice.alternative, teacher, lora, warm, settings) if choice.alternative else None
    if alternative is not None and "checkpoint.best_by" not in changes:
        put(alternative, "checkpoint.best_by", _best_by(_of(alternative), matters, teacher))
    why, would_change = [choice.why], [choice.unless]
    if distilled and sampled:
        why.append("no warm start: it would cost updates, and the samples of a distilled student are good enough")
        would_change.append(DISTILLED)
    if seen is not None:
        why.append(f"seen in an earlier student: {BY_KEY[seen].seen}; it means: {BY_KEY[seen].means}")
        would_change.append(f"counter-evidence: {BY_KEY[seen].against}")
        # The pair may already be the pilot: if the remedy turns `alternative` into the choice itself, nothing changes.
        changed = pilot(spec, seen)
        known = pilot(alternative, seen) if alternative is not None else None
        if changed is not None and (known is None or known[1] != choice.objective):
            path, new, after = changed
            settings = (*settings, (path, new, f"against '{seen}'"))
            spec, alternative = after, spec
            if "name" not in changes:
                spec["name"] = f"against-{seen}".replace("_", "-")
    would_change.append("the undistilled student is as good: always compare with it")
    if alternative is not None and alternative["name"] == spec["name"]:  # the user set one name for both
        alternative["name"] = f"{alternative['name']}-alternative"
    for each in (spec, alternative):
        if each is not None:
            parse_spec(each, source=f"spec '{each['name']}'")
    return Advice(_of(spec), settings, tuple(why), tuple(would_change), spec, alternative)


DISTILLED = (
    "coverage is already lost: a student rarely samples the modes that an earlier run removed, so start again from the "
    "undistilled student (judgment)"
)


def _of(spec: Mapping[str, Any]) -> str:
    """Return the kind of a spec's distill objective."""
    return str(next(stage for stage in spec["stages"] if stage["kind"] == "distill")["objective"]["kind"])


def _with_objective(choice: Choice, kind: str) -> Choice:
    """Return the choice with the user's objective. The recommended objective becomes the alternative.

    Raises:
        UsageError: the objective is unknown.
    """
    if kind not in OBJECTIVE_KINDS:
        raise UsageError(f"objective: '{kind}' is unknown; use one of: {', '.join(OBJECTIVE_KINDS)}")
    if kind == choice.objective["kind"]:
        return choice
    pairs = (each for row in CHOICES for each in (row.objective, row.alternative) if each is not None)
    wanted = next((each for each in pairs if each["kind"] == kind), {"kind": kind})
    instead = f"{choice.objective['kind']} is recommended for this need: {choice.why}"
    return replace(choice, objective=wanted, alternative=choice.objective, why="set by you", unless=instead)


def _filled(
    objective: Mapping[str, object], teacher: str, lora: bool, warm: bool, settings: Settings
) -> dict[str, Any]:
    spec = skeleton(objective, teacher, lora=lora, warm=warm)
    for path, value, _ in settings:
        put(spec, path, value)
    return spec


def _with_changes(settings: Settings, changes: Mapping[str, object], reasons: Mapping[str, str]) -> Settings:
    """Return the settings, with the changed values instead of the defaults."""
    given = {path: (path, value, reasons.get(path, "set by you")) for path, value in changes.items()}
    return (*(given.pop(each[0], each) for each in settings), *given.values())


RATES = "for 1B and more, where 2e-5 worked and 4e-5 did not; 0.1B used 1e-4 (examples/demo.yaml)"


def _settings(
    choice: Choice, matters: str, teacher: str, budget: str, tokens: int, prompts: int | None, lora: bool
) -> Settings:
    kind = choice.objective["kind"]
    rate = 1e-4 if lora else 5e-6 if kind == "minillm" else 1e-5
    updates = {"small": 200, "normal": 500, "large": 2000}[budget]
    policy = "text-only" if teacher == "text" else "creative" if matters == "coverage" else "assistant"
    few = prompts is not None and prompts < 1000
    return (
        ("training.learning_rate", rate, "for adapters" if lora else RATES),
        ("distill.updates", updates, f"a {budget} budget; look at the held-out curve and stop when it is flat"),
        ("rollout.max_new_tokens", tokens, "as long as the answers: truncated samples teach the student not to stop"),
        ("rollout.temperature", 1.0, "samples from the distribution that is trained"),
        ("rollout.prompts", 16 if budget == "small" else 64, "sampled together; a multiple of the batch size"),
        ("data.held_out", 0.2 if few else 0.05, "there are few prompts" if few else "enough prompts to measure with"),
        ("checkpoint.best_by", _best_by(str(kind), matters, teacher), "the held-out measure that matches what matters"),
        ("evaluation.policy", policy, "200 prompts × 8 samples give a verdict, fewer than 50 prompts do not"),
    )


def _best_by(kind: str, matters: str, teacher: str) -> str:
    """Return the measure that chooses the best checkpoint.

    MiniLLM minimizes reverse KL, and forward KL may rise meanwhile. Chosen by forward KL, the best checkpoint would be
    the one before MiniLLM.
    """
    if teacher == "text":
        return "held_out_nll"
    return "forward_kl" if matters == "coverage" and kind != "minillm" else "reverse_kl"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
