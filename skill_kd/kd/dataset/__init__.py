"""Training data: read, split, tokenized, batched."""
