"""The hand-off's questions about models, answered in a subprocess: ``python -m skill_kd.handoff.probe``.

Its interpreter may lack this package, so it runs a copy of these files and of ``skill_kd.kd``. Only the functions that
need a heavy package import it.
"""
