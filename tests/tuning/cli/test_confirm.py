"""The race of `best --confirm`, with a training that is made up."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from birdnet_core.config import TrainConfig
from birdnet_core.errors import RunFolderError
from birdnet_core.records.bounds import Bound
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from reports import load
from tuning.cli import confirm as module

CONFIGS = [TrainConfig().override({"optim.lr": lr}) for lr in (1e-4, 3e-4, 1e-3)]
# Of each config, its score in fresh repeats: the third is clearly behind, the others are close.
SCORES = {
    config.config_id: scores
    for config, scores in zip(
        CONFIGS,
        (
            [0.31, 0.35, 0.33, 0.34, 0.33, 0.34, 0.33],
            [0.30, 0.36, 0.32, 0.35, 0.32, 0.35, 0.33],
            [0.10, 0.14, 0.09, 0.12, 0.1, 0.11, 0.1],
        ),
        strict=True,
    )
}

RARE = {}  # of configs, F1 of rare species on fresh repeats where it is not 0.5


def write(run, name, repeats, cells, constraints=()):
    """Write a study of finished trials; `cells`: factors, config and its scores."""
    run.write_study(
        {"name": name, "question": "?", "kind": "ablation", "metric": "val/f1_macro",
         "direction": "maximize", "epochs": 1, "n_trials": None, "repeats": repeats, "seed": repeats[0],
         "factors": {}, "baseline": cells[0][0], "data": {}, "scheduler": "fifo",
         "constraints": [asdict(bound) for bound in constraints],
         "cells": [{"factors": f, "config_id": config.config_id} for f, config, _ in cells]}
    )  # fmt: skip
    number = 0
    for factors, config, scores in cells:
        for repeat, score in zip(repeats, scores, strict=False):
            trial_id = f"{config.config_id}-r{repeat}"
            run.append({"event": "trial", "study": name, "trial_id": trial_id, "number": number,
                        "factors": factors, "reused": False})  # fmt: skip
            number += 1
            run.write_record(
                TrialRecord(
                    trial_id=trial_id, config_id=config.config_id, repeat=repeat, seed=repeat, epochs=1,
                    status="completed", config=config.to_dict(), best_epoch=1,
                    metrics={"val/f1_macro": score, "val/f1_rare": RARE.get(config.config_id, 0.5)},
                )
            )  # fmt: skip


@pytest.fixture
def race(tmp_path, monkeypatch):
    """Return a function that confirms the choice of a run, and the rounds that it trained."""
    run = RunFolder(tmp_path / "run")
    bounds = (Bound("val/f1_rare", ">=", 0.2),)
    write(run, "rates", [0], [({"optim.lr": c.optim.lr}, c, [0.3]) for c in CONFIGS], bounds)
    rounds = []

    def train_study(study, request, folder, *, is_kept):
        by_id = {config.config_id: config for config in CONFIGS}
        ids = list(study.factors["config"])
        first = request.settings["repeat"]
        rounds.append((len(ids), study.n_repeats))
        cells = [({"config": i}, by_id[i], SCORES[i]) for i in ids]
        write(
            RunFolder(folder),
            study.name,
            list(range(first, first + study.n_repeats)),
            cells,
            study.constraints,
        )
        return {"halted": halted[0]}

    halted = [None]
    monkeypatch.setattr(module, "train_study", train_study)
    monkeypatch.setattr(module, "replace", lambda request, **changes: SimpleNamespace(**changes))
    request = SimpleNamespace(resources=None)
    monkeypatch.setattr(module, "trusted_request", lambda *args, **options: request)

    def confirmed(**options):
        runs = load([run.path])
        return module.confirm(run.path, runs, None, "mean", **{"n_repeats": 7, "n": 3, **options})

    return SimpleNamespace(confirmed=confirmed, rounds=rounds, halted=halted)


def test_who_is_clearly_behind_leaves_and_the_others_race_to_the_last_repeat(race):
    best = race.confirmed()
    assert race.rounds == [(3, 3), (2, 5), (2, 7)]
    assert best["config_id"] == CONFIGS[0].config_id or best["config_id"] == CONFIGS[1].config_id
    assert best["factors"] == {"optim.lr": TrainConfig.from_dict(best["config"]).optim.lr}
    assert best["n"] == 7 and best["repeats"][0] == 10_000 and best["study"] == "rates"
    assert [each["config_id"] for each in best["confirmed"]["left"]] == [CONFIGS[2].config_id]
    assert set(best["not_worse"]) == {CONFIGS[0].config_id, CONFIGS[1].config_id}


def test_a_tolerance_ends_the_race_where_no_more_can_be_lost(race):
    best = race.confirmed(tolerance=0.2)
    assert race.rounds == [(3, 3)]
    assert len(best["shortlist"]) == 3 and 0 < best["regret"] < 0.2


def test_a_race_of_two_of_which_one_is_behind_ends_at_the_first_look(race, monkeypatch):
    monkeypatch.setitem(SCORES, CONFIGS[1].config_id, [0.1, 0.14, 0.12, 0.1, 0.1, 0.1, 0.1])
    best = race.confirmed(n=2)
    assert race.rounds == [(2, 3)]
    assert best["not_worse"] == [best["config_id"]] == [CONFIGS[0].config_id]


def test_a_config_that_breaks_a_constraint_on_fresh_repeats_leaves_however_good_it_is(race, monkeypatch):
    monkeypatch.setitem(SCORES, CONFIGS[0].config_id, [0.91, 0.95, 0.93, 0.94, 0.93, 0.94, 0.93])
    monkeypatch.setitem(RARE, CONFIGS[0].config_id, 0.1)
    best = race.confirmed()
    assert best["config_id"] == CONFIGS[1].config_id
    assert CONFIGS[0].config_id in [each["config_id"] for each in best["confirmed"]["left"]]


def test_an_interrupted_round_is_no_result(race):
    race.halted[0] = "Ctrl-C"
    with pytest.raises(
        RunFolderError, match=r"round 1 was interrupted \(Ctrl-C\); the same command continues"
    ):
        race.confirmed()
