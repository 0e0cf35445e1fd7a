"""One training run, without Ray and Optuna: recordings, features, model, loss, training, metrics, prediction.

The names that a notebook needs are here; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from birdnet_core.config import TrainConfig
    from birdnet_core.data.audio import load_audio
    from birdnet_core.data.dataset import Dataset, prepare
    from birdnet_core.inference.classifier import Classifier
    from birdnet_core.training.run import train
    from birdnet_core.training.session import Session

__all__ = ["Classifier", "Dataset", "Session", "TrainConfig", "load_audio", "prepare", "train"]

_MODULES = {
    "Classifier": "inference.classifier",
    "Dataset": "data.dataset",
    "Session": "training.session",
    "TrainConfig": "config",
    "load_audio": "data.audio",
    "prepare": "data.dataset",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
