"""Built-in studies from end to end in their quick size, one of every kind, on small synthetic birds."""

import pytest

from birdnet_core.records.run_folder import RunFolder
from reports import choose, load, write_report
from search_spaces.loading import load_study
from search_spaces.study import Ablation
from tuning.engine.launch import sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def train(cluster, data, tmp_path):
    """Return a function that trains a study's quick size and returns it with its definition and records."""

    def trained(name, *, n_trials=None, **options):
        study = load_study(name, quick=True, options=options)
        run = RunFolder(tmp_path / name)
        n_repeats = 1 if isinstance(study, Ablation) else None
        epochs = {"training.epochs": 2}
        summary = sweep(study, data, run.path, settings=epochs, n_repeats=n_repeats, n_trials=n_trials)
        assert set(summary.counts) <= {"completed", "pruned"}, [r.error for r in run.records().values()]
        return study, run.read_study(name), run.records()

    return trained


def configs_of(records):
    return [record.config for record in records.values()]


def test_a_full_factorial_whose_cells_see_different_features(train, tmp_path):
    study, definition, records = train("features")
    assert {(c["features"]["name"], c["model"]["name"]) for c in configs_of(records)} == {
        (f, m) for f in ("mfcc", "log_mel") for m in ("audio_cnn", "audio_cnn_v2")
    }
    assert definition["gates"] == []
    report = write_report([tmp_path / "features"], tmp_path / "report")
    assert [len(s["cells"]) for s in report["studies"]] == [len(study.cells())] == [4]


def test_leave_one_out_trains_all_augmentations_and_all_but_each(train):
    study, definition, records = train("augmentation")
    on = {
        frozenset(name for name, options in c["augment"].items() if options["p"]) for c in configs_of(records)
    }
    five = frozenset({"spec_augment", "mixup", "noise", "time_shift", "time_stretch"})
    assert on == {five, *(five - {name} for name in five), frozenset()}
    assert definition["design"]["kind"] == "leave one out"
    assert definition["baseline"] == dict.fromkeys(five, "on")
    assert len(records) == len(definition["cells"]) == len(study.cells())


def test_a_search_over_everything_stops_trials_within_a_network(train, tmp_path, checkpoints):
    study, definition, records = train("joint", n_trials=4, ast=checkpoints["audio_ast"])
    assert definition["n_trials"] == 4
    trials = [e for e in RunFolder(tmp_path / "joint").events() if e["event"] == "trial"]
    networks = {r.trial_id: r.config["model"]["name"] for r in records.values()}
    assert {t["trial_id"]: t["group"] for t in trials} == networks
    assert set(networks.values()) <= {"audio_cnn", "audio_cnn_v2", "audio_ast"}
    assert choose(load([tmp_path / "joint"]), None)["config"] in configs_of(records)


def test_transfer_starts_from_checkpoints_in_folders(train, checkpoints):
    folders = {name.removeprefix("audio_"): folder for name, folder in checkpoints.items()}
    _, _, records = train("transfer", **folders)
    assert {c["model"]["name"]: c["model"]["pretrained"] for c in configs_of(records)} == checkpoints
