import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from birdnet_core.build import build_feature
from birdnet_core.config import TrainConfig
from birdnet_core.data import clip_store, feature_store
from birdnet_core.data.building import Workers, content_hashes
from birdnet_core.data.clip_store import ClipStore, build_clip_store
from birdnet_core.data.dataset import Dataset, prepare, proof_of_split
from birdnet_core.data.manifest import index_folder, read_manifest, write_manifest
from birdnet_core.errors import DataError

ROOT = Path(__file__).parents[3]


def stages(manifest, config, cache, **options):
    """Prepare, and return the folder with the stages that did any work."""
    seen = []
    folder = prepare(
        manifest,
        config,
        cache=cache,
        workers=options.get("workers", 1),
        progress=lambda stage, done, total: seen.append(stage),
    )
    return folder, list(dict.fromkeys(seen))


def test_a_second_call_does_nothing_and_an_option_rebuilds_what_depends_on_it(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    first, work = stages(manifest, small_config, tmp_path)
    assert work == ["hashing recordings", "decoding recordings", "computing mfcc"]
    assert stages(manifest, small_config, tmp_path) == (first, [])
    assert stages(manifest, small_config.override({"optim.lr": 0.1, "seed": 2}), tmp_path) == (first, [])
    _, work = stages(manifest, small_config.override({"features.n_mfcc": 8}), tmp_path)
    assert work == ["computing mfcc"]
    split, work = stages(manifest, small_config.override({"data.split_seed": 1}), tmp_path)
    assert work == [] and split != first
    _, work = stages(manifest, small_config.override({"data.highpass_hz": 0.0}), tmp_path)
    assert work == ["decoding recordings", "computing mfcc"]


def test_changed_audio_is_noticed(birds, small_config, tmp_path):
    shutil.copytree(birds.parent, tmp_path / "birds")
    manifest = read_manifest(tmp_path / "birds" / "manifest.csv")
    first, _ = stages(manifest, small_config, tmp_path / "cache")
    path = manifest["path"][0]
    soundfile.write(path.rsplit(".", 1)[0] + ".wav", np.ones(22_050) * 0.1, 22_050)
    shutil.move(path.rsplit(".", 1)[0] + ".wav", path)
    second, work = stages(manifest, small_config, tmp_path / "cache")
    assert second != first
    assert "decoding recordings" in work


def test_worker_processes_give_what_one_process_gives(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    alone, _ = stages(manifest, small_config, tmp_path / "one", workers=1)
    many, _ = stages(manifest, small_config, tmp_path / "two", workers=2)
    assert alone.name == many.name
    np.testing.assert_array_equal(Dataset.open(alone).features.values, Dataset.open(many).features.values)


def test_a_killed_build_goes_on_where_it_stopped(birds, small_config, tmp_path, monkeypatch):
    manifest = read_manifest(birds)
    decode, decoded = clip_store.decode, []

    def dying(path):
        if len(decoded) == 15:
            raise KeyboardInterrupt
        decoded.append(path)
        return decode(path)

    monkeypatch.setattr(clip_store, "decode", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(manifest, small_config, cache=tmp_path, workers=1)
    assert not list(tmp_path.glob("clips/*/store.json"))
    decoded.clear()
    monkeypatch.setattr(clip_store, "decode", lambda path: decoded.append(path) or decode(path))
    folder = prepare(manifest, small_config, cache=tmp_path, workers=1)
    assert len(decoded) == len(manifest) - 15
    whole = Dataset.open(prepare(manifest, small_config, cache=tmp_path / "other", workers=1))
    np.testing.assert_array_equal(Dataset.open(folder).features.values, whole.features.values)


def test_a_sigkill_half_way_costs_no_recording_twice(birds, small_config, tmp_path):
    manifest = pd.concat([read_manifest(birds)] * 3, ignore_index=True)
    folder = tmp_path / "birds"
    folder.mkdir()
    for i, path in enumerate(manifest["path"]):
        manifest.loc[i, "path"] = str(shutil.copy(path, folder / f"{i}-{path.rsplit('/')[-1]}"))
    manifest["recording_id"] = manifest["path"]
    write_manifest(manifest, tmp_path / "clips.csv")
    # Another process, in which decoding takes long enough for the kill to fall into the middle.
    script = (
        "import sys, time\n"
        "from birdnet_core.data import clip_store, dataset, manifest\n"
        "from tests.settings import SMALL\n"
        "from birdnet_core.config import TrainConfig\n"
        "decode = clip_store.decode\n"
        "clip_store.decode = lambda path: (time.sleep(0.05), decode(path))[1]\n"
        "config = TrainConfig().override(SMALL)\n"
        "frame = manifest.read_manifest(sys.argv[1])\n"
        "show = lambda stage, done, total: print(stage, done, total, flush=True)\n"
        "dataset.prepare(frame, config, cache=sys.argv[2], workers=1, progress=show)\n"
    )
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", script, str(tmp_path / "clips.csv"), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for line in process.stdout:
            if line.startswith("decoding recordings 30 "):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    seen = []
    prepare(
        read_manifest(tmp_path / "clips.csv"), small_config, cache=cache, workers=2,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )  # fmt: skip
    # The kill came after the line, so that one more may have been decoded.
    (left,) = {total for stage, _, total in seen if stage == "decoding recordings"}
    assert len(manifest) - 32 <= left <= len(manifest) - 30
    assert not any(stage == "hashing recordings" for stage, _, _ in seen)
    prepare(read_manifest(tmp_path / "clips.csv"), small_config, cache=tmp_path / "other", workers=1)
    resumed, whole = (
        ClipStore.open(path.parent)
        for folder in (cache, tmp_path / "other")
        for path in folder.glob("clips/*/store.json")
    )
    np.testing.assert_array_equal(resumed.samples, whole.samples)
    np.testing.assert_array_equal(resumed.windows, whole.windows)


def test_bad_recordings_are_listed_and_left_out(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    bad = {
        "text.wav": b"not audio at all, but long enough to be read as a header, one would think, or more",
        "empty.wav": b"",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    rows = [{"path": str(tmp_path / n), "species": "x", "recording_id": n} for n in [*bad, "absent.wav"]]
    manifest = pd.concat([pd.DataFrame(rows), manifest], ignore_index=True).fillna("")
    facts = Dataset.open(prepare(manifest, small_config, cache=tmp_path / "c", workers=1)).facts
    assert facts["n_recordings"] == len(manifest) - 3
    skipped = {item["path"].rsplit("/")[-1]: item["error"] for item in facts["skipped"]}
    assert set(skipped) == {*bad, "absent.wav"}
    assert "text" in skipped["text.wav"]
    assert "0 bytes" in skipped["empty.wav"]
    assert "No such file" in skipped["absent.wav"]
    assert "x" not in facts["train_counts"]


def test_nothing_that_decodes_is_an_error_that_lists_the_files(tmp_path, small_config):
    (tmp_path / "a" / "robin").mkdir(parents=True)
    (tmp_path / "a" / "robin" / "x.wav").write_text("no")
    with pytest.raises(DataError, match=r"(?s)not one of 1 recordings.*x\.wav"):
        prepare(index_folder(tmp_path / "a"), small_config, cache=tmp_path / "c", workers=1)


def test_clips_keep_amplitude_and_count(birds, small_config, cache):
    manifest = read_manifest(birds)
    config = small_config.override({"data.windows_per_recording": 3})
    store = build_clip_store(
        manifest["path"].tolist(), config.data, cache, workers=Workers(1), progress=lambda *a: None
    )
    rows, recording = store.rows()
    assert len(rows) == store.n_windows.sum() > len(manifest)
    assert store.n_windows.max() == 3
    clips = store.read(rows)
    assert clips.shape == (len(rows), 22_050)
    # 16 bits of each window's own range: the loudest sample of every window is full scale.
    np.testing.assert_allclose(np.abs(store.samples[rows]).max(axis=1), 32_767)
    assert (np.bincount(recording) == store.n_windows).all()


def test_a_quiet_recording_keeps_its_resolution(tmp_path, small_config):
    folder = tmp_path / "quiet" / "robin"
    folder.mkdir(parents=True)
    samples = (1e-4 * np.sin(2 * np.pi * 2000 * np.arange(22_050) / 22_050)).astype(np.float32)
    soundfile.write(folder / "q.wav", samples, 22_050, subtype="FLOAT")
    config = small_config.override({"data.highpass_hz": 0.0})
    store = build_clip_store(
        [str(folder / "q.wav")], config.data, tmp_path, workers=Workers(1), progress=lambda *a: None
    )
    np.testing.assert_allclose(store.read(np.array([0]))[0].numpy(), samples, atol=1e-8)


def test_the_high_pass_removes_rumble_and_does_not_clip(tmp_path, small_config):
    folder = tmp_path / "loud" / "robin"
    folder.mkdir(parents=True)
    t = np.arange(22_050) / 22_050
    loud = (3 * np.sin(2 * np.pi * 4000 * t) + 3 * np.sin(2 * np.pi * 30 * t)).astype(np.float32)
    soundfile.write(folder / "l.wav", loud, 22_050, subtype="FLOAT")
    store = build_clip_store(
        [str(folder / "l.wav")], small_config.data, tmp_path, workers=Workers(1), progress=lambda *a: None
    )
    settled = store.read(np.array([0]))[0].numpy()[2000:]
    assert np.abs(settled).max() == pytest.approx(3, rel=0.02)
    spectrum = np.abs(np.fft.rfft(settled * np.hanning(len(settled))))
    assert spectrum[:100].max() < 0.01 * spectrum.max()


def test_statistics_come_from_the_training_side_alone(small_dataset):
    train = small_dataset.features.read(small_dataset.rows("train")).astype(np.float64)
    np.testing.assert_allclose(small_dataset.mean, train.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(small_dataset.deviation, train.std(axis=(0, 2, 3)), rtol=1e-5)


def test_dataset_sides_agree_with_the_facts_and_the_proof(birds, small_config, small_dataset):
    manifest, facts = read_manifest(birds), small_dataset.facts
    for side in ("train", "val", "test"):
        assert len(np.unique(small_dataset.recording[small_dataset.rows(side)])) == facts[f"n_{side}"]
    assert sum(facts["train_counts"].values()) == facts["n_train"]
    proof = proof_of_split(manifest, small_dataset.folder)
    assert set(proof) == {"recording_id", "recordist", "site"}
    for column in facts["grouped_by"]:
        assert proof[column]["crossing"] == []


def test_a_damaged_store_is_refused(birds, small_config, tmp_path):
    folder = prepare(read_manifest(birds), small_config, cache=tmp_path, workers=1)
    for file, opened in (("features.i16", Dataset.open), ("clips.i16", None)):
        (path,) = tmp_path.glob(f"*/*/{file}")
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(DataError, match="damaged"):
            opened(folder) if opened else ClipStore.open(path.parent)


def test_features_are_mapped_not_loaded(small_dataset):
    values = small_dataset.features.values
    assert isinstance(values, np.memmap)
    assert values.dtype == np.int16
    assert not values.flags.writeable


def test_hashes_are_remembered_by_size_and_time(tmp_path):
    file = tmp_path / "a"
    file.write_text("one")
    work = []
    progress = lambda *state: work.append(state)  # noqa: E731
    first = content_hashes([str(file)], tmp_path / "c", workers=1, progress=progress)
    assert content_hashes([str(file)], tmp_path / "c", workers=1, progress=progress) == first
    assert len(work) == 1
    file.write_text("other")
    assert content_hashes([str(file)], tmp_path / "c", workers=1, progress=progress) != first
    assert content_hashes([str(tmp_path / "no")], tmp_path / "c", workers=1) == [""]


@pytest.mark.parametrize("n", [1, 2])
def test_workers_return_every_result_of_every_stage(n):
    with Workers(n) as workers:
        for first in (-20, -30):
            assert sorted(workers.map(abs, list(range(first, 0)), chunk=2)) == list(range(1, 1 - first))


def test_workers_do_not_run_the_script_that_starts_them(tmp_path):
    script = tmp_path / "no_guard.py"
    script.write_text(
        "from birdnet_core.data.building import Workers\n"
        "print('once')\n"
        "with Workers(2) as workers:\n"
        "    print(sum(workers.map(abs, list(range(-20, 0)), chunk=2)))\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.split() == ["once", "210"], done.stderr


def test_channel_statistics_match_numpy():
    features = np.random.default_rng(0).normal(3, 2, (70, 2, 4, 5)).astype(np.float32)
    mean, deviation = feature_store.channel_statistics(np.array_split(features, 4))
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(deviation, features.astype(np.float64).std(axis=(0, 2, 3)))


def test_quantised_features_are_off_by_half_a_level_at_most():
    features = torch.randn(5, 3, 8, 9) * torch.tensor([1.0, 50.0, 1e-3]).view(1, 3, 1, 1) - 40
    features[0, 0] = 7.0  # a constant channel
    values, scale, offset = feature_store.quantised(features)
    back = values.numpy() * scale.numpy()[:, :, None, None] + offset.numpy()[:, :, None, None]
    half_a_level = (features.amax(dim=(2, 3)) - features.amin(dim=(2, 3))) / 65_534 / 2
    off = np.abs(back - features.numpy()).max(axis=(2, 3))
    assert (off <= 1.01 * half_a_level.numpy() + 5e-6).all()
    assert values.dtype == torch.int16
    assert (back[0, 0] == 7.0).all()


@pytest.mark.parametrize("feature", ["mfcc", "log_mel"])
def test_stored_features_are_the_computed_ones_within_a_thousandth(feature, birds, small_config, cache):
    config = small_config.override({"features.name": feature, "features.standardise": "clip"})
    dataset = Dataset.open(prepare(read_manifest(birds), config, cache=cache, workers=1))
    rows, _ = dataset.clips.rows()
    computed = build_feature(config.features, 22_050, 22_050)(dataset.clips.read(rows)).numpy()
    stored = dataset.features.read(np.arange(len(rows)))
    assert np.abs(stored - computed).max() < 1e-3
    assert np.abs(computed).max() > 3


def test_a_killed_computation_of_features_goes_on_where_it_stopped(
    birds, small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(feature_store, "CHUNK", 8)
    compute, computed = feature_store._compute, []

    def dying(task):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(task.first)
        return compute(task)

    monkeypatch.setattr(feature_store, "_compute", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(read_manifest(birds), small_config, cache=tmp_path, workers=1)
    computed.clear()
    monkeypatch.setattr(feature_store, "_compute", lambda task: computed.append(task.first) or compute(task))
    folder = prepare(read_manifest(birds), small_config, cache=tmp_path, workers=1)
    assert computed == [24, 32]
    whole = Dataset.open(prepare(read_manifest(birds), small_config, cache=tmp_path / "other", workers=1))
    np.testing.assert_array_equal(Dataset.open(folder).features.values, whole.features.values)


def test_pictures_larger_than_their_clips_are_not_stored(birds, small_config, tmp_path):
    large = {"features.name": "log_mel", "features.hop": 64, "features.n_fft": 2048, "data.window_s": 1.0}
    config = TrainConfig().override({**large, "features.standardise": "train"})
    folder = prepare(read_manifest(birds), config, cache=tmp_path, workers=1)
    dataset = Dataset.open(folder)
    assert dataset.features is None
    assert dataset.input_shape == (1, 128, 345)
    assert not (tmp_path / "features").exists()
    rows = dataset.clips.rows()[0][dataset.rows("train")]
    pictures = build_feature(config.features, 22_050, 22_050)(dataset.clips.read(rows)).numpy()
    np.testing.assert_allclose(dataset.mean, [pictures.mean()], rtol=1e-4)
    np.testing.assert_allclose(dataset.deviation, [pictures.std()], rtol=1e-4)
    # Stored all the same where the user says so; the statistics stay.
    stored = Dataset.open(
        prepare(
            read_manifest(birds),
            config.override({"runtime.features": "stored"}),
            cache=tmp_path,
            workers=1,
        )
    )
    assert stored.folder == folder and stored.features is not None


def test_all_real_recordings_prepare(shared, cache):
    """The full manifest: 89 species, some with one recording."""
    manifest = read_manifest(shared / "birds" / "manifest_min3.csv").iloc[::8]
    facts = Dataset.open(
        prepare(manifest.reset_index(drop=True), TrainConfig(), cache=cache, workers=2)
    ).facts
    assert facts["n_skipped"] == 0
    assert facts["n_recordings"] == len(manifest)


def test_copies_are_listed_kept_on_one_side_and_named_when_their_labels_differ(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    first, other = manifest.iloc[0], manifest[manifest["species"] != manifest["species"][0]].iloc[0]
    rows = []
    for number, species in enumerate((first["species"], other["species"])):
        path = tmp_path / f"copy{number}{first['path'][-5:]}"
        shutil.copy(first["path"], path)
        rows.append({"path": str(path), "species": species, "recording_id": f"copy{number}"})
    manifest = pd.concat([manifest, pd.DataFrame(rows)], ignore_index=True).fillna("")
    facts = Dataset.open(prepare(manifest, small_config, cache=tmp_path / "c", workers=1)).facts
    (copies,) = facts["duplicates"]
    assert copies["paths"] == [first["path"], *(row["path"] for row in rows)]
    assert copies["species"] == sorted({first["species"], other["species"]})
    assert len(copies["sides"]) == 1
    assert "sha256" in facts["grouped_by"]
    (note,) = [note for note in facts["notes"] if "LEAKAGE" in note]
    assert first["species"] in note and other["species"] in note


def test_recordings_are_counted_by_sample_rate(birds, small_dataset):
    rates = pd.Series([soundfile.info(path).samplerate for path in read_manifest(birds)["path"]])
    expected = {str(rate): n for rate, n in rates.value_counts().items()}
    assert small_dataset.facts["sample_rates"] == expected


def test_workers_end_when_their_parent_is_killed():
    script = (
        "import os, time\n"
        "from birdnet_core.data.building import Workers\n"
        "results = Workers(2).map(os.path.realpath, ['/proc/self'] * 40, chunk=1)\n"
        "print(next(results), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        worker = Path(parent.stdout.readline().strip())
        assert worker.name.isdigit() and worker.exists()
        parent.kill()
    for _ in range(100):
        if not worker.exists():
            break
        time.sleep(0.1)
    assert not worker.exists()
