"""What a running trainer script needs. A copy of this tree, unchanged, lies as ``kd/`` next to each generated train.py.

It imports nothing of the rest of skill_kd. Inside, imports go down only: train → teacher → rollouts → model → dataset →
losses, over endpoint, config, errors and seeds.
"""
