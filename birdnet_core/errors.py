"""What callers of birdtune may want to catch.

BirdtuneError
├── ConfigError      (ValueError)    a setting, a name or a study that cannot be used
├── DataError        (ValueError)    a manifest, a recording or a store that cannot be used
├── RunFolderError   (ValueError)    a run folder that is missing, foreign or inconsistent
├── ModelFolderError (ValueError)    a model folder that is missing, cut short or altered
├── MachineError     (OSError)       a machine that cannot do what it is asked for now
└── TrialDiverged    (RuntimeError)  training met a loss, gradient, probability or monitor that is not finite

Messages name three things: what was wrong, what was given, what would be accepted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BirdtuneError(Exception):
    """Base of every error that birdtune raises on purpose."""


class ConfigError(BirdtuneError, ValueError):
    """A setting, a registered name or a study cannot be used as given."""


class DataError(BirdtuneError, ValueError):
    """A manifest, a recording or a store cannot be used as given."""


class RunFolderError(BirdtuneError, ValueError):
    """A run folder is missing, was made by something else, or contradicts the request."""


class ModelFolderError(BirdtuneError, ValueError):
    """A model folder is missing, was cut short or altered, or is of another version."""


class MachineError(BirdtuneError, OSError):
    """A machine cannot do now what it is asked for: it lacks memory, locks, or a file that can be used."""


class TrialDiverged(BirdtuneError, RuntimeError):
    """Training met a loss, gradient, probability or monitor that is not finite."""


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """Return ``"; did you mean 'width'?"`` for a near miss, else an empty string."""
    close = difflib.get_close_matches(given, list(accepted), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
