"""The built-in backend. It registers through the same hook as any plugin; see ``skill_kd.plugins``."""
