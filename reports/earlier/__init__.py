"""Experiments of earlier work, imported from other programs' files."""
