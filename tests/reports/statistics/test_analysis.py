"""A study's trials as its analysis: which epoch is read, what is pooled, what may be claimed."""

import numpy as np
import pytest

from birdnet_core.records.predictions import Predictions
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import Validation
from reports.page.tables import species_table
from reports.runs import load
from reports.statistics.analysis import repeats_for, results

SMALL, BIG = {"model.name": "small"}, {"model.name": "big"}


def completed(value):
    return {"status": "completed", "metrics": {"val/f1_macro": value}}


def of(path):
    runs = load([path])
    return results(runs, runs.studies[0])


def test_a_clear_difference_is_a_claim_and_its_cell_the_best(make_run):
    small = {r: 0.30 + 0.01 * r for r in range(5)}
    big = {r: 0.50 + 0.01 * r + 0.004 * (-1) ** r for r in range(5)}
    _, cells, analysis = of(make_run([(SMALL, small), (BIG, big)]))
    (row,) = analysis.claims.to_dict("records")
    assert (row["kind"], row["verdict"], row["cell"]) == ("baseline", "higher", 1)
    assert row["low"] < row["estimate"] < row["high"] and row["estimate"] == pytest.approx(0.2, abs=0.01)
    assert analysis.best["may_be_best"].tolist() == [False, True]
    assert cells["val/f1_macro"].tolist() == pytest.approx([np.mean(list(x.values())) for x in (small, big)])


def test_no_interval_of_a_score_goes_beyond_its_range(make_run):
    high, low = {r: (0.90, 0.99, 1.0)[r] for r in range(3)}, {r: (0.0, 0.1, 0.02)[r] for r in range(3)}
    _, cells, _ = of(make_run([(SMALL, high), (BIG, low)]))
    assert cells["val/f1_macro:high"][0] == 1 and cells["val/f1_macro:low"][1] == 0
    assert 0 < cells["val/f1_macro:low"][0] < 0.9 and 0.1 < cells["val/f1_macro:high"][1] < 1


@pytest.mark.parametrize("n_repeats", [1, 2])
def test_below_three_repeats_there_is_no_verdict_but_from_two_on_a_plan(make_run, n_repeats):
    values = [0.30, 0.33]
    _, cells, analysis = of(make_run([
        (SMALL, {r: values[r] for r in range(n_repeats)}),
        (BIG, {r: 0.5 + 0.1 * r for r in range(n_repeats)}),
    ]))  # fmt: skip
    (row,) = analysis.contrasts.to_dict("records")
    assert np.isfinite(row["estimate"]) and np.isnan(row["low"]) and row["verdict"] is None
    assert row["note"] == "fewer than 3 repeats"
    assert analysis.best.empty and cells["val/f1_macro:low"].isna().all()
    (planned,) = repeats_for(analysis, [0.1])
    assert planned is None if n_repeats == 1 else planned >= 3


def test_more_repeats_are_planned_for_smaller_differences(make_run):
    rng = np.random.default_rng(0)
    cells = [(c, {r: float(v) for r, v in enumerate(rng.normal(0.5, 0.02, 5))}) for c in (SMALL, BIG)]
    _, _, analysis = of(make_run(cells, data={"folds": {"n": 100}}))
    large, small = repeats_for(analysis, [0.05, 0.02])
    assert 3 <= large < small


def test_a_cell_trained_unequal_epochs_is_left_out_and_named(make_run):
    short = completed(0.9) | {"epochs": 2, "best_epoch": 2}
    path = make_run([(SMALL, {r: 0.3 + 0.01 * r for r in range(3)}), (BIG, dict.fromkeys(range(3), short))])
    _, _, analysis = of(path)
    (row,) = analysis.contrasts.to_dict("records")
    assert np.isnan(row["estimate"]) and "trained unequal epochs: big" in row["note"]


FOLDS, N_EPOCHS = 3, 4


