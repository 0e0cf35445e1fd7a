"""Export a model as one ONNX file, for programs without torch."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from birdnet_core.errors import ConfigError, DataError
from birdnet_core.inference.model_folder import Model
from birdnet_core.training.batches import over_channels

LARGEST_DIFFERENCE = 1e-4
EXAMPLES = 3


class Averaged(nn.Module):
    """All members of a model: features [batch, channels, bins, frames] to probabilities [batch, classes].

    Standardising by the training split's statistics, the average of the members and the temperature are
    inside; waveforms become features outside, by `build_feature`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.members = nn.ModuleList(model.networks())
        self.temperature = model.temperature
        self.mean: torch.Tensor
        self.std: torch.Tensor
        for name, values in (("mean", model.mean), ("std", model.std)):
            self.register_buffer(name, over_channels(torch.tensor([values]), model.input_shape))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = (features - self.mean) / self.std
        of_members = torch.stack([torch.softmax(member(features), dim=1) for member in self.members])
        smallest = torch.finfo(torch.float32).tiny
        return torch.softmax(of_members.mean(0).clamp(min=smallest).log() / self.temperature, dim=1)


def export_onnx(model: Model, out: Path) -> float:
    """Write `model` to `out` and return the largest difference of a probability from torch's.

    The file takes ``features`` of any batch size and gives ``probabilities``; its metadata hold the species,
    the sample rate, the window and the options of the feature, as JSON. Raises ConfigError where a library is
    missing, and DataError, leaving no file, where a probability differs by more than 1e-4.
    """
    onnx, runtime, _ = (_needed(name) for name in ("onnx", "onnxruntime", "onnxscript"))
    averaged = Averaged(model).eval()
    generator = torch.Generator().manual_seed(0)
    features = averaged.mean + averaged.std * torch.randn(EXAMPLES, *model.input_shape, generator=generator)
    # It warns of torchvision's operators, which no model here has, where torchvision is absent.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            # torch warns of its own deprecated calls.
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            torch.onnx.export(
                averaged,
                (features,),
                partial,
                input_names=["features"],
                output_names=["probabilities"],
                dynamic_shapes={"features": {0: torch.export.Dim("batch")}},
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        made = onnx.load(partial)
        data = model.config.data
        facts = {
            "species": model.species,
            "sample_rate": data.sample_rate,
            "window_s": data.window_s,
            "highpass_hz": data.highpass_hz,
            "feature": {"name": model.config.features.name, **model.config.features.kwargs},
        }
        onnx.helper.set_model_props(made, {key: json.dumps(value) for key, value in facts.items()})
        onnx.save(made, partial)
        with torch.inference_mode():
            expected = averaged(features).numpy()
        session = runtime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"features": features.numpy()})
        difference = float(np.abs(found - expected).max())
        if not difference <= LARGEST_DIFFERENCE:
            raise DataError(
                f"the ONNX file gives probabilities that differ from torch by {difference:.1e}; at most "
                f"{LARGEST_DIFFERENCE:g} is accepted, and no file was written"
            )
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return difference


def _needed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"export to ONNX needs {name}, which is not installed; install it with "
            "`pip install 'birdtune[onnx]'`"
        ) from None
