"""What a trial predicted for the validation recordings, and its file of arrays, read without pickle."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from birdnet_core.errors import RunFolderError

N_TOP = 10
"""The classes of a recording whose probabilities are kept."""

# What numpy and zipfile raise for a file that was cut, altered, or written by another program.
_FAULTS = (
    ValueError, LookupError, EOFError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
# What an archive begins each file with: a sign, the method, and the lengths of the name and of what follows
# it; and what it ends with (APPNOTE of PKWARE, 4.3.7 and 4.3.16).
_ENTRY, _SIGN = struct.Struct("<4s4xH16x2H"), b"PK\3\4"
_END, _N_END = b"PK\5\6", 22
_N_HEAD = 512  # bytes that hold these and the header of an array of numpy


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
    def read_epoch(path: Path, epoch: int) -> np.ndarray:
        """Return `classes` after one epoch, [recordings], from a file of `to_bytes`.

        Of the rest of the file no more is checked than that it is there.

        RunFolderError for a file that has no predictions of this epoch.
        """
        # zipfile reads the directory at the end first, which takes most of the time of ten thousand trials.
        with _faults_named(path), open(path, "rb") as file:
            head = file.read(_N_HEAD)
            sign, method, n_name, n_extra = _ENTRY.unpack_from(head)
            start = _ENTRY.size + n_name + n_extra
            if (sign, method, head[_ENTRY.size :][:n_name]) != (_SIGN, zipfile.ZIP_STORED, b"classes.npy"):
                raise ValueError("it does not begin with classes.npy, uncompressed")
            end = start + 10 + int.from_bytes(head[start + 8 : start + 10], "little")
            (n_epochs, n_recordings), dtype = _header(head[start:end])
            if dtype != "uint16":
                raise ValueError(f"classes is {dtype} [{n_epochs}, {n_recordings}]; it takes uint16")
            if not 1 <= epoch <= n_epochs:
                raise ValueError(f"of epoch {epoch}; classes is [{n_epochs}, {n_recordings}]")
            file.seek(end + 2 * n_epochs * n_recordings)
            if file.read(4) != _SIGN:
                raise ValueError(f"classes is not [{n_epochs}, {n_recordings}]")
            file.seek(end + 2 * (epoch - 1) * n_recordings)
            found = np.frombuffer(file.read(2 * n_recordings), dtype)
            file.seek(-_N_END, io.SEEK_END)
            if file.read(4) != _END:
                raise ValueError("its end is missing")
            return found


@functools.lru_cache
def _header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of an array from its header, which most trials share."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


@contextlib.contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Raise RunFolderError for what a file that cannot be read raises."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except _FAULTS as error:
        raise RunFolderError(f"{str(path)!r} holds no predictions: {error}") from None


def _arrays(path: Path, **dtypes: str) -> list[np.ndarray]:
    """Return the arrays of two dimensions that `path` has under the names of `dtypes`."""
    with _faults_named(path), open(path, "rb") as file:
        archive = np.load(file, allow_pickle=False)
        arrays = [archive[name] for name in dtypes]
    for (name, dtype), array in zip(dtypes.items(), arrays, strict=True):
        if array.dtype != dtype or array.ndim != 2:
            raise RunFolderError(
                f"{str(path)!r} holds no predictions: {name} is {array.dtype} {list(array.shape)}; it takes "
                f"{dtype} of two dimensions"
            )
    return arrays
