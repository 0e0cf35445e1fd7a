"""Sweeps over small synthetic birds, on a real Ray."""

import contextlib
import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import optuna
import pytest

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.data.manifest import read_manifest
from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.files import without_nan
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.training.metrics import f1_per_class
from birdnet_core.training.run import save_model, train
from reports import write_report
from search_spaces.designs import LatinHypercube, Range
from search_spaces.study import Ablation, Search
from tests.settings import SMALL
from tests.tuning.engine.driver import descendants, train_alone
from tuning.engine.launch import Resources, sweep
from tuning.engine.preparation import Data
from tuning.engine.searcher import open_storage

pytestmark = pytest.mark.ray


LOSSES = Ablation(name="losses", question="Which loss?", factors={"loss.name": ("cross_entropy", "focal")})
ONE = Resources(concurrent=1)  # a second actor takes seconds to start, and finds nothing that one does not
RATES = Ablation(name="rates", question="Which rate?", factors={"optim.lr": (1e-3, 1e-2)})


def events(run, kind):
    return [e for e in RunFolder(run).events() if e["event"] == kind]


@pytest.fixture(scope="module")
def swept(cluster, birds, cache, tmp_path_factory):
    """A finished ablation of 2 losses x 2 repeats on one actor at a time, so that actors are reused."""
    run = tmp_path_factory.mktemp("runs") / "losses"
    data = Data(name="few", manifest=read_manifest(birds), cache=cache, workers=1)
    seen = []
    summary = sweep(
        LOSSES,
        data,
        run,
        settings=SMALL,
        n_repeats=2,
        resources=Resources(concurrent=1),
        command="birdtune sweep losses",
        observer=seen.append,
    )
    return run, summary, seen, data


def test_every_cell_and_repeat_is_trained_and_recorded(swept):
    run, summary, _, _ = swept
    assert summary.counts == {"completed": 4}
    records = RunFolder(run).records()
    assert len(records) == 4
    assert {(r.config["loss"]["name"], r.repeat, r.seed) for r in records.values()} == {
        (loss, repeat, repeat) for loss in ("cross_entropy", "focal") for repeat in (0, 1)
    }
    for record in records.values():
        assert record.epochs == 2
        assert record.cpus == 1.0
        assert record.provenance["split_id"]


def test_the_predictions_that_are_kept_are_those_that_the_record_scores(swept):
    run = RunFolder(swept[0])
    for name, record in run.records().items():
        validation = run.validation(record.provenance["split_id"])
        predictions = run.predictions(name)
        assert len(predictions.classes) == record.epochs
        predicted = predictions.classes[record.best_epoch - 1]
        np.testing.assert_array_equal(predictions.top[:, 0], predicted)
        assert len(predicted) == len(validation.truth) == len(validation.recording)
        assert np.mean(predicted == validation.truth) == pytest.approx(record.metrics["val/accuracy"])
        f1 = f1_per_class(predicted, np.array(validation.truth), len(validation.species))
        of_species = {validation.species[c]: f1[c] for c in set(validation.truth)}
        assert record.f1_per_species == pytest.approx(of_species)


def test_what_each_backbone_may_have_seen_is_kept_with_the_study_and_the_validation_split(
    cluster, small_config, small_dataset, swept, tmp_path
):
    folders = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        save_model(train(small_config.override({"training.epochs": 1, "seed": seed}), small_dataset), folder)
    weights = Ablation(
        name="weights", question="Which?", factors={"features.weights": tuple(map(str, folders))}
    )
    base = {
        "features.name": "embedding", "features.backbone": "birdtune", "model.name": "linear",
        "features.weights": str(folders[0]), "training.epochs": 1, "optim.warmup_epochs": 0,
    }  # fmt: skip
    data = swept[3]
    base = TrainConfig().override(base)
    sweep(weights, data, tmp_path / "run", base=base, n_repeats=1, resources=ONE)
    run = RunFolder(tmp_path / "run")
    hashes = {r.config["features"]["weights_hash"] for r in run.records().values()}
    seen = run.read_study("weights")["data"]["seen"]
    assert len(hashes) == 2 and {each["weights_hash"] for each in seen} == hashes
    facts = small_dataset.facts
    for each in seen:
        assert each["counts"]["val"] == {"possibly seen": 0, "not seen": facts["n_val"], "unknown": 0}
    validation = run.validation(facts["split_id"])
    assert validation.seen == {each: [1] * facts["n_val"] for each in hashes}
    rows = write_report(run.path, tmp_path / "report")["studies"][0]["by_recording"]
    assert not [row for row in rows if row["kind"] == "seen"]  # all of one status: that is the whole split


