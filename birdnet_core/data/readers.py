"""Read collections of other formats as a manifest: BirdCLEF, xeno-canto, a folder per species.

`read_collection` recognises the kind by the content of the files, not by their names. The metadata of
BirdCLEF and xeno-canto list recordings that may not be on disk; those are listed as `absent`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from birdnet_core.data.manifest import COLUMNS, EXTENSIONS, checked, index_folder, read_csv, read_manifest
from birdnet_core.errors import DataError

BIRDCLEF_COLUMNS = ("primary_label", "filename")
XENO_CANTO_COLUMNS = ("id", "gen", "sp")
ACCEPTED = (
    "a manifest CSV with the columns path and species (or name yours with --path-column and "
    "--species-column)",
    "a folder with one folder of recordings per species",
    "BirdCLEF's train_metadata.csv (columns primary_label and filename), next to its train_audio/",
    "xeno-canto metadata as CSV (columns id, gen, sp) or as the JSON of its API (recordings with these; one "
    "file, or a folder of pages), next to the audio",
)
# About a kilometre: one spot, as reported by two people or two instruments.
SITE_DECIMALS = 2


@dataclass(frozen=True)
class Collection:
    """A manifest, and where it came from.

    Args:
        manifest: the recordings whose audio is on disk, as `read_manifest` gives them.
        kind: the recognised kind of the source.
        absent: the recordings that the metadata list and that have no audio on disk, by file name or id.
        notes: further warnings, in sentences.
    """

    manifest: pd.DataFrame
    kind: str
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_collection(
    source: str | Path,
    *,
    path_column: str = "path",
    species_column: str = "species",
    audio: str | Path | None = None,
) -> Collection:
    """Return the recordings of a CSV, a JSON file or a folder, of whichever kind it is.

    Audio is looked for below `audio`, or below the folder of the metadata. Raises DataError that names the
    accepted kinds for any other source, and where not one listed recording is on disk.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"no file or folder at {str(source)!r}; {_accepted()}")
    if source.is_dir():
        return _read_folder(source, audio)
    folder = Path(audio) if audio else source.parent
    if source.suffix.lower() == ".json":
        records = _xeno_canto_records(source)
        if records is None:
            raise DataError(f"{str(source)!r} is JSON without xeno-canto recordings; {_accepted()}")
        return _xeno_canto(pd.DataFrame(records), source, folder, "xeno-canto JSON")
    columns = read_csv(source, n_rows=0).columns
    is_named = (path_column, species_column) != ("path", "species")
    if is_named or {"path", "species"} <= set(columns):
        frame = read_manifest(source, path_column=path_column, species_column=species_column)
        return Collection(frame, "manifest CSV")
    if set(BIRDCLEF_COLUMNS) <= set(columns):
        return _birdclef(source, folder)
    if set(XENO_CANTO_COLUMNS) <= set(columns):
        return _xeno_canto(read_csv(source), source, folder, "xeno-canto CSV")
    raise DataError(
        f"{str(source)!r} has the columns {', '.join(columns)}, which are of no known kind; {_accepted()}"
    )


def _read_folder(folder: Path, audio: str | Path | None) -> Collection:
    below = Path(audio) if audio else folder
    metadata = folder / "train_metadata.csv"
    if metadata.is_file():
        return _birdclef(metadata, below)
    pages = [r for file in sorted(folder.glob("*.json")) if (r := _xeno_canto_records(file)) is not None]
    if pages:
        records = [record for page in pages for record in page]
        return _xeno_canto(pd.DataFrame(records), folder, below, f"xeno-canto JSON ({len(pages)} pages)")
    try:
        frame = index_folder(folder)
    except DataError as error:
        raise DataError(f"{error}. {_accepted()}") from None
    return Collection(frame, "folder per species", notes=_metadata_not_read(folder))


def _metadata_not_read(folder: Path) -> tuple[str, ...]:
    """Return a note on CSVs in the folder that list recordings: they may name recordists and sites."""
    named = []
    for file in sorted(folder.glob("*.csv")):
        with contextlib.suppress(DataError):  # of a file outside the collection
            columns = set(read_csv(file, n_rows=0).columns)
            if columns >= {"path", "species"} or columns >= set(XENO_CANTO_COLUMNS):
                named.append(file.name)
    if not named:
        return ()
    return (
        f"{', '.join(named)} in {folder} not read: `birdtune data index {folder / named[0]}` takes "
        "recordists and sites from a CSV, which belong in one split",
    )


def _birdclef(source: Path, audio: Path) -> Collection:
    """Read ``train_metadata.csv``: the folder of the audio is ``train_audio``, in 2021 ``train_short_audio``.

    `filename` holds the species' folder from 2022 on and not before.
    """
    table = read_csv(source)
    for column in BIRDCLEF_COLUMNS:
        _require_filled(table, column, source)
    here = _audio_below(audio)
    paths = []
    for label, name in zip(table["primary_label"], table["filename"], strict=True):
        inside = (name, f"{label}/{name}")
        places = [f"{top}{path}" for top in ("train_audio/", "train_short_audio/", "") for path in inside]
        paths.append(next((path for path in places if path in here), ""))
    frame = pd.DataFrame(
        {
            "path": paths,
            "species": table["primary_label"],
            "recording_id": [Path(name).stem for name in table["filename"]],
            "recordist": _column(table, "author"),
            "site": _sites(table, "latitude", "longitude"),
        }
    )
    return _on_disk(frame, table["filename"], source, audio, "BirdCLEF train_metadata.csv")


