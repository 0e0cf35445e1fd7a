"""What `birdtune best --confirm` trains: the shortlist of a run, on fresh repeats, round by round."""

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
    files: Sequence[str] = (),
    trust: bool = False,
) -> dict[str, Any]:
    """Train the `n` best configs of `run` on fresh repeats, and return the content of best.json.

    Into the run folder RUN/confirm, a study a round; what it holds is not trained again. The report of RUN
    shows what came out. Raises RunFolderError where the run has no request to take data and means from, or a
    round was interrupted.
    """
    from birdnet_core.config import TrainConfig
    from birdnet_core.records.files import write_json
    from reports import load
    from reports.selection.choice import check_rule, comparable
    from reports.selection.confirmation import (
        CHOICE_FILE,
        FIRST_FRESH,
        FOLDER,
        confirmed,
        racing_rounds,
        shortlist,
        survivors,
    )
    from search_spaces.study import Ablation

    check_rule(by)
    studies = comparable(runs, study)
    candidates = shortlist(runs, studies, n)
    rounds = racing_rounds(len(candidates), n_repeats)
    name = candidates[0]["study"]
    # The study itself is not run again; but its file may have registered what its configs name.
    made_with = next(s for s in studies if s["name"] == name).get("provenance") or {}
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
    for number, each in enumerate(rounds, start=1):
        if names:
            left = survivors(load([folder]), names[-1], each.n_configs)
        # By what it compares, so that a run which was extended meanwhile has rounds of its own.
        mark = hashlib.sha256(" ".join(sorted(left)).encode()).hexdigest()[:6]
        names.append(f"round-{number}-{mark}")
        err_console.print(
            f"round {number} of {len(rounds)}: {len(left)} configs with {each.n_repeats} fresh repeats each:",
            *(f"  {config_id}  {names_of[config_id]}" for config_id in left),
            sep="\n",
        )
        of_round = Ablation(
            name=names[-1],
            question="Which of the shortlist is best, by repeats that the choice of it never saw?",
            metric=studies[0]["metric"],
            factors={"config": {config_id: settings[config_id] for config_id in left}},
            n_repeats=each.n_repeats,
        )
        result = train_study(of_round, request, folder, is_kept=False)
        if result["halted"]:
            raise RunFolderError(
                f"round {number} was interrupted ({result['halted']}); the same command continues"
            )
    best = confirmed(load([folder]), names, candidates, by)
    write_json(folder / CHOICE_FILE, best)
    return best
