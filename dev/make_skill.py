"""Put the table of objectives, from ``skill_kd.guidance``, between its markers in SKILL.md.

python dev/make_skill.py [--check]
"""

from __future__ import annotations

import generated

from skill_kd.guidance import objectives_markdown

if __name__ == "__main__":
    raise SystemExit(generated.main("SKILL.md", "objectives", objectives_markdown))
