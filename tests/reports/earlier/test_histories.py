from __future__ import annotations

import json
import math

import pytest

from birdnet_core.errors import RunFolderError
from reports.earlier.histories import read


def history(val, train=None, **changes):
    n = len(val)
    losses = {"train_loss": [2.0 - 0.1 * i for i in range(n)], "val_loss": [2.1] * n}
    return {**losses, "train_acc": train or [v + 1 for v in val], "val_acc": val, **changes}


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a folder of the given files; what is no text becomes JSON."""

    def write(**files):
        path = tmp_path / "earlier"
        path.mkdir()
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (path / f"{name}.json").write_text(text)
        return path

    return write


def the_fault(imports, file):
    (fault,) = [f["fault"] for f in imports.faults if f["file"] == f"{file}.json"]
    return fault


def test_a_history_is_an_experiment_named_by_its_file(folder):
    found = read(folder(phase0_ce_history=history([10.0, 30.0, 20.0])))
    row = found.experiments.iloc[0]
    assert (row["experiment"], row["file"], row["stored_as"]) == (
        "phase0_ce",
        "phase0_ce_history.json",
        "percents",
    )
    assert found.epochs["epoch"].tolist() == [1, 2, 3]
    assert found.epochs["val/accuracy"].tolist() == pytest.approx([0.1, 0.3, 0.2])
    assert found.epochs["train/loss"].tolist() == pytest.approx([2.0, 1.9, 1.8])
    assert found.faults == [] and found.unread == []


def test_fractions_and_percents_give_the_same_numbers(tmp_path):
    shares = [0.004, 0.5, 0.393501]
    curves = []
    for unit, factor in (("fractions", 1), ("percents", 100)):
        (tmp_path / unit).mkdir()
        content = history([s * factor for s in shares], train=[s * factor for s in shares])
        (tmp_path / unit / "a_history.json").write_text(json.dumps(content))
        found = read(tmp_path / unit)
        assert found.experiments["stored_as"].tolist() == [unit]
        curves.append(found.epochs[["train/accuracy", "val/accuracy"]].to_numpy().ravel().tolist())
    assert curves[0] == pytest.approx([s for s in shares for _ in range(2)])
    assert curves[1] == pytest.approx(curves[0])


def test_a_perfect_fraction_with_a_rounding_error_is_not_one_percent(folder):
    found = read(folder(a_history=history([0.5, 1.0000000002], train=[0.5, 1.0])))
    assert found.experiments["stored_as"].tolist() == ["fractions"]
    assert found.epochs["val/accuracy"].tolist() == pytest.approx([0.5, 1.0])


def test_a_history_that_may_be_of_either_unit_is_not_guessed(folder):
    found = read(folder(a_history=history([40.0, 50.0]), b_history=history([0.5, 0.9], train=[0.5, 0.9])))
    assert found.experiments["experiment"].tolist() == ["a"]
    assert "fractions, or percents of a run that failed?" in the_fault(found, "b_history")


BAD = {
    "lengths": (history([10.0, 20.0], train=[10.0]), "unequal lengths (train_loss 2, train_acc 1"),
    "empty": (history([]), "has no epoch"),
    "too high": (
        history([10.0, 101.0], train=[1.0, 2.0]),
        "val_acc 101.0 at epoch 2; accepted is 0 to 1 or 0 to 100",
    ),
    "negative": (history([10.0, -1.0], train=[1.0, 2.0]), "val_acc -1.0 at epoch 2"),
    "nan": (history([10.0, math.nan], train=[1.0, 2.0]), "val_acc NaN at epoch 2"),
    "null": (history([10.0, None], train=[1.0, 2.0]), "val_acc null at epoch 2"),
    "words": (history([10.0, "20"], train=[1.0, 2.0]), 'val_acc "20" at epoch 2'),
    "bool": (history([10.0, True], train=[1.0, 2.0]), "val_acc true at epoch 2"),
    "loss": (history([10.0], train_loss=["x"]), 'train_loss "x" at epoch 1'),
    "huge": (history([10.0, 10**400], train=[1.0, 2.0]), "val_acc Infinity at epoch 2"),
    "mixed": (history([20.0, 30.0], train=[0.2, 0.3]), "one in fractions and one in percents?"),
    "absent": ({"val_acc": [10.0]}, "has no list train_loss, train_acc, val_loss"),
    "broken": ('{"val_acc": [10.0,', "is no JSON"),
    "deep": ("[" * 100_000, "is no JSON"),
    "a list": ("[1, 2]", "holds a list"),
    "nothing": ("{}", "an object with nothing in it"),
}


@pytest.mark.parametrize(("content", "expected"), BAD.values(), ids=BAD.keys())
def test_a_bad_history_is_a_fault_of_its_file_and_the_others_are_read(folder, content, expected):
    found = read(folder(bad_history=content, good_history=history([10.0, 20.0])))
    assert expected in the_fault(found, "bad_history")
    assert found.experiments["experiment"].tolist() == ["good"]


def test_every_fault_of_a_file_is_listed(folder):
    found = read(folder(a_history=history([10.0, 200.0, 300.0], train=[-1.0])))
    faults = [f["fault"] for f in found.faults]
    assert len(faults) == 3
    assert "unequal lengths" in faults[0] and "train_acc -1.0" in faults[1]
    assert "val_acc 200.0 at epoch 2, and at 1 more epochs" in faults[2]


def test_bytes_that_are_no_text_are_a_fault(folder):
    path = folder(good_history=history([10.0]))
    (path / "x_history.json").write_bytes(b"\xff\xfe\x00{")
    assert "is no JSON" in the_fault(read(path), "x_history")


def test_the_loss_of_a_run_that_diverged_is_a_number_that_is_absent(folder):
    found = read(folder(a_history=history([10.0, 20.0], train_loss=[1.0, None], val_loss=[1, math.nan])))
    assert found.faults == []
    assert math.isnan(found.epochs["train/loss"].iloc[1]) and math.isnan(found.epochs["val/loss"].iloc[1])


def test_two_different_files_of_one_experiment_are_both_named_and_neither_is_chosen(folder):
    found = read(folder(a_b_history=history([10.0]), **{"A-B_history": history([20.0])}))
    assert found.experiments.empty
    assert "names the same experiment as A-B_history.json and differs" in the_fault(found, "a_b_history")
    assert "same experiment as a_b_history.json" in the_fault(found, "A-B_history")


def test_of_equal_copies_one_is_read(folder):
    same = history([10.0, 20.0], train_loss=[1.0, math.nan])
    found = read(folder(a_history=same, a_copy_history=same))
    assert found.experiments["experiment"].tolist() == ["a_copy"]
    assert the_fault(found, "a_history") == "is a copy of a_copy_history.json, which is read"


def test_what_is_no_result_is_named(folder):
    path = folder(a_history=history([10.0]), class_weights={"wren": 1.0})
    (path / "notes.txt").write_text("x")
    (path / "more").mkdir()
    found = read(path)
    assert found.unread == ["class_weights.json", "more/", "notes.txt"] and found.faults == []


def test_a_folder_without_earlier_work_is_an_error_that_says_what_it_holds(folder, tmp_path):
    with pytest.raises(RunFolderError, match="nowhere.*no such folder"):
        read(tmp_path / "nowhere")
    path = folder()
    with pytest.raises(RunFolderError, match="it is empty"):
        read(path)
    (path / "notes.txt").write_text("x")
    with pytest.raises(RunFolderError, match="it holds notes.txt"):
        read(path)


# test results


def test_results_belong_to_the_history_of_their_validation_accuracy(folder):
    found = read(
        folder(
            base_history=history([10.0, 54.873646]),
            base_v1_history=history([10.0, 20.0]),
            base_v2_test_results={"val_acc": 54.873646, "test_acc": 54.5, "mAP": 0.4, "num_params": 7},
        )
    ).experiments.set_index("experiment")
    assert found.loc["base", "test_files"] == ["base_v2_test_results.json"]
    assert found.loc["base", "test_accuracy"] == pytest.approx(0.545)
    assert (found.loc["base", "test_map"], found.loc["base", "n_params"]) == (0.4, 7)
    assert found.loc["base_v1", "test_files"] == [] and math.isnan(found.loc["base_v1", "test_accuracy"])


def test_predictions_belong_to_the_history_whose_name_begins_like_theirs(folder):
    stored = {"accuracy": 75.0, "predictions": ["a", "b", "a", "a"], "labels": ["a", "b", "b", "a"]}
    found = read(
        folder(
            phase0_audiocnn_ce_history=history([10.0]),
            phase0_audiovit_ce_history=history([20.0]),
            phase0_audio_cnn_test_predictions=stored,
        )
    )
    row = found.experiments.iloc[0]
    assert (row["test_accuracy"], row["n_test"]) == (0.75, 4)
    assert found.experiments["test_files"].iloc[1] == []


def test_predictions_give_the_unit_of_an_accuracy_below_one_percent(folder):
    labels = [0] * 200
    stored = {"accuracy": 0.5, "predictions": [0] + [1] * 199, "labels": labels}
    found = read(folder(a_history=history([10.0]), a_test_predictions=stored))
    assert found.experiments["test_accuracy"].tolist() == [0.005]


def test_predictions_without_a_stored_accuracy_give_it(folder):
    stored = {"predictions": [1, 2, 3, 4], "labels": [1, 0, 0, 0]}
    found = read(folder(a_history=history([10.0]), a_predictions=stored))
    assert found.experiments["test_accuracy"].tolist() == [0.25]


BAD_TESTS = {
    "contradicts": ({"accuracy": 0.9, "predictions": [1, 2], "labels": [1, 0]}, "its labels in 50.00%"),
    "lengths": ({"accuracy": 0.9, "predictions": [1, 2], "labels": [1]}, "not two lists of one length"),
    "no labels": ({"accuracy": 0.9, "predictions": [1, 2]}, "not two lists of one length"),
    "range": ({"test_acc": 104}, "has test_acc 104.0; accepted is 0 to 1 or 0 to 100"),
    "f1": ({"test_acc": 4, "f1_macro": "0.1"}, 'has f1_macro "0.1"'),
    "params": ({"test_acc": 4, "num_params": -1}, "has num_params -1.0; accepted is a number above 0"),
    "other validation": ({"val_acc": 60.0, "test_acc": 59.0}, "validation accuracy 60 as the best; that of "
                         "a_history.json is 10.00%"),
    "nothing": ({"score": 1}, "an object with score; a history has the lists"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), BAD_TESTS.values(), ids=BAD_TESTS.keys())
def test_bad_test_results_are_a_fault_and_their_experiment_is_still_read(folder, content, expected):
    found = read(folder(a_history=history([10.0]), a_test_results=content))
    assert expected in the_fault(found, "a_test_results")
    assert math.isnan(found.experiments["test_accuracy"].iloc[0])


def test_results_of_no_or_of_several_experiments_are_a_fault(folder):
    found = read(
        folder(
            p1_a_history=history([10.0]),
            p1_b_history=history([20.0]),
            p1_test_results={"test_acc": 30.0},
            p9_test_results={"test_acc": 30.0},
        )
    )
    assert the_fault(found, "p1_test_results") == "may belong to p1_a_history.json, p1_b_history.json"
    assert "no history is named 'p9' or begins so" in the_fault(found, "p9_test_results")


def test_two_test_results_of_one_experiment_that_differ_are_both_faults(folder):
    found = read(
        folder(a_history=history([10.0]), a_results={"test_acc": 30.0}, a_test_results={"test_acc": 40.0})
    )
    assert "as a_test_results.json does, with another" in the_fault(found, "a_results")
    assert "as a_results.json does, with another" in the_fault(found, "a_test_results")
    assert math.isnan(found.experiments["test_accuracy"].iloc[0])


def test_two_test_results_that_agree_complete_each_other(folder):
    found = read(
        folder(
            a_history=history([10.0]),
            a_test_results={"test_acc": 50.0, "f1_macro": 0.3},
            a_test_predictions={"predictions": [1, 2], "labels": [1, 0]},
        )
    )
    row = found.experiments.iloc[0]
    assert (row["test_accuracy"], row["test_f1_macro"], row["n_test"]) == (0.5, 0.3, 2)
    assert row["test_files"] == ["a_test_predictions.json", "a_test_results.json"]