def test_the_journal_holds_every_epoch_of_every_trial(swept):
    run, _, seen, _ = swept
    epochs = events(run, "epoch")
    assert len(epochs) == 8
    assert all(0 <= e["metrics"]["val/f1_macro"] <= 1 for e in epochs)
    written = [{k: v for k, v in e.items() if k != "time"} for e in RunFolder(run).events()]
    assert [e["event"] for e in written].count("session") == 1
    assert json.dumps(without_nan([e for e in seen if e["event"] != "sweep"])) == json.dumps(written)


def test_the_study_file_holds_the_request(swept):
    study = RunFolder(swept[0]).read_study("losses")
    assert (study["kind"], study["metric"], study["direction"]) == ("ablation", "val/f1_macro", "maximize")
    assert [c["factors"] for c in study["cells"]] == [{"loss.name": "cross_entropy"}, {"loss.name": "focal"}]
    assert (study["repeats"], study["seed"]) == ([0, 1], 0)
    assert study["baseline"] == {"loss.name": "cross_entropy"}
    assert study["design"] == {"kind": "full factorial", "n_cells": 2, "notes": []}
    assert study["data"]["n_recordings"] == 40
    assert study["provenance"]["command"] == "birdtune sweep losses"


def test_a_trial_replayed_alone_gives_the_same_numbers_on_a_fresh_and_on_a_reused_actor(swept):
    run, _, _, data = swept
    actors = set()
    for record in RunFolder(run).records().values():
        actors.add(record.provenance["actor"]["nth_trial"] > 1)
        config = TrainConfig.from_dict(record.config)
        alone = []
        train(
            config,
            Dataset.open(data.folder(config)),
            on_epoch=lambda n, m, alone=alone: alone.append({k: v for k, v in m.items() if k != "epoch_s"}),
        )
        reported = [e["metrics"] for e in events(run, "epoch") if e["trial_id"] == record.trial_id]
        assert json.dumps(alone).replace("NaN", "null") == json.dumps(reported)
    assert actors == {True, False}


def test_a_finished_study_is_not_trained_again(swept):
    run, _, _, data = swept
    n_epochs = len(events(run, "epoch"))
    summary = sweep(LOSSES, data, run, settings=SMALL, n_repeats=2)
    assert (summary.n_reused, summary.counts) == (4, {"completed": 4})
    assert len(events(run, "epoch")) == n_epochs


@pytest.mark.parametrize("first", [{"seed": 1}, {"repeat": 1}])
def test_a_study_that_begins_with_another_repeat_or_seed_is_refused(swept, first):
    run, _, _, data = swept
    with pytest.raises(RunFolderError, match=f"other settings.*{next(iter(first))}"):
        sweep(LOSSES, data, run, settings={**SMALL, **first}, n_repeats=2)


def test_more_repeats_train_only_those_and_another_study_reuses_what_it_shares(swept):
    run, _, _, data = swept
    before = len(events(run, "epoch"))
    assert sweep(LOSSES, data, run, settings=SMALL, n_repeats=3, resources=ONE).n_reused == 4
    assert len(events(run, "epoch")) == before + 2 * 2
    summary = sweep(RATES, data, run, settings=SMALL, n_repeats=1, resources=ONE)
    assert summary.n_reused == 1  # lr 1e-3 with cross-entropy is a cell of both
    assert len(events(run, "epoch")) == before + 2 * 2 + 2
    assert summary.counts == {"completed": 2}


SCREEN = Ablation(
    name="screen",
    question="Which matters?",
    factors={"optim.lr": Range(1e-4, 1e-2, log=True), "loss.name": ("cross_entropy", "focal")},
    design=LatinHypercube(4, seed=1),
)


