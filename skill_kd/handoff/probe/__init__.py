"""The hand-off's checks that load models, run by the run's interpreter: ``python -m skill_kd.handoff.probe``.

That interpreter may lack this package, so it runs a copy of these files and of ``skill_kd.kd``. Heavy imports are
inside the functions that need them.
"""
