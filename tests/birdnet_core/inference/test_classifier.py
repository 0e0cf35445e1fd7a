"""Prediction on files of any length: the same numbers as in training, and never all of a file in memory."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from birdnet_core.errors import ConfigError, DataError
from birdnet_core.inference.classifier import Classifier, tempered
from birdnet_core.inference.model_folder import Member, read_model, write_model
from birdnet_core.inference.streaming import audio_files
from birdnet_core.training.run import save_model, train

RATE = 22_050


@pytest.fixture(scope="module")
def session(small_config, small_dataset):
    return train(small_config.override({"training.precision": "fp32"}), small_dataset)


@pytest.fixture(scope="module")
def folder(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(session, folder)
    return folder


@pytest.fixture(scope="module")
def classifier(folder):
    return Classifier.load(folder, device="cpu")


def song(path, seconds, *, rate=RATE, seed=0, **options):
    """Write noise with chirps in it."""
    t = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    chirps = np.sin(2 * np.pi * (2_000 + 900 * np.sin(2 * np.pi * rng.uniform(1, 4) * t)) * t)
    soundfile.write(path, (0.2 * chirps + 0.01 * rng.standard_normal(len(t))).astype("f4"), rate, **options)
    return path


def probabilities(frame, species):
    """Return [windows, classes] of a frame that ranks all classes."""
    rows = [
        part.set_index("species")["probability"][list(species)]
        for _, part in frame.groupby(["file", "start_s"], sort=False)
    ]
    return np.stack(rows)


def test_clips_score_as_they_did_in_validation(session, classifier, small_dataset):
    expected, _ = session.predict("val")
    clips = small_dataset.waveforms(small_dataset.rows("val"))
    # Stored features are rounded to 16 bits; one window a recording here.
    np.testing.assert_allclose(classifier.probabilities(clips), expected, atol=1e-3)


def test_a_frame_has_the_best_species_of_every_window(classifier, tmp_path):
    a, b = song(tmp_path / "a.wav", 2.5), song(tmp_path / "b.flac", 0.6, seed=1)
    frame = classifier.predict([a, b], top_k=2)
    assert list(frame.columns) == ["file", "start_s", "end_s", "rank", "species", "probability"]
    assert frame["file"].tolist() == [str(a)] * 6 + [str(b)] * 2
    assert frame["start_s"].tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    assert frame["end_s"].tolist() == [1, 1, 2, 2, 2.5, 2.5, 0.6, 0.6]
    assert frame["rank"].tolist() == [1, 2] * 4
    assert set(frame["species"]) <= set(classifier.species)
    best, second = frame["probability"][::2].to_numpy(), frame["probability"][1::2].to_numpy()
    assert (best >= second).all()
    everything = classifier.predict(a, top_k=99)
    assert len(everything) == 3 * len(classifier.species)
    np.testing.assert_allclose(probabilities(everything, classifier.species).sum(1), 1)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_do_not_change_scores(classifier, tmp_path, batch_size):
    files = [song(tmp_path / f"{n}.wav", 1.7 + n, seed=n) for n in range(3)]
    expected = classifier.predict(files, overlap_s=0.4)
    frame = classifier.predict(files, overlap_s=0.4, batch_size=batch_size)
    pd.testing.assert_frame_equal(frame, expected, atol=1e-5, rtol=0)


def test_a_long_file_scores_as_its_pieces_do(classifier, tmp_path):
    pieces = [song(tmp_path / f"{n}.wav", 5.0, seed=n, rate=44_100) for n in range(4)]
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, np.concatenate([soundfile.read(p)[0] for p in pieces]), 44_100)
    n = len(classifier.species)
    of_pieces = probabilities(classifier.predict(pieces, top_k=n), classifier.species)
    of_whole = probabilities(classifier.predict(whole, top_k=n), classifier.species)
    inside = np.arange(20) % 5 != 0
    np.testing.assert_allclose(of_whole[inside], of_pieces[inside], atol=1e-4)
    # A piece begins from silence, to which the high-pass and the resampler answer.
    np.testing.assert_allclose(of_whole, of_pieces, atol=0.05)


def test_an_ensemble_is_the_average_of_its_members_and_the_temperature_comes_last(folder, tmp_path):
    one = read_model(folder)
    first = one.members[0]
    changed = {
        name: value + 0.05 * torch.randn_like(value) if value.is_floating_point() else value
        for name, value in first.weights.items()
        if "running" not in name
    }
    second = Member({**first.weights, **changed}, 1, 2, "other-s1")
    facts = {name: getattr(one, name) for name in ("config", "species", "input_shape", "mean", "std")}
    members = {"a": [first], "b": [second], "both": [first, second], "hot": [first, second]}
    audio = song(tmp_path / "a.wav", 3)
    found, of_recording = {}, {}
    for name, those in members.items():
        temperature = 2.5 if name == "hot" else 1.0
        write_model(tmp_path / name, **facts, members=those, provenance={}, temperature=temperature)
        classifier = Classifier.load(tmp_path / name, device="cpu")
        found[name] = probabilities(classifier.predict(audio, top_k=9), one.species)
        recording = classifier.predict_recordings(audio, top_k=9)
        of_recording[name] = recording.set_index("species")["probability"][list(one.species)].to_numpy()
    assert np.abs(found["a"] - found["b"]).max() > 0.01
    np.testing.assert_allclose(found["both"], (found["a"] + found["b"]) / 2, atol=1e-12)
    powers = found["both"] ** (1 / 2.5)
    np.testing.assert_allclose(found["hot"], powers / powers.sum(1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(of_recording["both"], found["both"].mean(0), atol=1e-12)
    powers = found["both"].mean(0) ** (1 / 2.5)
    np.testing.assert_allclose(of_recording["hot"], powers / powers.sum(), atol=1e-12)


def test_tempering_is_that_of_logits_for_one_network():
    logits = torch.randn(5, 7, dtype=torch.float64)
    expected = torch.softmax(logits / 1.8, dim=1).numpy()
    np.testing.assert_allclose(tempered(torch.softmax(logits, dim=1).numpy(), 1.8), expected)
    assert np.isfinite(tempered(np.array([[1.0, 0.0]]), 0.05)).all()


def test_bad_files_are_named_and_the_others_are_scored(classifier, tmp_path, caplog):
    good = song(tmp_path / "good.wav", 1.5)
    (tmp_path / "text.wav").write_text("not audio\n" * 9)
    soundfile.write(tmp_path / "silent.wav", np.zeros(3 * RATE), RATE)
    absent = tmp_path / "absent.wav"
    frame = classifier.predict([tmp_path / "text.wav", absent, good, tmp_path / "silent.wav"])
    assert set(frame["file"]) == {str(good)}
    messages = [record.getMessage() for record in caplog.records]
    assert [t.split(": ")[0] for t in messages] == [
        str(tmp_path / "text.wav"),
        str(absent),
        str(tmp_path / "silent.wav"),
    ]
    assert "text, not audio" in messages[0] and "No such file" in messages[1] and "silent" in messages[2]
    with pytest.raises(DataError, match=r"not one of 2 recordings(?s:.*)absent.wav: cannot read"):
        classifier.predict([tmp_path / "text.wav", absent])


def test_a_truncated_file_keeps_its_windows_but_no_score_as_a_recording(classifier, tmp_path, caplog):
    whole = song(tmp_path / "whole.wav", 6)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert classifier.predict(cut)["end_s"].max() <= 3
    frame = classifier.predict_recordings([cut, whole])
    assert set(frame["file"]) == {str(whole)} and set(frame["n_windows"]) == {6}
    assert "truncated" in caplog.text


def test_silence_within_a_recording_has_no_rows(classifier, tmp_path):
    samples, _ = soundfile.read(song(tmp_path / "a.wav", 6))
    samples[RATE : 4 * RATE] = 0
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    # The high-pass rings on for a moment in the first second of silence.
    assert classifier.predict(tmp_path / "a.wav", top_k=1)["start_s"].tolist() == [0, 1, 4, 5]


def test_awkward_recordings_are_scored(classifier, tmp_path):
    t = np.arange(RATE) / RATE
    awkward = {
        "constant": np.full(RATE, 0.5),
        "click": np.eye(1, RATE, RATE // 2)[0],
        "square": np.sign(np.sin(2 * np.pi * 50 * t)),
        "loud": 100 * np.sin(2 * np.pi * 3_000 * t),
        "quiet": 1e-7 * np.sin(2 * np.pi * 3_000 * t),
        "short": np.sin(2 * np.pi * 3_000 * t[: RATE // 15]),
    }
    for name, samples in awkward.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "eight.wav", np.random.default_rng(0).normal(0, 0.1, (RATE, 8)), RATE)
    soundfile.write(tmp_path / "slow.wav", np.random.default_rng(0).normal(0, 0.1, 8_000), 8_000)
    soundfile.write(tmp_path / "fast.wav", np.random.default_rng(0).normal(0, 0.1, 192_000), 192_000)
    frame = classifier.predict(tmp_path)
    assert frame["file"].nunique() == len(awkward) + 3
    assert frame["probability"].between(0, 1).all()


@pytest.mark.parametrize("kind", ["audio_formats", "audio_corrupt"])
def test_files_found_in_the_wild_are_scored_or_named(shared, kind, classifier, capfd):
    ended = {}
    scored = set()
    for scores in classifier.stream(shared / kind, on_end=lambda e: ended.__setitem__(e.file, e.fault)):
        scored |= set(scores.files)
        assert np.isfinite(scores.probabilities).all()
    assert set(ended) == {str(path) for path in audio_files(shared / kind)}
    assert {file for file, fault in ended.items() if not fault} <= scored
    assert any(ended.values()) == (kind == "audio_corrupt")
    assert capfd.readouterr() == ("", "")


def test_folders_are_searched_and_named_files_are_taken_as_they_are(tmp_path):
    for name in ("a/x.WAV", "a/b/y.mp3", "a/.hidden/z.wav", "a/notes.txt", "odd.dat"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    assert audio_files([tmp_path / "odd.dat", tmp_path / "a"]) == [
        tmp_path / name for name in ("odd.dat", "a/b/y.mp3", "a/x.WAV")
    ]
    with pytest.raises(DataError, match=r"empty' holds no audio.*\.flac"):
        audio_files(tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap_s": 1.0}, "overlap_s = 1 .* 0 to 0.95"),
        ({"overlap_s": -0.1}, "overlap_s = -0.1"),
        ({"overlap_s": float("nan")}, "overlap_s = nan"),
        ({"top_k": 0}, "top_k = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_options_out_of_range_are_refused(classifier, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        classifier.predict(song(tmp_path / "a.wav", 1), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(folder):
    with pytest.raises(ConfigError, match="no GPU"):
        Classifier.load(folder, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_scores_of_the_cpu(folder, classifier, tmp_path):
    audio = song(tmp_path / "a.wav", 5)
    of_gpu, of_cpu = (c.predict(audio, top_k=9) for c in (Classifier.load(folder, device="cuda"), classifier))
    np.testing.assert_allclose(
        probabilities(of_gpu, classifier.species), probabilities(of_cpu, classifier.species), atol=1e-3
    )


def test_a_long_file_takes_no_more_memory_than_a_short_one(folder, tmp_path):
    """The peak of two processes: half an hour would take 317 MB as samples at its own rate alone."""
    script = (
        "import resource, sys, torch\n"
        "from birdnet_core.inference.classifier import Classifier\n"
        "torch.set_num_threads(1)\n"
        "n = sum(len(s.files) for s in Classifier.load(sys.argv[1], device='cpu').stream(sys.argv[2]))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    peaks = {}
    for minutes in (1, 30):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", 44_100, 1) as file:
            for seed in range(minutes):
                file.write(0.1 * np.random.default_rng(seed).standard_normal(60 * 44_100))
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder), str(path)], capture_output=True, text=True, check=True
        )
        n, peaks[minutes] = map(int, done.stdout.split())
        assert n == 60 * minutes
        path.unlink()
    assert peaks[30] - peaks[1] < 60
