import errno
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
from birdnet_core.data import building, clip_store, feature_store
from birdnet_core.data.building import Workers, content_hashes
from birdnet_core.data.clip_store import build_clips
from birdnet_core.data.dataset import Dataset, is_whole, prepare, proof_of_split, validation_split
from birdnet_core.data.manifest import index_folder, read_manifest, write_manifest
from birdnet_core.errors import DataError, MachineError
from tests.birdnet_core.data import faulty

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
    assert_equal_content(
        by_recording(Dataset.open(alone), manifest), by_recording(Dataset.open(many), manifest)
    )


def by_recording(dataset, manifest):
    """Return the stored features of every clip of a dataset, by the path of its recording."""
    features = dataset.stored_features(np.arange(len(dataset.labels)))
    paths = manifest["path"].to_numpy()[dataset.recording]
    return {path: features[paths == path] for path in paths}


def assert_equal_content(a, b):
    assert a.keys() == b.keys()
    for path, features in a.items():
        np.testing.assert_array_equal(features, b[path])


def copied(manifest, folder):
    """Return a manifest of copies in `folder`."""
    folder.mkdir()
    paths = [shutil.copy(path, folder / Path(path).name) for path in manifest["path"]]
    return manifest.assign(path=[str(path) for path in paths])


def totals(manifest, config, cache, workers=1):
    """Prepare; return the dataset and how much every stage had to do."""
    seen = {}
    folder = prepare(
        manifest, config, cache=cache, workers=workers,
        progress=lambda stage, done, total: seen.update({stage: total}),
    )  # fmt: skip
    return Dataset.open(folder), seen


