"""``python -m skill_kd``: the same as ``skill-kd``."""

from skill_kd.cli import main

raise SystemExit(main())
