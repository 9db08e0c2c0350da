"""What a running trainer script needs: models, data, rollouts, measures, checkpoints, export, progress.

Knows nothing of the rest of skill_kd, so a copy of it beside ``algorithms/`` works under any name.
"""
