"""The teacher: its distributions and its responses."""