@pytest.fixture
def pooled(make_run):
    """A run of two cells in three folds of four recordings each, with the classes predicted in each epoch."""
    truth = {0: [0, 0, 1, 2], 1: [0, 1, 1, 2], 2: [0, 1, 2, 2]}
    cells, predicted = [], {}
    for name, wrong in ((SMALL, {0: [0, 3], 1: [2], 2: [1, 2]}), (BIG, {0: [3], 1: [], 2: [2]})):
        endings = {}
        for repeat, classes in truth.items():
            right = np.array(classes)
            found = right.copy()
            found[wrong[repeat]] = (right[wrong[repeat]] + 1) % 3
            predicted[str(name), repeat] = found
            endings[repeat] = completed(0.5 + 0.01 * repeat) | {"provenance": {"split_id": f"fold{repeat}"}}
        cells.append((name, endings))
    path = make_run(cells, data={"folds": {"n": FOLDS}, "strata": {}, "notes": []})
    run = RunFolder(path)
    for repeat, classes in truth.items():
        numbers = [4 * repeat + i for i in range(4)]
        split = Validation(species=["a", "b", "c"], truth=classes, recording=numbers, group=numbers)
        run.write_validation(f"fold{repeat}", split)
    for record in run.records().values():
        classes = predicted[str(record.config["model"]), record.repeat]
        every = np.tile((classes + 1) % 3, (N_EPOCHS, 1))
        every[-2:] = classes  # the last two epochs
        run.write_predictions(
            record.trial_id,
            Predictions(
                every.astype("uint16"), classes[:, None].astype("uint16"), np.ones((4, 1), "float16")
            ),
        )
    whole = {
        name: np.concatenate([predicted[str(name_), r] for r in range(FOLDS)])
        for name, name_ in (("small", SMALL), ("big", BIG))
    }
    return path, np.concatenate(list(truth.values())), whole


def test_folds_are_scored_together(pooled):
    from sklearn.metrics import f1_score

    path, truth, whole = pooled
    trials, cells, analysis = of(path)
    assert set(trials["read_epoch"]) <= {3, 4}
    expected = [f1_score(truth, whole[name], average="macro") for name in ("small", "big")]
    assert cells["val/f1_macro"].tolist() == pytest.approx(expected)
    (row,) = analysis.contrasts.to_dict("records")
    assert row["estimate"] == pytest.approx(expected[1] - expected[0])
    assert analysis.scores["val/f1_macro"][1].influence.shape == (2, 3, 12)


def test_f1_of_species_is_of_all_folds_together(pooled):
    from sklearn.metrics import f1_score

    path, truth, whole = pooled
    trials, cells, _ = of(path)
    (study,) = load([path]).studies
    table, is_of_predictions = species_table(trials, study, cells, None)
    assert is_of_predictions and table["species"].tolist() == ["a", "b", "c"]
    for column, name in zip(table.columns[2:], ("small", "big"), strict=True):
        expected = f1_score(truth, whole[name], average=None)
        assert table[column].astype(float).tolist() == pytest.approx(expected, abs=5e-4)
    next((path / "predictions").iterdir()).unlink()
    _, is_of_predictions = species_table(trials, study, cells, None)
    assert not is_of_predictions


def test_predictions_that_do_not_fit_their_split_are_named(pooled):
    from birdnet_core.errors import RunFolderError

    path, _, _ = pooled
    run = RunFolder(path)
    name = next(iter(run.records()))
    classes = np.zeros((N_EPOCHS, 3), "uint16")
    run.write_predictions(name, Predictions(classes, classes[:1].T, np.ones((3, 1), "float16")))
    with pytest.raises(RunFolderError, match=f"predictions of {name} are of 3 recordings"):
        of(path)
    classes = np.full((N_EPOCHS, 4), 7, "uint16")
    run.write_predictions(name, Predictions(classes, classes[:1].T, np.ones((4, 1), "float16")))
    with pytest.raises(RunFolderError, match="name class 7, and its validation split fold0 has 3"):
        of(path)


def test_a_trial_is_read_at_the_epoch_that_the_others_choose(tmp_path):
    """Of three repeats one has its best epoch by luck: the others put it back."""
    import pandas as pd

    from reports.statistics.repeats import read

    curves = {"a-r0": [0.1, 0.5, 0.4, 0.3], "a-r1": [0.1, 0.4, 0.3, 0.3], "a-r2": [0.9, 0.3, 0.3, 0.2]}
    epochs = pd.DataFrame(
        [
            {"trial_id": t, "epoch": i + 1, "val/f1_macro": v}
            for t, c in curves.items()
            for i, v in enumerate(c)
        ]
    )
    trials = pd.DataFrame({
        "trial_id": list(curves), "config_id": "a", "status": "completed", "best_epoch": [2.0, 2.0, 1.0],
        "val/f1_macro": [0.5, 0.4, 0.9],
    })  # fmt: skip
    study = {"metric": "val/f1_macro", "direction": "maximize", "kind": "ablation"}
    found = read(trials, epochs, study)
    assert found["read_epoch"].tolist() == [1, 1, 2]
    assert found["val/f1_macro"].tolist() == [0.1, 0.1, 0.3]
    searched = read(trials, epochs, {**study, "kind": "search", "repeats": [0]})
    assert searched["read_epoch"].tolist() == [2, 2, 1]


