"""Any network in an ONNX file, with a small JSON file beside it that states its convention."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from birdnet_core.backbones.base import HASH_DIGITS, Backbone, Convention, hash_of, package
from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.checks import Types, check_fields
from birdnet_core.records.files import read_json
from birdnet_core.registry import backbones

REQUIRED: Mapping[str, Types] = {
    "sample_rate": (int,), "window_s": (int, float), "dim": (int,), "output": (str,), "licence": (str,),
    "trained_on": (str,),
}  # fmt: skip
OPTIONAL: Mapping[str, Types] = {
    "highpass_hz": (int, float), "scale": (int, float), "source": (str,), "labels": (list,),
    "label_output": (str,), "last_xeno_canto": (int,),
}  # fmt: skip
FED = ("sample_rate", "window_s", "highpass_hz", "dim", "output")


@backbones.register("onnx")
class Onnx(Backbone):
    """A network in an ONNX file, from waveforms [windows, samples] to embeddings [windows, dim].

    `weights` is the file, such as perch.onnx, and perch.json beside it states the convention:
    sample_rate, window_s, dim, output (the name of the embedding among the outputs), licence and
    trained_on; and where they apply scale (what the samples are multiplied by, 1 by default), highpass_hz,
    source, labels with label_output, and last_xeno_canto. onnxruntime runs the file, which must hold its
    weights.
    """

    packages = ("onnxruntime",)
    extra = "onnx"

    def __init__(self, weights: str) -> None:
        self.path = Path(weights)
        if not self.path.is_file():
            raise ConfigError(
                f"features.weights = {weights!r} is not a file; the backbone 'onnx' takes an ONNX file with "
                "a JSON file of its convention beside it"
            )
        beside = self.path.with_suffix(".json")
        stated = _stated(beside)
        self.scale = float(stated.pop("scale", 1.0))
        self.label_output = stated.pop("label_output", None)
        labels = stated.pop("labels", [])
        if bool(labels) != bool(self.label_output) or not all(isinstance(each, str) for each in labels):
            raise ConfigError(
                f"{str(beside)!r}: labels and label_output go together: the names of species, and the output "
                "that has a logit for each"
            )
        stated.setdefault("source", str(self.path.name))
        times = f", times {self.scale:g}" if self.scale != 1 else ""
        self.convention = Convention(**stated, labels=tuple(labels), inputs=f"the samples{times}")
        # What is fed and taken is part of what the embeddings are; the rest of the convention is not.
        fed = {key: value for key, value in vars(self.convention).items() if key in FED}
        content = json.dumps([hash_of(self.path), self.scale, fed], sort_keys=True)
        self.weights_hash = hashlib.sha256(content.encode()).hexdigest()[:HASH_DIGITS]

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        return self._run(self.convention.output, waveforms, self.convention.dim)

    def label_logits(self, waveforms: np.ndarray) -> np.ndarray:
        if self.label_output is None:
            return super().label_logits(waveforms)
        return self._run(self.label_output, waveforms, len(self.convention.labels))

    @functools.cached_property
    def _session(self) -> Any:
        runtime = package("onnxruntime", "onnx", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own without a common base
            raise ConfigError(
                f"the backbone 'onnx' cannot use {str(self.path)!r}: {error}; it is damaged or no ONNX file"
            ) from None
        given = [output.name for output in session.get_outputs()]
        for name in (self.convention.output, self.label_output):
            if name is not None and name not in given:
                raise ConfigError(
                    f"{str(self.path.with_suffix('.json'))!r} names the output {name!r}, and "
                    f"{str(self.path)!r} has {', '.join(given)}"
                )
        return session

    def _run(self, output: str, waveforms: np.ndarray, size: int) -> np.ndarray:
        taken = self._session.get_inputs()[0].name
        samples = np.asarray(waveforms, np.float32) * np.float32(self.scale)
        try:
            (found,) = self._session.run([output], {taken: samples})
        except Exception as error:  # as above
            raise ConfigError(
                f"{str(self.path)!r} does not take windows of {samples.shape[1]} samples, as its convention "
                f"states: {str(error).splitlines()[0]}"
            ) from None
        if found.shape != (len(waveforms), size):
            raise ConfigError(
                f"the output {output!r} of {str(self.path)!r} has the shape {list(found.shape)} for "
                f"{len(waveforms)} windows; its convention says [{len(waveforms)}, {size}]"
            )
        values: np.ndarray = found.astype(np.float32)
        return values


def _stated(path: Path) -> dict[str, Any]:
    """Return the values of a convention's file; ConfigError that names what is missing or wrong."""
    try:
        stated = read_json(path)
        check_fields(repr(str(path)), stated, REQUIRED, OPTIONAL)
    except RunFolderError as error:
        example = json.dumps({"sample_rate": 32_000, "window_s": 5.0, "dim": 1536, "output": "embedding",
                              "licence": "Apache-2.0", "trained_on": "xeno-canto"})  # fmt: skip
        raise ConfigError(f"{error}; the convention of an ONNX file is stated like {example}") from None
    unknown = sorted(stated.keys() - REQUIRED.keys() - OPTIONAL.keys())
    if unknown:
        raise ConfigError(
            f"{str(path)!r} has an unknown {unknown[0]!r}; it takes {', '.join([*REQUIRED, *OPTIONAL])}"
        )
    return dict(stated)
