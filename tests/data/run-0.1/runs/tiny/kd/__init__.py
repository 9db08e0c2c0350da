"""The algorithms and runtime of skill-kd 0.1.0, unchanged; train.py imports them from here."""
