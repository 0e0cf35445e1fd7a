"""Heads on embeddings against logistic regression, in five folds of a collection's recordings.

    python benchmarks/embeddings.py clips.csv [best.json]

Folds are grouped as the split groups recordings (recording, content, recordist, site) and stratified by
species. Each head trains on four folds for a fixed number of epochs and predicts the fifth, so that every
recording is predicted once by a model that has not seen it. F1-macro is of all predictions together; its
interval is a bootstrap over groups, and that of the difference is paired. A config from a search on the same
recordings has seen most of them as validation data, and its score is a little too high; it is scored with
one seed, and as `birdtune train --seeds 5` makes it, an ensemble of five.

BirdNET may know most recordings of xeno-canto. AudioCNN, whose embeddings are scored too, knows nothing but
the four folds: it is trained anew for each.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold

from birdnet_core.backbones.birdnet import BirdNET
from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.feature_store import channel_statistics
from birdnet_core.data.manifest import read_manifest
from birdnet_core.inference.baselines import clips_of, logistic_regression
from birdnet_core.records.seen import NOT_SEEN
from birdnet_core.training.batches import SCORING_BATCH
from birdnet_core.training.metrics import average_windows
from birdnet_core.training.run import save_model, train
from birdnet_core.training.session import Session
from search_spaces.studies.probe import BASE
from search_spaces.study import Overrides

N_FOLDS = 5
N_RESAMPLES = 1000
N_SEEDS = 5  # of an ensemble
WHOLE: Overrides = {"training.train_on": "train+val", "training.patience": 0, "seed": 0}
HEADS: dict[str, Overrides] = {
    "linear head": {"model.name": "linear", "optim.lr": 1e-3},
    "linear head from BirdNET's labels": {"model.name": "linear", "model.start": "labels", "optim.lr": 1e-3},
    # A step too short to change anything.
    "BirdNET's labels, zero-shot": {
        "model.name": "linear",
        "model.start": "labels",
        "optim.lr": 1e-12,
        "training.epochs": 1,
    },
    "prototype head": {"model.name": "prototype", "optim.lr": 1e-3, "loss.label_smoothing": 0.1},
    "linear head on mel statistics": {"features.name": "mel_statistics", "model.name": "linear"},
}
# As in docs/findings.md: one window a recording, MFCC.
AUDIO_CNN: Overrides = {"model.name": "audio_cnn", "training.epochs": 50, **WHOLE}


@dataclass(frozen=True)
class Predicted:
    """Classes of recordings, [recordings] each: the true ones, a head's and logistic regression's; groups.

    `is_new` are the recordings that BirdNET cannot have been trained on.
    """

    truth: np.ndarray
    head: np.ndarray
    regression: np.ndarray
    group: np.ndarray
    is_new: np.ndarray


class Folds:
    """Recordings dealt to folds, grouped and stratified by species; the same for all features."""

    def __init__(self, manifest: pd.DataFrame) -> None:
        self.manifest = manifest
        self.is_new = BirdNET("").seen(manifest, "") == NOT_SEEN
        self._regressions: dict[tuple[object, ...], np.ndarray] = {}

    def dataset(self, config: TrainConfig, fold: int) -> tuple[Dataset, np.ndarray]:
        """Return the data with `fold` as test split, the next as validation, and the group of each clip."""
        dataset = Dataset.open(prepare(self.manifest, config))
        groups = dataset.group
        recordings, first = np.unique(dataset.recording, return_index=True)
        dealt = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0)
        fold_of = np.zeros(recordings.max() + 1, dtype=int)
        for n, (_, test) in enumerate(dealt.split(first, dataset.labels[first], groups[first])):
            fold_of[recordings[test]] = n
        fold_of_clip = fold_of[dataset.recording]
        splits = np.full(len(fold_of_clip), "train", dtype="<U5")
        splits[fold_of_clip == (fold + 1) % N_FOLDS] = "val"
        splits[fold_of_clip == fold] = "test"
        mean, std = channel_statistics([dataset.stored_features(np.flatnonzero(splits != "test"))])
        return replace(
            dataset, splits=splits, mean=np.array(mean, np.float32), std=np.array(std, np.float32)
        ), groups

    def predicted(self, config: TrainConfig, fold: int, *, n_seeds: int = 1) -> Predicted:
        """Return the predictions of a fold by heads of `n_seeds`, whose probabilities are averaged."""
        dataset, groups = self.dataset(config, fold)
        sessions = [train(replace(config, seed=seed), dataset) for seed in range(n_seeds)]
        return self.compared(sessions, config, dataset, groups, fold)

    def compared(
        self, sessions: list[Session], config: TrainConfig, dataset: Dataset, groups: np.ndarray, fold: int
    ) -> Predicted:
        """Return the predictions of `sessions` and of logistic regression on the features of `config`."""
        key = config.features, config.data, fold
        if key not in self._regressions:
            self._regressions[key] = logistic_regression(config, dataset, ("train", "val"), "test")
        rows = dataset.rows("test")
        recordings, first = np.unique(dataset.recording[rows], return_index=True)
        return Predicted(
            truth=dataset.labels[rows][first],
            head=np.mean([probabilities(session) for session in sessions], axis=0).argmax(1),
            regression=self._regressions[key].argmax(1),
            group=groups[rows][first],
            is_new=self.is_new[recordings],
        )

    def of_own_network(self) -> dict[str, list[Predicted]]:
        """Return the predictions of each fold by AudioCNN, trained on the others, and from its embeddings."""
        found: dict[str, list[Predicted]] = {
            "linear head on AudioCNN's embeddings": [],
            "AudioCNN itself": [],
        }
        network = TrainConfig().override(AUDIO_CNN)
        with tempfile.TemporaryDirectory() as scratch:
            for fold in range(N_FOLDS):
                session = train(network, self.dataset(network, fold)[0])
                save_model(session, Path(scratch) / str(fold))
                own = {"features.backbone": "birdtune", "features.weights": str(Path(scratch) / str(fold))}
                one = {"data.windows_per_recording": 1, **HEADS["linear head"], **WHOLE}
                config = TrainConfig().override({**BASE, **own, **one})
                head, itself = found.values()
                head.append(self.predicted(config, fold))
                dataset, groups = self.dataset(config, fold)
                itself.append(self.compared([session], config, dataset, groups, fold))
        return found


def probabilities(session: Session) -> np.ndarray:
    """Return probabilities [recordings, classes] of the test recordings, which a session does not predict."""
    clips = clips_of(session.config, session.dataset, ("test",), session.device)
    windows = [session.probabilities(features).numpy() for features, _ in clips.in_order(SCORING_BATCH)]
    return average_windows(np.concatenate(windows), clips.scored_ids)[0]


def f1(truth: np.ndarray, classes: np.ndarray) -> float:
    return float(f1_score(truth, classes, average="macro", zero_division=0))


def interval(values: np.ndarray) -> str:
    low, high = np.percentile(values, (2.5, 97.5))
    return f"({low:.3f} to {high:.3f})"


def row(name: str, parts: list[Predicted]) -> str:
    """Return a row of the table."""
    truth, head, regression, group, is_new = (
        np.concatenate([getattr(part, field) for part in parts])
        for field in ("truth", "head", "regression", "group", "is_new")
    )
    members = [np.flatnonzero(group == each) for each in np.unique(group)]
    rng = np.random.default_rng(0)
    parts_of = np.isin(truth, np.flatnonzero(np.bincount(truth) <= 3)), is_new
    right = [classes == truth for classes in (head, regression)]
    drawn = []
    for _ in range(N_RESAMPLES):
        rows = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        gains = [float(right[0][of].mean() - right[1][of].mean()) for of in (rows[p[rows]] for p in parts_of)]
        drawn.append((f1(truth[rows], head[rows]), f1(truth[rows], regression[rows]), *gains))
    heads, regressions, *of_parts = np.array(drawn).T
    recalls = [
        f"{right[0][of].mean():.3f} | {right[1][of].mean():.3f} | {interval(gain)}"
        for of, gain in zip(parts_of, of_parts, strict=True)
    ]
    return (
        f"| {name} | {f1(truth, head):.3f} {interval(heads)} | {f1(truth, regression):.3f} "
        f"{interval(regressions)} | {f1(truth, head) - f1(truth, regression):+.3f} "
        f"{interval(heads - regressions)} | {' | '.join(recalls)} |"
    )


def rows(folds: Folds, best: TrainConfig | None) -> Iterator[tuple[str, list[Predicted]]]:
    """Yield the name and the predictions of each row, the slowest last."""
    configs = {name: (TrainConfig().override({**BASE, **change}), 1) for name, change in HEADS.items()}
    if best:
        configs["config of the search"] = best, 1
        configs[f"config of the search, {N_SEEDS} seeds"] = best, N_SEEDS
        # One validation split chose the number of windows, by which every other row differs as well.
        four = best.override({"data.windows_per_recording": BASE["data.windows_per_recording"]})
        configs["config of the search, four windows"] = four, 1
    for name, (config, n_seeds) in configs.items():
        whole = config.override(WHOLE)
        yield name, [folds.predicted(whole, fold, n_seeds=n_seeds) for fold in range(N_FOLDS)]
    yield from folds.of_own_network().items()


def main() -> None:
    # Species with fewer recordings than folds are in some folds only.
    warnings.filterwarnings("ignore", "The least populated class in y", UserWarning)
    best = None
    if len(sys.argv) > 2:
        best = TrainConfig.from_dict(json.loads(Path(sys.argv[2]).read_text())["config"])
    print(
        "| config | F1-macro | logistic regression | difference | rare: head | rare: regression | difference "
        "| not seen: head | not seen: regression | difference |"
    )
    print("|---" * 10 + "|")
    parts: list[Predicted] = []
    for name, parts in rows(Folds(read_manifest(sys.argv[1])), best):
        print(row(name, parts), flush=True)
    truth, group = (np.concatenate([getattr(part, field) for part in parts]) for field in ("truth", "group"))
    n_new = sum(int(part.is_new.sum()) for part in parts)
    n_rare = int((np.bincount(truth)[truth] <= 3).sum())
    print(
        f"\n{len(truth)} recordings, {len(np.unique(truth))} species, {len(np.unique(group))} groups; rare: "
        f"recall of the {n_rare} recordings of species with three or fewer; not seen: accuracy on the "
        f"{n_new} recordings that BirdNET cannot have been trained on"
    )


if __name__ == "__main__":
    main()
