"""Checks of the options of augmentations."""

from __future__ import annotations

import math

from birdnet_core.errors import ConfigError


def check_range(option: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ConfigError that names `option` (as in "gain.p") where `value` is not within `low` to `high`."""
    if not low <= value <= high:
        accepted = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
        raise ConfigError(f"augment.{option} = {value} is out of range; it takes {accepted}")