def test_a_latin_hypercube_is_swept_known_again_and_recorded_without_a_baseline(cluster, data, tmp_path):
    run, seen = tmp_path / "run", []
    settings = {**SMALL, "training.epochs": 1}
    summary = sweep(SCREEN, data, run, settings=settings, n_repeats=1, observer=seen.append, resources=ONE)
    assert summary.counts == {"completed": 4}
    study = RunFolder(run).read_study("screen")
    assert study["baseline"] is None
    assert study["factors"] == {
        "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True, "integer": False},
        "loss.name": ["cross_entropy", "focal"],
    }
    assert (study["design"]["kind"], study["design"]["seed"]) == ("Latin hypercube", 1)
    reported = [event["text"] for event in seen if event["event"] == "note"]
    assert reported == study["design"]["notes"] and "for screening" in reported[0]
    assert sweep(SCREEN, data, run, settings=settings, n_repeats=1, resources=ONE).n_reused == 4


def test_other_settings_and_other_data_are_refused(swept, small_config):
    run, _, _, data = swept
    with pytest.raises(RunFolderError, match="other settings"):
        sweep(LOSSES, data, run, settings={**SMALL, "optim.lr": 0.5})
    fewer = dataclasses.replace(data, name="fewer", manifest=data.manifest.iloc[:-1], _folders={})
    with pytest.raises(RunFolderError, match="'few'.*'fewer'"):
        sweep(LOSSES, fewer, run, settings=SMALL)


def test_a_sweep_with_leakage_runs_and_says_so_in_every_place(cluster, data, tmp_path, caplog):
    splits = ("random-windows", "grouped")
    study = Ablation(name="leak", question="How much of a score is leakage?", factors={"data.split": splits},
                     baseline={"data.split": "grouped"})  # fmt: skip
    run = tmp_path / "run"
    summary = sweep(
        study, data, run, settings={**SMALL, "data.windows_per_recording": 3}, n_repeats=2, resources=ONE
    )
    assert summary.counts == {"completed": 4}
    assert "data.split = 'random-windows'" in caplog.text
    facts = RunFolder(run).read_study("leak")["data"]
    assert facts["scored"] == "recordings" and facts["grouped_by"]
    (note,) = [note for note in facts["notes"] if note.startswith("LEAKAGE")]
    records = RunFolder(run).records().values()
    ids = {(r.config["data"]["split"], r.provenance["split_id"]) for r in records}
    assert len(ids) == 4 and {split for split, _ in ids} == set(splits)
    assert ("grouped", facts["split_id"]) in ids
    assert {r.provenance["data_id"] for r in records} == {facts["data_id"]}
    written = write_report([run], tmp_path / "report")["studies"][0]
    assert written["best"]["factors"] == {"data.split": "grouped"}
    for file in ("report.html", "report.md"):
        text = (tmp_path / "report" / file).read_text()
        assert text.index(note.split(":")[0]) < text.index("Of 2 cells")
        assert "This concerns split=random-windows" in text


def test_a_failing_trial_keeps_its_record_and_harms_nobody(cluster, data, tmp_path):
    # Features of 4 bins are gone after the network's third pooling: known only when a batch goes through.
    study = Ablation(name="bins", question="How many?", factors={"features.n_mfcc": (16, 4)})
    run, settings = tmp_path / "run", {k: v for k, v in SMALL.items() if k != "features.n_mfcc"}
    settings["model.name"] = "audio_cnn_v2"
    summary = sweep(study, data, run, settings=settings, n_repeats=1, resources=ONE)
    assert summary.counts == {"completed": 1, "failed": 1}
    (failed,) = [r for r in RunFolder(run).records().values() if r.status == "failed"]
    assert "RuntimeError" in failed.error and "too small" in failed.error
    assert "Traceback" in failed.traceback
    assert failed.config["features"]["n_mfcc"] == 4
    # The next call trains nothing, since it would fail again, unless it is asked to.
    n_trials = len(events(run, "trial"))
    assert sweep(study, data, run, settings=settings, n_repeats=1).counts == {"completed": 1, "failed": 1}
    assert len(events(run, "trial")) == n_trials
    again = sweep(study, data, run, settings=settings, n_repeats=1, rerun_failed=True, resources=ONE)
    assert again.counts == {"completed": 1, "failed": 1}
    # A trial that fails at once is tried a second time, in another process.
    assert [e["trial_id"] for e in events(run, "trial")[n_trials:]] == [failed.trial_id] * 2
    assert not list((run / "checkpoints").glob("*/session.pt"))


