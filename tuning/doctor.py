"""What a machine has, and what to do about what it lacks.

Every check does the real thing: a version number does not show whether torchaudio loads.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from birdnet_core import registry

State = Literal["ok", "warning", "fault"]

PYTHONS = ((3, 11), (3, 13))
MIN_DISK_GB, ENOUGH_DISK_GB = 2.0, 20.0
MIN_MEMORY_GB, ENOUGH_MEMORY_GB = 2.0, 6.0
FORMATS = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}
N_LISTED = 3


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and for all but ``ok`` what to do."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(cache: Path, out: Path, recordings: pd.DataFrame | None = None) -> Iterator[Finding]:
    """Yield the findings one by one, since some take seconds.

    Args:
        cache: where features are kept. `out`: where runs are to be written.
        recordings: a manifest whose files are looked for.
    """
    yield python(sys.version_info[:2])
    yield from libraries()
    yield from backbones()
    yield accelerator()
    yield precision()
    yield audio()
    yield ray_starts()
    yield memory(_memory_here(), os.cpu_count() or 1)
    for name, folder in (("cache", cache), ("runs", out), ("temporary", Path(tempfile.gettempdir()))):
        yield writable(name, folder)
    for name, folder in (("cache", cache), ("runs", out)):
        yield disk(name, folder, shutil.disk_usage(existing(folder)).free)
    if recordings is not None:
        yield files(recordings["path"].tolist())


def python(version: Sequence[int]) -> Finding:
    """Judge the version (major, minor)."""
    (low, high), given = PYTHONS, tuple(version)
    found = f"{platform.python_version()} at {sys.executable}"
    if low <= given <= high:
        return Finding("Python", "ok", found)
    wanted = " to ".join(".".join(map(str, v)) for v in PYTHONS)
    state: State = "fault" if given < low else "warning"
    return Finding(
        "Python", state, found, f"birdtune is tested on {wanted}: make a virtual environment of one"
    )


def libraries() -> Iterator[Finding]:
    """Import what birdtune needs, each on its own."""
    for name in ("torch", "torchaudio", "transformers", "optuna", "ray", "soundfile", "soxr", "matplotlib"):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises is what the user must see
            yield Finding(
                name, "fault", f"cannot be imported: {type(error).__name__}: {_first_line(error)}", _REPAIR
            )
        else:
            yield Finding(name, "ok", importlib.metadata.version(name))


_REPAIR = (
    "install birdtune again into an empty environment; in a checkout `rm -rf .venv && make setup`. torch and "
    "torchaudio have to be built for the same CUDA"
)


def backbones() -> Iterator[Finding]:
    """Look for the packages that each backbone of embeddings needs."""
    for name in registry.backbones.names():
        made = registry.backbones[name].make
        absent = [each for each in made.packages if importlib.util.find_spec(each) is None]  # type: ignore[attr-defined]
        if absent:
            yield Finding(
                f"backbone {name}", "warning", f"lacks the package {' and '.join(absent)}",
                f"for embeddings by it, `pip install 'birdtune[{made.extra}]'`",  # type: ignore[attr-defined]
            )  # fmt: skip
            continue
        if made.needs_weights:  # type: ignore[attr-defined]
            yield Finding(f"backbone {name}", "ok", "can run here, with features.weights")
        else:
            yield Finding(f"backbone {name}", "ok", "can run here, with the weights of its package")


def accelerator() -> Finding:
    """Tell which GPU torch sees; without one everything runs, slower."""
    import torch

    from tuning.engine.mps import control_program

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch is built without CUDA" if built is None else f"torch is built for CUDA {built}"
        driver = "a driver is there" if shutil.which("nvidia-smi") else "no NVIDIA driver was found"
        return Finding(
            "GPU", "warning", f"none: {why}, {driver}",
            "training runs on the CPU; with an NVIDIA GPU, install its driver (`nvidia-smi` has to work)",
        )  # fmt: skip
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:
        return Finding(
            "GPU", "fault", f"{torch.cuda.get_device_name()}: {_first_line(error)}",
            "the driver is older than torch's CUDA, or another process holds the GPU: see `nvidia-smi`",
        )  # fmt: skip
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
    if control_program() is None:
        return Finding(
            "GPU", "ok", f"{names}; without MPS",
            "trials that share a GPU take turns; nvidia-cuda-mps-control of NVIDIA's driver would let them "
            "compute at the same time",
        )  # fmt: skip
    return Finding("GPU", "ok", f"{names}; MPS is there for trials that share one")


def precision() -> Finding:
    """Tell what `training.precision = auto` will be."""
    import torch

    from birdnet_core.training.device import has_fast_bf16, pick_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = pick_precision("auto", device)
    if has_fast_bf16(device):
        return Finding("precision", "ok", f"{chosen}, which the {device.type} multiplies natively")
    return Finding("precision", "ok", f"{chosen}: the {device.type} has no native bf16")


def audio() -> Finding:
    """Write and read a second of sound in each common format, and resample it."""
    import numpy as np
    import soundfile
    import torch

    from birdnet_core.data.audio import resample

    sound = 0.5 * np.sin(np.arange(22_050) * 0.1)
    broken = []
    for name, subtype in FORMATS.items():
        file = io.BytesIO()
        try:
            soundfile.write(file, sound, 22_050, format=name, subtype=subtype)
            file.seek(0)
            read, _ = soundfile.read(file)
            if abs(len(read) - len(sound)) > 2_400:
                broken.append(f"{name}: {len(read)} of {len(sound)} samples came back")
        except (soundfile.SoundFileError, ValueError) as error:
            broken.append(f"{name}: {_first_line(error)}")
    resample(torch.from_numpy(sound), 22_050, 16_000)
    if broken:
        return Finding(
            "audio", "fault", "; ".join(broken),
            f"libsndfile {soundfile.__libsndfile_version__} is too old: `pip install -U soundfile`, which "
            "brings its own, or update the system's",
        )  # fmt: skip
    return Finding("audio", "ok", f"libsndfile {soundfile.__libsndfile_version__} reads {', '.join(FORMATS)}")


def ray_starts() -> Finding:
    """Start Ray on this machine and end it."""
    import ray

    from tuning.engine.cluster import ray_session, scratch_folder

    try:
        with scratch_folder() as scratch, ray_session(scratch / "ray.log") as (node,):
            return Finding("Ray", "ok", f"starts here with {node.cpus:g} CPUs and {node.gpus:g} GPUs")
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError, ConnectionError) as error:
        return Finding(
            "Ray", "fault", f"does not start: {_first_line(error)}",
            "it needs localhost, /dev/shm and room in the temporary folder: make room, end a stale Ray by "
            "`ray stop --force`, try again",
        )  # fmt: skip


def memory(available: int, n_cpus: int) -> Finding:
    """Judge the memory that is available, in bytes, for a trial a CPU of about 1 GB and a driver."""
    gb = available / 1e9
    found = f"{gb:.1f} GB available for {n_cpus} CPUs"
    if gb < MIN_MEMORY_GB:
        return Finding("memory", "fault", found, "end other programs; a trial and its driver need 2 GB")
    if gb < ENOUGH_MEMORY_GB or gb < 1 + n_cpus:
        return Finding(
            "memory", "warning", found, f"run fewer trials at once: --concurrent {max(1, int(gb - 1))}"
        )
    return Finding("memory", "ok", found)


def writable(name: str, folder: Path) -> Finding:
    """Write, rename and delete a file in `folder`, or where it would be made."""
    place = existing(folder)
    try:
        handle, path = tempfile.mkstemp(dir=place, prefix=".birdtune-doctor-")
        os.close(handle)
        os.replace(path, f"{path}.renamed")
        os.unlink(f"{path}.renamed")
    except OSError as error:
        return Finding(f"{name} folder", "fault", f"{folder}: {error.strerror}", _REMEDY_OF_FOLDER[name])
    return Finding(f"{name} folder", "ok", f"{folder} can be written")


_REMEDY_OF_FOLDER = {
    "cache": "set BIRDTUNE_CACHE to a folder that you may write",
    "runs": "work in a folder that you may write, or give --out",
    "temporary": "set TMPDIR to a folder that you may write, with a short path",
}


def disk(name: str, folder: Path, free: int) -> Finding:
    """Judge the free bytes."""
    found = f"{folder}: {free / 1e9:.1f} GB free"
    if free < MIN_DISK_GB * 1e9:
        return Finding(f"{name} disk", "fault", found, f"make room, or {_REMEDY_OF_FOLDER[name]}")
    if free < ENOUGH_DISK_GB * 1e9:
        return Finding(f"{name} disk", "warning", found, "`birdtune plan` says what a sweep will take")
    return Finding(f"{name} disk", "ok", found)


def files(paths: Sequence[str], exists: Callable[[str], bool] = os.path.isfile) -> Finding:
    """Look for the files of a manifest."""
    absent = [path for path in paths if not exists(path)]
    if not absent:
        return Finding(
            "data", "ok", f"all {len(paths):,} recordings are there; `birdtune data prepare` decodes them"
        )
    listed = ", ".join(absent[:N_LISTED]) + (", ..." if len(absent) > N_LISTED else "")
    return Finding(
        "data", "fault", f"{len(absent):,} of {len(paths):,} recordings are not there: {listed}",
        "paths in a manifest are relative to its own folder; list what is there by `birdtune data index`",
    )  # fmt: skip


def existing(folder: Path) -> Path:
    """Return `folder`, or the nearest folder above it that exists."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def available_memory(meminfo: str, limit: str = "max", current: str = "0") -> int:
    """Return the bytes that may still be taken, by /proc/meminfo and the container's limit (cgroup v2)."""
    values = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    free = int(values["MemAvailable"].split()[0]) * 1024
    return free if limit.strip() == "max" else min(free, int(limit) - int(current))


def _memory_here() -> int:
    group = Path("/sys/fs/cgroup")
    parts = [group / "memory.max", group / "memory.current"]
    limits = [part.read_text() for part in parts] if all(part.exists() for part in parts) else []
    return available_memory(Path("/proc/meminfo").read_text(), *limits)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
