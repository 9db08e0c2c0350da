"""The library of a trainer script. Each generated train.py has an unchanged copy of this tree next to it, as ``kd/``.

It imports nothing from the rest of skill_kd. Inside, imports only go down: train → teacher → rollouts → model →
dataset → losses, over endpoint, config, errors and seeds.
"""
