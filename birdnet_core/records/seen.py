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


def seen_caution(seen: Mapping[str, Any], *splits: str) -> str | None:
    """Return a caution where more than half of `splits` is possibly seen by the backbone of `seen`.

    `seen` is of `data.seen.Seen.to_dict`; the splits are ``val`` or ``test``, or, of repeats that validate
    several folds, ``train`` and ``val``. None where half or less is.
    """
    n_seen = sum(seen["counts"][split][POSSIBLY_SEEN] for split in splits)
    n = sum(sum(seen["counts"][split].values()) for split in splits)
    if 2 * n_seen <= n:
        return None
    scored = {
        ("val",): f"validation {seen['scored']}",
        ("test",): f"test {seen['scored']}",
        ("train", "val"): f"{seen['scored']} outside the test split",
    }[splits]
    return (
        f"{n_seen} of {n} {scored} may be among those that the backbone {seen['backbone']!r} was trained on: "
        "scores may be too high for new recordings"
    )


def validated_splits(n_repeats: int, n_folds: int) -> tuple[str, ...]:
    """Return the splits, of the first repeat, that hold what a study's repeats validate."""
    return ("train", "val") if min(n_repeats, n_folds) > 1 else ("val",)
