"""What `birdtune best --confirm` trains: the shortlist of a run races on fresh repeats."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from birdnet_core.errors import RunFolderError
from tuning.cli.output import err_console, in_words
from tuning.cli.sweeps import train_study, trusted_request
from tuning.engine.halt import Budget

if TYPE_CHECKING:
    from reports import Runs


def confirm(
    run: Path,
    runs: Runs,
    study: str | None,
    by: str,
    *,
    n_repeats: int,
    n: int,
    tolerance: float = 0.0,
    files: Sequence[str] = (),
    trust: bool = False,
) -> dict[str, Any]:
    """Train the `n` best configs of `run` on fresh repeats, and return the content of best.json.

    Up to `n_repeats` each, a block after the other. Who cannot be the best leaves after its block; the race
    ends when one is left or the config that the rule `by` would choose can lose `tolerance` at most. Into the
    run folder RUN/confirm, a study a round; what it holds is not trained again. The report of RUN shows what
    came out. Raises RunFolderError where the run has no request to take data and means from, the study has
    several objectives, or a round was interrupted.
    """
    from birdnet_core.config import TrainConfig
    from birdnet_core.records.bounds import constraints_of
    from birdnet_core.records.files import write_json
    from reports import load
    from reports.selection.choice import check_rule, one_study
    from reports.selection.confirmation import (
        CHOICE_FILE,
        FIRST_FRESH,
        FOLDER,
        confirmed,
        looks,
        shortlist,
        survivors,
    )
    from reports.statistics.front import objectives_of
    from search_spaces.study import Ablation

    check_rule(by)
    origin = one_study(runs, study)
    if len(objectives := objectives_of(origin)) > 1:
        raise RunFolderError(
            f"a race on fresh repeats is by one metric, and {origin['name']!r} has {len(objectives)} "
            f"objectives ({', '.join(objectives)}); choose a config of the front by --rule, without --confirm"
        )
    after = looks(n_repeats)
    candidates = shortlist(runs, study, n)
    name = origin["name"]
    # The study itself is not run again; but its file may have registered what its configs name.
    made_with = origin.get("provenance") or {}
    with_study = any(each["kind"] == "study" for each in made_with.get("plugins", ()))
    request = trusted_request(run, name, files=files, trust=trust, with_study=with_study)
    if with_study:
        request.load_study()
    settings = {each["config_id"]: TrainConfig.from_dict(each["config"]).difference() for each in candidates}
    names_of = {each["config_id"]: in_words(each["factors"]) for each in candidates}
    request = replace(
        request,
        base=None, settings={"repeat": FIRST_FRESH, "seed": FIRST_FRESH}, trials=None, budget=Budget(),
        tensorboard=False,
        resources=replace(request.resources, checkpoints=0),
    )  # fmt: skip
    folder, left, names = run / FOLDER, list(settings), list[str]()
    for number, n_each in enumerate(after, start=1):
        if names:
            left, is_decided = survivors(load([folder]), names[-1], len(after), tolerance, by)
            if is_decided:
                break
        # By what it compares, so that a run which was extended meanwhile has rounds of its own.
        mark = hashlib.sha256(" ".join(sorted(left)).encode()).hexdigest()[:6]
        names.append(f"round-{number}-{mark}")
        err_console.print(
            f"round {number} of {len(after)} at most: {len(left)} configs with {n_each} fresh repeats each:",
            *(f"  {config_id}  {names_of[config_id]}" for config_id in left),
            sep="\n",
        )
        of_round = Ablation(
            name=names[-1],
            question="Which of the shortlist is best, by repeats that the choice of it never saw?",
            metric=origin["metric"],
            constraints=tuple(constraints_of(origin)),
            factors={"config": {config_id: settings[config_id] for config_id in left}},
            n_repeats=n_each,
        )
        result = train_study(of_round, request, folder, is_kept=False)
        if result["halted"]:
            raise RunFolderError(
                f"round {number} was interrupted ({result['halted']}); the same command continues"
            )
    best = confirmed(load([folder]), names, origin, candidates, len(after), by)
    write_json(folder / CHOICE_FILE, best)
    return best
