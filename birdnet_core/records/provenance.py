"""Versions, commit, host and plugins behind a result."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from birdnet_core import plugins


def provenance() -> dict[str, Any]:
    """Return the versions, the commit of the source if it runs from a checkout, the host, and the plugins."""
    return {**_provenance(), "plugins": [plugin.facts() for plugin in plugins.loaded()]}


@functools.lru_cache(maxsize=1)
def _provenance() -> dict[str, Any]:
    versions = {}
    for name in ("birdtune", "torch", "torchaudio", "transformers", "numpy", "ray", "optuna"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": _source_commit(),
        "host": platform.node(),
    }


def _source_commit() -> str | None:
    """Return the commit that this file was checked out from, with ``+changes``, or None for a wheel."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "-uno") else commit
