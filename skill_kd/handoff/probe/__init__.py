"""Answers the hand-off's questions about models, in a subprocess: ``python -m skill_kd.handoff.probe``.

The interpreter may not have this package, so it runs a copy of these files and of ``skill_kd.kd``. Heavy packages are
imported only in the functions that need them.
"""
