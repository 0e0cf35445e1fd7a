"""Heads on embeddings against logistic regression, in five folds of a collection's recordings.

    python benchmarks/embeddings.py clips.csv [best.json]

Folds are grouped as the split groups recordings (recording, content, recordist, site) and stratified by
species. Each head trains on four folds for a fixed number of epochs and predicts the fifth, so that every
recording is predicted once by a model that has not seen it. F1-macro is of all predictions together; its
interval is a bootstrap over groups, and that of the difference is paired. A config from a search on the same
recordings has seen most of them as validation data, and its score is a little too high.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.feature_store import channel_statistics
from birdnet_core.data.manifest import read_manifest
from birdnet_core.training.batches import ClipBatches
from birdnet_core.training.metrics import average_windows
from birdnet_core.training.run import train
from search_spaces.studies.probe import BASE

N_FOLDS = 5
N_RESAMPLES = 1000
HEADS = {
    "linear head": {"model.name": "linear", "optim.lr": 1e-3},
    "prototype head": {"model.name": "prototype", "optim.lr": 1e-3, "loss.label_smoothing": 0.1},
    "linear head on mel statistics": {"features.name": "mel_statistics", "model.name": "linear"},
}


def in_fold(dataset: Dataset, fold_of_clip: np.ndarray, fold: int) -> Dataset:
    """Return `dataset` with `fold` as its test split and the next fold in the place of validation."""
    splits = np.full(len(fold_of_clip), "train", dtype="<U5")
    splits[fold_of_clip == (fold + 1) % N_FOLDS] = "val"
    splits[fold_of_clip == fold] = "test"
    rows = np.flatnonzero(splits != "test")
    mean, std = channel_statistics([dataset.stored_features(rows)])
    return replace(dataset, splits=splits, mean=np.array(mean, np.float32), std=np.array(std, np.float32))


def folds(dataset: Dataset, groups: np.ndarray) -> np.ndarray:
    """Return the fold of every clip: recordings are dealt, grouped and stratified by species."""
    recordings, first = np.unique(dataset.recording, return_index=True)
    dealt = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0)
    fold_of = np.zeros(recordings.max() + 1, dtype=int)
    for fold, (_, test) in enumerate(dealt.split(first, dataset.labels[first], groups[first])):
        fold_of[recordings[test]] = fold
    return fold_of[dataset.recording]


def averaged(values: np.ndarray, clips: ClipBatches) -> np.ndarray:
    return average_windows(values, clips.scored_ids)[0]


def predicted(config: TrainConfig, dataset: Dataset) -> dict[str, np.ndarray]:
    """Return the classes that the head, and logistic regression, predict for the test recordings."""
    session = train(config, dataset)
    test = ClipBatches(config, dataset, ("test",), session.device, is_computed=False, is_resident=False)
    windows = [session.probabilities(features).numpy() for features, _ in test.in_order(128)]
    x, y = (torch.cat(parts).numpy() for parts in zip(*session.train_clips.in_order(128), strict=True))
    fitted = LogisticRegression(max_iter=5000).fit(x, y)
    of_test = np.concatenate([features.numpy() for features, _ in test.in_order(128)])
    by_regression = np.zeros((len(of_test), len(dataset.species)))
    by_regression[:, fitted.classes_] = fitted.predict_proba(of_test)
    return {
        "head": averaged(np.concatenate(windows), test).argmax(1),
        "logistic regression": averaged(by_regression, test).argmax(1),
        "truth": averaged(np.eye(len(dataset.species))[test.labels.numpy()], test).argmax(1),
        "recordings": np.unique(test.scored_ids),
    }


def f1(truth: np.ndarray, classes: np.ndarray) -> float:
    return float(f1_score(truth, classes, average="macro", zero_division=0))


def interval(values: np.ndarray) -> str:
    low, high = np.percentile(values, (2.5, 97.5))
    return f"({low:.3f} to {high:.3f})"


def main() -> None:
    manifest = read_manifest(sys.argv[1])
    base = TrainConfig().override(BASE)
    configs = {name: base.override(change) for name, change in HEADS.items()}
    if len(sys.argv) > 2:
        best = json.loads(Path(sys.argv[2]).read_text())["config"]
        configs["config of the search"] = TrainConfig.from_dict(best)
    print("| config | F1-macro | logistic regression | difference | rare: head | rare: regression |")
    print("|---|---|---|---|---|---|")
    for name, config in configs.items():
        whole = {"training.train_on": "train+val", "training.patience": 0, "seed": 0}
        config = config.override(whole)
        dataset = Dataset.open(prepare(manifest, config))
        groups = dataset.group
        fold_of_clip = folds(dataset, groups)
        parts = [predicted(config, in_fold(dataset, fold_of_clip, fold)) for fold in range(N_FOLDS)]
        found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        truth, head, regression = found["truth"], found["head"], found["logistic regression"]
        group = dict(zip(dataset.recording.tolist(), groups.tolist(), strict=True))
        group_of = np.unique([group[r] for r in found["recordings"].tolist()], return_inverse=True)[1]
        rng = np.random.default_rng(0)
        drawn = []
        members = [np.flatnonzero(group_of == g) for g in range(group_of.max() + 1)]
        for _ in range(N_RESAMPLES):
            rows = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
            drawn.append((f1(truth[rows], head[rows]), f1(truth[rows], regression[rows])))
        heads, regressions = np.array(drawn).T
        is_rare = np.isin(truth, np.flatnonzero(np.bincount(truth) <= 3))
        rare = [float((classes[is_rare] == truth[is_rare]).mean()) for classes in (head, regression)]
        print(
            f"| {name} | {f1(truth, head):.3f} {interval(heads)} | {f1(truth, regression):.3f} "
            f"{interval(regressions)} | {f1(truth, head) - f1(truth, regression):+.3f} "
            f"{interval(heads - regressions)} | {rare[0]:.3f} | {rare[1]:.3f} |",
            flush=True,
        )
    print(
        f"\n{len(truth)} recordings, {len(np.unique(truth))} species, {len(members)} groups; rare: recall of "
        f"the {int(is_rare.sum())} recordings of species with three or fewer"
    )


if __name__ == "__main__":
    main()
