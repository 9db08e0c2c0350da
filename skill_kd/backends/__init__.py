"""The built-in backend. It comes in through the same hook as any plugin; see ``skill_kd.plugins``."""
