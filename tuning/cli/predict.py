"""`birdtune predict` and `export`: a model folder in use."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from birdnet_core.errors import ConfigError, DataError
from tuning.cli import options as opt
from tuning.cli.output import list_skipped, print_result, recordings_bar, whole_file

if TYPE_CHECKING:
    import pandas as pd

    from birdnet_core.config import DataConfig
    from birdnet_core.inference.streaming import Ended

Write = Callable[["pd.DataFrame"], None]

# The suffixes that stand for a format where --format is left out.
FORMATS = {".csv": "csv", ".json": "json", ".txt": "raven"}


def predict_command(
    model: opt.Model,
    audio: Annotated[
        list[Path],
        typer.Argument(callback=opt.local, metavar="AUDIO...", help="Files, or folders of recordings."),
    ],
    out: Annotated[Path, typer.Option(callback=opt.local, help="The file to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            help="csv, json or raven (a selection table); if left out, what the ending of --out says: .csv, "
            ".json or .txt."
        ),
    ] = None,
    overlap: Annotated[
        float, typer.Option(help="Seconds that a window reaches into the one before.", metavar="S")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(help="The most species of a window.", metavar="N")] = 5,
    min_probability: Annotated[
        float, typer.Option(help="Leave out what is less probable.", metavar="P")
    ] = 0.0,
    batch_size: Annotated[int | None, typer.Option(help="Windows at once; 32 if left out.")] = None,
    device: opt.Device = "auto",
    weights: opt.Weights = None,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Name the species in recordings of any length, window by window; bad files are listed and left out.

    The exit code is 1 only where not one recording could be scored.
    """
    # Before torch is loaded, which is when its threads read it: they sleep where they wait for each other
    # instead of spinning. That costs a tenth on an idle machine, and is three times as fast during a sweep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from birdnet_core.inference.classifier import BATCH_SIZE, Classifier
    from birdnet_core.inference.streaming import audio_files, no_recording_read

    writer = _writer(format, out)
    if not 0 <= min_probability <= 1:
        raise ConfigError(f"--min-probability {min_probability:g} is not accepted; it takes 0 to 1")
    if top_k < 1:
        raise ConfigError(f"--top-k {top_k} is not accepted; it takes 1 or more")
    start = time.perf_counter()
    files = audio_files(audio)
    classifier = Classifier.load(model, device=device, weights=weights)
    ended: list[Ended] = []
    n_windows = n_rows = 0
    with (
        recordings_bar("predicting", len(files)) as move,
        whole_file(out) as partial,
        open(partial, "w", encoding="utf-8", newline="") as file,
        writer(file, classifier.model.config.data, ended) as write,
    ):
        scored = classifier.stream(
            files, overlap_s=overlap, batch_size=batch_size or BATCH_SIZE, on_end=ended.append
        )
        for scores in scored:
            table = scores.table(classifier.species, top_k)
            table = table[table["probability"] >= min_probability]
            write(table)
            n_windows += len(scores.files)
            n_rows += len(table)
            move(scores.n_read)
        faults = [e for e in ended if e.fault]
        if not n_windows:
            raise DataError(no_recording_read(faults))
    seconds, audio_s = time.perf_counter() - start, sum(e.seconds for e in ended)
    bad = [{"path": e.file, "error": e.fault} for e in faults]
    result = {
        "out": str(out),
        "n_recordings": len(files),
        "n_faulty": len(faults),
        "n_windows": n_windows,
        "n_rows": n_rows,
        "audio_s": round(audio_s, 1),
        "seconds": round(seconds, 1),
        "faulty": bad,
    }
    print_result(
        result,
        as_json,
        f"{n_rows:,} rows of {n_windows:,} windows in {out}\n{len(files) - len(faults)} of {len(files)} "
        f"recordings, {audio_s / 3600:.2f} h, in {seconds:.1f} s: {audio_s / seconds:.0f} times real time",
    )
    if not as_json:
        list_skipped(bad, "had a fault; rows are of what came before it")