@pytest.mark.usefixtures("an_epoch_a_step")
def test_a_trial_whose_process_is_killed_goes_on_after_its_last_epoch(cluster, data, tmp_path):
    study = Ablation(name="losses", question="Which loss?", factors={"loss.name": ("focal", "cross_entropy")})
    run, settings = tmp_path / "run", {**SMALL, "training.epochs": 3}
    killed = []

    def kill_the_worker(event):
        if event["event"] == "epoch" and not killed:
            killed.append(event["trial_id"])
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    title = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if title.startswith((b"ray::TrainTrial", b"ray::ResourceTrainable")):
                        os.kill(pid, signal.SIGKILL)

    one = Resources(concurrent=1)
    summary = sweep(study, data, run, settings=settings, n_repeats=1, resources=one, observer=kill_the_worker)
    assert len(killed) == 1
    assert summary.counts == {"completed": 2}
    (restart,) = events(run, "restart")
    assert restart["trial_id"] == killed[0] and "Actor" in restart["error"]
    reported = [(e["trial_id"], e["epoch"]) for e in events(run, "epoch")]
    assert len(set(reported)) == len(reported) == 6
    train_alone(RunFolder(run).records().values(), data, tmp_path / "undisturbed")
    assert scores(run) == scores(tmp_path / "undisturbed")


@pytest.mark.usefixtures("an_epoch_a_step")
def test_a_trial_that_kills_its_process_again_and_again_is_recorded_as_killed(cluster, data, tmp_path):
    run = tmp_path / "run"
    one = Resources(concurrent=1, restarts=0)

    def kill_the_worker(event):
        if event["event"] == "epoch":
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::TrainTrial"):
                        os.kill(pid, signal.SIGKILL)

    settings = {**SMALL, "training.epochs": 3}
    summary = sweep(
        LOSSES, data, run, settings=settings, n_repeats=1, resources=one, observer=kill_the_worker
    )
    assert summary.counts == {"killed": 2}
    for record in RunFolder(run).records().values():
        assert record.epochs == 1 and "Actor" in record.error
    summary = sweep(
        LOSSES, data, run, settings=settings, n_repeats=1, resources=ONE
    )  # they continue after their first epochs
    assert summary.counts == {"completed": 2}
    for name in RunFolder(run).records():
        assert [e["epoch"] for e in events(run, "epoch") if e["trial_id"] == name] == [1, 2, 3]


def scores(run):
    """Return what the trials of a run reached, without what depends on the clock."""
    return {
        name: (r.status, r.epochs, r.best_epoch, r.metrics, r.f1_per_species)
        for name, r in RunFolder(run).records().items()
    }


def test_a_diverging_trial_is_diverged_not_failed(cluster, data, tmp_path):
    study = Ablation(name="rates", question="Too fast?", factors={"loss.alpha": (None, 1e38)})
    settings = {
        **SMALL, "optim.lr": 10.0, "optim.warmup_epochs": 0, "optim.grad_clip": 0.0, "loss.name": "focal",
    }  # fmt: skip
    summary = sweep(study, data, tmp_path / "run", settings=settings, n_repeats=1, resources=ONE)
    assert summary.counts["diverged"] >= 1 and "failed" not in summary.counts
    records = RunFolder(tmp_path / "run").records().values()
    (record,) = [r for r in records if r.config["loss"]["alpha"] == 1e38]
    assert record.status == "diverged" and "not finite in epoch" in record.error


def optuna_trials(run, name="rates"):
    return optuna.load_study(storage=open_storage("journal", RunFolder(run)), study_name=name).trials


