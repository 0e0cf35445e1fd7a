"""`birdtune data`: recordings listed, prepared, looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tuning.cli import options as opt
from tuning.cli.inputs import prepared
from tuning.cli.output import err_console, list_skipped, out_console, print_result

if TYPE_CHECKING:
    import pandas as pd

    from birdnet_core.config import DataConfig


def data_index(
    source: Annotated[
        Path,
        typer.Argument(
            callback=opt.local,
            help="A folder per species, a CSV, or metadata of BirdCLEF or xeno-canto (CSV, JSON).",
        ),
    ],
    out: Annotated[Path, typer.Option(callback=opt.local, help="The manifest to write.")] = Path("clips.csv"),
    path_column: Annotated[str, typer.Option(help="The CSV's column of audio paths.")] = "path",
    species_column: Annotated[str, typer.Option(help="The CSV's column of species.")] = "species",
    audio: Annotated[
        Path | None,
        typer.Option(callback=opt.local, help="The folder of the audio, if it is not that of the metadata."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Make a manifest of recordings from a folder, a CSV, or metadata of BirdCLEF or xeno-canto."""
    from birdnet_core.data.manifest import write_manifest
    from birdnet_core.data.readers import read_collection

    found = read_collection(source, path_column=path_column, species_column=species_column, audio=audio)
    frame = found.manifest
    write_manifest(frame, out)
    result = {
        "manifest": str(out),
        "kind": found.kind,
        "n_recordings": len(frame),
        "n_species": int(frame["species"].nunique()),
        "n_absent": len(found.absent),
        "absent": list(found.absent),
        "notes": list(found.notes),
    }
    if not as_json:
        if found.absent:
            named = ", ".join(found.absent[:5]) + (", ..." if len(found.absent) > 5 else "")
            err_console.print(
                f"{len(found.absent)} of {len(found.absent) + len(frame)} recordings in the metadata have no "
                f"audio on disk and are left out: {named}",
                style="yellow",
            )
        for note in found.notes:
            err_console.print(note, style="yellow")
    print_result(
        result,
        as_json,
        f"read {source} as {found.kind}\n"
        f"{result['n_recordings']} recordings of {result['n_species']} species in {out}\n"
        f"next: birdtune data describe {out}",
    )


