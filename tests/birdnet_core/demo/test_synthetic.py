from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from birdnet_core.demo import synthetic
from birdnet_core.demo.synthetic import (
    LONG_TAIL,
    SyntheticBirds,
    draw_grammar,
    draw_recordist,
    record,
    sing,
    species_counts,
    species_name,
    write_new_recordings,
    write_synthetic_birds,
)
from birdnet_core.errors import ConfigError, DataError

FEW = SyntheticBirds(n_species=4, n_recordings=16, n_recordists=6, seed=3)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_birds(tmp_path_factory.mktemp("birds") / "few", FEW, workers=2)


def decoded(manifest: Path) -> dict[str, tuple[np.ndarray, int]]:
    return {path: sf.read(manifest.parent / path, dtype="float32") for path in pd.read_csv(manifest)["path"]}


# counts


@pytest.mark.parametrize(
    ("n_species", "n_recordings"), [(2, 2), (2, 3), (12, 240), (12, 13), (30, 31), (90, 90), (90, 2000)]
)
def test_counts_sum_to_the_total_and_fall_from_the_commonest_species(n_species, n_recordings):
    counts = species_counts(n_species, n_recordings)
    assert len(counts) == n_species
    assert sum(counts) == n_recordings
    assert counts == sorted(counts, reverse=True)
    assert min(counts) >= 1


def test_ninety_species_have_the_real_counts():
    assert species_counts(90, int(LONG_TAIL.sum())) == LONG_TAIL.tolist()


def test_default_counts_have_a_long_tail():
    counts = species_counts(12, 240)
    assert counts[0] > 20 * counts[-1]
    # Of the real species, the commonest quarter has 71 % of the recordings and the rarer half 9 %.
    assert sum(counts[:3]) / 240 == pytest.approx(0.71, abs=0.08)
    assert sum(counts[6:]) / 240 == pytest.approx(0.09, abs=0.08)


# what is written


def test_manifest_has_a_row_for_every_file(manifest):
    rows = pd.read_csv(manifest)
    assert list(rows.columns) == ["path", "species", "recording_id", "recordist", "site"]
    assert rows["species"].value_counts().tolist() == species_counts(4, 16)
    assert rows["recording_id"].is_unique
    assert not rows.isna().any(axis=None)
    assert [Path(path).parts[0] for path in rows["path"]] == rows["species"].tolist()
    on_disk = {str(p.relative_to(manifest.parent)) for p in manifest.parent.rglob("*.*") if p != manifest}
    assert on_disk == set(rows["path"])


def test_every_file_decodes_to_sound_of_3_to_12_seconds(manifest):
    for path, (samples, sample_rate) in decoded(manifest).items():
        assert 2.9 < len(samples) / sample_rate < 12.2, path
        assert np.isfinite(samples).all(), path
        assert 0.1 < np.abs(samples).max() <= 1.1, path  # lossy codecs overshoot
        assert sample_rate in (22050, 32000, 44100, 48000)


def test_default_collection_mixes_formats_and_shares_species_among_recordists():
    rows = pd.DataFrame([take.row for take in synthetic._plan(SyntheticBirds())])
    shares = rows["path"].str.rsplit(".").str[-1].value_counts(normalize=True)
    assert set(shares.index) == {"flac", "wav", "mp3"}
    assert shares.min() > 0.1
    n_recordings = rows["species"].value_counts()
    n_recordists = rows.groupby("species")["recordist"].nunique()
    assert (n_recordists[n_recordings > 1] >= 2).all()
    assert (n_recordists[n_recordings >= 8] >= 4).all()
    busiest = rows["recordist"].value_counts()
    assert busiest.iloc[0] > 4 * busiest.median()


def test_ninety_species_and_all_recordists_have_distinct_names():
    species = [species_name(i) for i in range(90)]
    assert len(set(species)) == 90
    assert all(name.isascii() and name == name.lower() and name.count("_") == 1 for name in species)
    assert len({draw_recordist(0, i, 240).name for i in range(240)}) == 240


def test_siblings_share_genus_and_band_but_not_the_direction_of_pitch():
    elder, younger = draw_grammar(0, 1), draw_grammar(0, 2)
    assert species_name(1).split("_")[0] == species_name(2).split("_")[0]
    assert species_name(1) != species_name(2)
    assert [(s.low_hz, s.high_hz) for s in elder.syllables] == [
        (s.low_hz, s.high_hz) for s in younger.syllables
    ]
    assert [s.is_falling for s in elder.syllables] != [s.is_falling for s in younger.syllables]


@pytest.mark.parametrize("species", range(0, 90, 7))
def test_song_has_pauses_and_lies_between_1_and_10_khz(species):
    rng = np.random.default_rng(species)
    samples = sing(draw_grammar(0, species), 10 * 22050, 22050, rng)
    power = np.abs(np.fft.rfft(samples)) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / 22050)
    assert power[(hz > 1000) & (hz < 10_000)].sum() > 0.99 * power.sum()
    loud = np.abs(samples.reshape(-1, 2205)).max(axis=1) > 0.05
    assert 0.05 < loud.mean() < 0.95


