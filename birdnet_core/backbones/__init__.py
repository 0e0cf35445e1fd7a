"""Frozen pretrained networks, one a file, that turn waveforms into embeddings.

Each takes its weights (`base.Backbone`) and states how it is to be fed and where it comes from
(`base.Convention`).
"""
