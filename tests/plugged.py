"""What a laboratory adds to birdtune: a package of its own, and a study file with a loss."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from birdnet_core import plugins, registry

MODEL = '''"""A laboratory's networks."""

from torch import nn

from birdnet_core.registry import models
from my_lab.layers import FIRST


@models.register("lab_linear")
class LabLinear(nn.Module):
    """A linear layer on the mean over frames."""

    def __init__(self, input_shape, n_classes, *, scale: float = 1.0):
        super().__init__()
        channels, bins, _ = input_shape
        self.scale = scale
        self.head = nn.Linear(channels * bins, n_classes)

    def forward(self, features):
        return self.head(features.mean(FIRST).flatten(1)) * self.scale
'''

FEATURE = '''"""A laboratory's feature, which worker processes of `prepare` compute."""

from torch import nn

from birdnet_core.registry import features


@features.register("lab_envelope")
class LabEnvelope(nn.Module):
    """The loudness of 20 x 10 parts of the clip."""

    def __init__(self, sample_rate, n_samples, *, gain: float = 1.0):
        super().__init__()
        self.part, self.gain = n_samples // 200, gain
        self.shape = (1, 20, 10)

    def forward(self, waveforms):
        parts = waveforms[:, : 200 * self.part].reshape(len(waveforms), 1, 20, 10, self.part)
        return self.gain * parts.abs().mean(-1)
'''

STUDY = '''"""A loss of my own, and whether it helps."""

import torch
from birdnet_core.registry import losses
from search_spaces import Ablation, register_study


@losses.register("half_entropy")
class HalfEntropy(torch.nn.Module):
    """Half of the cross-entropy."""

    def __init__(self, class_counts, *, share: float = 0.5):
        super().__init__()
        self.share = share

    def forward(self, logits, targets):
        return self.share * torch.nn.functional.cross_entropy(logits, targets)

    def normaliser(self, targets):
        return torch.full((), float(len(targets)), device=targets.device)


@register_study("halves")
def halves():
    """Does half of the loss do?"""
    return Ablation(
        factors={"loss.name": ("cross_entropy", "half_entropy")},
        n_repeats=1,
        base={"model.name": "audio_cnn"},
    )
'''


def write_lab(folder: Path) -> Path:
    """Write the package my_lab into `folder`, and return that."""
    package = folder / "my_lab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text("FIRST = 3\n")
    (package / "models.py").write_text(MODEL)
    (package / "features.py").write_text(FEATURE)
    return folder


def write_study(folder: Path) -> Path:
    """Write the study with its loss into `folder`, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "halves.py"
    file.write_text(STUDY)
    return file


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Forget at the end what the block registers and imports of its own, as where its process ends."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_loaded", {})
        patch.setattr(sys, "path", list(sys.path))
        for each in (*registry.COMPONENTS, registry.studies):
            each.names()
            patch.setattr(each, "_entries", dict(each._entries))
        yield
    for name in set(sys.modules) - before:
        if name.startswith(("my_lab", "birdtune_file_")):
            del sys.modules[name]
