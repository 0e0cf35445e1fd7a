"""`birdtune embed` and `birdtune list backbones` as a user types them."""

import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from birdnet_core.backbones.onnx import Onnx
from tuning.cli.options import parse_options, parse_settings

RATE = 8_000
CONVENTION = {
    "sample_rate": RATE, "window_s": 0.5, "dim": 4, "output": "embedding", "licence": "CC0",
    "trained_on": "nothing",
}  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    matrix = np.random.default_rng(0).standard_normal((4_000, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["waveforms", "matrix"], ["embedding"])],
        "tiny",
        [helper.make_tensor_value_info("waveforms", kind, ["n", 4_000])],
        [helper.make_tensor_value_info("embedding", kind, ["n", 4])],
        [onnx.numpy_helper.from_array(matrix, "matrix")],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    path.with_suffix(".json").write_text(json.dumps(CONVENTION))
    return path


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(1.2 * RATE))
    soundfile.write(folder / "a.wav", noise, RATE, subtype="FLOAT")
    (folder / "bad.mp3").write_text("not audio")
    return folder


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_every_window_has_a_row_with_its_vector_and_bad_files_are_listed(
    birdtune, weights, audio, tmp_path, ending
):
    out = tmp_path / f"vectors{ending}"
    code, printed, _ = birdtune(f"embed {audio} --backbone onnx --weights {weights} --out {out} --json")
    assert code == 0
    result = json.loads(printed)
    assert (result["n_recordings"], result["n_faulty"], result["n_windows"]) == (2, 1, 3)
    assert "bad.mp3" in result["faulty"][0]["path"]
    frame = pd.read_parquet(out) if ending == ".parquet" else pd.read_csv(out)
    assert frame["start_s"].tolist() == [0, 0.5, 1.0]
    values = (
        np.stack(frame["embedding"]) if ending == ".parquet" else frame[["e0", "e1", "e2", "e3"]].to_numpy()
    )
    samples, _ = soundfile.read(audio / "a.wav", dtype="float32")
    windows = np.zeros((3, 4_000), np.float32)
    windows.ravel()[: len(samples)] = samples
    np.testing.assert_allclose(values, Onnx(str(weights)).embed(windows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--backbone birdnett", "did you mean 'birdnet'"),
        ("--backbone onnx", "features.weights"),
        ("--backbone onnx --weights none.onnx", "none.onnx"),
        ("--backbone birdtune --weights none", "none"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_named(birdtune, audio, tmp_path, arguments, words):
    code, _, error = birdtune(f"embed {audio} {arguments} --out {tmp_path / 'v.parquet'}")
    assert code == 1
    assert words in error
    assert not (tmp_path / "v.parquet").exists()


def test_an_ending_that_is_no_format_is_named(birdtune, audio, tmp_path):
    code, _, error = birdtune(f"embed {audio} --out {tmp_path / 'v.xlsx'}")
    assert code == 1
    assert ".parquet or .csv" in error


def test_every_backbone_is_listed_with_its_licence(birdtune):
    listed = json.loads(birdtune("list backbones --json")[1])["backbones"]
    rows = {row["name"]: row for row in listed}
    assert {"birdnet", "birdtune", "onnx"} <= rows.keys()
    assert all(row["licence"] for row in rows.values() if row["name"] != "birdnet")


def test_a_relative_file_of_weights_is_made_absolute_because_trials_run_elsewhere(weights, monkeypatch):
    monkeypatch.chdir(weights.parent)
    assert parse_settings([f"features.weights={weights.name}"]) == {"features.weights": str(weights)}
    assert parse_options([f"onnx={weights.name}", "backbone=onnx"]) == {
        "onnx": str(weights),
        "backbone": "onnx",
    }