def test_asha_stopped_trials_are_pruned_in_the_optuna_study(cluster, data, tmp_path):
    def space(trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-6, 1e-2, log=True)}

    study = Search(
        name="rates",
        question="Which rate?",
        space=space,
        metric="val/loss",
        n_trials=8,
        grace_epochs=1,
        reduction_factor=2,
    )
    run, settings = tmp_path / "run", {**SMALL, "training.epochs": 4}
    summary = sweep(study, data, run, settings=settings, resources=Resources(concurrent=1))
    trials = optuna_trials(run)
    assert len(trials) == 8
    states = {t.number: t.state.name for t in trials}
    assert {"PRUNED", "COMPLETE"} == set(states.values())
    assert summary.counts["pruned"] == list(states.values()).count("PRUNED")
    for trial in trials:
        n_epochs = len(trial.intermediate_values)
        assert (n_epochs == 4) == (trial.state.name == "COMPLETE")
        if trial.state.name == "COMPLETE":  # the value is that of the best epoch
            assert trial.value == min(trial.intermediate_values.values())
    # The run folder tells the same story.
    number = {e["trial_id"]: e["number"] for e in events(run, "trial")}
    for record in RunFolder(run).records().values():
        trial = trials[number[record.trial_id]]
        assert record.status == {"PRUNED": "pruned", "COMPLETE": "completed"}[trial.state.name]
        assert record.epochs == len(trial.intermediate_values)


def test_under_wsd_the_rate_decays_before_the_epochs_at_which_trials_are_compared(cluster, data, tmp_path):
    def space(trial):
        return {
            "optim.lr": trial.suggest_float("optim.lr", 1e-6, 1e-2, log=True),
            "optim.schedule": trial.suggest_categorical("optim.schedule", ["wsd"]),
        }

    study = Search(
        name="rates",
        question="Which rate?",
        space=space,
        rung_metric="val/loss",
        n_trials=3,
        grace_epochs=1,
        reduction_factor=2,
    )
    run, settings = tmp_path / "run", {**SMALL, "training.epochs": 4}
    sweep(study, data, run, settings=settings, resources=Resources(concurrent=1))
    records = RunFolder(run).records()
    assert {tuple(record.config["optim"]["decay_before"]) for record in records.values()} == {(1, 2)}
    assert RunFolder(run).read_study("rates")["rung_metric"] == "val/loss"
    # What Optuna keeps of every epoch is the objective, whatever compares trials on the way.
    f1 = {(e["trial_id"], e["epoch"]): e["metrics"]["val/f1_macro"] for e in events(run, "epoch")}
    for trial in optuna_trials(run):
        for epoch, value in trial.intermediate_values.items():
            assert value == f1[trial.user_attrs["trial_id"], epoch]
    sweep(study, data, run, settings=settings, n_trials=4, resources=Resources(concurrent=1))
    assert len(RunFolder(run).records()) == 4


def test_a_config_sampled_again_has_its_value_without_training(cluster, data, tmp_path):
    def space(trial):
        return {"optim.lr": trial.suggest_categorical("optim.lr", [1e-3])}

    run = tmp_path / "run"
    study = Search(name="rates", question="Which?", space=space, n_trials=3, asha_within="model.name")
    sweep(study, data, run, settings=SMALL, resources=Resources(concurrent=1))
    trials = optuna_trials(run)
    assert {e["group"] for e in events(run, "trial")} == {"audio_cnn"}
    assert [len(t.intermediate_values) for t in trials] == [2, 0, 0]
    assert len({t.value for t in trials}) == 1
    assert [e["reused"] for e in events(run, "trial")] == [False, True, True]


