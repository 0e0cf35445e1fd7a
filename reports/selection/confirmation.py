"""A choice confirmed on fresh repeats: the shortlist of a search races, and the last configs are compared.

The highest score of a search is partly chance, and too high on average; scores on fresh repeats are not.
Nothing is trained here: `birdtune best --confirm` trains round by round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from birdnet_core.errors import ConfigError
from birdnet_core.records.checks import check_fields
from birdnet_core.records.files import read_json
from reports.runs import Runs
from reports.selection.choice import (
    brief,
    candidates_of,
    chosen_by,
    comparable,
    config_of,
    content,
    ranked_candidates,
    rule,
)

FIRST_FRESH = 10_000
"""Repeat and seed of the first trials that confirm a choice: above what users type, so that a run that is
extended meets none."""
FOLDER = "confirm"
"""Within a run folder, the run folder of the race on fresh repeats; CHOICE_FILE in it is its result."""
CHOICE_FILE = "best.json"


@dataclass(frozen=True)
class Round:
    """A round of a race: so many configs have so many fresh repeats when it ends."""

    n_configs: int
    n_repeats: int


def racing_rounds(n_configs: int, n_repeats: int) -> list[Round]:
    """Return the rounds that find the best of `n_configs`, the last of which have `n_repeats` each.

    Sequential halving (Karnin, Koren and Somekh 2013, PMLR 28(3):1238-1246): two repeats for every config,
    then the better half continues with twice as many, until two are left or the number is reached.
    ConfigError for fewer than two repeats, which have no interval.
    """
    if n_repeats < 2:
        raise ConfigError(f"--confirm {n_repeats} is out of range; it takes 2 or more, 5 is a good number")
    rounds = [Round(n_configs, 2 if n_configs > 2 else n_repeats)]
    while rounds[-1].n_repeats < n_repeats:
        half = max(2, math.ceil(rounds[-1].n_configs / 2))
        doubled = min(n_repeats, 2 * rounds[-1].n_repeats)
        rounds.append(Round(half, n_repeats if half == 2 else doubled))
    return rounds


def shortlist(runs: Runs, studies: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return the `n` best means: `config`, `config_id`, `factors`, their scores, `study` and `run`."""
    if n < 1:
        raise ConfigError(f"--shortlist {n} is out of range; it takes 1 or more")
    metric = studies[0]["metric"]
    _, ranked = ranked_candidates(runs, studies)
    return [
        {"config": config_of(runs, cell), **brief(cell, metric), "study": cell["study"], "run": cell["run"]}
        for _, cell in ranked.iloc[:n].iterrows()
    ]


def survivors(runs: Runs, study: str, n: int) -> list[str]:
    """Return the config_ids of the `n` best means of one round's study."""
    _, ranked = ranked_candidates(runs, comparable(runs, study))
    return [str(config_id) for config_id in ranked["config_id"].iloc[:n]]


def confirmed(
    runs: Runs, rounds: Sequence[str], candidates: Sequence[dict[str, Any]], by: str = "mean"
) -> dict[str, Any]:
    """Return the content of best.json for `candidates` (`shortlist`) that raced on fresh repeats.

    `rounds` names the studies of the rounds in `runs`, in their order. The rule chooses among the configs of
    the last round, by their fresh repeats alone: the values that made the shortlist are too high on average.
    """
    studies = [next(s for s in runs.studies if s["name"] == name) for name in rounds]
    metric, direction = studies[0]["metric"], studies[0]["direction"]
    known = {candidate["config_id"]: candidate for candidate in candidates}
    _, finalists = ranked_candidates(runs, studies[-1:])
    config_id = chosen_by(finalists, metric, direction, by)["config_id"]
    # Each config with all its fresh repeats: those of the last round that it ran in.
    rows = pd.concat([candidates_of(runs, study, metric) for study in reversed(studies)], ignore_index=True)
    rows = rows.drop_duplicates("config_id")
    rows = rows.sort_values(
        ["n", metric], ascending=[False, direction == "minimize"], kind="stable", ignore_index=True
    )
    for column in ("factors", "study", "run"):  # as they were called where they made the shortlist
        rows[column] = [known[each][column] for each in rows["config_id"]]
    best, origin = rows[rows["config_id"] == config_id].iloc[0], known[config_id]
    race = {
        "run": studies[0]["run"],
        "rounds": [
            {"study": s["name"], "configs": len(s["cells"]), "repeats": s["repeats"]} for s in studies
        ],
        "before": {key: origin[key] for key in ("mean", "low", "high", "n")},
    }
    sentence = f"{rule(metric, direction, by)} {race_in_words(studies)}"
    return content(best, rows, studies[0], sentence, origin["config"], rows, race)


def race_in_words(studies: Sequence[dict[str, Any]]) -> str:
    """Return how many configs of the rounds' studies had how many repeats, in a sentence."""
    steps = ", ".join(
        f"{len(s['cells'])} config{'' if len(s['cells']) == 1 else 's'} with {len(s['repeats'])} repeats"
        for s in studies
    )
    return (
        "Among the last of a race on fresh repeats, in which the better half continues with twice as many: "
        f"{steps}."
    )


def confirmed_choices(runs: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the content of best.json of each run folder whose choice was confirmed on fresh repeats."""
    files = [Path(run) / FOLDER / CHOICE_FILE for run in runs]
    found = [(file, read_json(file)) for file in files if file.is_file()]
    for file, choice in found:
        check_fields(f"{str(file)!r} is no choice of birdtune", choice, _CHOICE, {})
    return [choice for _, choice in found]


_CHOICE: dict[str, tuple[type, ...]] = {
    "config": (dict,), "config_id": (str,), "study": (str,), "metric": (str,), "direction": (str,),
    "rule": (str,), "how_sure": (str,), "mean": (int, float), "n": (int,), "values": (list,),
    "repeats": (list,), "factors": (dict,), "shortlist": (list,), "confirmed": (dict,), "run": (str,),
}  # fmt: skip