def export_command(
    model: opt.Model,
    out: Annotated[Path, typer.Option(callback=opt.local, help="The ONNX file to write.")] = Path(
        "model.onnx"
    ),
    weights: opt.Weights = None,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Write the networks of a model as one ONNX file, checked against torch.

    The file takes features: spectrograms, or embeddings of a backbone, which the file does not hold.
    """
    from birdnet_core.inference.model_folder import read_model
    from birdnet_core.inference.onnx_export import export_onnx

    exported = read_model(model, weights=weights)
    difference = export_onnx(exported, out)
    result = {"onnx": str(out), "largest_difference": difference}
    features, shape = exported.config.features, list(exported.input_shape)
    takes = f"{features.name} features"
    if "backbone" in features.kwargs:
        takes = f"embeddings of the backbone {features.kwargs['backbone']!r}, which is not in the file,"
    text = f"{out}: probabilities differ from torch by at most {difference:.1e}\nit takes {takes} {shape}"
    print_result(result, as_json, text)


def _writer(given: str | None, out: Path) -> Any:
    """Return what writes the wanted format; ConfigError where none is known."""
    writers = {"csv": _csv, "json": _json, "raven": _raven}
    name = given or FORMATS.get(out.suffix.lower())
    if name not in writers:
        problem = (
            f"--format {given!r} is unknown" if given else f"the ending of --out {str(out)!r} is no format"
        )
        raise ConfigError(
            f"{problem}; give --format {', '.join(writers)}, or an ending of {' '.join(FORMATS)}"
        )
    return writers[name]


@contextmanager
def _csv(file: TextIO, data: DataConfig, ended: list[Ended]) -> Iterator[Write]:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["file", "start_s", "end_s", "rank", "species", "probability"])

    def write(table: pd.DataFrame) -> None:
        rows.writerows(table.assign(probability=table["probability"].round(6)).to_numpy().tolist())
        file.flush()

    yield write


@contextmanager
def _json(file: TextIO, data: DataConfig, ended: list[Ended]) -> Iterator[Write]:
    """Write one list, a row a line."""
    separator = "[\n"

    def write(table: pd.DataFrame) -> None:
        nonlocal separator
        for row in table.to_dict("records"):
            file.write(separator + json.dumps(row, ensure_ascii=False))
            separator = ",\n"
        file.flush()

    yield write
    file.write("[]\n" if separator == "[\n" else "\n]\n")


@contextmanager
def _raven(file: TextIO, data: DataConfig, ended: list[Ended]) -> Iterator[Write]:
    """Write a selection table of Raven Pro.

    Begin and end times count from the beginning of the first recording, as Raven has them for recordings that
    are opened one after the other; ``File Offset (s)`` counts from the beginning of the row's own.
    """
    rows = csv.writer(file, delimiter="\t", lineterminator="\n")
    rows.writerow(
        ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"]
        + ["Begin File", "Begin Path", "File Offset (s)", "Species", "Confidence", "Rank"]
    )
    n_rows = 0

    def write(table: pd.DataFrame) -> None:
        nonlocal n_rows
        # All files before one of the table have ended.
        before, offset = {}, 0.0
        for each in ended:
            before[each.file], offset = offset, offset + each.seconds
        for row in table.to_dict("records"):
            n_rows += 1
            first = before.get(row["file"], offset)
            rows.writerow(
                [n_rows, "Spectrogram 1", 1, f"{first + row['start_s']:.3f}", f"{first + row['end_s']:.3f}"]
                + [f"{data.highpass_hz:.1f}", f"{data.sample_rate / 2:.1f}"]
                + [Path(row["file"]).name, row["file"], f"{row['start_s']:.3f}"]
                + [row["species"], f"{row['probability']:.4f}", row["rank"]]
            )
        file.flush()

    yield write
