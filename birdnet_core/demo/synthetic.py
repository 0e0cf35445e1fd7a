"""Write recordings of invented birds, for the demo and the tests: audio without a download.

A species has a `Grammar`: songs are sequences of phrases, a phrase repeats syllables, and a syllable is a
frequency-modulated tone, trill, buzz or harmonic stack. Bands overlap and sibling species share most of their
syllables, so that average spectra differ little and time structure differs more. A `Recordist` adds
microphone, distance, hum, wind, rain and noise.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import soundfile as sf

from birdnet_core.errors import ConfigError, DataError

Samples = npt.NDArray[np.float32]
_Curve = npt.NDArray[np.floating[Any]]

# Recordings per species in a public collection of 90 species, commonest first.
LONG_TAIL = np.array(
    [1216, 984, 621, 608, 466, 407, 371, 307, 306, 257, 240, 239, 228, 224, 213, 212, 198, 170, 165, 164]
    + [163, 147, 145, 135, 128, 122, 118, 116, 109, 105, 99, 97, 93, 92, 88, 88, 84, 82, 82, 73, 69, 69]
    + [60, 58, 55, 54, 53, 51, 49, 48, 47, 43, 43, 42, 42, 41, 33, 31, 29, 26, 26, 25, 24, 24, 22, 21, 19]
    + [17, 17, 17, 16, 15, 14, 12, 12, 11, 10, 8, 8, 8, 8, 7, 7, 6, 4, 4, 4, 2, 2, 1]
)
MANIFEST = "manifest.csv"
# Counts up when equal settings write other audio than before, so that caches do not serve the old one.
VERSION = 1
# No ogg: libsndfile gives each stream a random serial number, and equal collections would differ in content.
FORMATS = {"flac": 0.55, "wav": 0.15, "mp3": 0.30}
SAMPLE_RATES = {22050: 0.3, 32000: 0.25, 44100: 0.25, 48000: 0.2}
N_COMMON = 12  # the species heard in the background of other species' recordings

_STEMS = "alv brun cald dros elph font garr hesp irid lumb mont nemor orb phaen ruf silv tern umbr"
_ENDINGS = "avis ocanta ustes illora"
_EPITHETS = (
    "minor vespertina aurea cinerea tremula borealis rufa palustris vocalis maculata occulta viridis "
    "gracilis pallida hortensis montana canora nivea fluvialis striata modesta velox lucida rustica sonora"
)
_FIRST_NAMES = "Ada Bram Celia Dorin Edda Fenn Greta Hallam Ilse Joss Kaia Lorne"
_SURNAMES = (
    "Ambrel Birkholt Corvane Dunmarsh Elverow Fosmark Gillane Harrowell Inskell Jorvay Kestane Lindmoor "
    "Marrable Norvik Ostrey Pellmore Quillan Rushby Sandrel Thornvale"
)
MAX_RECORDISTS = 240  # 12 first names with 20 surnames

# First element of a spawn key: streams of different purposes never meet.
_GUILD, _GRAMMAR, _RECORDIST, _SITE, _ASSIGNMENT, _RECORDING = range(6)


@dataclass(frozen=True, kw_only=True)
class SyntheticBirds:
    """The size of a synthetic collection; see `write_synthetic_birds` for what `seed` fixes."""

    n_species: int = 12
    n_recordings: int = 240
    n_recordists: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        _require("n_species", self.n_species, 2, len(LONG_TAIL))
        _require("n_recordings", self.n_recordings, self.n_species, None)
        _require("n_recordists", self.n_recordists, 2, MAX_RECORDISTS)
        _require("seed", self.seed, 0, None)


@dataclass(frozen=True, kw_only=True)
class Syllable:
    """One element of song; `is_falling` turns its pitch contour upside down."""

    shape: str  # sweep, arch, trill, whistle or buzz
    low_hz: float
    high_hz: float
    duration_s: float
    rate_hz: float  # of the trill, vibrato or buzz
    harmonics: tuple[float, ...]  # amplitude of the fundamental and its multiples
    is_falling: bool


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """The songs of a species: a song lists phrases, a phrase lists (syllable, usual number of repeats)."""

    syllables: tuple[Syllable, ...]
    phrases: tuple[tuple[tuple[int, int], ...], ...]
    songs: tuple[tuple[int, ...], ...]
    gap_s: float  # between syllables
    pause_s: float  # between songs


@dataclass(frozen=True, kw_only=True)
class Recordist:
    """A microphone and a habit; levels are in dB relative to a song 5 m away."""

    name: str
    tilt_db: float  # per octave above 3 kHz
    resonances: tuple[tuple[float, float], ...]  # (hz, gain in dB), each about a third of an octave wide
    distance_m: float
    noise_db: float
    noise_slope_db: float  # per octave above 3 kHz
    hum_db: float
    wind_db: float
    drops_per_s: float
    sites: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class _Take:
    """A recording to be made: its row of the manifest follows from the numbers."""

    seed: int
    species: int
    recording: int
    recordist: Recordist
    site: int
    extension: str

    @property
    def row(self) -> dict[str, str]:
        species = species_name(self.species)
        recording_id = f"s{self.seed}-{self.species:02d}-{self.recording:04d}"
        return {
            "path": f"{species}/{recording_id}.{self.extension}",
            "species": species,
            "recording_id": recording_id,
            "recordist": self.recordist.name,
            "site": f"site_{self.site:02d}",
        }


def species_counts(n_species: int, n_recordings: int) -> list[int]:
    """Return the recordings of each species, commonest first, at least 1 each and `n_recordings` in sum.

    They are evenly spaced quantiles of `LONG_TAIL`, scaled; 90 species keep its exact proportions.
    """
    _require("n_species", n_species, 2, len(LONG_TAIL))
    _require("n_recordings", n_recordings, n_species, None)
    ranks = np.arange(1, n_species + 1) * (len(LONG_TAIL) + 1) / (n_species + 1)
    curve = np.interp(ranks, np.arange(1, len(LONG_TAIL) + 1), LONG_TAIL)
    ideal = curve * n_recordings / curve.sum()
    counts = np.maximum(1, np.floor(ideal)).astype(int)
    while (missing := n_recordings - counts.sum()) != 0:
        if missing > 0:
            counts[np.argmax(ideal - counts)] += 1
        else:
            counts[np.argmax(np.where(counts > 1, counts - ideal, -np.inf))] -= 1
    return sorted(counts.tolist(), reverse=True)


def species_name(species: int) -> str:
    """Return an invented snake_case binomial for a species' index; siblings share the genus."""
    stems, endings, epithets = _STEMS.split(), _ENDINGS.split(), _EPITHETS.split()
    genus = species - (species + 2) // 4  # of every four species, the second and the third are siblings
    ending = endings[(genus + genus // len(stems)) % len(endings)]
    return f"{stems[genus % len(stems)]}{ending}_{epithets[11 * species % len(epithets)]}"


def draw_grammar(seed: int, species: int) -> Grammar:
    """Return the grammar of a species; the third of every four is the second's sibling.

    A sibling sings sweeps and arches upside down, faster trills and buzzes, and phrases in reverse order.
    Every four species are a guild, which shares a frequency band and a timbre.
    """
    if species % 4 == 2:
        return _sibling(draw_grammar(seed, species - 1))
    guild_rng, rng = _rng(seed, _GUILD, species // 4), _rng(seed, _GRAMMAR, species)
    low_hz = math.exp(guild_rng.uniform(math.log(1400), math.log(3000)) + rng.normal(0, 0.06))
    width = guild_rng.uniform(0.7, 1.1)  # octaves between the lowest and the highest syllable
    timbre = tuple((guild_rng.uniform(0.05, 0.5) ** np.arange(4)).tolist())
    tempo = rng.uniform(0.8, 1.25)
    usual_s = {"sweep": 0.13, "arch": 0.16, "trill": 0.5, "whistle": 0.38, "buzz": 0.26}
    syllables = []
    for shape in rng.choice(list(usual_s), size=rng.integers(3, 5), replace=False).tolist():
        start, span = rng.uniform(0, 0.6) * width, rng.uniform(0.25, 0.6) * width
        if shape == "whistle":
            span *= 0.25
        rate_hz = {"trill": rng.uniform(12, 30), "whistle": rng.uniform(5, 12), "buzz": rng.uniform(50, 110)}
        syllables.append(
            Syllable(
                shape=shape,
                low_hz=low_hz * 2**start,
                high_hz=low_hz * 2 ** (start + span),
                duration_s=usual_s[shape] * rng.uniform(0.7, 1.4) / tempo,
                rate_hz=rate_hz.get(shape, 0.0),
                harmonics=timbre if shape in ("arch", "buzz") else timbre[:2],
                is_falling=rng.random() < 0.5,
            )
        )
    phrases = []
    for _ in range(3):
        chosen = rng.choice(len(syllables), size=rng.integers(1, 3), replace=False).tolist()
        phrases.append(
            tuple((s, 1 if syllables[s].duration_s > 0.3 else int(rng.integers(2, 5))) for s in chosen)
        )
    order = rng.permutation(3).tolist()
    return Grammar(
        syllables=tuple(syllables),
        phrases=tuple(phrases),
        songs=(tuple(order), tuple(order[:2]), (order[0], order[2], order[2])),
        gap_s=rng.uniform(0.03, 0.12) / tempo,
        pause_s=rng.uniform(0.8, 3.0),
    )


def draw_recordist(seed: int, recordist: int, n_recordists: int) -> Recordist:
    """Return a recordist's microphone, habits and two sites (of about half as many sites as recordists)."""
    rng = _rng(seed, _RECORDIST, recordist)
    first, last = _FIRST_NAMES.split(), _SURNAMES.split()
    n_sites = n_recordists // 2 + 1
    home = int(rng.integers(n_sites))
    return Recordist(
        name=f"{first[recordist % 12]} {last[(recordist + recordist // 60) % 20]}",
        tilt_db=rng.normal(0, 2.5),
        resonances=tuple((math.exp(rng.uniform(6.5, 9.1)), rng.normal(0, 6)) for _ in range(3)),
        distance_m=17 * math.exp(rng.normal(0, 0.35)),
        noise_db=rng.uniform(-30, -12),
        noise_slope_db=rng.uniform(-5, -1),
        hum_db=float(rng.choice([-90.0, -30.0, -20.0], p=[0.6, 0.2, 0.2])),
        wind_db=rng.uniform(-45, -10),
        drops_per_s=float(rng.choice([0.0, 4.0, 25.0], p=[0.6, 0.25, 0.15])),
        sites=(home, int((home + rng.integers(1, n_sites)) % n_sites)),
    )


def sing(grammar: Grammar, n_samples: int, sample_rate: int, rng: np.random.Generator) -> Samples:
    """Return one bird singing with pauses, [n_samples], amplitude up to about 1.

    The individual, drawn from `rng`, has its own tempo, pitch and favourite songs; it repeats syllables more
    or less often than usual and drops some.
    """
    tempo, pitch = np.exp(rng.normal(0, [0.12, 0.09]))
    preference = rng.dirichlet(np.ones(len(grammar.songs)))
    samples = np.zeros(n_samples, dtype=np.float32)
    duration_s = n_samples / sample_rate
    time_s = rng.uniform(0.05, 0.3) * duration_s
    while time_s < duration_s:
        for phrase in grammar.songs[rng.choice(len(grammar.songs), p=preference)]:
            for index, repeats in grammar.phrases[phrase]:
                for _ in range(max(1, repeats + int(rng.integers(-1, 2)))):
                    syllable = _render(grammar.syllables[index], sample_rate, tempo, pitch, rng)
                    start = int(time_s * sample_rate)
                    if start < n_samples and rng.random() > 0.08:
                        samples[start : start + len(syllable)] += syllable[: n_samples - start]
                    time_s += len(syllable) / sample_rate + grammar.gap_s / tempo * rng.uniform(0.8, 1.25)
            time_s += grammar.gap_s
        time_s += grammar.pause_s * np.exp(rng.normal(0, 0.5))
    return samples


def record(
    song: Samples,
    background: Samples,
    sample_rate: int,
    *,
    recordist: Recordist,
    site_rng: np.random.Generator,
    rng: np.random.Generator,
) -> Samples:
    """Return the recording of the recordist's device, [samples] like `song`, peak between 0.2 and 0.9.

    `background` is heard from 1.3 to 4 times as far as `song`. The site's echoes come from `site_rng`; the
    distance and the weather of the day come from `rng`.
    """
    n, size = len(song), 1 << (len(song) + 999).bit_length()  # zeros keep the filters from wrapping
    near_m = recordist.distance_m * math.exp(rng.normal(0, 0.5))
    far_m = near_m * rng.uniform(1.3, 4)
    hz = np.fft.rfftfreq(size, 1 / sample_rate).astype(np.float32)
    octaves = np.log2(np.maximum(hz, 60) / 3000)
    microphone_db = recordist.tilt_db * octaves
    for centre_hz, gain_db in recordist.resonances:
        microphone_db += gain_db * np.exp(-(((octaves - math.log2(centre_hz / 3000)) / 0.3) ** 2))
    noise_db = recordist.noise_db + rng.normal(0, 4) + recordist.noise_slope_db * octaves
    noise = rng.standard_normal((len(hz), 2), dtype=np.float32).view(np.complex64)[:, 0]
    # Times sqrt(size / 2), the noise has unit variance in time where its gain is 0 dB.
    spectrum: npt.NDArray[Any] = math.sqrt(size / 2) * noise * _gain(noise_db + microphone_db)
    delays, levels = site_rng.uniform(0.02, 0.2, 3), site_rng.uniform(0, 0.35, 3)
    for bird, distance_m in ((song, near_m), (background, far_m)):
        heard = bird.copy()
        for delay, level in zip((delays * sample_rate).astype(int), levels.tolist(), strict=True):
            heard[delay:] += level * bird[: n - delay]
        spectrum += np.fft.rfft(heard, size) * _gain(microphone_db - _loss_db(hz, distance_m))
    samples: Samples = np.fft.irfft(spectrum, size)[:n].astype(np.float32)

    time_s = np.arange(n, dtype=np.float32) / sample_rate
    for multiple in (1, 2, 4):
        samples += 10 ** (recordist.hum_db / 20) / multiple * np.sin(100 * math.pi * multiple * time_s)
    rumble = rng.standard_normal(int(300 * n / sample_rate) + 2)  # at 300 Hz, its gusts at 1 Hz
    gusts = np.interp(np.arange(len(rumble)) / 300, np.arange(14), rng.exponential(size=14))
    wind = np.interp(300 * time_s, np.arange(len(rumble)), rumble * gusts)
    samples += 10 ** (recordist.wind_db / 20) * wind.astype(np.float32)
    for start in rng.integers(0, n, rng.poisson(recordist.drops_per_s * n / sample_rate)).tolist():
        n_drop = min(n - start, 200)
        splash = rng.standard_normal(n_drop, dtype=np.float32) * np.exp(-np.arange(n_drop) / 30)
        samples[start : start + n_drop] += rng.exponential(0.05) * splash
    return samples * np.float32(rng.uniform(0.2, 0.9) / np.abs(samples).max())


def write_synthetic_birds(
    folder: Path, birds: SyntheticBirds | None = None, *, workers: int | None = None
) -> Path:
    """Write ``folder/<species>/<recording_id>.<ext>`` and ``folder/manifest.csv``; return the latter's path.

    The manifest has the columns path (relative to itself), species, recording_id, recordist and site. Files
    are flac, wav and mp3, some of them stereo, of 22.05 to 48 kHz and 3 to 12 s. On one machine, files repeat
    byte for byte and depend only on `seed`, `n_recordists`, and the species' and the recording's index; not
    on `workers` (threads; by default one a core, at most 8) or on the other recordings.

    The folder appears whole or not at all. One that already holds these birds is left as it is; one that
    holds anything else raises DataError.
    """
    birds = birds or SyntheticBirds()
    if workers is not None:
        _require("workers", workers, 1, None)
    takes = list(_plan(birds))
    manifest = pd.DataFrame([take.row for take in takes]).to_csv(index=False)
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
        try:
            for species in {take.row["species"] for take in takes}:
                (partial / species).mkdir(parents=True)
            with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
                for _ in pool.map(lambda take: _write_take(take, partial), takes):
                    pass
            (partial / MANIFEST).write_text(manifest, encoding="utf-8")
            partial.rename(folder)
        except OSError:
            # Another process may have put its own, equal folder there meanwhile.
            if not (folder / MANIFEST).is_file():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _check_holds(folder, manifest)
    return folder / MANIFEST


def cached_synthetic_birds(cache: Path, birds: SyntheticBirds | None = None) -> Path:
    """Return the manifest of `birds` in a cache folder, written at the first call; for `--data synthetic`."""
    birds = birds or SyntheticBirds()
    name = f"v{VERSION}-{birds.n_species}-{birds.n_recordings}-{birds.n_recordists}-{birds.seed}"
    return write_synthetic_birds(Path(cache) / "synthetic" / name, birds)


def write_new_recordings(folder: Path, birds: SyntheticBirds | None = None, *, n: int) -> list[Path]:
    """Write a recording that `birds` do not hold of each of the `n` commonest species; return the files.

    They are the next of their species: ``folder/<species>/<recording_id>.<ext>``.
    """
    birds = birds or SyntheticBirds()
    _require("n", n, 1, birds.n_species)
    held = species_counts(birds.n_species, birds.n_recordings)
    more = replace(birds, n_recordings=2 * birds.n_recordings)
    takes = [take for take in _plan(more) if take.recording == held[take.species]][:n]
    for take in takes:
        (folder / take.row["species"]).mkdir(parents=True, exist_ok=True)
        _write_take(take, folder)
    return [folder / take.row["path"] for take in takes]


def _plan(birds: SyntheticBirds) -> Iterator[_Take]:
    """Yield every recording; a species with two or more has at least two recordists."""
    recordists = [draw_recordist(birds.seed, i, birds.n_recordists) for i in range(birds.n_recordists)]
    activity = 1 / np.arange(1, birds.n_recordists + 1)
    for species, count in enumerate(species_counts(birds.n_species, birds.n_recordings)):
        # Everyone has favourite species, on top of being a busy or an occasional recordist.
        interest = activity * _rng(birds.seed, _ASSIGNMENT, species).gamma(0.7, size=len(activity)) + 1e-3
        first = -1
        for recording in range(count):
            rng = _rng(birds.seed, _ASSIGNMENT, species, recording)
            p = np.where((recording == 1) & (np.arange(len(interest)) == first), 0, interest)
            chosen = int(rng.choice(len(p), p=p / p.sum()))
            first = chosen if recording == 0 else first
            yield _Take(
                seed=birds.seed,
                species=species,
                recording=recording,
                recordist=recordists[chosen],
                site=int(rng.choice(recordists[chosen].sites)),
                extension=str(rng.choice(list(FORMATS), p=list(FORMATS.values()))),
            )


def _write_take(take: _Take, folder: Path) -> None:
    rng = _rng(take.seed, _RECORDING, take.species, take.recording)
    sample_rate = int(rng.choice(list(SAMPLE_RATES), p=list(SAMPLE_RATES.values())))
    n_samples = int(sample_rate * rng.uniform(3, 12))
    song = sing(draw_grammar(take.seed, take.species), n_samples, sample_rate, rng)
    background = np.zeros_like(song)
    if rng.random() < 0.6:
        other = (take.species + int(rng.integers(1, N_COMMON))) % N_COMMON
        background = sing(draw_grammar(take.seed, other), n_samples, sample_rate, rng)
    site_rng = _rng(take.seed, _SITE, take.site)
    samples = record(song, background, sample_rate, recordist=take.recordist, site_rng=site_rng, rng=rng)
    if rng.random() < 0.1:
        samples = np.stack([samples, 0.8 * np.roll(samples, rng.integers(1, 12))], axis=1)
    sf.write(folder / take.row["path"], samples, sample_rate)


def _check_holds(folder: Path, manifest: str) -> None:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{str(folder)!r} is not an empty folder and has no {MANIFEST}; remove it, or give another"
        )
    if path.read_text(encoding="utf-8") != manifest:
        raise DataError(
            f"{str(path)!r} lists other recordings than these synthetic birds; give another folder, "
            "or the seed and the numbers it was written with"
        )


def _render(
    syllable: Syllable, sample_rate: int, tempo: float, pitch: float, rng: np.random.Generator
) -> Samples:
    """Return one syllable with small random changes, [samples]."""
    duration_s = syllable.duration_s / tempo * rng.uniform(0.9, 1.1)
    n = int(duration_s * sample_rate)
    position = (np.arange(n, dtype=np.float32) + 0.5) / n
    turns = position * (duration_s * syllable.rate_hz * tempo)
    contours: dict[str, _Curve] = {
        "sweep": position,
        "arch": np.sin(math.pi * position),
        "trill": turns % 1,
        "whistle": 0.5 + 0.5 * np.sin(2 * math.pi * turns),
        "buzz": np.abs(2 * (turns % 1) - 1),
    }
    contour = contours[syllable.shape]
    envelope = np.sqrt(np.sin(math.pi * position))
    if syllable.shape == "trill":
        envelope *= np.sqrt(np.abs(np.sin(math.pi * contour)))
    if syllable.is_falling:
        contour = 1 - contour
    octaves = math.log2(syllable.high_hz / syllable.low_hz)
    low_hz = syllable.low_hz * pitch * math.exp(rng.normal(0, 0.015))
    cycles = np.cumsum(low_hz / sample_rate * np.exp2(octaves * contour), dtype=np.float64)
    phase = (2 * math.pi * (cycles - np.floor(cycles))).astype(np.float32)
    wave = np.zeros(n, dtype=np.float32)
    for multiple, amplitude in enumerate(syllable.harmonics, start=1):
        if multiple * low_hz * 2**octaves < 0.45 * sample_rate:
            wave += amplitude * np.sin(multiple * phase)
    return wave * envelope * (rng.uniform(0.5, 1.0) / sum(syllable.harmonics))


def _sibling(elder: Grammar) -> Grammar:
    return replace(
        elder,
        syllables=tuple(
            replace(s, is_falling=s.is_falling ^ (s.shape in ("sweep", "arch")), rate_hz=1.3 * s.rate_hz)
            for s in elder.syllables
        ),
        phrases=tuple(phrase[::-1] for phrase in elder.phrases),
        songs=tuple(song[::-1] for song in elder.songs),
        gap_s=1.1 * elder.gap_s,
    )


def _loss_db(hz: _Curve, distance_m: float) -> _Curve:
    """Return the level lost on the way, in dB: by spreading (0 at 5 m), and to the air at high pitch."""
    loss: _Curve = 20 * math.log10(distance_m / 5) + 0.03 * distance_m * (hz / 4000) * np.sqrt(hz / 4000)
    return loss


def _gain(db: _Curve) -> _Curve:
    gain: _Curve = np.exp(math.log(10) / 20 * db)
    return gain


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _require(name: str, given: int, least: int, most: int | None) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given < least or given > (most or given):
        accepted = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
        raise ConfigError(f"{name} of the synthetic birds is {given!r}; it takes {accepted}")
