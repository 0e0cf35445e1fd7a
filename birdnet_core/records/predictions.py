"""What a trial predicted for the validation recordings, and its file of arrays, read without pickle."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from birdnet_core.errors import RunFolderError

N_TOP = 10
"""The classes of a recording whose probabilities are kept."""

# What numpy and zipfile raise for a file that was cut, altered, or written by another program.
_FAULTS = (ValueError, LookupError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The classes that a trial predicted for the validation recordings, in the order of `Validation.truth`.

    Args:
        classes: uint16 [epochs, recordings], the class predicted after every epoch.
        top: uint16 [recordings, k], the likeliest classes at the best epoch, the predicted one first; k is
            `N_TOP`, or the number of classes where that is less.
        probability: float16 [recordings, k], of `top`: three digits, and 0 below 3e-8.
    """

    classes: np.ndarray
    top: np.ndarray
    probability: np.ndarray

    def to_bytes(self) -> bytes:
        """Return the content of the file that `read` reads."""
        file = io.BytesIO()
        np.savez(file, classes=self.classes, top=self.top, probability=self.probability)
        return file.getvalue()

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Return the predictions in `path`; RunFolderError for a file that holds none."""
        classes, top, probability = _arrays(path, classes="uint16", top="uint16", probability="float16")
        if top.shape != probability.shape or len(top) != classes.shape[1]:
            raise RunFolderError(
                f"{str(path)!r} holds no predictions: classes {list(classes.shape)}, top {list(top.shape)} "
                f"and probability {list(probability.shape)} take [epochs, recordings], [recordings, k] and "
                "[recordings, k]"
            )
        return cls(classes, top, probability)

    @staticmethod
    def read_classes(path: Path) -> np.ndarray:
        """Return `classes` alone, which takes half the time; RunFolderError for a file that has none."""
        (classes,) = _arrays(path, classes="uint16")
        return classes


def _arrays(path: Path, **dtypes: str) -> list[np.ndarray]:
    """Return the arrays of two dimensions that `path` has under the names of `dtypes`."""
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = [archive[name] for name in dtypes]
    except OSError as error:
        raise RunFolderError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except _FAULTS as error:
        raise RunFolderError(f"{str(path)!r} holds no predictions: {error}") from None
    for (name, dtype), array in zip(dtypes.items(), arrays, strict=True):
        if array.dtype != dtype or array.ndim != 2:
            raise RunFolderError(
                f"{str(path)!r} holds no predictions: {name} is {array.dtype} {list(array.shape)}; it takes "
                f"{dtype} of two dimensions"
            )
    return arrays
