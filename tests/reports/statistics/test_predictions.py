"""F1 of species and strata over validation recordings, with its intervals; confusions."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from birdnet_core.errors import RunFolderError
from birdnet_core.records import predictions as records
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import Validation
from reports import load, write_report
from reports.statistics import predictions
from reports.statistics.predictions import OVERALL, Predictions
from reports.statistics.repeats import read

SPECIES = ["wren", "owl", "kite", "tern"]
STRATA = {"rare": ["owl", "tern"], "medium": [], "common": ["wren", "kite"]}


def predicted_by(truth, *predicted, group=None):
    group = np.arange(len(truth)) if group is None else np.array(group)
    return Predictions(SPECIES, np.array(truth), group, np.array(predicted))


def drawn(rng, n, accuracy):
    """Return truth and predictions of `n` recordings of the first three species."""
    truth = rng.choice(3, size=n, p=[0.6, 0.1, 0.3])
    wrong = rng.integers(0, 3, size=n)
    return truth, np.where(rng.random(n) < accuracy, truth, wrong)


def by_name(frame):
    return frame.set_index("name")


def test_f1_is_that_of_scikit_learn_as_a_mean_over_trials():
    rng = np.random.default_rng(0)
    truth, one = drawn(rng, 60, 0.7)
    two = np.where(rng.random(60) < 0.5, truth, 3)  # a species that is in no truth
    found = by_name(predictions.f1_intervals(predicted_by(truth, one, two), STRATA))
    macro = np.mean([f1_score(truth, p, average="macro") for p in (one, two)])
    assert found.loc[OVERALL, "f1"] == pytest.approx(macro)
    single = [f1_score(truth, p, labels=[0, 1, 2], average=None) for p in (one, two)]
    assert found.loc[["wren", "owl", "kite"], "f1"].tolist() == pytest.approx(np.mean(single, axis=0))
    assert found.loc["rare", "f1"] == found.loc["owl", "f1"]
    assert "tern" not in found.index
    assert np.isnan(found.loc["medium", "f1"])
    assert found.loc[["wren", "owl", "kite"], "n_val"].sum() == found.loc[OVERALL, "n_val"] == 60


def test_the_interval_covers_the_f1_of_the_population():
    rng = np.random.default_rng(1)
    truth, predicted = drawn(rng, 200_000, 0.7)
    true_f1 = f1_score(truth, predicted, average=None)[0]
    n_covered = 0
    for _ in range(200):
        truth, predicted = drawn(rng, 120, 0.7)
        row = by_name(predictions.f1_intervals(predicted_by(truth, predicted), STRATA, n_resamples=400)).loc[
            "wren"
        ]
        n_covered += row["low"] <= true_f1 <= row["high"]
    assert 0.90 <= n_covered / 200 <= 0.99  # two standard errors of 200 studies are 3 points


def test_the_interval_of_an_average_over_species_covers_that_of_the_population():
    rng = np.random.default_rng(3)
    n_species, n_each, right = 60, 12, 0.3
    truth = np.repeat(np.arange(n_species), n_each)
    n_covered = 0
    for _ in range(150):
        wrong = (truth + rng.integers(1, n_species, len(truth))) % n_species
        predicted = np.where(rng.random(len(truth)) < right, truth, wrong)
        split = Predictions(
            [f"s{i}" for i in range(n_species)], truth, np.arange(len(truth)), predicted[None]
        )
        row = by_name(predictions.f1_intervals(split, {}, n_resamples=200)).loc[OVERALL]
        n_covered += row["low"] <= right <= row["high"]  # the F1 of each, since wrong guesses spread evenly
    assert 0.90 <= n_covered / 150 <= 0.99


def test_recordings_of_one_group_are_no_independent_samples():
    rng = np.random.default_rng(2)
    truth, predicted = drawn(rng, 40, 0.7)
    copies = np.tile(truth, 5), np.tile(predicted, 5)
    together = predicted_by(*copies, group=np.tile(np.arange(40), 5))
    alone = by_name(predictions.f1_intervals(predicted_by(truth, predicted), STRATA)).loc[OVERALL]
    grouped = by_name(predictions.f1_intervals(together, STRATA)).loc[OVERALL]
    pretended = by_name(predictions.f1_intervals(predicted_by(*copies), STRATA)).loc[OVERALL]
    assert (grouped["low"], grouped["high"]) == pytest.approx((alone["low"], alone["high"]))
    assert pretended["high"] - pretended["low"] < 0.7 * (grouped["high"] - grouped["low"])


def test_a_species_with_one_recording_has_no_interval():
    found = by_name(predictions.f1_intervals(predicted_by([0, 0, 1], [0, 0, 1]), STRATA))
    assert found.loc["owl", "f1"] == 1
    assert np.isnan(found.loc["owl", ["low", "high"]].astype(float)).all()


def test_confusions_are_the_off_diagonal_of_the_matrix_worst_first():
    rng = np.random.default_rng(3)
    truth, predicted = drawn(rng, 80, 0.5)
    one = predicted_by(truth, predicted)
    matrix = confusion_matrix(truth, predicted, labels=range(4))
    assert predictions.confusion_matrix(one).tolist() == matrix.tolist()
    pairs = predictions.confusions(one, n=100)
    assert pairs["count"].sum() == (predicted != truth).sum()
    assert pairs["count"].is_monotonic_decreasing
    first = pairs.iloc[0]
    assert first["count"] == matrix[SPECIES.index(first["truth"]), SPECIES.index(first["predicted"])]
    assert first["share"] == first["count"] / (truth == SPECIES.index(first["truth"])).sum()
    perfect = predicted_by([0, 1], [0, 1])
    assert predictions.confusions(perfect).empty


def kept(predicted, n_epochs=4):
    """Return the predictions of a trial whose third epoch is its best; all others predict the other class."""
    classes = np.full((n_epochs, len(predicted)), 1 - np.array(predicted), dtype="uint16")
    classes[2:3] = predicted
    top = np.array([predicted, 1 - np.array(predicted)]).T
    return records.Predictions(classes, top.astype("uint16"), np.full(top.shape, 0.5, dtype="float16"))


@pytest.fixture
def run(make_run):
    """A finished ablation of two cells and two repeats on one validation split, with their predictions."""
    facts = {"provenance": {"split_id": "s1"}, "metrics": {"val/f1_macro": 0.5, "val/accuracy": 0.5}}
    ending = {"status": "completed", **facts}
    better = ending | {"metrics": {"val/f1_macro": 0.6, "val/accuracy": 0.6}}
    cells = [
        ({"loss.name": "cross_entropy"}, {0: ending, 1: ending}),
        ({"loss.name": "focal"}, {0: better, 1: better}),
    ]
    data = {"folds": {"n": 1}, "strata": {"rare": ["owl"], "medium": [], "common": ["wren"]}, "notes": []}
    path = make_run(cells, data=data)
    folder = RunFolder(path)
    split = Validation(
        species=["owl", "wren"],
        truth=[0, 0, 1, 1, 1, 1],
        recording=[0, 1, 2, 3, 4, 4],
        group=[0, 1, 2, 3, 4, 4],
    )
    folder.write_validation("s1", split)
    for name, record in folder.records().items():
        is_better = record.config["model"]["loss.name"] == "focal"
        folder.write_predictions(name, kept([0, 1, 1, 1, 1, 0] if is_better else [1, 1, 1, 1, 1, 0]))
    return path


def test_the_report_shows_the_long_tail_and_the_confusions(run, tmp_path):
    content = write_report(run, tmp_path / "report")["studies"][0]
    rows = pd.DataFrame(content["by_recording"])
    assert set(rows["cell"]) == {"focal (best)", "cross_entropy (baseline)"}
    assert rows.loc[rows["name"] == "wren", "f1"].tolist() == pytest.approx([3 / 4, 2 / 3])
    # Scored from the predictions, whatever the records say.
    scores = [cell["metrics"]["val/f1_macro"]["mean"] for cell in content["cells"]]
    assert scores == pytest.approx([(0 + 2 / 3) / 2, (1 / 2 + 3 / 4) / 2])
    assert content["confusions"][0] == {
        "truth": "owl", "predicted": "wren", "n_val": 2, "count": 1.0, "share": 0.5,
    }  # fmt: skip
    page = (tmp_path / "report" / "report.html").read_text()
    assert "F1 over recordings" in page and "Most frequent confusions of focal (best)" in page
    for name in ("long-tail", "confusions"):
        assert (tmp_path / "report" / "figures" / f"capacity-{name}.png").stat().st_size > 5000
    assert (tmp_path / "report" / "tables" / "confusions-capacity.csv").exists()


SEEN = {
    "backbone": "birdnet", "weights_hash": "h", "trained_on": "xeno-canto", "scored": "recordings",
    "counts": {"val": {"possibly seen": 4, "not seen": 2, "unknown": 0}},
}  # fmt: skip


def test_f1_of_seen_recordings_is_that_of_scikit_learn_on_them_alone():
    rng = np.random.default_rng(4)
    truth, one = drawn(rng, 60, 0.7)
    two = drawn(rng, 60, 0.7)[1]
    seen = np.where(rng.random(60) < 0.3, "not seen", "possibly seen")
    cell = replace(predicted_by(truth, one, two), seen=seen)
    found = by_name(predictions.f1_intervals(cell, STRATA))
    for status in ("possibly seen", "not seen"):
        part = seen == status
        macro = np.mean([f1_score(truth[part], p[part], average="macro") for p in (one, two)])
        assert found.loc[status, "f1"] == pytest.approx(macro)
        assert found.loc[status, "n_val"] == part.sum() and found.loc[status, "kind"] == "seen"
        assert found.loc[status, "low"] < macro < found.loc[status, "high"]
    assert "unknown" not in found.index
    assert "not seen" not in by_name(predictions.f1_intervals(predicted_by(truth, one), STRATA)).index


def test_the_report_says_how_much_of_the_validation_split_was_possibly_seen(make_run, tmp_path):
    provenance = {"provenance": {"split_id": "s1"}, "metrics": {"val/f1_macro": 0.5}}
    config = {"features": {"name": "embedding", "weights_hash": "h"}, "training": {"epochs": 4}}
    ending = {"status": "completed", "config": config, **provenance}
    strata = {"rare": ["owl"], "medium": [], "common": ["wren"]}
    data = {"name": "clips", "split_id": "s1", "strata": strata, "notes": [], "seen": [SEEN]}
    path = make_run([({"loss.name": "focal"}, {0: ending, 1: ending})], data=data)
    folder = RunFolder(path)
    split = Validation(
        species=["owl", "wren"], truth=[0, 0, 1, 1, 1, 1], recording=[0, 1, 2, 3, 4, 4],
        group=[0, 1, 2, 3, 4, 4], seen={"other": [2] * 6, "h": [0, 1, 0, 0, 0, 1]},
    )  # fmt: skip
    folder.write_validation("s1", split)
    for name in folder.records():
        folder.write_predictions(name, kept([0, 1, 1, 1, 1, 0]))
    content = write_report(path, tmp_path / "report")["studies"][0]
    rows = pd.DataFrame(content["by_recording"]).query("kind == 'seen'").set_index("name")
    assert rows["f1"].to_dict() == {"possibly seen": 1.0, "not seen": 0.0}
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        "4 of 6 validation recordings may be among those that the backbone 'birdnet' was trained on" in text
    )
    assert "4 possibly seen, 2 not seen, 0 unknown" in text and "all species, not seen" in text


def test_a_run_without_predictions_has_a_report_without_them(run, tmp_path):
    for file in (run / "predictions").glob("*.npz"):
        file.unlink()
    content = write_report(run, tmp_path / "report")["studies"][0]
    assert content["by_recording"] == content["confusions"] == []
    assert "F1 over recordings" not in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("altered", "expected"),
    [
        (kept([0]), r"of 1 recordings, and its validation split s1 holds 6"),
        (kept([0] * 6, n_epochs=2), r"holds no predictions: of epoch 3; classes is \[2, 6\]"),
    ],
)
def test_predictions_that_do_not_fit_the_trial_or_its_split_are_refused(run, altered, expected):
    file = next((run / "predictions").glob("*.npz"))
    RunFolder(run).write_predictions(file.stem, altered)
    runs = load([run])
    (study,) = runs.studies
    trials = read(runs.trials_of(study), runs.epochs_of(study), study)
    config_id = trials.loc[trials["trial_id"] == file.stem, "config_id"].iloc[0]
    with pytest.raises(RunFolderError, match=expected):
        predictions.predictions_of(trials, config_id, study)


def test_the_folds_of_a_deal_predict_every_recording_once(make_run):
    """Two folds of three recordings each, whose numbers are those of the manifest; a second deal of one."""
    ends = {
        repeat: {"status": "completed", "metrics": {"val/f1_macro": 0.5}, "provenance": {"split_id": split}}
        for repeat, split in enumerate(("a", "b", "c"))
    }
    path = make_run([({"loss.name": "focal"}, ends)], data={"folds": {"n": 2}, "notes": []})
    folder = RunFolder(path)
    splits = {"a": ([0, 1, 1], [4, 0, 2]), "b": ([0, 0, 1], [1, 3, 5]), "c": ([1, 0, 0], [0, 1, 4])}
    for split, (truth, recording) in splits.items():
        validation = Validation(species=["owl", "wren"], truth=truth, recording=recording, group=recording)
        folder.write_validation(split, validation)
    for name, record in folder.records().items():
        folder.write_predictions(name, kept({0: [0, 1, 0], 1: [0, 1, 1], 2: [1, 1, 1]}[record.repeat]))
    runs = load([path])
    (study,) = runs.studies
    trials = read(runs.trials_of(study), runs.epochs_of(study), study)
    found = predictions.predictions_of(trials, trials["config_id"].iloc[0], study)
    assert found.group.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.truth.tolist() == [1, 0, 1, 0, 0, 1]
    # The second deal lacks a fold and is left out.
    assert found.predicted.tolist() == [[1, 0, 0, 1, 0, 1]]
