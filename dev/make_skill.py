"""Generate the table of objectives in SKILL.md from ``skill_kd.guidance``.

python dev/make_skill.py [--check]
"""

from __future__ import annotations

import generated

from skill_kd.guidance import objectives_markdown

if __name__ == "__main__":
    raise SystemExit(generated.main("SKILL.md", "objectives", objectives_markdown))
