"""Manifests: tables of recordings with their species, recordist, site and split.

A manifest is a CSV with the columns `path` and `species`, and optionally `recording_id`, `recordist`,
`site`, `split` (train, val, test) and `fold` (any label). Paths are taken relative to the CSV. In memory it
is a frame with all seven columns as text, absolute paths, and "" where nothing is known.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from birdnet_core.errors import DataError, did_you_mean
from birdnet_core.records.files import write_text

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")

COLUMNS = ("path", "species", "recording_id", "recordist", "site", "split", "fold")
SPLITS = ("train", "val", "test")


def read_manifest(
    path: str | Path, *, path_column: str = "path", species_column: str = "species"
) -> pd.DataFrame:
    """Return the manifest in a CSV, checked.

    Whether the audio files exist and decode is not checked here: `data prepare` lists those that do not.
    Raises DataError for an absent file, a missing column, empty cells, a recording named twice, an
    unknown split, or folds that contradict the splits.
    """
    path = Path(path)
    frame = read_csv(path)
    flags = {"--path-column": path_column, "--species-column": species_column}
    missing = {flag: column for flag, column in flags.items() if column not in frame.columns}
    if missing:
        hints = [did_you_mean(column, frame.columns) for column in missing.values()]
        raise DataError(
            f"{str(path)!r} has no column {' and no column '.join(map(repr, missing.values()))}"
            f"{''.join(hints)}. It has {', '.join(frame.columns)}; a manifest needs path and species. "
            f"Rename, or name yours: `birdtune data index {path.name} {' NAME '.join(missing)} NAME`; "
            f"metadata of BirdCLEF and xeno-canto: `birdtune data index {path.name}`"
        )
    frame = frame.rename(columns={path_column: "path", species_column: "species"})
    frame = frame.reindex(columns=list(COLUMNS), fill_value="")
    return checked(frame, path, folder=path.parent)


def read_csv(path: Path, n_rows: int | None = None) -> pd.DataFrame:
    """Return a CSV as text, with "" for empty cells; DataError where there is none or it cannot be read."""
    if not path.is_file():
        raise DataError(f"no manifest at {str(path)!r}; give a CSV with the columns path and species")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", nrows=n_rows)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as CSV: {str(error).strip()}") from None
    for column in frame:
        frame[column] = frame[column].str.strip()
    return frame


def index_folder(folder: str | Path) -> pd.DataFrame:
    """Return the manifest of a folder that holds one folder of recordings per species.

    Audio is recognised by its extension, at any depth below the species' folder. Raises DataError where
    there is no such folder or it holds no recordings.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder at {str(folder)!r}")
    rows = []
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if len(inside.parts) > 1 and file.suffix.lower() in EXTENSIONS and not is_hidden:
            rows.append((str(file.absolute()), inside.parts[0], inside.with_suffix("").as_posix()))
    if not rows:
        raise DataError(
            f"{str(folder)!r} holds no recordings in folders per species; expected "
            f"{folder.name}/<species>/<recording> with an extension of {' '.join(EXTENSIONS)}"
        )
    frame = pd.DataFrame(rows, columns=["path", "species", "recording_id"])
    # Two files that differ in their extension alone are two recordings until their contents say otherwise.
    twice = frame["recording_id"].duplicated(keep=False)
    frame.loc[twice, "recording_id"] = [Path(p).relative_to(folder.absolute()).as_posix()
                                        for p in frame.loc[twice, "path"]]  # fmt: skip
    return frame.reindex(columns=list(COLUMNS), fill_value="")


def write_manifest(frame: pd.DataFrame, out: str | Path) -> None:
    """Write a manifest whole, with paths relative to its own folder and empty columns left out."""
    out = Path(out)
    written = frame.copy()
    written["path"] = [os.path.relpath(p, out.absolute().parent) for p in frame["path"]]
    used = [c for c in COLUMNS if c in ("path", "species") or (written[c] != "").any()]
    write_text(out, written[used].to_csv(index=False))


def checked(frame: pd.DataFrame, source: Path, *, folder: Path) -> pd.DataFrame:
    """Return a manifest with absolute paths, read relative to `folder`, and a recording_id in every row.

    Raises DataError, naming the line of `source`, for what `read_manifest` refuses.
    """
    if frame.empty:
        raise DataError(f"{str(source)!r} lists no recordings")
    for column in ("path", "species"):
        empty = frame.index[frame[column] == ""]
        if len(empty):
            raise DataError(f"{str(source)!r} line {empty[0] + 2}: the {column} is empty; fill it in")
    twice = frame.index[frame["path"].duplicated()]
    if len(twice):
        raise DataError(
            f"{str(source)!r} line {twice[0] + 2}: {frame['path'][twice[0]]!r} is listed a second time; "
            "a recording carries one species here"
        )
    wrong = frame.index[~frame["split"].isin([*SPLITS, ""])]
    if len(wrong):
        raise DataError(
            f"{str(source)!r} line {wrong[0] + 2}: split {frame['split'][wrong[0]]!r} is unknown; "
            f"use {', '.join(SPLITS)}"
        )
    # Whole numbers of a column with gaps, as pandas writes them.
    frame["fold"] = frame["fold"].str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    if (frame["fold"] != "").any():
        _check_folds(frame, source)
    elif (frame["split"] == "").any() and (frame["split"] != "").any():
        raise DataError(
            f"{str(source)!r}: {int((frame['split'] == '').sum())} of {len(frame)} recordings have no split; "
            "give all of them one, or none and let birdtune split"
        )
    without_id = frame["recording_id"] == ""
    frame.loc[without_id, "recording_id"] = frame.loc[without_id, "path"]
    top = str(folder.absolute())
    frame["path"] = [os.path.normpath(os.path.join(top, p)) for p in frame["path"]]
    return frame


def _check_folds(frame: pd.DataFrame, source: Path) -> None:
    """Raise DataError unless each recording has either a fold or the split test."""
    is_folded, is_test = frame["fold"] != "", frame["split"] == "test"
    for wrong, fault in (
        (~is_folded & ~is_test, "the fold is empty; give one, or split = test for a recording of no fold"),
        (is_folded & is_test, "a recording of the test split has no fold; empty its fold or its split"),
        (
            ~is_test & (frame["split"] != ""),
            "the split {split!r} and the fold {fold!r} are both given; keep the column fold for "
            "cross-validation, with no split but test, or the column split for a single split",
        ),
    ):
        if wrong.any():
            i = int(wrong.to_numpy().argmax())
            fault = fault.format(**frame.loc[i, ["split", "fold"]])
            raise DataError(f"{str(source)!r} line {i + 2}: {fault}")
    if frame["fold"][is_folded].nunique() == 1:
        raise DataError(
            f"{str(source)!r}: the column fold has one fold, {frame['fold'][is_folded].iloc[0]!r}; it takes "
            "two or more, or leave it out"
        )
