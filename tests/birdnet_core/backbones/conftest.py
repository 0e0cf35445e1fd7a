"""A tiny network in an ONNX file, in the place of a backbone of a hundred megabytes."""

import json

import numpy as np
import pytest

CONVENTION = {
    "sample_rate": 8_000, "window_s": 0.5, "dim": 6, "output": "embedding", "licence": "CC0",
    "trained_on": "nothing", "labels": ["Turdus merula", "Parus major"], "label_output": "logits",
    "scale": 2.0,
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_onnx_in():
    """Return a function that writes weights.onnx with its convention to a folder.

    It returns the path of the file and the matrices of the network.
    """
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

    def write(folder, seed=0, *, n_samples=4_000, **changes):
        dim = CONVENTION["dim"]
        rng = np.random.default_rng(seed)
        first = rng.standard_normal((n_samples, dim)).astype(np.float32)
        second = rng.standard_normal((dim, 2)).astype(np.float32)
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["waveforms", "first"], ["embedding"]),
                helper.make_node("MatMul", ["embedding", "second"], ["logits"]),
            ],
            "tiny",
            [helper.make_tensor_value_info("waveforms", kind, ["n", n_samples])],
            [
                helper.make_tensor_value_info("embedding", kind, ["n", dim]),
                helper.make_tensor_value_info("logits", kind, ["n", 2]),
            ],
            [onnx.numpy_helper.from_array(first, "first"), onnx.numpy_helper.from_array(second, "second")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, folder / "weights.onnx")
        stated = {key: value for key, value in {**CONVENTION, **changes}.items() if value is not None}
        (folder / "weights.json").write_text(json.dumps(stated))
        return str(folder / "weights.onnx"), first, second

    return write


@pytest.fixture
def tiny_onnx(tiny_onnx_in, tmp_path):
    return lambda *args, **changes: tiny_onnx_in(tmp_path, *args, **changes)
