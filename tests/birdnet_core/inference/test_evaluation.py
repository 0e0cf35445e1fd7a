import json
from dataclasses import replace

import numpy as np
import pytest

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.data.seen import seen_before
from birdnet_core.errors import DataError
from birdnet_core.inference import evaluation
from birdnet_core.inference.evaluation import (
    COMPARED,
    check_split,
    evaluate,
    member_probabilities,
    record_opening,
    resampled,
)
from birdnet_core.inference.model_folder import Member, read_model, write_model
from birdnet_core.training.metrics import Scores, score
from birdnet_core.training.run import save_model, train

RNG = np.random.default_rng(0)
BASELINES = ["logistic regression", "k-nearest neighbours"]
STRATA = {"rare": np.array([3, 4]), "medium": np.array([2]), "common": np.array([0, 1])}


def test_recordings_of_a_group_are_drawn_together():
    # Twenty groups of two recordings that are both right, or both wrong.
    truth = RNG.integers(0, 5, 20).repeat(2)
    is_right = np.tile([1, 0], 20).repeat(2)[:40].astype(bool)
    probabilities = np.full((40, 6), 0.1)
    probabilities[np.arange(40), np.where(is_right, truth, (truth + 1) % 6)] = 0.5
    alone = resampled({"a": Scores(probabilities, truth, STRATA)}, np.arange(40), 400)["a"]
    pairs = resampled({"a": Scores(probabilities, truth, STRATA)}, np.arange(20).repeat(2), 400)["a"]
    # The standard error of a share of n independent ones is sqrt(p (1 - p) / n).
    assert alone["test/accuracy"].std() == pytest.approx((0.25 / 40) ** 0.5, rel=0.15)
    assert pairs["test/accuracy"].std() == pytest.approx((0.25 / 20) ** 0.5, rel=0.15)


def test_recordings_of_a_single_group_have_no_intervals():
    truth = np.array([0, 1, 2, 2])
    compared = evaluation._Compared({"a": np.eye(5)[truth]}, truth, np.zeros(4), STRATA, 10)
    for value in compared.rows()[0]["metrics"].values():
        assert np.isnan([value["low"], value["high"]]).all()
    two = evaluation._Compared({"a": np.eye(5)[truth]}, truth, np.array([0, 0, 1, 1]), STRATA, 10)
    assert two.rows()[0]["metrics"]["test/accuracy"] == {"value": 1, "low": 1, "high": 1}


@pytest.fixture(scope="module")
def made(small_config, small_dataset, tmp_path_factory):
    """The folder of a model of two seeds, and their sessions."""
    folder = tmp_path_factory.mktemp("evaluated") / "model"
    sessions = [train(small_config.override({"seed": seed}), small_dataset) for seed in (0, 1)]
    write_model(
        folder,
        config=small_config,
        species=small_dataset.species,
        input_shape=small_dataset.input_shape,
        mean=small_dataset.mean.tolist(),
        std=small_dataset.std.tolist(),
        members=[Member(s.progress.best_weights, s.config.seed, 2, s.config.trial_id) for s in sessions],
        temperature=2.0,
        provenance={"split_id": small_dataset.facts["split_id"]},
    )
    return folder, sessions


def test_members_score_as_their_sessions_do(made, small_dataset):
    folder, sessions = made
    of_members, truth, _ = member_probabilities(read_model(folder), small_dataset, "val")
    for probabilities, session in zip(of_members, sessions, strict=True):
        expected, expected_truth = session.predict("val")
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
        assert truth.tolist() == expected_truth.tolist()


