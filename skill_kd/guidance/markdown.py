"""The decision table as Markdown, for SKILL.md and references/."""

from __future__ import annotations

from skill_kd.guidance.table import CHOICES, FINDINGS, LONG


def objectives_markdown() -> str:
    """Return the table of needs as Markdown, for SKILL.md."""
    lines = ["| need | objective | compare with | why | choose instead |", "|---|---|---|---|---|"]
    for choice in CHOICES:
        need = [
            " or ".join(f"{word} {each}" for each in given)
            for word, given in (("matters:", choice.matters), ("teacher:", choice.teacher), ("budget:", choice.budget))
            if given
        ] + ([f"answers above {LONG} tokens"] if choice.long else [])
        named = ", ".join(need) or "otherwise (the default)"
        other = f"`{choice.alternative['kind']}`" if choice.alternative else "–"
        lines.append(f"| {named} | `{choice.objective['kind']}` | {other} | {choice.why} | {choice.unless} |")
    return "\n".join(lines) + "\n"


def findings_markdown() -> str:
    """Return the table of findings as Markdown, for SKILL.md and references/diagnosis.md."""
    lines = ["| finding | seen as | remedy, cheapest first (evidence) | counter-evidence |", "|---|---|---|---|"]
    for each in FINDINGS:
        remedies = "; ".join(f"{n}. {remedy.do} ({remedy.evidence})" for n, remedy in enumerate(each.remedies, 1))
        lines.append(f"| `{each.key}` | {each.seen} | {remedies} | {each.against} |")
    return "\n".join(lines) + "\n"
