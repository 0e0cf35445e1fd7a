"""Whether a frozen backbone may have been trained on a recording: the words for it, and counts of a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

POSSIBLY_SEEN = "possibly seen"
NOT_SEEN = "not seen"
UNKNOWN = "unknown"
SEEN = (POSSIBLY_SEEN, NOT_SEEN, UNKNOWN)


def seen_text(counts: Mapping[str, int]) -> str:
    """Return ``38 possibly seen, 9 not seen, 1 unknown`` of the counts of a split."""
    return ", ".join(f"{counts[status]} {status}" for status in SEEN)


def seen_caution(seen: Mapping[str, Any], split: str) -> str | None:
    """Return a caution where more than half of a split is possibly seen by the backbone of `seen`.

    `seen` is of `data.seen.Seen.to_dict`; None where half or less is.
    """
    counts = seen["counts"][split]
    n = sum(counts.values())
    if 2 * counts[POSSIBLY_SEEN] <= n:
        return None
    name = {"val": "validation", "test": "test", "train": "training"}[split]
    return (
        f"{counts[POSSIBLY_SEEN]} of {n} {name} {seen['scored']} may be among those that the backbone "
        f"{seen['backbone']!r} was trained on: scores may be too high for new recordings"
    )
