"""Responses sampled during training."""