def test_a_farther_recordist_hears_less_of_the_song():
    song = sing(draw_grammar(0, 0), 4 * 22050, 22050, np.random.default_rng(0))
    silence = np.zeros_like(song)
    alike = {}
    for distance_m in (5.0, 100.0):
        recordist = replace(draw_recordist(0, 0, 24), distance_m=distance_m, drops_per_s=0.0)
        site_rng, rng = np.random.default_rng(1), np.random.default_rng(2)
        heard = record(song, silence, 22050, recordist=recordist, site_rng=site_rng, rng=rng)
        site_rng, rng = np.random.default_rng(1), np.random.default_rng(2)
        noise = record(silence, silence, 22050, recordist=recordist, site_rng=site_rng, rng=rng)
        # Both are normalised to the same peak, so compare shapes: pure noise resembles what a far bird gives.
        alike[distance_m] = np.corrcoef(heard, noise)[0, 1]
    assert alike[100.0] > alike[5.0]


# determinism


def test_writing_twice_repeats_files_whatever_the_number_of_workers(manifest, tmp_path):
    again = write_synthetic_birds(tmp_path / "again", FEW, workers=1)
    assert again.read_bytes() == manifest.read_bytes()
    for path in pd.read_csv(manifest)["path"]:
        assert (again.parent / path).read_bytes() == (manifest.parent / path).read_bytes(), path


def test_a_recording_does_not_depend_on_how_many_others_there_are(manifest, tmp_path):
    fewer = SyntheticBirds(n_species=2, n_recordings=6, n_recordists=6, seed=3)
    shared = decoded(write_synthetic_birds(tmp_path / "fewer", fewer))
    assert len(shared) == 6
    all_of_them = decoded(manifest)
    for path, (samples, _) in shared.items():
        np.testing.assert_array_equal(samples, all_of_them[path][0])


def test_another_seed_gives_other_birds_and_recordists():
    assert draw_grammar(0, 0) != draw_grammar(1, 0)
    assert draw_recordist(0, 0, 24) != draw_recordist(1, 0, 24)
    rows = [pd.DataFrame([t.row for t in synthetic._plan(SyntheticBirds(seed=seed))]) for seed in (0, 1)]
    assert (rows[0]["recordist"] != rows[1]["recordist"]).any()


# whole or not at all


def test_a_complete_folder_is_returned_as_it_is(manifest):
    before = {p: p.stat().st_mtime_ns for p in manifest.parent.rglob("*")}
    assert write_synthetic_birds(manifest.parent, FEW) == manifest
    assert {p: p.stat().st_mtime_ns for p in manifest.parent.rglob("*")} == before


def test_an_interrupted_write_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    tiny = SyntheticBirds(n_species=2, n_recordings=4, n_recordists=2)
    write = synthetic._write_take

    def interrupted(take, folder):
        if take.recording == 1:
            raise KeyboardInterrupt
        write(take, folder)

    monkeypatch.setattr(synthetic, "_write_take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_birds(tmp_path / "birds", tiny)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert write_synthetic_birds(tmp_path / "birds", tiny).is_file()


def test_a_folder_without_a_manifest_is_not_taken_for_complete(tmp_path):
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "left.wav").touch()
    with pytest.raises(DataError, match=r"birds.*has no manifest\.csv"):
        write_synthetic_birds(tmp_path / "birds", FEW)


def test_an_empty_folder_is_filled(tmp_path):
    tiny = SyntheticBirds(n_species=2, n_recordings=2, n_recordists=2)
    assert len(decoded(write_synthetic_birds(tmp_path, tiny))) == 2


def test_a_folder_of_other_birds_is_refused(manifest):
    with pytest.raises(DataError, match="lists other recordings"):
        write_synthetic_birds(manifest.parent, SyntheticBirds(n_species=4, n_recordings=16, n_recordists=6))


# errors


@pytest.mark.parametrize(
    ("setting", "given", "accepted"),
    [
        ("n_species", 1, "from 2 to 90"),
        ("n_species", 91, "from 2 to 90"),
        ("n_recordings", 11, "at least 12"),
        ("n_recordists", 1, "from 2 to 240"),
        ("n_recordists", 2.5, "from 2 to 240"),
        ("seed", -1, "at least 0"),
    ],
)
def test_bad_settings_name_what_was_given_and_what_is_accepted(setting, given, accepted):
    with pytest.raises(ConfigError, match=rf"{setting} .*{given}.*{accepted}"):
        SyntheticBirds(**{setting: given})


def test_bad_worker_count_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="workers .* 0; it takes an integer of at least 1"):
        write_synthetic_birds(tmp_path / "birds", FEW, workers=0)
    assert not (tmp_path / "birds").exists()


def test_new_recordings_are_of_known_species_and_not_in_the_collection(tmp_path):
    birds = SyntheticBirds(n_species=4, n_recordings=20, n_recordists=4)
    held = pd.read_csv(write_synthetic_birds(tmp_path / "held", birds))
    made = write_new_recordings(tmp_path / "new", birds, n=3)
    assert [file.parent.name for file in made] == list(held["species"].value_counts().index[:3])
    assert not {file.stem for file in made} & set(held["recording_id"])
    sounds = {file.read_bytes() for file in (tmp_path / "held").rglob("*.*")}
    assert not sounds & {file.read_bytes() for file in made}
    again = write_new_recordings(tmp_path / "again", birds, n=3)
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in made]
    with pytest.raises(ConfigError, match="n of the synthetic birds is 5; it takes an integer from 1 to 4"):
        write_new_recordings(tmp_path / "more", birds, n=5)
