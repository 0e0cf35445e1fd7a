import time

import numpy as np
import pandas as pd
import pytest

from birdnet_core.data.manifest import read_manifest
from birdnet_core.data.splits import assign_splits, crossing, strata
from birdnet_core.errors import DataError


def manifest(rows):
    frame = pd.DataFrame(rows, columns=["species", "recording_id", "recordist"])
    return frame.assign(path=frame.index.astype(str), site="", split="")


def collection(n_species=8, seed=0):
    """A long tail of species, 30 recordists, a quarter of the recordings in two files."""
    rng = np.random.default_rng(seed)
    rows = []
    for species in range(n_species):
        for n in range(max(1, 60 // (species + 1))):
            recordist = f"r{rng.integers(30)}"
            for _ in range(1 + (rng.random() < 0.25)):
                rows.append((f"s{species}", f"s{species}-{n}", recordist))
    return manifest(rows)


def split(frame, seed=0, val=0.15, test=0.15):
    return assign_splits(frame, val_fraction=val, test_fraction=test, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_no_recording_and_no_recordist_is_in_two_splits(seed):
    frame = collection(seed=seed)
    splits = split(frame, seed).assigned
    assert crossing(frame, splits, "recording_id") == []
    assert crossing(frame, splits, "recordist") == []
    assert set(splits) == {"train", "val", "test"}


def test_crossing_finds_values_in_two_splits():
    frame = manifest([("a", "1", "x"), ("a", "2", "x"), ("a", "3", "y")])
    assert crossing(frame, np.array(["train", "val", "val"]), "recordist") == ["x"]


def test_shares_come_near_the_wanted_fractions_for_common_species():
    frame = manifest([("a", str(i), "") for i in range(100)] + [("b", f"b{i}", "") for i in range(40)])
    splits = split(frame).assigned
    for species, n in (("a", 100), ("b", 40)):
        mine = splits[(frame["species"] == species).to_numpy()]
        assert (mine == "val").sum() == pytest.approx(0.15 * n, abs=1)
        assert (mine == "test").sum() == pytest.approx(0.15 * n, abs=1)


def test_rare_species_follow_the_stated_rule():
    frame = manifest(
        [("once", "1", "")]
        + [("twice", f"t{i}", "") for i in range(2)]
        + [("thrice", f"h{i}", "") for i in range(3)]
        + [("often", f"o{i}", "") for i in range(30)]
    )
    splits = pd.Series(split(frame).assigned).groupby(frame["species"]).agg(lambda s: sorted(set(s)))
    assert splits["once"] == ["train"]
    assert splits["twice"] == ["train", "val"]
    assert splits["thrice"] == ["test", "train", "val"]
    assert splits["often"] == ["test", "train", "val"]


def test_the_seed_draws_the_split_and_repeats_it():
    frame = collection()
    assert (split(frame, 1).assigned == split(frame, 1).assigned).all()
    assert (split(frame, 1).assigned != split(frame, 2).assigned).any()


def test_one_recordist_of_everything_is_not_separated_and_said_so():
    frame = manifest([("a", str(i), "me") for i in range(20)])
    result = split(frame)
    assert result.grouped_by == ("recording_id",)
    assert any("does not separate recordists" in note and "100%" in note for note in result.notes)


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_one_file_never_stand_on_two_splits(seed):
    frame = manifest([(f"s{i % 4}", str(i), "") for i in range(120)])
    # Every third file is a copy of the one 60 rows on, under another id.
    content = [f"c{i % 60 if i % 3 == 0 else i}" for i in range(120)]
    with_content = frame.assign(sha256=content)
    assert crossing(with_content, split(frame, seed).assigned, "sha256") != []
    result = split(with_content, seed)
    assert crossing(with_content, result.assigned, "sha256") == []
    assert crossing(with_content, result.assigned, "recording_id") == []
    assert "sha256" in result.grouped_by
    assert set(result.assigned) == {"train", "val", "test"}


def test_copies_are_kept_together_even_if_they_are_most_of_the_recordings():
    frame = manifest([("a", str(i), "") for i in range(20)])
    frame["sha256"] = ["same"] * 12 + [str(i) for i in range(8)]
    result = split(frame)
    assert crossing(frame, result.assigned, "sha256") == []
    assert len(set(result.assigned[:12])) == 1


def test_a_given_split_with_copies_on_two_splits_leaks():
    frame = manifest([("a", "1", ""), ("a", "2", ""), ("a", "3", "")])
    frame["split"] = ["train", "val", "test"]
    frame["sha256"] = ["x", "x", "y"]
    assert any("LEAKAGE" in note and "file content" in note for note in split(frame).notes)
    frame["sha256"] = ["x", "y", "z"]
    assert not any("LEAKAGE" in note for note in split(frame).notes)


def test_a_hundred_thousand_groups_are_split_in_seconds():
    rng = np.random.default_rng(0)
    names = np.array([f"s{i}" for i in range(500)])
    species = rng.choice(names, 100_000, p=(1 / np.arange(1, 501)) / (1 / np.arange(1, 501)).sum())
    frame = manifest([(s, str(i), f"r{i % 3000}") for i, s in enumerate(species)])
    start = time.perf_counter()
    splits = split(frame).assigned
    assert time.perf_counter() - start < 30
    shares = pd.Series(splits).value_counts(normalize=True)
    assert shares["val"] == pytest.approx(0.15, abs=0.002)
    assert shares["test"] == pytest.approx(0.15, abs=0.002)


def test_a_given_split_is_kept_and_its_leakage_named():
    frame = manifest([("a", "1", "x"), ("a", "1", "x"), ("a", "2", "y")])
    frame["split"] = ["train", "val", "test"]
    result = split(frame)
    assert result.assigned.tolist() == ["train", "val", "test"]
    assert any("LEAKAGE" in note and "recording_id" in note for note in result.notes)


def test_a_given_split_without_validation_is_refused():
    frame = manifest([("a", "1", ""), ("a", "2", "")])
    frame["split"] = ["train", "train"]
    with pytest.raises(DataError, match="no val"):
        split(frame)


def test_nothing_to_validate_on_is_refused():
    with pytest.raises(DataError, match="nothing to validate on"):
        split(manifest([("a", "1", ""), ("b", "2", "")]))


def test_no_test_split_when_none_is_wanted():
    assert set(split(collection(), test=0.0).assigned) == {"train", "val"}


def test_strata_are_terciles_and_equal_counts_stay_together():
    counts = {"a": 1, "b": 1, "c": 1, "d": 5, "e": 6, "f": 50, "g": 60}
    assert strata(counts) == {"rare": ["a", "b", "c"], "medium": ["d", "e"], "common": ["f", "g"]}
    assert strata({"a": 3, "b": 3}) == {"rare": ["a", "b"], "medium": [], "common": []}


def test_real_recordings_keep_every_species_in_training_and_separate_recordists(shared):
    frame = read_manifest(shared / "birds" / "manifest.csv")
    result = split(frame)
    assert set(frame["species"][result.assigned == "train"]) == set(frame["species"])
    for column in ("recording_id", "recordist"):
        assert crossing(frame, result.assigned, column) == []