def test_a_changed_manifest_decodes_what_is_new_and_another_order_nothing(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    # A third of the recordings are in too few groups for five folds.
    config = small_config.override({"data.windows_per_recording": 2, "data.folds": 1})
    most, first = manifest.iloc[:-2], manifest.iloc[:-5].reset_index(drop=True)
    _, work = totals(first, config, tmp_path)
    assert work["decoding recordings"] == len(first)
    added, work = totals(most, config, tmp_path)
    n_new = int((added.recording >= len(first)).sum())
    assert work == {"hashing recordings": 3, "decoding recordings": 3, "computing mfcc": n_new}
    turned = most.iloc[::-1].reset_index(drop=True)
    other_order, work = totals(turned, config, tmp_path)
    assert work == {} and other_order.folder != added.folder
    fewer, work = totals(most.iloc[::3].reset_index(drop=True), config, tmp_path)
    assert work == {}
    whole, _ = totals(most, config, tmp_path / "other")
    assert_equal_content(by_recording(added, most), by_recording(whole, most))
    assert_equal_content(by_recording(other_order, turned), by_recording(whole, most))
    np.testing.assert_allclose(other_order.mean, added.mean, rtol=1e-6)
    # Nothing is on the disk twice.
    (clips,) = tmp_path.glob("clips/*/clips.i16")
    assert clips.stat().st_size == 2 * 22_050 * len(added.labels)
    (features,) = tmp_path.glob("features/*/features.i16")
    assert features.stat().st_size == added.features.values[:1].nbytes * len(added.labels)


def test_a_killed_build_continues_where_it_stopped(birds, small_config, tmp_path, monkeypatch):
    manifest = read_manifest(birds)
    monkeypatch.setattr(clip_store, "COMMIT_S", 0.0)

    def dying(stage, done, total):
        if (stage, done) == ("decoding recordings", 15):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(manifest, small_config, cache=tmp_path, workers=1, progress=dying)
    resumed, work = totals(manifest, small_config, tmp_path)
    assert work["decoding recordings"] == len(manifest) - 15
    whole, _ = totals(manifest, small_config, tmp_path / "other")
    assert_equal_content(by_recording(resumed, manifest), by_recording(whole, manifest))


def test_a_sigkill_half_way_costs_no_recording_twice(birds, small_config, tmp_path):
    manifest = copied(read_manifest(birds), tmp_path / "birds")
    # Another process, in which decoding takes long enough for the kill to fall into the middle.
    command, environment = slow_prepare(manifest, tmp_path, workers=1)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        for line in process.stdout:
            stage, done, _ = line.rsplit(" ", 2)
            if stage == "decoding recordings" and int(done) >= 10:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    resumed, work = totals(manifest, small_config, tmp_path / "cache", workers=2)
    # What is reported is on the disk.
    assert 0 < work["decoding recordings"] <= len(manifest) - int(done)
    assert "hashing recordings" not in work
    whole, _ = totals(manifest, small_config, tmp_path / "other")
    assert_equal_content(by_recording(resumed, manifest), by_recording(whole, manifest))


def slow_prepare(manifest, folder, workers):
    """Return command and environment of a process that prepares slowly into the cache in `folder`."""
    write_manifest(manifest, folder / "clips.csv")
    script = (
        "import sys\n"
        "from birdnet_core.config import TrainConfig\n"
        "from birdnet_core.data import clip_store, dataset, manifest\n"
        "from tests.birdnet_core.data import faulty\n"
        "from tests.settings import SMALL\n"
        "clip_store._decode = faulty.slowly\n"
        "frame = manifest.read_manifest(sys.argv[1])\n"
        "show = lambda stage, done, total: print(stage, done, total, flush=True)\n"
        "print('made', dataset.prepare(frame, TrainConfig().override(SMALL), cache=sys.argv[2],\n"
        "      workers=int(sys.argv[3]), progress=show), 0)\n"
    )
    command = [sys.executable, "-c", script, str(folder / "clips.csv"), str(folder / "cache"), str(workers)]
    environment = {**os.environ, faulty.SLOW: str(folder / "pids"), "PYTHONPATH": str(ROOT)}
    return command, environment


def test_of_three_processes_that_prepare_the_same_one_builds_with_all_its_workers(
    birds, small_config, tmp_path
):
    manifest = copied(read_manifest(birds), tmp_path / "birds")
    command, environment = slow_prepare(manifest, tmp_path, workers=3)
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        for _ in range(3)
    ]
    output = [process.communicate()[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    made = {line.split()[1] for lines in output for line in lines if line.startswith("made")}
    assert len(made) == 1
    for kind in ("clips", "features", "datasets"):
        assert len([path for path in (tmp_path / "cache" / kind).iterdir() if path.is_dir()]) == 1
    # Every recording was decoded once, by the workers of one of the processes.
    decoded = [line.split(" ", 1) for line in (tmp_path / "pids").read_text().splitlines()]
    assert sorted(path for _, path in decoded) == sorted(manifest["path"])
    assert len({pid for pid, _ in decoded}) == 3
    builders = [lines for lines in output if any("decoding" in line for line in lines)]
    assert len(builders) == 1
    (folder,) = made
    alone, _ = totals(manifest, small_config, tmp_path / "other")
    assert_equal_content(by_recording(Dataset.open(folder), manifest), by_recording(alone, manifest))


@pytest.mark.parametrize("workers", [1, 3])
def test_recordings_that_end_their_process_or_fill_the_memory_are_skipped_by_name(
    birds, small_config, tmp_path, monkeypatch, workers
):
    # With these recordings the groups are too few for five folds.
    small_config = small_config.override({"data.folds": 1})
    manifest = copied(read_manifest(birds), tmp_path / "birds")
    bad = ["segfault-1.wav", "exit-1.wav", "segfault-2.wav", "memory-1.wav"]
    rows = []
    for i, name in enumerate(bad):
        soundfile.write(tmp_path / name, 0.1 * np.random.default_rng(i).standard_normal(30_000), 22_050)
        rows.append({"path": str(tmp_path / name), "species": manifest["species"][0], "recording_id": name})
    many = pd.concat([manifest, pd.DataFrame(rows)], ignore_index=True).fillna("")
    many = many.sample(frac=1, random_state=0, ignore_index=True)
    with monkeypatch.context() as patch:
        patch.setattr(clip_store, "_decode", faulty.by_name)
        facts = totals(many, small_config, tmp_path / "cache", workers)[0].facts
    skipped = {Path(item["path"]).name: item["error"] for item in facts["skipped"]}
    assert sorted(skipped) == sorted(bad)
    assert "SIGSEGV" in skipped["segfault-1.wav"] and "SIGSEGV" in skipped["segfault-2.wav"]
    assert "exit code 3" in skipped["exit-1.wav"]
    assert "does not fit into memory" in skipped["memory-1.wav"] and "9.31 GiB" in skipped["memory-1.wav"]
    assert facts["n_recordings"] == len(manifest)
    # Only that call has skipped them: a decoder that is mended reads them.
    mended, work = totals(many, small_config, tmp_path / "cache", workers)
    assert work["decoding recordings"] == len(bad)
    assert mended.facts["n_skipped"] == 0


def test_what_cannot_be_decoded_is_remembered_by_its_content(birds, small_config, tmp_path):
    manifest = copied(read_manifest(birds), tmp_path / "birds")
    Path(manifest["path"][0]).write_text("no audio at all" * 10)
    Path(manifest["path"][1]).unlink()
    first, _ = totals(manifest, small_config, tmp_path / "cache")
    second, work = totals(manifest, small_config, tmp_path / "cache")
    assert work == {} and second.folder == first.folder
    assert len(second.facts["skipped"]) == 2
    # The same bytes under another name, and the absent one, which is there now.
    shutil.copy(manifest["path"][0], tmp_path / "other.wav")
    shutil.copy(read_manifest(birds)["path"][1], manifest["path"][1])
    moved = manifest.assign(path=[str(tmp_path / "other.wav"), *manifest["path"][1:]])
    third, work = totals(moved, small_config, tmp_path / "cache")
    assert work["decoding recordings"] == 1
    assert [item["path"] for item in third.facts["skipped"]] == [str(tmp_path / "other.wav")]
    assert third.facts["skipped"][0]["error"] == first.facts["skipped"][0]["error"]


DAMAGE = {
    "an empty folder": lambda cache, folder: [path.unlink() for path in folder.iterdir()],
    "no folder": lambda cache, folder: shutil.rmtree(folder),
    "no list of clips": lambda cache, folder: (folder / "clips.npz").unlink(),
    "half a list of clips": lambda cache, folder: cut_in_half(folder / "clips.npz"),
    "half a description": lambda cache, folder: cut_in_half(folder / "dataset.json"),
    "a description without its content": lambda cache, folder: (folder / "dataset.json").write_text("{}"),
    "no clips": lambda cache, folder: shutil.rmtree(cache / "clips"),
    "half of the clips": lambda cache, folder: cut_in_half(*cache.glob("clips/*/clips.i16")),
    "half of the windows": lambda cache, folder: cut_in_half(*cache.glob("clips/*/windows.bin")),
    "half of the recordings": lambda cache, folder: cut_in_half(*cache.glob("clips/*/recordings.bin")),
    "no features": lambda cache, folder: shutil.rmtree(cache / "features"),
    "half of the features": lambda cache, folder: cut_in_half(*cache.glob("features/*/features.i16")),
    "half of their scales": lambda cache, folder: cut_in_half(*cache.glob("features/*/scales.f32")),
    "half of them filled": lambda cache, folder: cut_in_half(*cache.glob("features/*/clips.u8")),
}


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_dataset_is_refused_by_name_and_prepared_again(birds, small_config, tmp_path, damage):
    manifest = read_manifest(birds)
    dataset, _ = totals(manifest, small_config, tmp_path)
    assert is_whole(dataset.folder)
    whole = by_recording(dataset, manifest)
    DAMAGE[damage](tmp_path, dataset.folder)
    assert not is_whole(dataset.folder)
    with pytest.raises(DataError, match=rf"the dataset '{dataset.folder}' cannot be used"):
        Dataset.open(dataset.folder)
    # In another order, so that rows change places.
    turned = manifest.iloc[::-1].reset_index(drop=True)
    totals(turned, small_config, tmp_path)
    again, _ = totals(manifest, small_config, tmp_path)
    assert again.folder == dataset.folder
    assert_equal_content(by_recording(again, manifest), whole)


def test_a_dataset_of_stores_that_were_made_anew_is_not_taken(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    dataset, _ = totals(manifest, small_config, tmp_path)
    shutil.rmtree(tmp_path / "clips")
    totals(manifest.iloc[::-1].reset_index(drop=True), small_config, tmp_path)
    with pytest.raises(DataError, match="stores were lost"):
        Dataset.open(dataset.folder)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(building.fcntl, "flock", flock)
    words = rf"file system of '{tmp_path}' cannot lock files \({os.strerror(number)}\).*BIRDTUNE_CACHE"
    with pytest.raises(MachineError, match=words), building.locked(tmp_path / "store"):
        pass


def test_a_relative_cache_is_one_folder_wherever_a_process_works(tmp_path, monkeypatch):
    monkeypatch.setenv("BIRDTUNE_CACHE", "cache")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert building.default_cache() == tmp_path / "cache"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert building.default_cache() == tmp_path / "cache"
    script = "from birdnet_core.data.building import default_cache; print(default_cache())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "cache"), done.stderr


def test_the_file_of_hashes_is_named_where_it_is_damaged(tmp_path):
    (tmp_path / "hashes.sqlite").write_text("no database" * 100)
    with pytest.raises(MachineError, match=r"hashes\.sqlite.*cannot be used: file is not a database"):
        content_hashes([__file__], tmp_path, workers=1)


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


def clips_of(paths, config, cache):
    with Workers(1) as workers:
        return build_clips(paths, config.data, cache, workers=workers, progress=lambda *a: None)


def test_clips_keep_amplitude_and_count(birds, small_config, cache):
    manifest = read_manifest(birds)
    config = small_config.override({"data.windows_per_recording": 3})
    found = clips_of(manifest["path"].tolist(), config, cache)
    store, n_windows = found.store, found.recordings["n_windows"]
    rows, recording = found.rows()
    assert len(set(rows)) == len(rows) == n_windows.sum() > len(manifest)
    assert n_windows.max() == 3
    clips = store.read(rows)
    assert clips.shape == (len(rows), 22_050)
    # 16 bits of each window's own range: the loudest sample of every window is full scale.
    np.testing.assert_allclose(np.abs(store.samples[rows]).max(axis=1), 32_767)
    assert (np.bincount(recording) == n_windows).all()


def test_a_quiet_recording_keeps_its_resolution(tmp_path, small_config):
    folder = tmp_path / "quiet" / "robin"
    folder.mkdir(parents=True)
    samples = (1e-4 * np.sin(2 * np.pi * 2000 * np.arange(22_050) / 22_050)).astype(np.float32)
    soundfile.write(folder / "q.wav", samples, 22_050, subtype="FLOAT")
    config = small_config.override({"data.highpass_hz": 0.0})
    store = clips_of([str(folder / "q.wav")], config, tmp_path).store
    np.testing.assert_allclose(store.read(np.array([0]))[0].numpy(), samples, atol=1e-8)


def test_the_high_pass_removes_rumble_and_does_not_clip(tmp_path, small_config):
    folder = tmp_path / "loud" / "robin"
    folder.mkdir(parents=True)
    t = np.arange(22_050) / 22_050
    loud = (3 * np.sin(2 * np.pi * 4000 * t) + 3 * np.sin(2 * np.pi * 30 * t)).astype(np.float32)
    soundfile.write(folder / "l.wav", loud, 22_050, subtype="FLOAT")
    store = clips_of([str(folder / "l.wav")], small_config, tmp_path).store
    settled = store.read(np.array([0]))[0].numpy()[2000:]
    assert np.abs(settled).max() == pytest.approx(3, rel=0.02)
    spectrum = np.abs(np.fft.rfft(settled * np.hanning(len(settled))))
    assert spectrum[:100].max() < 0.01 * spectrum.max()


def test_statistics_come_from_the_training_split_alone(small_dataset):
    train = small_dataset.stored_features(small_dataset.rows("train")).astype(np.float64)
    np.testing.assert_allclose(small_dataset.mean, train.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(small_dataset.std, train.std(axis=(0, 2, 3)), rtol=1e-5)


def test_dataset_splits_agree_with_the_facts_and_the_proof(birds, small_config, small_dataset):
    manifest, facts = read_manifest(birds), small_dataset.facts
    for split in ("train", "val", "test"):
        assert len(np.unique(small_dataset.recording[small_dataset.rows(split)])) == facts[f"n_{split}"]
    assert sum(facts["train_counts"].values()) == facts["n_train"]
    proof = proof_of_split(manifest, small_dataset.folder)
    assert set(proof) == {"group", "recording_id", "recordist", "site"}
    for column in ("group", *facts["grouped_by"]):
        assert proof[column]["crossing"] == []


def of_repeats(manifest, config, cache, repeats, **changes):
    """Return the dataset of each repeat."""
    changed = [config.override({**changes, "repeat": repeat}) for repeat in repeats]
    return [Dataset.open(prepare(manifest, each, cache=cache, workers=1)) for each in changed]


def test_a_dataset_is_of_one_repeat_and_shares_clips_and_features(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    *deal, next_deal = of_repeats(manifest, small_config, tmp_path, range(6))
    first = deal[0]
    assert len({dataset.folder for dataset in (*deal, next_deal)}) == 6
    assert len({dataset.facts["split_id"] for dataset in deal}) == 5
    for repeat, dataset in enumerate(deal):
        assert (dataset.clips_folder, dataset.features.folder) == (first.clips_folder, first.features.folder)
        folds, facts = dataset.facts["folds"], dataset.facts
        assert (folds["n"], folds["deal"], folds["fold"]) == (5, 0, repeat)
        assert folds["parts"][f"fold {repeat}"]["n"] == facts["n_val"]
        np.testing.assert_array_equal(dataset.fold, first.fold)
        np.testing.assert_array_equal(dataset.group, first.group)
        np.testing.assert_array_equal(dataset.splits == "val", first.fold == repeat)
        np.testing.assert_array_equal(dataset.splits == "test", first.splits == "test")
        assert facts["strata"] == first.facts["strata"] and facts["notes"] == first.facts["notes"]
        assert {**folds, "fold": 0} == first.facts["folds"]
        train = manifest["species"].iloc[np.unique(dataset.recording[dataset.rows("train")])]
        assert facts["train_counts"] == train.value_counts().sort_index().to_dict()
    assert next_deal.facts["folds"]["deal"] == 1 and (next_deal.fold != first.fold).any()
    assert of_repeats(manifest, small_config.override({"seed": 9}), tmp_path, [3])[0].folder == deal[3].folder


def test_the_folds_decide_the_folder_and_a_single_one_is_the_same_for_all_repeats(
    birds, small_config, tmp_path
):
    manifest = read_manifest(birds)

    def folders(manifest, **changes):
        return [each.folder for each in of_repeats(manifest, small_config, tmp_path, range(4), **changes)]

    assert len(set(folders(manifest, **{"data.folds": 1}))) == 1
    assert len({*folders(manifest, **{"data.folds": 3}), *folders(manifest)}) == 8
    # With several folds nothing is of val_fraction.
    assert folders(manifest, **{"data.val_fraction": 0.2}) == folders(manifest)
    a, b = (folders(manifest, **{"data.folds": 1, "data.val_fraction": x})[0] for x in (0.2, 0.3))
    assert a != b
    split = manifest.assign(split=["train", "val", "test", "train"] * 10)
    assert len(set(folders(split))) == 1
    given = folders(manifest.assign(fold=["a", "b"] * 20))
    assert given[:2] == given[2:] and given[0] != given[1]


def test_validation_numbers_recordings_and_groups_by_the_manifest(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    manifest.loc[5, "path"] = str(tmp_path / "absent.wav")
    datasets = of_repeats(manifest, small_config, tmp_path, range(5))
    number = {name: i for i, name in enumerate(dict.fromkeys(manifest["recording_id"]))}
    seen = []
    for dataset in datasets:
        found = validation_split(manifest, dataset.folder)
        rows = np.unique(dataset.recording[dataset.rows("val")])
        assert found.recording == [number[name] for name in manifest["recording_id"].iloc[rows]]
        assert [found.species[i] for i in found.truth] == manifest["species"].iloc[rows].tolist()
        group_of_row = dict(zip(dataset.recording.tolist(), dataset.group.tolist(), strict=True))
        assert found.group == [group_of_row[row] for row in rows.tolist()]
        seen += rows.tolist()
    # Put together, the folds are the recordings that are not test, once each, and no group is in two folds.
    first = datasets[0]
    assert sorted(seen) == np.unique(first.recording[first.fold >= 0]).tolist()
    by_group = pd.Series(first.fold).groupby(first.group).nunique()
    assert by_group.max() == 1
    recordists = manifest["recordist"].iloc[first.recording].to_numpy()
    assert pd.Series(first.group).groupby(recordists).nunique().max() == 1


def test_given_folds_with_all_of_a_species_in_one_are_allowed_and_noted(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    first = manifest["species"].unique()[0]
    fold = np.where(manifest["species"] == first, "1", np.array(["1", "2"] * 20))
    facts = of_repeats(manifest.assign(fold=fold), small_config, tmp_path, [0])[0].facts
    assert facts["folds"]["untrained"] == [first] and facts["train_counts"][first] == 0
    assert facts["folds"]["labels"] == ["1", "2"] and facts["n_test"] == 0
    (note,) = [note for note in facts["notes"] if "no training recording when" in note]
    assert note.startswith("1 of 4 species") and first in note


def test_recordings_of_a_single_group_are_unused_where_it_is_validated(birds, small_config, tmp_path):
    manifest = read_manifest(birds)
    species = manifest["species"].value_counts(ascending=True).index
    manifest["recordist"] = [f"r{i}" for i in range(40)]
    mine = manifest.index[manifest["species"] == species[0]]
    # One recordist has the only recordings of one species, and one of another.
    other = manifest.index[manifest["species"] == species[1]][0]
    manifest.loc[[*mine, other], "recordist"] = "ann"
    manifest["site"] = ""
    deal = of_repeats(manifest, small_config, tmp_path, range(5))
    facts = deal[0].facts
    assert facts["folds"]["never_scored"] == facts["folds"]["untrained"] == [species[0]]
    assert facts["folds"]["scored_in_part"] == []
    notes = " ".join(facts["notes"])
    assert f"1 of 4 species is never scored: {species[0]}" in notes
    assert (
        f"1 of 4 species has no training recording when one of the folds is validated: {species[0]}" in notes
    )
    parts = facts["folds"]["parts"]
    assert "train" not in parts
    assert sum(part["n"] + part["n_unused"] for part in parts.values()) == 40
    (of_ann,) = {dataset.fold[row] for dataset in deal for row in [*mine, other]}
    for repeat, dataset in enumerate(deal):
        found, facts = dataset.splits, dataset.facts
        is_here = repeat == of_ann
        assert set(found[mine]) == {"unused" if is_here else "train"}
        assert found[other] == ("val" if is_here else "train")
        assert facts["n_unused"] == parts[f"fold {repeat}"]["n_unused"] == (len(mine) if is_here else 0)
        assert facts["n_val"] == parts[f"fold {repeat}"]["n"]
        assert facts["train_counts"][species[0]] == (0 if is_here else len(mine))
        assert not set(validation_split(manifest, dataset.folder).recording) & set(mine)
        proof = proof_of_split(manifest, dataset.folder)
        assert proof["group"]["crossing"] == proof["recordist"]["crossing"] == []
        # Where nothing is validated, all that is not of the test split is trained on.
        final = small_config.override({"training.train_on": "train+val", "repeat": repeat})
        trained_on = dataset.rows(*final.training.train_splits)
        np.testing.assert_array_equal(trained_on, np.flatnonzero(found != "test"))


def test_facts_name_the_species_that_are_never_scored_and_those_scored_in_part(birds, small_config, tmp_path):
    manifest = read_manifest(birds).assign(site="")
    species = sorted(manifest["species"].unique())
    # Of three recordists, each two share a species: one of them is in neither of two folds.
    pairs = dict(zip(species, ("ab", "bc", "ca", "dd"), strict=True))
    n = manifest.groupby("species").cumcount()
    manifest["recordist"] = [pairs[name][i % 2] for name, i in zip(manifest["species"], n, strict=True)]
    changes = {"data.folds": 2, "data.test_fraction": 0.0}
    facts = of_repeats(manifest, small_config, tmp_path, [0], **changes)[0].facts
    in_part = facts["folds"]["scored_in_part"]
    assert len(in_part) == 2 and facts["folds"]["never_scored"] == [species[3]]
    assert facts["folds"]["parts"]["train"]["n_groups"] == 2 and facts["folds"]["untrained"] == []
    notes = " ".join(facts["notes"])
    assert f"1 of 4 species is never scored: {species[3]}" in notes
    assert f"in training in every repeat: {', '.join(in_part)}" in notes


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
    mean, std = feature_store.channel_statistics(np.array_split(features, 4))
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(std, features.astype(np.float64).std(axis=(0, 2, 3)))


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
    clips = np.arange(len(dataset.labels))
    computed = build_feature(config.features, 22_050, 22_050)(dataset.waveforms(clips)).numpy()
    stored = dataset.stored_features(clips)
    assert np.abs(stored - computed).max() < 1e-3
    assert np.abs(computed).max() > 3


def test_a_killed_computation_of_features_continues_where_it_stopped(
    birds, small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(feature_store, "CHUNK", 8)
    compute, computed = feature_store._compute, []

    def dying(task):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(task.rows[0])
        return compute(task)

    monkeypatch.setattr(feature_store, "_compute", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(read_manifest(birds), small_config, cache=tmp_path, workers=1)
    computed.clear()
    monkeypatch.setattr(
        feature_store, "_compute", lambda task: computed.append(task.rows[0]) or compute(task)
    )
    folder = prepare(read_manifest(birds), small_config, cache=tmp_path, workers=1)
    assert computed == [24, 32]
    manifest = read_manifest(birds)
    whole, _ = totals(manifest, small_config, tmp_path / "other")
    assert_equal_content(by_recording(Dataset.open(folder), manifest), by_recording(whole, manifest))


def test_features_larger_than_their_clips_are_not_stored(birds, small_config, tmp_path):
    large = {"features.name": "log_mel", "features.hop": 64, "features.n_fft": 2048, "data.window_s": 1.0}
    config = TrainConfig().override({**large, "features.standardise": "train"})
    folder = prepare(read_manifest(birds), config, cache=tmp_path, workers=1)
    dataset = Dataset.open(folder)
    assert dataset.features is None
    assert dataset.input_shape == (1, 128, 345)
    assert not (tmp_path / "features").exists()
    waveforms = dataset.waveforms(dataset.rows("train"))
    features = build_feature(config.features, 22_050, 22_050)(waveforms).numpy()
    np.testing.assert_allclose(dataset.mean, [features.mean()], rtol=1e-4)
    np.testing.assert_allclose(dataset.std, [features.std()], rtol=1e-4)
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


def test_copies_are_listed_kept_in_one_split_and_named_where_labels_differ(birds, small_config, tmp_path):
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
    assert len(copies["splits"]) == 1
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
