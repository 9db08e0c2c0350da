"""What the hand-off asks of models, in the interpreter of the run: ``python -m skill_kd.handoff.probe``.

That interpreter may lack this package, so it runs a copy of these files and of ``skill_kd.kd``. Nothing
heavy is imported outside the functions that need it.
"""
