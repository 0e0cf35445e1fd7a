"""One training run: batches, optimizer, session, scores, checkpoints, and what they take."""
