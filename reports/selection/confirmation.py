"""A choice confirmed on fresh repeats: the leaders race, and who is clearly behind leaves.

The highest score of a search is partly chance, and too high on average; scores on fresh repeats are not.
Nothing is trained here: `birdtune best --confirm` trains round by round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.intervals import LEVEL
from birdnet_core.records.checks import check_fields
from birdnet_core.records.files import read_json
from reports.runs import Runs
from reports.selection.choice import (
    SCHEMA,
    brief,
    candidates,
    chosen_by,
    config_of,
    content,
    listed,
    one_study,
    rule,
)
from reports.statistics.analysis import results
from reports.statistics.linear_model import LEAST_REPEATS

FIRST_FRESH = 10_000
"""Of the repeats that confirm a choice: above what users type, so that a run that is extended meets none."""
FOLDER = "confirm"
"""Within a run folder, the run folder of the race on fresh repeats; CHOICE_FILE in it is its result."""
CHOICE_FILE = "best.json"
BLOCK = 2  # repeats that every config still in the race gets between two looks


def looks(n_repeats: int) -> list[int]:
    """Return after how many repeats of each config the race is looked at, `n_repeats` at the last.

    Blocks of repeats as in irace (Lopez-Ibanez et al. 2016, Operations Research Perspectives 3:43-58): every
    config still in the race has the same ones. ConfigError for fewer than `LEAST_REPEATS`.
    """
    if n_repeats < LEAST_REPEATS:
        raise ConfigError(
            f"--confirm {n_repeats} is out of range; it takes {LEAST_REPEATS} or more, 10 is a good number"
        )
    return [*range(LEAST_REPEATS, n_repeats, BLOCK), n_repeats]


def level_of(n_looks: int) -> float:
    """Return the level of each look, so that those of a whole race hold together at 95 % (Bonferroni)."""
    return 1 - (1 - LEVEL) / n_looks


def shortlist(runs: Runs, study: str | None, n: int) -> list[dict[str, Any]]:
    """Return the `n` best means of a study: `config`, `config_id`, `factors`, their scores."""
    if n < 1:
        raise ConfigError(f"--shortlist {n} is out of range; it takes 1 or more")
    chosen = one_study(runs, study)
    trials, cells, analysis = results(runs, chosen)
    ranked = candidates(trials, chosen, cells, analysis)
    return [
        {"config": config_of(trials, cell), **brief(cell, chosen["metric"])}
        for _, cell in ranked.iloc[:n].iterrows()
    ]


def survivors(
    runs: Runs, study: str, n_looks: int, tolerance: float, by: str = "mean"
) -> tuple[list[str], bool]:
    """Return the configs that may still be the best after a look, and whether the race is decided.

    It is where one is left, or where the config that the rule `by` chooses now cannot lose more than
    `tolerance` against the best.
    """
    of_round = one_study(runs, study)
    trials, cells, analysis = results(runs, of_round, level=level_of(n_looks))
    ranked = candidates(trials, of_round, cells, analysis)
    if (
        ranked["regret"].isna().any()
    ):  # too many trials failed: of those with a score nobody is clearly behind
        known = cells[of_round["metric"]].notna() & ~cells["is_infeasible"].astype(bool)
        left = list(cells.loc[known, "config_id"])
        return left, len(left) < 2
    left = list(ranked.loc[ranked["may_be_best"].astype(bool), "config_id"])
    return left, len(left) < 2 or float(chosen_by(ranked, of_round, by)["regret"]) <= tolerance


def confirmed(
    runs: Runs,
    rounds: Sequence[str],
    origin: dict[str, Any],
    shortlisted: Sequence[dict[str, Any]],
    n_looks: int,
    by: str = "mean",
) -> dict[str, Any]:
    """Return the content of best.json for the configs of the study `origin` that raced on fresh repeats.

    `rounds` names the studies of the rounds in `runs`, in their order. The rule chooses among the configs of
    the last round, by their fresh repeats alone: the values that made the shortlist are too high on average.
    """
    studies = [one_study(runs, name) for name in rounds]
    last = studies[-1]
    known = {each["config_id"]: each for each in shortlisted}
    trials, cells, analysis = results(runs, last, level=level_of(n_looks))
    ranked = candidates(trials, last, cells, analysis)
    ranked = ranked.assign(factors=[known[each]["factors"] for each in ranked["config_id"]])
    best = chosen_by(ranked, last, by)
    # Those that left, as they were when they did, the last first.
    left: list[pd.Series[Any]] = []
    for study in reversed(studies):
        of_round, table, _ = results(runs, study)
        gone = {row["config_id"] for row in left} | set(ranked["config_id"])
        # Those that break a constraint on fresh repeats among them.
        table = table.assign(is_infeasible=False)
        rows = candidates(of_round, study, table, None).assign(may_be_best=False)
        left += [row for _, row in rows.iterrows() if row["config_id"] not in gone]
    race = {
        "run": last["run"],
        "rounds": [
            {"study": s["name"], "configs": len(s["cells"]), "repeats": s["repeats"]} for s in studies
        ],
        "before": {key: known[best["config_id"]][key] for key in ("mean", "low", "high", "n")},
        "left": [
            listed(row, last["metric"]) | {"factors": known[row["config_id"]]["factors"]} for row in left
        ],
    }
    sentence = f"{rule(last, by)} {race_in_words(studies)}"
    choice = content(best, ranked, last, sentence, known[best["config_id"]]["config"], race)
    return choice | {"study": origin["name"], "run": origin["run"]}


def race_in_words(studies: Sequence[dict[str, Any]]) -> str:
    """Return how many configs of the rounds' studies had how many repeats, in a sentence."""
    steps = ", ".join(
        f"{len(s['cells'])} config{'' if len(s['cells']) == 1 else 's'} with {len(s['repeats'])} repeats"
        for s in studies
    )
    return f"By a race on fresh repeats, which a config leaves when it cannot be the best: {steps}."


def confirmed_choices(runs: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the content of best.json of each run folder whose choice was confirmed on fresh repeats."""
    files = [Path(run) / FOLDER / CHOICE_FILE for run in runs]
    found = [(file, read_json(file)) for file in files if file.is_file()]
    for file, choice in found:
        if choice.get("schema") != SCHEMA:
            raise RunFolderError(
                f"{str(file)!r} is of another version of birdtune; confirm the choice again "
                "(birdtune best RUN --confirm N)"
            )
        check_fields(f"{str(file)!r} is no choice of birdtune", choice, _CHOICE, {})
    return [choice for _, choice in found]


_CHOICE: dict[str, tuple[type, ...]] = {
    "config": (dict,), "config_id": (str,), "study": (str,), "metric": (str,), "direction": (str,),
    "rule": (str,), "how_sure": (str,), "mean": (int, float), "n": (int,), "values": (list,),
    "repeats": (list,), "factors": (dict,), "shortlist": (list,), "confirmed": (dict,), "run": (str,),
    "not_worse": (list,),
}  # fmt: skip
