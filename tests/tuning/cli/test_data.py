"""`data describe` proves every fold."""

import json

import numpy as np
import pandas as pd

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest, write_manifest
from tests.settings import SMALL
from tests.tuning.cli.conftest import SET


def described(birdtune, line):
    """Return what describe prints, and the same as JSON."""
    code, out, err = birdtune(f"data describe {line} {SET}")
    assert code == 0, err
    return out, json.loads(birdtune(f"data describe {line} {SET} --json")[1])


def test_describe_counts_every_fold_and_proves_that_nothing_is_shared(birdtune, birds, cache):
    out, facts = described(birdtune, f"{birds} --set repeat=2")
    folds = facts["folds"]
    assert (folds["n"], folds["deal"], folds["fold"]) == (5, 0, 2)
    assert "folds          5, deal 0; repeat r validates on fold r mod 5, this one on fold 2" in out
    manifest = read_manifest(birds)
    config = TrainConfig().override({**SMALL, "repeat": 2})
    dataset = Dataset.open(prepare(manifest, config, cache=cache, workers=1))
    for fold in range(5):
        rows = np.unique(dataset.recording[dataset.fold == fold])
        n_groups = len(np.unique(dataset.group[dataset.fold == fold]))
        n_species = manifest["species"].iloc[rows].nunique()
        assert folds["parts"][f"fold {fold}"] == {
            "n": len(rows),
            "n_species": n_species,
            "n_groups": n_groups,
            "n_unused": 0,
        }
        assert f"fold {fold}: {len(rows)} recordings of {n_species} species in {n_groups} groups" in out
    assert sum(part["n"] for part in folds["parts"].values()) == 40
    assert set(facts["proof"]) == {"group", "recording_id", "recordist", "site"}
    for column in ("group", "recording_id", "recordist"):
        assert facts["proof"][column]["crossing"] == []
        assert f"proof          {facts['proof'][column]['n']} {column}s, none in two folds or splits" in out
    full = 4 - len(folds["never_scored"]) - len(folds["scored_in_part"])
    assert f"scored         {full} of 4 species in full" in out
    assert "rule           species recorded in a single group are trained on and never scored" in out


def test_describe_counts_what_is_unused_where_its_group_is_validated(birdtune, birds, tmp_path):
    manifest = read_manifest(birds).assign(recordist=[f"r{i}" for i in range(40)], site="")
    rare = manifest["species"].value_counts().index[-1]
    mine = manifest["species"] == rare
    other = manifest.index[~mine][0]
    manifest.loc[mine | (manifest.index == other), "recordist"] = "ann"
    write_manifest(manifest, tmp_path / "clips.csv")
    n, seen = int(mine.sum()), []
    for repeat in range(5):
        out, facts = described(birdtune, f"{tmp_path / 'clips.csv'} --set repeat={repeat}")
        text = " ".join(out.split())
        assert f"groups; {n} unused when it is validated" in text
        assert (f"{facts['n_test']} test recordings, {n} unused" in text) == (facts["n_unused"] == n)
        assert "scored 3 of 4 species in full, 0 in part, 1 never" in text
        seen.append(facts["n_unused"])
    assert sorted(seen) == [0, 0, 0, 0, n]


def test_describe_shows_given_folds_and_what_they_share(birdtune, birds, tmp_path):
    manifest = read_manifest(birds).assign(fold=["b", "a"] * 20)
    first = manifest["species"][0]
    manifest.loc[manifest["species"] == first, "fold"] = "a"
    write_manifest(manifest, tmp_path / "clips.csv")
    out, facts = described(birdtune, tmp_path / "clips.csv")
    assert "folds          2, as given by the manifest (a, b); repeat r validates on fold r mod 2" in out
    assert "note           the 2 folds were given by the manifest" in out
    assert "note           LEAKAGE: the given folds have the same recordist" in out
    assert f"species has no training recording when one of the folds is validated: {first}" in out
    assert "\nrule " not in out
    n_folds = manifest.groupby("recordist")["fold"].nunique()
    crossing = sorted(n_folds.index[n_folds > 1])
    assert facts["proof"]["recordist"]["crossing"] == crossing
    named = ", ".join(crossing[:5])
    assert f"NOT separated: {len(crossing)} in several folds or splits: {named}" in " ".join(out.split())
    assert facts["n_test"] == 0 and facts["folds"]["labels"] == ["a", "b"]


def test_describe_says_that_a_single_fold_is_the_same_for_all_repeats(birdtune, birds, tmp_path):
    out, facts = described(birdtune, f"{birds} --set data.folds=1 --set repeat=3")
    assert "folds          1: all repeats validate on the same recordings" in out
    assert facts["folds"]["n"] == 1 and set(facts["folds"]["parts"]) == {"train", "val", "test"}
    for split, counts in facts["folds"]["parts"].items():
        assert counts["n"] == facts[f"n_{split}"]
        assert f"{split}: {counts['n']} recordings of {counts['n_species']} species" in out
    table = pd.read_csv(birds).assign(split=["train", "val"] * 20)
    table["path"] = [str(birds.parent / path) for path in table["path"]]
    table.to_csv(tmp_path / "split.csv", index=False)
    out, facts = described(birdtune, tmp_path / "split.csv")
    assert "note           the split was given by the manifest, not drawn, and data.folds is not used" in out
    assert facts["folds"]["given"] == "split" and "\nrule " not in out
