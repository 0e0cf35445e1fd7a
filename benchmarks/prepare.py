"""How fast recordings are prepared, beside a plain librosa loop, and what memory many of them take.

    python benchmarks/prepare.py [clips.csv | FOLDER] [--rounds N]
    python benchmarks/prepare.py --recordings 100000 [--folder DIR]

The first prepares the recordings (synthetic birds, if none are named) with `birdnet_core.data.dataset` and
with the loop that many projects begin with: load and resample, high-pass, the loudest window, MFCC with two
deltas, one .npy a recording. They take turns in one process that has warmed up both (imports, workers and
numba), so that files/s are those of a large collection; the median of the rounds counts. The second writes N
one-second recordings, runs `birdtune data prepare` on them, and polls the memory of its processes: Pss shares
pages among the processes that map them, so that its sum is what the machine has less. Linux only.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import prepare
from birdnet_core.data.manifest import index_folder, read_manifest
from birdnet_core.demo.synthetic import SyntheticBirds, write_synthetic_birds

RATE = 16_000
# One-second clips and small features: what is asked is what grows with the number of recordings.
SMALL = {
    "data.window_s": 1.0,
    "data.sample_rate": RATE,
    "features.n_mfcc": 16,
    "features.n_mels": 32,
    "features.n_fft": 1024,
    "features.hop": 640,
    "features.n_frames": 24,
}


def librosa_loop(paths: list[str], config: TrainConfig, out: Path, *, alike: bool) -> None:
    """Write the features of every recording; `alike` adds the high-pass that `prepare` applies as well."""
    import librosa
    from scipy.signal import butter, sosfilt

    data, options = config.data, config.features.kwargs
    rate, n_window = data.sample_rate, round(data.window_s * data.sample_rate)
    filters = butter(2, data.highpass_hz, "highpass", fs=rate, output="sos")
    hop = rate // 20
    for i, path in enumerate(paths):
        samples, _ = librosa.load(path, sr=rate, mono=True)
        if alike:
            samples = sosfilt(filters, samples).astype(np.float32)
        level = librosa.feature.rms(y=samples, frame_length=2 * hop, hop_length=hop)[0]
        n_frames = min(len(level), n_window // hop)
        start = hop * int(np.convolve(level, np.ones(n_frames), "valid").argmax())
        window = librosa.util.fix_length(samples[start : start + n_window], size=n_window)
        mfcc = librosa.feature.mfcc(
            y=window,
            sr=rate,
            n_mfcc=options["n_mfcc"],
            n_mels=options["n_mels"],
            n_fft=options["n_fft"],
            hop_length=options["hop"],
        )
        deltas = [librosa.feature.delta(mfcc, order=order) for order in (1, 2)]
        np.save(out / f"{i}.npy", np.stack([mfcc, *deltas]))


def compare_speed(manifest: pd.DataFrame, rounds: int) -> None:
    """Print files/s of both, and the ratio."""
    config = TrainConfig()
    paths = manifest["path"].tolist()
    warm_up = part_of(manifest.iloc[:: max(1, len(manifest) // 100)])
    seconds: dict[str, list[float]] = {"birdtune": [], "librosa": [], "librosa without high-pass": []}
    for number in range(rounds + 1):
        used, files = (warm_up, warm_up["path"].tolist()) if number == 0 else (manifest, paths)
        for name, taken in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                if name == "birdtune":
                    prepare(used, config, cache=Path(folder))
                else:
                    librosa_loop(files, config, Path(folder), alike=name == "librosa")
                taken.append(time.perf_counter() - start)
    n_cpus = len(os.sched_getaffinity(0))
    print(f"{len(paths)} recordings, {n_cpus} CPUs, median of {rounds} rounds (range)")
    ours = statistics.median(seconds["birdtune"][1:])
    for name, taken in seconds.items():
        speeds = [len(paths) / s for s in taken[1:]]
        middle = statistics.median(taken[1:])
        print(
            f"{name:26} {len(paths) / middle:6.1f} files/s ({min(speeds):.1f} to {max(speeds):.1f})"
            f"   {middle / ours:4.2f} times birdtune's time; warm-up {taken[0]:.1f} s"
        )


def part_of(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return a part of a manifest with a split, since a part cannot always be split anew."""
    splits = np.where(np.arange(len(manifest)) % 2 == 0, "train", "val")
    return manifest.reset_index(drop=True).assign(split=splits)


def write_chirps(folder: Path, n: int) -> Path:
    """Write `n` one-second chirps of 50 species and a manifest; a few thousand files a second."""
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    sounds = []
    for species in range(50):
        phase = 2 * np.pi * (1000 + 100 * species) * t + 40 * species * np.sin(2 * np.pi * 8 * t)
        sounds.append(8000 * np.sin(phase))
    noise = rng.normal(0, 500, 8 * RATE)
    # One header serves all: soundfile takes a hundred times as long to write a file of a second.
    header = io.BytesIO()
    soundfile.write(header, np.zeros(RATE, np.int16), RATE, format="WAV")
    head = header.getvalue()[: -2 * RATE]
    for number in range(min(n, 1000)):
        (folder / f"{number:03d}").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        species = int(50 * rng.random() ** 2)
        name = f"{i % 1000:03d}/{i}.wav"
        first = int(rng.integers(7 * RATE))
        samples = (sounds[species] + noise[first : first + RATE]).astype("<i2")
        (folder / name).write_bytes(head + samples.tobytes())
        rows.append((name, f"species {species:02d}", f"r{rng.integers(n // 20 + 1)}"))
    manifest = folder / "clips.csv"
    pd.DataFrame(rows, columns=["path", "species", "recordist"]).to_csv(manifest, index=False)
    return manifest


def processes_below(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def memory_mb(pids: list[int], field: str) -> float:
    """Return Rss or Pss of processes together; one that has just ended counts nothing."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    return total / 1024


def measure_memory(n: int, folder: Path) -> None:
    """Print the time and the peak memory of `birdtune data prepare` of `n` recordings."""
    start = time.perf_counter()
    manifest = write_chirps(folder / "chirps", n)
    print(f"{n:,} recordings written in {time.perf_counter() - start:.1f} s")
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "tuning.cli", "data", "prepare", str(manifest), *settings]
    environment = {**os.environ, "BIRDTUNE_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    peak = {"Rss": 0.0, "Pss": 0.0}
    with subprocess.Popen(command, env=environment) as running:
        while running.poll() is None:
            pids = processes_below(running.pid)
            for field in peak:
                peak[field] = max(peak[field], memory_mb(pids, field))
            time.sleep(0.5)
    seconds = time.perf_counter() - start
    if running.returncode:
        sys.exit(f"`{' '.join(command)}` ended with {running.returncode}")
    print(f"{n:,} recordings prepared in {seconds:.0f} s: {n / seconds:.0f} files/s")
    print(f"peak memory of all processes: Pss {peak['Pss']:,.0f} MB, sum of Rss {peak['Rss']:,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "source", nargs="?", help="a manifest or a folder per species; synthetic birds if left out"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--recordings", type=int, help="measure the memory of this many one-second recordings"
    )
    parser.add_argument("--folder", help="where to write them; a temporary folder if left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.recordings:
            measure_memory(given.recordings, Path(folder))
            return
        if given.source is None:
            manifest = read_manifest(write_synthetic_birds(Path(folder) / "birds", SyntheticBirds()))
        else:
            source = Path(given.source)
            manifest = index_folder(source) if source.is_dir() else read_manifest(source)
        warnings.filterwarnings("ignore", module="librosa")
        compare_speed(manifest, given.rounds)


if __name__ == "__main__":
    main()