def test_the_evaluation_has_a_row_a_seed_the_ensemble_and_each_baseline(made, small_dataset, birds):
    folder, _ = made
    model = read_model(folder)
    manifest = read_manifest(birds)
    result = evaluate(model, small_dataset, manifest, n_resamples=20)
    names = [row["name"] for row in result["rows"]]
    assert names == ["seed 0", "seed 1", "ensemble", "ensemble, calibrated", *BASELINES]
    rows = {row["name"]: row["metrics"] for row in result["rows"]}
    of_members, truth, _ = member_probabilities(model, small_dataset, "test")
    mean = of_members.mean(0)
    assert result["n"] == len(truth) == small_dataset.facts["n_test"]
    assert rows["ensemble"]["test/accuracy"]["value"] == (mean.argmax(1) == truth).mean()
    powers = mean**0.5  # at temperature 2
    expected = score(powers / powers.sum(1, keepdims=True), truth, small_dataset.strata())
    assert rows["ensemble, calibrated"]["test/loss"]["value"] == pytest.approx(expected["loss"])
    assert rows["ensemble, calibrated"]["test/f1_macro"] == rows["ensemble"]["test/f1_macro"]
    seeds = [rows[f"seed {s}"]["test/loss"]["value"] for s in (0, 1)]
    difference = rows["ensemble"]["test/loss"]["value"] - np.mean(seeds)
    assert result["difference"]["test/loss"]["value"] == pytest.approx(difference)
    notes = " ".join(result["notes"])
    assert list(result["over_baseline"]) == BASELINES
    for name, over in result["over_baseline"].items():
        ours = rows["ensemble, calibrated"]["test/map"]["value"]
        assert over["test/map"]["value"] == pytest.approx(ours - rows[name]["test/map"]["value"])
        for key, label in COMPARED.items():
            theirs = rows[name][key]["value"]
            is_ahead = theirs > rows["ensemble, calibrated"][key]["value"]
            note = next((each for each in result["notes"] if each.startswith(f"{name} is ahead")), "")
            assert (f"{label} ({theirs:.4f} against" in note) == is_ahead
    without = evaluate(model, small_dataset, manifest, with_baselines=False, n_resamples=2)
    assert without["over_baseline"] == {} and "is ahead" not in " ".join(without["notes"])
    assert result["seen"] is None and result["schema"] == 2
    for metrics in rows.values():
        for value in metrics.values():
            assert np.isnan(value["value"]) or value["low"] <= value["value"] <= value["high"]
    n_few = (np.bincount(truth)[np.unique(truth)] < 5).sum()
    assert f"{n_few} of {len(np.unique(truth))} species have fewer than 5 recordings" in notes
    assert sum(row["n_test"] for row in result["species"]) == result["n"]
    assert sum(row["n"] for row in result["reliability"]["after"]) == result["n"]
    json.dumps(result)


@pytest.fixture(scope="module")
def on_own_embeddings(made, birds, cache, tmp_path_factory):
    """A model on the embeddings of the model in `made`, with its dataset and manifest."""
    config = TrainConfig().override(
        {"features.name": "embedding", "features.backbone": "birdtune", "features.weights": str(made[0]),
         "model.name": "linear", "training.epochs": 2, "optim.warmup_epochs": 0}
    )  # fmt: skip
    manifest = read_manifest(birds)
    dataset = Dataset.open(prepare(manifest, config, cache=cache, workers=1))
    folder = tmp_path_factory.mktemp("embedded") / "model"
    save_model(train(config, dataset), folder)
    return read_model(folder), dataset, manifest


def test_a_model_on_embeddings_is_compared_with_the_labels_of_its_backbone(on_own_embeddings, made):
    model, dataset, manifest = on_own_embeddings
    result = evaluate(model, dataset, manifest, n_resamples=5)
    assert list(result["over_baseline"]) == [*BASELINES, "zero-shot"]
    rows = {row["name"]: row["metrics"] for row in result["rows"]}
    # The backbone is the first member of the other model, and its labels are that model's species.
    of_members, truth, _ = member_probabilities(read_model(made[0]), made[1][0].dataset, "test")
    expected = (of_members[0].argmax(axis=1) == truth).mean()
    assert rows["zero-shot"]["test/accuracy"]["value"] == pytest.approx(expected)


