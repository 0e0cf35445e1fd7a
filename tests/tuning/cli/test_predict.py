"""`birdtune predict` and `export` as a user types them."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from birdnet_core.build import build_model, input_shape
from birdnet_core.inference.classifier import Classifier, tempered
from birdnet_core.inference.model_folder import Member, read_model, write_model
from birdnet_core.inference.onnx_export import Averaged, export_onnx

RATE = 22_050
SPECIES = ["blackbird", "robin", "wren"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_config):
    folder = tmp_path_factory.mktemp("model") / "model"
    config = small_config.override({"training.precision": "fp32"})
    members = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build_model(config.model, input_shape(config), len(SPECIES))
        members.append(Member(network.state_dict(), seed, 1, f"abc-r{seed}"))
    write_model(
        folder,
        config=config,
        species=SPECIES,
        input_shape=input_shape(config),
        mean=[-20.0, 0.0, 0.0],
        std=[30.0, 2.0, 1.0],
        members=members,
        provenance={},
        temperature=0.2,
    )
    return folder


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "audio"
    (folder / "site").mkdir(parents=True)
    rng = np.random.default_rng(0)
    soundfile.write(folder / "a.wav", 0.1 * rng.standard_normal(int(2.5 * RATE)), RATE)
    soundfile.write(folder / "site" / "b.flac", 0.1 * rng.standard_normal(2 * RATE), RATE)
    (folder / "bad.mp3").write_text("not audio")
    return folder


def test_threads_of_predict_sleep_where_they_wait_unless_the_user_says_otherwise(
    birdtune, model, audio, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert birdtune(f"predict {model} {audio} --out {tmp_path / 'x.csv'}")[0] == 0
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    # It is in time: the command line alone does not load torch.
    without = "import sys, tuning.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", without], check=True)
    assert birdtune(f"predict {model} {audio} --out {tmp_path / 'y.csv'}")[0] == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_predict_writes_the_rows_of_the_python_call(birdtune, model, audio, tmp_path):
    code, out, err = birdtune(
        f"predict {model} {audio} --out {tmp_path / 'x.csv'} --top-k 2 --overlap 0.5 --json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert (result["n_recordings"], result["n_faulty"], result["audio_s"]) == (3, 1, 4.5)
    assert result["faulty"] == [{"path": str(audio / "bad.mp3"), "error": result["faulty"][0]["error"]}]
    assert "text, not audio" in result["faulty"][0]["error"]
    frame = pd.read_csv(tmp_path / "x.csv")
    expected = Classifier.load(model).predict(audio, top_k=2, overlap_s=0.5)
    pd.testing.assert_frame_equal(frame, expected, atol=1e-6, check_dtype=False)
    assert (result["n_windows"], result["n_rows"]) == (len(frame) // 2, len(frame))
    assert not list(tmp_path.glob("*.partial"))


def test_predict_prints_what_it_did_and_lists_bad_files(birdtune, model, audio, tmp_path):
    code, out, err = birdtune(f"predict {model} {audio} --out {tmp_path / 'x.csv'}")
    assert code == 0
    assert "2 of 3 recordings" in out and "times real time" in out
    assert "1 recording had a fault" in err and "bad.mp3: the file is text, not audio" in err


def test_json_is_a_list_of_rows(birdtune, model, audio, tmp_path):
    assert birdtune(f"predict {model} {audio} --out {tmp_path / 'x.json'} --top-k 1")[0] == 0
    rows = json.loads((tmp_path / "x.json").read_text())
    assert [row["start_s"] for row in rows] == [0, 1, 2, 0, 1]
    assert {row["species"] for row in rows} <= set(SPECIES)
    line = f"predict {model} {audio} --out {tmp_path / 'none.json'} --min-probability 1"
    assert birdtune(line)[0] == 0
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_a_selection_table_has_the_columns_and_times_of_raven(birdtune, model, audio, tmp_path):
    code, _, err = birdtune(f"predict {model} {audio} --out {tmp_path / 'x.txt'} --top-k 1")
    assert code == 0, err
    table = pd.read_csv(tmp_path / "x.txt", sep="\t")
    assert list(table.columns[:7]) == [
        "Selection",
        "View",
        "Channel",
        "Begin Time (s)",
        "End Time (s)",
        "Low Freq (Hz)",
        "High Freq (Hz)",
    ]
    assert table["Selection"].tolist() == [1, 2, 3, 4, 5]
    assert table["Begin Time (s)"].tolist() == [0, 1, 2, 2.5, 3.5]
    assert table["End Time (s)"].tolist() == [1, 2, 2.5, 3.5, 4.5]
    assert table["File Offset (s)"].tolist() == [0, 1, 2, 0, 1]
    assert table["Begin File"].tolist() == ["a.wav"] * 3 + ["b.flac"] * 2
    assert set(table["Low Freq (Hz)"]) == {500.0} and set(table["High Freq (Hz)"]) == {11_025.0}
    assert table["Confidence"].between(0, 1).all()


def test_min_probability_leaves_out_rows(birdtune, model, audio, tmp_path):
    line = f"predict {model} {audio} --out {tmp_path / 'x.csv'} --top-k 3"
    assert birdtune(line)[0] == 0
    everything = pd.read_csv(tmp_path / "x.csv")
    limit = (everything["probability"].min() + everything["probability"].max()) / 2
    assert birdtune(f"{line} --min-probability {limit}")[0] == 0
    assert (
        len(pd.read_csv(tmp_path / "x.csv")) == (everything["probability"] >= limit).sum() < len(everything)
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("predict {tmp}/none {audio} --out {tmp}/x.csv", ["no model folder", "birdtune train"]),
        ("predict {model} {audio} --out {tmp}/x.xls", ["x.xls", "csv, json, raven"]),
        ("predict {model} {audio} --out {tmp}/x.csv --format xml", ["'xml'", "csv, json, raven"]),
        ("predict {model} {audio} --out {tmp}/x.csv --overlap 1", ["overlap_s = 1", "0 to 0.95"]),
        ("predict {model} {audio} --out {tmp}/x.csv --top-k 0", ["--top-k 0", "1 or more"]),
        ("predict {model} {audio} --out {tmp}/x.csv --min-probability 2", ["--min-probability 2", "0 to 1"]),
        ("predict {model} {audio} --out {tmp}/x.csv --device tpu", ["'tpu'", "cpu", "cuda"]),
        ("predict {model} {audio}/bad.mp3 {audio}/none.wav --out {tmp}/x.csv", ["not one of 2", "none.wav"]),
        ("predict {model} {model} --out {tmp}/x.csv", ["holds no audio", ".flac"]),
        ("export {tmp}/none", ["no model folder"]),
    ],
)
def test_bad_input_is_an_error_and_nothing_is_left(birdtune, model, audio, tmp_path, line, words):
    code, _, err = birdtune(line.format(tmp=tmp_path, model=model, audio=audio))
    assert code == 1
    assert all(word in err for word in words), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio"]


def test_what_is_exported_gives_the_classifiers_probabilities(model):
    loaded = read_model(model)
    classifier = Classifier(loaded, device="cpu")
    waveforms = 0.1 * torch.randn(4, RATE)
    expected = tempered(classifier.probabilities(waveforms), loaded.temperature)
    with torch.inference_mode():
        found = Averaged(loaded).eval()(classifier.feature(waveforms)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_exported_graph_takes_any_batch(model):
    loaded = read_model(model)
    averaged = Averaged(loaded).eval()
    example = torch.randn(3, *loaded.input_shape)
    shapes = {"features": {0: torch.export.Dim("batch")}}
    graph = torch.export.export(averaged, (example,), dynamic_shapes=shapes).module()
    for n in (2, 7):
        features = torch.randn(n, *loaded.input_shape)
        torch.testing.assert_close(graph(features), averaged(features))


def test_a_missing_library_is_named_with_the_remedy(birdtune, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = birdtune(f"export {model} --out {tmp_path / 'x.onnx'}")
    assert code == 1
    assert "needs onnx" in err and "birdtune[onnx]" in err
    assert not list(tmp_path.iterdir())


def test_the_onnx_file_agrees_with_torch_and_says_what_it_takes(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    loaded = read_model(model)
    assert export_onnx(loaded, tmp_path / "model.onnx") <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    facts = {p.key: json.loads(p.value) for p in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert facts["species"] == SPECIES and facts["feature"]["name"] == "mfcc"
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    features = torch.randn(5, *loaded.input_shape)
    (found,) = session.run(["probabilities"], {"features": features.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(found, Averaged(loaded).eval()(features).numpy(), atol=1e-4)
