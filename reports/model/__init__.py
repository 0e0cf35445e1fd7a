"""The model card and the figures of a model's test."""