def test_the_noise_of_epochs_makes_repeats_no_more_certain_than_they_are():
    """Repeats choose each other's epochs: by single epochs, the variance of their mean is twice what their
    spread says."""
    import pandas as pd

    from reports.statistics.repeats import read

    rng = np.random.default_rng(0)
    n, n_epochs = 5, 50
    trials = pd.DataFrame({
        "trial_id": [f"a-r{r}" for r in range(n)], "config_id": "a", "status": "completed",
        "best_epoch": np.ones(n), "val/f1_macro": np.zeros(n),
    })  # fmt: skip
    study = {"metric": "val/f1_macro", "direction": "maximize", "kind": "ablation"}
    means, variances = [], []
    for _ in range(300):
        curves = rng.normal(size=(n, 1)) + 1.5 * rng.normal(size=(n, n_epochs))
        epochs = pd.DataFrame({
            "trial_id": np.repeat(trials["trial_id"].to_numpy(), n_epochs),
            "epoch": np.tile(np.arange(1, n_epochs + 1), n), "val/f1_macro": curves.ravel(),
        })  # fmt: skip
        values = read(trials, epochs, study)["val/f1_macro"].to_numpy()
        means.append(values.mean())
        variances.append(values.var(ddof=1) / n)
    assert np.var(means) / np.mean(variances) < 1.6


def test_repeats_of_a_fold_that_the_manifest_gives_are_one_repeat(make_run):
    """A cell that likes one of three given folds likes it in every deal."""
    rng = np.random.default_rng(0)
    liking = {"small": [0.0, 0.0, 0.0], "big": [0.10, -0.05, 0.01]}
    cells = [
        (c, {r: 0.4 + liking[c["model.name"]][r % 3] + 0.001 * rng.normal() for r in range(12)})
        for c in (SMALL, BIG)
    ]
    given = {"folds": {"n": 3, "given": "fold", "deal": 0, "fold": 0}}
    _, table, analysis = of(make_run(cells, data=given))
    found = analysis.scores["val/f1_macro"][1]
    each = np.array([[ends[r] for r in range(12)] for _, ends in cells])
    assert found.values == pytest.approx(each.reshape(2, 4, 3).mean(axis=1))
    spread = np.diff(found.values, axis=0)[0].var(ddof=1) / 3
    assert analysis.fitted.variance(np.array([[-1.0, 1.0]])) == pytest.approx([spread])
    assert analysis.claims.empty
    assert repeats_for(analysis, [0.01]) == [None]  # there are no other folds
    means = [sum(ends.values()) / 12 for _, ends in cells]
    assert table["val/f1_macro"].tolist() == pytest.approx(means)


def test_influences_of_recordings_are_means_over_the_repeats_of_a_given_fold():
    from reports.statistics.linear_model import RepeatedScores
    from reports.statistics.repeats import Repeats

    repeats = Repeats(["a", "b"], [0, 1, 2, 3], 2, True, {}, None, {}, 0, 3)
    values = np.array([[1.0, 2.0, 3.0, np.nan], [0.0, 0.0, 2.0, 4.0]])
    influence = np.arange(24.0).reshape(2, 4, 3)
    influence[0, 3] = 0
    found = repeats._by_fold(RepeatedScores(values, influence, 2))
    assert found.values.tolist() == [[2.0, 2.0], [1.0, 2.0]]
    assert found.influence[1] == pytest.approx((influence[1, :2] + influence[1, 2:]) / 2)
    assert found.influence[0, 1] == pytest.approx(influence[0, 1])  # the other repeat failed


def test_where_a_cell_lacks_a_repeat_its_mean_is_the_models(make_run):
    small = {0: 0.30, 1: 0.31, 2: 0.10, 3: 0.32}
    big = {0: 0.40, 1: 0.42, 2: "failed", 3: 0.41}
    _, cells, analysis = of(make_run([(SMALL, small), (BIG, big)]))
    (row,) = analysis.contrasts.to_dict("records")
    shown = cells["val/f1_macro"].to_numpy()
    assert shown[1] - shown[0] == pytest.approx(row["estimate"])
    assert shown[1] < 0.41 and cells["val/f1_macro:low"][1] < shown[1] < cells["val/f1_macro:high"][1]


def test_two_given_folds_allow_no_verdict_whatever_the_repeats(make_run):
    cells = [(c, {r: 0.3 + 0.01 * r + 0.1 * i for r in range(6)}) for i, c in enumerate((SMALL, BIG))]
    _, _, analysis = of(make_run(cells, data={"folds": {"n": 2, "given": "fold", "deal": 0, "fold": 0}}))
    assert analysis.contrasts["note"].tolist() == ["fewer than 3 folds, which the manifest gives"]