def data_prepare(
    source: opt.Recordings,
    settings: opt.Settings = None,
    workers: Annotated[int | None, typer.Option(help="Processes; all CPUs if left out.")] = None,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Decode recordings and compute features, once; bad files are listed and left out."""
    import time

    from birdnet_core.data.building import start_workers
    from tuning.views.live import StageBars

    start = time.perf_counter()
    if workers is None or workers > 1:
        start_workers()
    bars = StageBars(err_console)
    _, facts, folder = prepared(source, settings, workers, bars)
    seconds = time.perf_counter() - start
    result = {
        "dataset": str(folder),
        "seconds": round(seconds, 2),
        "done": {stage: {"n": n, "per_s": rate} for stage, (n, rate) in bars.work.items()},
        **{k: facts[k] for k in ("n_recordings", "n_clips", "n_species", "n_skipped", "skipped", "data_id")},
    }
    print_result(
        result,
        as_json,
        f"{facts['n_recordings']} recordings, {facts['n_clips']} clips, {facts['n_species']} species, ready "
        f"in {seconds:.1f} s\n{bars.summary()}",
    )
    if not as_json:
        list_skipped(facts["skipped"])


def data_describe(
    source: opt.Recordings,
    settings: opt.Settings = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            callback=opt.local,
            help="Also draw counts per species and example spectrograms: a folder, or the first of the "
            "files.",
        ),
    ] = None,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Print counts, imbalance, durations, and the split and its folds, with proof of what they share."""
    from birdnet_core.config import TrainConfig
    from birdnet_core.data.dataset import Dataset, proof_of_split
    from birdnet_core.data.facts import few
    from birdnet_core.data.seen import seen_before
    from birdnet_core.records.seen import seen_caution, seen_text

    manifest, facts, folder = prepared(source, settings, None)
    proof = proof_of_split(manifest, folder)
    config = TrainConfig().override(opt.parse_settings(settings))
    seen = seen_before(manifest, Dataset.open(folder), config)
    counts = manifest["species"].value_counts()
    plots = _draw_collection(manifest, facts, folder, settings, plot) if plot else []
    if as_json:
        result = {
            **facts,
            "seen": seen.to_dict() if seen else None,
            "proof": proof,
            "counts": counts.to_dict(),
            "plots": [str(file) for file in plots],
        }
        print_result(result, as_json)
        return
    d = facts["durations"]
    p = out_console.print
    p(f"{facts['n_recordings']} recordings of {facts['n_species']} species, {d['total_h']:.2f} h")
    p(f"durations      {d['min_s']:.1f} to {d['max_s']:.1f} s, median {d['median_s']:.1f} s")
    rates = ", ".join(f"{n} at {int(rate):,} Hz" for rate, n in facts["sample_rates"].items())
    p(f"sample rates   {rates}")
    p(
        f"imbalance      {counts.max()} recordings of {counts.index[0]}, {counts.min()} of "
        f"{counts.index[-1]} ({counts.max() / counts.min():.0f} : 1)"
    )
    sizes = ", ".join(f"{len(members)} {name}" for name, members in facts["strata"].items())
    p(f"strata         {sizes} species, by {facts['scored']} outside the test split")
    splits = ", ".join(f"{facts[f'n_{split}']} {split}" for split in ("train", "val", "test"))
    unused = f", {facts['n_unused']} unused" if facts["n_unused"] else ""
    p(f"split          {splits} {facts['scored']}{unused}")
    for line in _folds(facts):
        p(line)
    for column, found in proof.items():
        crossed = found["crossing"]
        verdict = (
            f"NOT separated: {len(crossed)} in several folds or splits: {few(crossed)}"
            if crossed
            else "none in two folds or splits"
        )
        p(f"proof          {found['n']} {column}s, {verdict}")
    if seen:
        p(f"seen before?   the backbone {seen.backbone!r} was trained on {seen.trained_on}")
        for split, of_split in seen.counts().items():
            p(f"               {split}: {seen_text(of_split)}")
        if caution := seen_caution(seen.to_dict(), "val"):
            p(f"caution        {caution}")
    for note in facts["notes"]:
        p(f"note           {note}")
    copies = facts["duplicates"]
    p(f"duplicates     {len(copies) or 'no'} recordings in several files of the same content")
    for same in copies:
        where = f"{', '.join(same['species'])} in {', '.join(same['splits'])}"
        p(f"               {where}: {', '.join(same['paths'])}")
    table = Table("species", "recordings", "train", box=None, padding=(0, 2))
    for species, n in counts.items():
        table.add_row(str(species), str(n), str(facts["train_counts"].get(species, 0)))
    p(table)
    list_skipped(facts["skipped"])
    for file in plots:
        p(f"plot           {file}")


def _folds(facts: dict[str, Any]) -> list[str]:
    """Return the lines on the folds: what each holds, which one the repeat validates on, and the rule."""
    from birdnet_core.data.splits import RARE_RULE

    folds, n_species = facts["folds"], facts["n_species"]
    n, labels = folds["n"], folds["labels"]
    if n > 1:
        origin = f"as given by the manifest ({', '.join(labels)})" if labels else f"deal {folds['deal']}"
        head = f"{n}, {origin}; repeat r validates on fold r mod {n}, this one on fold {folds['fold']}"
    else:
        head = "1: all repeats validate on the same " + facts["scored"]
    lines = [f"folds          {head}"]
    for part, counts in folds["parts"].items():
        name = "always in train" if part == "train" and n > 1 else part
        n_unused = counts["n_unused"]
        unused = f"; {n_unused} unused when it is validated" if n_unused else ""
        lines.append(
            f"               {name}: {counts['n']} {facts['scored']} of {counts['n_species']} species in "
            f"{counts['n_groups']} groups{unused}"
        )
    if not folds["given"]:
        lines.append(f"rule           {RARE_RULE}")
    never, in_part = len(folds["never_scored"]), len(folds["scored_in_part"])
    in_full = f" in full, {in_part} in part, {never} never (see the notes)" if n > 1 else ""
    lines.append(f"scored         {n_species - never - in_part} of {n_species} species{in_full}")
    return lines


def _draw_collection(
    manifest: pd.DataFrame, facts: dict[str, Any], folder: Path, settings: list[str] | None, plot: Path
) -> list[Path]:
    """Write the figures of `data describe` as PNG and SVG; return the PNG files."""
    from birdnet_core.config import TrainConfig
    from birdnet_core.data.dataset import scored_rows
    from reports.figures.data import counts_figure, species_counts, spectrograms_figure
    from reports.figures.drawing import save

    counts_stem = plot.with_suffix("") if plot.suffix.lower() in (".png", ".svg") else plot / "species"
    config = TrainConfig().override(opt.parse_settings(settings)).data
    scored = scored_rows(manifest, folder)
    save(counts_figure(species_counts(scored), of=facts["scored"]), counts_stem)
    seen = scored[scored["split"] != "test"]  # nobody looks at the test split
    counts = seen["species"].value_counts(ascending=True)
    examples = []
    for name, species in facts["strata"].items():
        if not species:
            continue
        # The commonest of the common, the rarest of the rare, one in the middle.
        ranked = counts[counts.index.isin(species)].index.tolist()
        chosen = ranked[{"rare": 0, "medium": len(ranked) // 2, "common": -1}[name]]
        mine = scored[scored["species"] == chosen]
        n = mine["path"].nunique()
        title = f"{chosen}\n{name}, {n} recording{'s' if n > 1 else ''}"
        examples.append((title, _spectrogram(seen[seen["species"] == chosen]["path"].iloc[0], config)))
    examples.reverse()
    spectrograms_stem = counts_stem.with_name(f"{counts_stem.name}_spectrograms")
    figure = spectrograms_figure(examples, seconds=config.window_s, sample_rate=config.sample_rate)
    save(figure, spectrograms_stem)
    return [stem.with_name(f"{stem.name}.png") for stem in (counts_stem, spectrograms_stem)]


def _spectrogram(path: str, config: DataConfig) -> Any:
    """Return the most active window of a recording as [frequencies, frames] in dB below its loudest point."""
    import torch

    from birdnet_core.data.audio import decode
    from birdnet_core.data.clip_store import active_windows
    from birdnet_core.features.log_mel import power_to_db

    samples, sample_rate = decode(path)
    _, windows = active_windows(samples, sample_rate, config)
    window = torch.from_numpy(windows[0])
    spectrum = torch.stft(window, 1024, 256, window=torch.hann_window(1024), return_complex=True)
    return power_to_db(spectrum.abs().square()[None])[0].numpy()
