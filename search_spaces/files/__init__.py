"""Studies in files: a user's own, and any study written down to start from."""
