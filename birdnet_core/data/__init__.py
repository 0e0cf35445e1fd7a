"""Recordings, clips, features on disk, and the split."""
