import time

import numpy as np
import pandas as pd
import pytest

from birdnet_core.config import DataConfig
from birdnet_core.data.manifest import read_manifest
from birdnet_core.data.splits import assign_splits, crossing, groups, part_names, strata
from birdnet_core.errors import DataError


def manifest(rows):
    frame = pd.DataFrame(rows, columns=["species", "recording_id", "recordist"])
    return frame.assign(path=frame.index.astype(str), site="", split="", fold="")


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


def split(frame, seed=0, val=0.15, test=0.15, folds=1, repeat=0):
    options = DataConfig(split_seed=seed, val_fraction=val, test_fraction=test, folds=folds)
    return assign_splits(frame, options, repeat)


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


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_a_hundred_recordings_of_one_group_each_are_met_exactly(seed):
    frame = manifest([("a", str(i), "") for i in range(100)])
    result = split(frame, seed, test=0.2, folds=4)
    assert (result.fold == -1).sum() == result.is_test.sum() == 20
    assert np.bincount(result.fold[result.fold >= 0]).tolist() == [20] * 4


# ------------------------------------------------------------------------------------------- folds


def scattered(seed):
    """Return a random manifest: a long tail of species, some recordists and sites, recordings in two files.

    Prolific recordists have many species, so that groups hold several.
    """
    rng = np.random.default_rng(seed)
    n_species, n_recordists, n_sites = int(rng.integers(5, 40)), int(rng.integers(20, 80)), 60
    rows = []
    for species in range(n_species):
        for n in range(int(rng.integers(1, 2 + 80 // (species + 1)))):
            recordist = f"r{int(rng.zipf(1.6)) % n_recordists}" if rng.random() < 0.7 else ""
            site = f"x{rng.integers(n_sites)}" if seed % 2 and rng.random() < 0.2 else ""
            rows += [(f"s{species}", f"{species}-{n}", recordist, site)] * (1 + (rng.random() < 0.2))
    frame = pd.DataFrame(rows, columns=["species", "recording_id", "recordist", "site"])
    return frame.assign(path=frame.index.astype(str), split="", fold="")


def assert_nothing_is_shared(frame, result):
    """Assert that no value is in two of the folds, what is always in training, and the test split."""
    parts = part_names(result.fold, result.is_test, result.place.n_folds)
    group = groups(frame)[0]
    assert crossing(frame.assign(group=group), parts, "group") == []
    for column in result.grouped_by:
        assert crossing(frame, parts, column) == []


def assert_rule(frame, result, n_inseparable=0):
    """Assert the rule for rare species, derived from the groups alone.

    `n_inseparable` groups stay in training because no deal keeps every species in training in every repeat.
    """
    frame = frame.assign(group=groups(frame)[0], fold=result.fold, is_test=result.is_test)
    n_groups = frame.groupby("species")["group"].nunique()
    is_single = frame["species"].map(n_groups) == 1
    # Species of a single group are not tested and not validated.
    bound = frame["group"].isin(frame.loc[is_single, "group"])
    assert not frame.loc[bound, "is_test"].any() and not result.is_validated[is_single].any()
    # A group stays in training in every repeat if all of its species are of a single group.
    is_kept = (frame["fold"] == -1) & ~frame["is_test"]
    nothing_else = is_single.groupby(frame["group"]).transform("all")
    assert is_kept[nothing_else].all()
    assert frame.loc[is_kept & ~nothing_else, "group"].nunique() == n_inseparable
    # All other recordings are either tested, or validated in one fold of the deal.
    is_dealt = ~is_single & ~frame["is_test"] & ~is_kept
    np.testing.assert_array_equal(result.is_validated, is_dealt)
    assert (result.fold[result.is_validated] >= 0).all()
    for species, mine in frame.groupby("species"):
        kept = mine[~mine["is_test"]]
        assert kept["group"].nunique() >= min(2, n_groups[species])
        # In training whatever fold is validated, but for species of a single group in the fold of that.
        n_untrained = sum((kept["fold"] == fold).all() for fold in range(result.place.n_folds))
        assert n_untrained == (n_groups[species] == 1 and kept["fold"].iloc[0] >= 0)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("folds", [2, 5])
def test_folds_share_nothing_and_score_each_species_of_two_groups_once_and_always_train_on_it(seed, folds):
    frame = scattered(seed)
    result = split(frame, seed, folds=folds)
    assert result.place.n_folds == folds == len(set(result.fold[result.fold >= 0]))
    assert_nothing_is_shared(frame, result)
    # Seed 5 has an odd number of groups of which each shares a species with the next: two folds are too few.
    n_inseparable = int((seed, folds) == (5, 2))
    assert_rule(frame, result, n_inseparable)
    val = np.zeros(len(frame), dtype=int)
    for repeat in range(folds):
        assigned = split(frame, seed, folds=folds, repeat=repeat).assigned
        np.testing.assert_array_equal(np.isin(assigned, ("val", "unused")), result.fold == repeat)
        np.testing.assert_array_equal(assigned == "test", result.is_test)
        val += assigned == "val"
    np.testing.assert_array_equal(val, result.is_validated)
    # A species of two groups or more is validated on all of its recordings that are not of the test split.
    n_groups = frame.assign(group=groups(frame)[0]).groupby("species")["group"].nunique()
    missed = (frame["species"].map(n_groups) > 1) & ~result.is_test & (val == 0)
    assert missed.any() == bool(n_inseparable)


@pytest.mark.parametrize("seed", range(4))
def test_the_test_split_is_the_same_for_all_folds_and_repeats_and_a_new_deal_is_another(seed):
    frame = scattered(seed)
    first = split(frame, seed, folds=5)
    for folds, repeat in ((1, 0), (1, 3), (2, 0), (3, 7), (5, 4), (5, 5), (5, 23)):
        other = split(frame, seed, folds=folds, repeat=repeat)
        np.testing.assert_array_equal(other.is_test, first.is_test)
        assert other.notes == first.notes
    deals = [split(frame, seed, folds=5, repeat=5 * deal) for deal in range(3)]
    for deal, result in enumerate(deals):
        assert (result.place.deal, result.place.fold) == (deal, 0)
        assert_nothing_is_shared(frame, result)
        assert_rule(frame, result)

    def together(result):
        """Return which pairs of recordings are in one fold, whatever its number."""
        return (result.fold[:, None] == result.fold) & (result.fold >= 0)

    assert (together(deals[0]) != together(deals[1])).any()
    assert (together(deals[1]) != together(deals[2])).any()
    np.testing.assert_array_equal(split(frame, seed, folds=5, repeat=7).fold, deals[1].fold)


def test_one_fold_is_the_same_split_for_every_repeat():
    frame = collection()
    np.testing.assert_array_equal(split(frame, folds=1, repeat=9).assigned, split(frame, folds=1).assigned)


def test_rare_species_are_in_two_folds_and_the_commoner_in_test_too():
    frame = manifest(
        [("once", "1", "")]
        + [("twice", f"t{i}", "") for i in range(2)]
        + [("thrice", f"h{i}", "") for i in range(3)]
        + [("often", f"o{i}", "") for i in range(60)]
    )
    for seed in range(5):
        result = split(frame, seed, folds=5)
        fold = {name: result.fold[(frame["species"] == name).to_numpy()] for name in set(frame["species"])}
        tested = {name: int((result.is_test & (frame["species"] == name)).sum()) for name in fold}
        assert fold["once"].tolist() == [-1] and tested["once"] == 0
        assert len(set(fold["twice"])) == 2 and min(fold["twice"]) >= 0 and tested["twice"] == 0
        assert tested["thrice"] == 1 and len(set(fold["thrice"][fold["thrice"] >= 0])) == 2
        assert tested["often"] == 9
        of_fold = np.bincount(fold["often"][fold["often"] >= 0], minlength=5)
        assert of_fold.max() - of_fold.min() <= 1 and of_fold.sum() == 51
        sizes = np.bincount(result.fold[result.fold >= 0])
        assert sizes.max() - sizes.min() <= 1


def test_recordings_of_a_species_of_a_single_group_are_unused_where_their_group_is_validated():
    rows = [("only here", "1", "ann"), ("robin", "2", "ann"), ("alone", "3", "bo"), ("alone too", "4", "bo")]
    frame = manifest(rows + [("robin", f"r{i}", f"p{i}") for i in range(7)])
    repeats = [split(frame, folds=4, test=0.0, repeat=repeat) for repeat in range(4)]
    assert sorted(repeats[0].fold[[1, *range(4, 11)]]) == [0, 0, 1, 1, 2, 2, 3, 3]
    for repeat, result in enumerate(repeats):
        assert result.fold[0] == result.fold[1] and result.fold[2:4].tolist() == [-1, -1]
        in_ann = ["unused", "val"] if result.fold[1] == repeat else ["train", "train"]
        assert result.assigned[:4].tolist() == [*in_ann, "train", "train"]
        assert result.is_validated.tolist() == [False, True, False, False, *[True] * 7]


def test_of_a_single_fold_a_group_with_a_species_of_a_single_group_stays_in_training():
    rows = [("only here", "1", "ann"), ("robin", "2", "ann")]
    frame = manifest(rows + [("robin", f"r{i}", f"p{i}") for i in range(8)])
    for seed in range(5):
        result = split(frame, seed, val=0.4, folds=1, test=0.0)
        assert result.assigned[:2].tolist() == ["train", "train"] and (result.assigned == "val").sum() == 4


def test_species_that_no_deal_can_separate_stay_in_training_in_part():
    # Of three groups, each two share a species: in two folds, two of them are together.
    rows = [
        ("ab", "1", "a"),
        ("ab", "2", "b"),
        ("bc", "3", "b"),
        ("bc", "4", "c"),
        ("ca", "5", "c"),
        ("ca", "6", "a"),
    ]
    frame = manifest(rows)
    for seed in range(5):
        result = split(frame, seed, folds=2, test=0.0)
        assert (result.fold == -1).sum() == 2
        assert_nothing_is_shared(frame, result)
        for species in ("ab", "bc", "ca"):
            assert len(set(result.fold[(frame["species"] == species).to_numpy()])) == 2
        three = split(frame, seed, folds=3, test=0.0)
        assert sorted(set(three.fold)) == [0, 1, 2]


def test_more_folds_than_groups_are_refused_with_the_number_that_can_be():
    frame = manifest([("a", str(i), f"r{i}") for i in range(4)])
    assert set(split(frame, folds=4, test=0.0).fold) == {0, 1, 2, 3}
    with pytest.raises(DataError, match=r"in 1 of 5 folds .*set data\.folds to at most 4"):
        split(frame, folds=5, test=0.0)
    with pytest.raises(DataError, match="leave nothing to validate on \\(species"):
        split(manifest([("a", "1", ""), ("b", "2", "")]), folds=5)


def esc_10(seed=0):
    """Return a manifest like that of ESC-10: 10 classes of 8 clips in each of 5 published folds."""
    rows = [
        (f"class{c}", f"{c}-{f}-{n}", "", str(f)) for c in range(10) for f in range(1, 6) for n in range(8)
    ]
    frame = pd.DataFrame(rows, columns=["species", "recording_id", "recordist", "fold"])
    frame = frame.sample(frac=1, random_state=seed, ignore_index=True)
    return frame.assign(path=frame.index.astype(str), site="", split="")


def test_published_folds_are_cross_validated_as_published():
    frame = esc_10()
    for repeat in range(12):
        result = split(frame, repeat=repeat, folds=3)
        of_fold = (frame["fold"] == str(repeat % 5 + 1)).to_numpy()
        np.testing.assert_array_equal(result.assigned, np.where(of_fold, "val", "train"))
        assert (result.place.n_folds, result.place.deal, result.place.fold) == (5, 0, repeat % 5)
    assert result.labels == ("1", "2", "3", "4", "5") and result.given == "fold"
    assert "5 folds were given by the manifest" in result.notes[0]
    assert not any("LEAKAGE" in note for note in result.notes)


def test_given_folds_are_in_natural_order_and_leave_out_the_test_split():
    frame = manifest([("a", str(i), "") for i in range(6)])
    frame["fold"] = ["fold10", "fold2", "fold1", "fold10", "", ""]
    frame["split"] = ["", "", "", "", "test", "test"]
    result = split(frame, folds=1, repeat=2)
    assert result.labels == ("fold1", "fold2", "fold10")
    labels = split(frame.assign(fold=["a²", "9", "1e3", "01", "", ""])).labels
    assert labels == ("01", "1e3", "9", "a²")
    assert result.fold.tolist() == [2, 1, 0, 2, -1, -1]
    assert result.assigned.tolist() == ["val", "train", "train", "val", "test", "test"]


def test_given_folds_that_share_a_recordist_leak():
    frame = esc_10().assign(recordist=["ann", "bo"] * 200)
    (note,) = [note for note in split(frame).notes if "LEAKAGE" in note]
    assert "the given folds have the same recordist in several folds" in note
    assert split(frame).grouped_by == ("recording_id",)


def test_a_given_split_is_one_fold_and_said_so():
    frame = manifest([("a", str(i), "") for i in range(4)])
    frame["split"] = ["train", "val", "test", "train"]
    results = [split(frame, folds=5, repeat=repeat) for repeat in range(3)]
    for result in results:
        assert result.assigned.tolist() == ["train", "val", "test", "train"]
        assert (result.place.n_folds, result.place.fold, result.given) == (1, 0, "split")
        assert any("all repeats validate on the same recordings" in note for note in result.notes)


def test_eleven_thousand_recordings_of_nine_hundred_species_are_dealt_in_seconds():
    rng = np.random.default_rng(0)
    p = (1 / np.arange(1, 901)) / (1 / np.arange(1, 901)).sum()
    species = np.concatenate([np.arange(900), rng.choice(900, 10_100, p=p)])
    frame = manifest([(f"s{s}", str(i), f"r{i // 3}") for i, s in enumerate(species)])
    start = time.perf_counter()
    result = split(frame, folds=5)
    assert time.perf_counter() - start < 10
    sizes = np.bincount(result.fold[result.is_validated])
    assert sizes.max() - sizes.min() <= 5
    commonest = np.bincount(result.fold[(frame["species"] == "s0").to_numpy() & (result.fold >= 0)])
    assert commonest.max() - commonest.min() <= 4
    assert_rule(frame, result)


@pytest.mark.parametrize("name", ["manifest.csv", "manifest_min3.csv"])
@pytest.mark.parametrize("folds", [1, 3, 5])
def test_folds_of_real_recordings_share_nothing_and_follow_the_rule(shared, name, folds):
    frame = read_manifest(shared / "birds" / name)
    for repeat in (0, folds):
        result = split(frame, folds=folds, repeat=repeat)
        assert_nothing_is_shared(frame, result)
        if folds > 1:
            assert_rule(frame, result)
            sizes = np.bincount(result.fold[result.is_validated])
            assert len(sizes) == folds and sizes.max() < 1.2 * sizes.min()


def test_real_recordings_keep_every_species_in_training_and_separate_recordists(shared):
    frame = read_manifest(shared / "birds" / "manifest.csv")
    result = split(frame)
    assert set(frame["species"][result.assigned == "train"]) == set(frame["species"])
    for column in ("recording_id", "recordist"):
        assert crossing(frame, result.assigned, column) == []