def _xeno_canto(table: pd.DataFrame, source: Path, audio: Path, kind: str) -> Collection:
    """Read recordings with the fields of xeno-canto's API: version 3, or 2, which says `lng` for `lon`."""
    table = table.fillna("").astype(str).apply(lambda column: column.str.strip())
    for column in XENO_CANTO_COLUMNS:
        _require_filled(table, column, source)
    number = table["id"].str.upper().str.removeprefix("XC")
    # The pages of several queries overlap.
    repeated = pd.DataFrame({"id": number, "gen": table["gen"], "sp": table["sp"]}).duplicated()
    table, number = table[~repeated].reset_index(drop=True), number[~repeated].reset_index(drop=True)
    by_number, by_name = _xeno_canto_audio(_audio_below(audio))
    names = _column(table, "file-name")
    places = [
        ", ".join(filter(None, p)) for p in zip(_column(table, "loc"), _column(table, "cnt"), strict=True)
    ]
    sites = _sites(table, "lat", "lon" if "lon" in table else "lng")
    frame = pd.DataFrame(
        {
            "path": [by_number.get(n) or by_name.get(f, "") for n, f in zip(number, names, strict=True)],
            "species": table["gen"] + " " + table["sp"],
            "recording_id": "XC" + number,
            "recordist": _column(table, "rec"),
            # Coordinates of threatened species are withheld; the locality is named all the same.
            "site": [site or place for site, place in zip(sites, places, strict=True)],
        }
    )
    notes = (
        [f"{int(repeated.sum())} recordings are listed more than once and taken once"]
        if repeated.any()
        else []
    )
    return _on_disk(frame, frame["recording_id"], source, audio, kind, notes)


def _xeno_canto_records(file: Path) -> list[dict[str, Any]] | None:
    """Return the recordings in a JSON file: a page, a list of pages or a list of recordings; else None."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{str(file)!r} cannot be read as JSON: {error}") from None
    items = content if isinstance(content, list) else [content]
    records: list[dict[str, Any]] = []
    for item in items:
        if not isinstance(item, dict):
            return None
        inside = item.get("recordings")
        records += inside if isinstance(inside, list) else [item]
    is_known = all(isinstance(r, dict) and set(XENO_CANTO_COLUMNS) <= set(r) for r in records)
    return records if records and is_known else None


def _xeno_canto_audio(here: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return audio files by catalogue number (XC123.mp3, XC123 - Robin.mp3, 123.mp3) and by name."""
    by_number: dict[str, str] = {}
    by_name: dict[str, str] = {}
    for path in sorted(here):
        name = path.rsplit("/", 1)[-1]
        by_name.setdefault(name, path)
        found = re.match(r"(?:XC(\d+)(?!\d)|(\d+)\.[^.]+$)", name, re.IGNORECASE)
        if found:
            by_number.setdefault(found[1] or found[2], path)
    return by_number, by_name


def _audio_below(folder: Path) -> set[str]:
    """Return the audio files below a folder, relative to it, with slashes."""
    if not folder.is_dir():
        raise DataError(f"no folder of audio at {str(folder)!r}")
    found = set()
    for top, _, names in os.walk(folder):
        inside = os.path.relpath(top, folder).replace(os.sep, "/") + "/"
        inside = "" if inside == "./" else inside
        found |= {inside + name for name in names if name.lower().endswith(EXTENSIONS)}
    return found


def _on_disk(
    frame: pd.DataFrame,
    names: pd.Series[str],
    source: Path,
    audio: Path,
    kind: str,
    notes: list[str] | None = None,
) -> Collection:
    """Keep the rows whose `path`, relative to `audio`, was found; `names` are the names of the others."""
    is_there = frame["path"] != ""
    absent = names[~is_there].tolist()
    if frame.empty:
        raise DataError(f"{str(source)!r} ({kind}) lists no recordings")
    if not is_there.any():
        raise DataError(
            f"{str(source)!r} ({kind}) lists {len(frame)} recordings and the audio of none is below "
            f"{str(audio)!r} (such as {absent[0]}); put it there, or name its folder with --audio"
        )
    frame = frame[is_there].reset_index(drop=True).reindex(columns=list(COLUMNS), fill_value="")
    return Collection(checked(frame, source, folder=audio), kind, tuple(absent), tuple(notes or ()))


def _column(table: pd.DataFrame, name: str) -> pd.Series[str]:
    return table[name] if name in table else pd.Series("", index=table.index)


def _sites(table: pd.DataFrame, latitude: str, longitude: str) -> list[str]:
    """Return rounded coordinates as text, "" where they are not known."""
    numbers = [
        pd.to_numeric(_column(table, c), errors="coerce").round(SITE_DECIMALS) for c in (latitude, longitude)
    ]
    return [
        # + 0.0: minus zero is zero
        f"{lat + 0.0:.{SITE_DECIMALS}f} {lon + 0.0:.{SITE_DECIMALS}f}" if lat == lat and lon == lon else ""
        for lat, lon in zip(*numbers, strict=True)
    ]


def _require_filled(table: pd.DataFrame, column: str, source: Path) -> None:
    empty = table.index[table[column] == ""]
    if len(empty):
        raise DataError(
            f"{str(source)!r}: {column} is empty in recording {empty[0] + 1} of {len(table)}; fill it in"
        )


def _accepted() -> str:
    return "accepted:\n" + "\n".join(f"  - {kind}" for kind in ACCEPTED)
