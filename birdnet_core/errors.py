"""The exceptions that birdtune raises on purpose.

BirdtuneError
├── ConfigError      (ValueError)    a setting, a name or a study that cannot be used
├── DataError        (ValueError)    a manifest, a recording or a store that cannot be used
├── RunFolderError   (ValueError)    a run folder that is missing, foreign or inconsistent
├── ModelFolderError (ValueError)    a model folder that is missing, cut short or altered
├── MachineError     (OSError)       a machine that lacks memory, locks or a usable file now
└── TrialDiverged    (RuntimeError)  a loss, gradient, probability or monitored metric is not finite

A message names the fault, the given value, and the accepted ones.
"""

from __future__ import annotations

import difflib
import math
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
    """A machine cannot continue now: it lacks memory, file locks, or a file that can be used."""


class TrialDiverged(BirdtuneError, RuntimeError):
    """A loss, a gradient, a probability or every monitored metric of a training run is not finite."""


def check_range(setting: str, value: float, low: float, high: float = math.inf, why: str = "") -> None:
    """Raise ConfigError that names `setting` ("loss.gamma") unless `value` is from `low` to `high`."""
    if not low <= value <= high:
        accepted = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:.15g}"
        raise ConfigError(f"{setting} = {value!r} is out of range; it takes {accepted}{why and f', {why}'}")


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """Return ``"; did you mean 'width'?"`` for a near miss, else an empty string."""
    close = difflib.get_close_matches(given, list(accepted), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