def test_recordings_that_a_backbone_has_seen_are_scored_apart(on_own_embeddings, monkeypatch):
    model, dataset, manifest = on_own_embeddings
    seen = seen_before(manifest, dataset, model.config)
    n = dataset.facts["n_test"]
    status = np.array(["possibly seen"] * 3 + ["not seen"] * (n - 3), dtype=object)
    replaced = seen.status.copy()
    replaced[seen.splits == "test"] = status
    monkeypatch.setattr(evaluation, "seen_before", lambda *_: replace(seen, status=replaced))
    result = evaluate(model, dataset, manifest, n_resamples=5)
    found = result["seen"]
    assert found["backbone"] == "birdtune"
    assert found["counts"]["test"] == {"possibly seen": 3, "not seen": n - 3, "unknown": 0}
    assert [(part["status"], part["n"]) for part in found["rows"]] == [
        ("possibly seen", 3), ("not seen", n - 3),
    ]  # fmt: skip
    for part in found["rows"]:
        groups = f"{part['n_groups']} group{'s' if part['n_groups'] != 1 else ''}"
        note = f"the recordings that are {part['status']} come from only {groups}: their intervals are too"
        assert any(note in each for each in result["notes"])
    of_members, truth, _ = member_probabilities(model, dataset, "test")
    is_right = of_members.mean(axis=0).argmax(axis=1) == truth
    for part in found["rows"]:
        rows = {row["name"]: row["metrics"]["test/accuracy"]["value"] for row in part["rows"]}
        assert list(rows) == ["ensemble, calibrated", *BASELINES, "zero-shot"]
        expected = is_right[status == part["status"]].mean()
        assert rows["ensemble, calibrated"] == pytest.approx(expected)
    json.dumps(result)


def test_species_without_a_label_are_named(on_own_embeddings):
    model, dataset, manifest = on_own_embeddings
    renamed = ("Alien bird", *dataset.species[1:])
    other = replace(dataset, species=renamed, facts=renamed_facts(dataset, renamed))
    notes = evaluate(model, other, manifest, n_resamples=2)["notes"]
    assert any("zero-shot never predicts 1 of 4 species" in n and n.endswith("Alien bird") for n in notes)
    aliens = tuple(f"Alien {n}" for n in "abcd")
    others = replace(dataset, species=aliens, facts=renamed_facts(dataset, aliens))
    result = evaluate(model, others, manifest, n_resamples=2)
    assert "zero-shot" not in result["over_baseline"]
    assert any("the backbone has a label for none of the species" in note for note in result["notes"])


def renamed_facts(dataset, names):
    new = dict(zip(dataset.species, names, strict=True))
    facts = dataset.facts
    return {
        **facts,
        "strata": {name: [new[s] for s in members] for name, members in facts["strata"].items()},
        "train_counts": {new[s]: n for s, n in facts["train_counts"].items()},
    }


def test_another_split_is_refused(made, small_dataset):
    model = read_model(made[0])
    check_split(model, small_dataset)
    facts = {**small_dataset.facts, "split_id": "other"}
    with pytest.raises(DataError, match="trained on split .*split as other.*may hold recordings that"):
        check_split(model, replace(small_dataset, facts=facts))
    empty = replace(
        small_dataset, splits=np.where(small_dataset.splits == "test", "val", small_dataset.splits)
    )
    with pytest.raises(DataError, match="test split holds no recordings"):
        check_split(model, empty)


def test_every_opening_is_counted(made, small_dataset, tmp_path):
    model = read_model(made[0])
    first = record_opening(tmp_path, model, small_dataset, "birdtune evaluate a")
    second = record_opening(tmp_path, model, small_dataset, "birdtune evaluate b")
    assert (first["number"], second["number"]) == (1, 2)
    content = json.loads((tmp_path / evaluation.TESTS_FILE).read_text())
    assert content["openings"] == [first, second]
    assert second["config_id"] == model.config.config_id
    assert second["split_id"] == small_dataset.facts["split_id"]
