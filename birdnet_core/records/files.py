"""Files that are written whole or not at all, and JSON that every reader accepts."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from birdnet_core.errors import RunFolderError


def drop_unfinished_line(journal: BinaryIO) -> None:
    """Cut off a last line without an end, left by a killed driver: it would swallow the next event."""
    end = journal.seek(0, os.SEEK_END)
    if end == 0:
        return
    journal.seek(end - 1)
    if journal.read(1) == b"\n":
        return
    tail = min(end, 1 << 20)
    journal.seek(end - tail)
    journal.truncate(end - tail + journal.read(tail).rfind(b"\n") + 1)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raises RunFolderError where it is not one."""
    try:
        value = orjson.loads(path.read_bytes())
    except OSError as error:
        raise RunFolderError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise RunFolderError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{str(path)!r} holds a {type(value).__name__}; a JSON object was expected")
    return value


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: readers see the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole file in UTF-8, or nothing."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as JSON, whole or not at all; nan becomes null, which every reader accepts."""
    write_text(path, json.dumps(without_nan(value), indent=1, ensure_ascii=False) + "\n")


def without_nan(value: Any) -> Any:
    """Return a JSON value with None for every float that is not finite."""
    if isinstance(value, dict):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