def test_a_search_goes_on_to_its_number_of_trials_and_takes_up_those_left_running(cluster, data, tmp_path):
    def space(trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)}

    run = tmp_path / "run"
    run.mkdir()
    dead = optuna.create_study(
        storage=open_storage("journal", RunFolder(run)), study_name="rates", direction="maximize"
    )
    dead.ask()  # as a killed driver leaves it
    study = Search(name="rates", question="Which rate?", space=space, n_trials=2)
    sweep(study, data, run, settings=SMALL, resources=ONE)
    states = [t.state.name for t in dead.get_trials()]
    assert states == ["COMPLETE", "COMPLETE"]
    sweep(study, data, run, settings=SMALL, n_trials=3, resources=ONE)
    assert len(dead.get_trials()) == 3
    with pytest.raises(
        RunFolderError, match=r"has \{'scheduler': 'asha'\}, .*asks for \{'scheduler': 'fifo'\}"
    ):
        sweep(dataclasses.replace(study, scheduler="fifo"), data, run, settings=SMALL, n_trials=4)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "is_noted"),
    [("gp", "asha", True), ("gp", "fifo", False), ("tpe", "asha", False)],
)
def test_a_sampler_that_learns_from_completed_trials_alone_is_named(
    data, tmp_path, monkeypatch, sampler, scheduler, is_noted
):
    def space(trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-6, 1e-2, log=True)}

    notes = []
    monkeypatch.setattr("tuning.engine.launch.ray_session", lambda *_: pytest.fail("nothing is trained"))
    study = Search(name="rates", question="Which?", space=space, n_trials=2, scheduler=scheduler)
    with pytest.raises(pytest.fail.Exception):
        sweep(study, data, tmp_path / "run", settings=SMALL, sampler=sampler, observer=notes.append)
    text = f"the sampler {sampler} learns from completed trials alone, and {scheduler} ends most before"
    assert any(text in event.get("text", "") for event in notes) == is_noted


def test_the_seed_of_a_search_is_its_trials_and_its_samplers(cluster, data, tmp_path):
    def space(trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-6, 1e-2, log=True)}

    rates = {}
    for seed in (0, 5):
        run = tmp_path / str(seed)
        study = Search(name="rates", question="Which rate?", space=space, n_trials=2, scheduler="fifo")
        sweep(
            study,
            data,
            run,
            settings={**SMALL, "training.epochs": 1, "seed": seed},
            sampler="random",
            resources=ONE,
        )
        records = RunFolder(run).records().values()
        assert {r.seed for r in records} == {seed}
        rates[seed] = {r.config["optim"]["lr"] for r in records}
    assert len(rates[0] | rates[5]) == 4


def test_a_search_of_several_objectives_trains_every_trial_in_full(cluster, data, tmp_path):
    def space(trial):
        return {"model.dropout": trial.suggest_float("model.dropout", 0.0, 0.8)}

    objectives = {"scheduler": "fifo", "also": ("n_params", "hours")}
    study = Search(name="front", question="How much?", space=space, n_trials=2, **objectives)
    run = tmp_path / "run"
    sweep(study, data, run, settings={**SMALL, "training.epochs": 4}, resources=Resources(concurrent=1))
    records = RunFolder(run).records()
    for trial in optuna_trials(run, "front"):
        record = records[trial.user_attrs["trial_id"]]
        assert record.epochs == 4
        assert trial.values == [record.metrics["val/f1_macro"], record.n_params, record.seconds / 3600]
    definition = RunFolder(run).read_study("front")
    assert (definition["scheduler"], definition["also"]) == ("fifo", ["n_params", "hours"])


def test_a_trial_that_cannot_be_placed_is_refused(cluster, data, tmp_path):
    with pytest.raises(ConfigError, match=r"asks for 0.5 GPUs and there are 0; lower --gpus-per-trial"):
        sweep(LOSSES, data, tmp_path / "run", settings=SMALL, resources=Resources(gpus=0.5))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"model.widht": 3}, "'widht'"),
        ({"model.dropout": 7.0}, "model 'audio_cnn' refuses .*dropout=7.0.*between 0 and 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(data, tmp_path, setting, words):
    with pytest.raises(ConfigError, match=words):
        sweep(LOSSES, data, tmp_path / "run", settings={**SMALL, **setting})
    assert not (tmp_path / "run").exists()


def test_an_unknown_scheduler_is_refused_before_anything_is_written(data, tmp_path):
    study = Search(name="rates", question="Which?", space=lambda trial: {}, scheduler="medain")
    with pytest.raises(ConfigError, match="unknown scheduler 'medain'; did you mean 'median'"):
        sweep(study, data, tmp_path / "run", settings=SMALL)
    assert not (tmp_path / "run").exists()
