"""Scores of a model on the test split, with intervals and a baseline.

Every evaluation is entered in tests.json of the model folder before anything is computed, so that a reader
sees how often the test split was used. Intervals are bootstrap intervals over the test recordings,
resampled by the groups that the split kept together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import DataError
from birdnet_core.inference.calibration import reliability, tempered
from birdnet_core.inference.classifier import Classifier
from birdnet_core.inference.model_folder import Model
from birdnet_core.intervals import LEVEL, bootstrap_interval
from birdnet_core.records.files import read_json, write_json
from birdnet_core.training.batches import SCORING_BATCH, ClipBatches
from birdnet_core.training.device import logits_of
from birdnet_core.training.metrics import Scores, average_windows, f1_per_class

SCHEMA = 1
TESTS_FILE = "tests.json"
EVALUATION_FILE = "evaluation.json"
N_RESAMPLES = 1000
FEW_GROUPS = 20
FEW_RECORDINGS = 5  # of a species; see the simulation in docs/statistics.md


def check_split(model: Model, dataset: Dataset) -> None:
    """Raise DataError unless `dataset` is split as the one that `model` was trained on, and has a test split.

    Under another split the test split may hold recordings that the model was trained on.
    """
    trained_on, given = model.provenance.get("split_id"), dataset.facts["split_id"]
    if trained_on != given:
        raise DataError(
            f"the model was trained on split {trained_on}, and these recordings are split as {given}: their "
            "test split may hold recordings that it was trained on. Give --data the recordings of its "
            "training, as they were then"
        )
    if not len(dataset.rows("test")):
        raise DataError("the test split holds no recordings; there is nothing to evaluate on")


def record_opening(folder: Path, model: Model, dataset: Dataset, command: str) -> dict[str, Any]:
    """Enter in tests.json of the model folder that the test split is opened, and return the entry."""
    path = folder / TESTS_FILE
    openings = read_json(path)["openings"] if path.exists() else []
    opening = {
        "number": len(openings) + 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "config_id": model.config.config_id,
        "data_id": dataset.facts["data_id"],
        "split_id": dataset.facts["split_id"],
    }
    write_json(path, {"schema": SCHEMA, "openings": [*openings, opening]})
    return opening


BASELINE = "logistic regression"
COMPARED = {
    "test/accuracy": "accuracy", "test/f1_macro": "F1-macro", "test/f1_rare": "F1 rare", "test/map": "mAP",
}  # fmt: skip


def evaluate(
    model: Model,
    dataset: Dataset,
    groups: np.ndarray,
    *,
    with_baseline: bool = False,
    n_resamples: int = N_RESAMPLES,
    device: str = "auto",
) -> dict[str, Any]:
    """Return the scores of a model's members, of their ensemble and of a baseline in the test split.

    `groups` names the group of every clip of `dataset` (`dataset.groups_of`). The rows are each member, the
    ensemble (the mean of their probabilities), the calibrated ensemble (at its temperature, as prediction
    gives it), and the baseline; each with the metrics of `records.TEST_METRICS` and their intervals. The
    difference is the ensemble minus the mean of its members, paired by resample; `over_baseline` the
    calibrated ensemble minus the baseline, None without one.
    """
    of_members, truth, scored_ids = member_probabilities(model, dataset, "test", device)
    ensemble = of_members.mean(axis=0)
    calibrated = tempered(ensemble, model.temperature)
    rows = {f"seed {m.seed}": p for m, p in zip(model.members, of_members, strict=True)}
    rows |= {"ensemble": ensemble, "ensemble, calibrated": calibrated}
    if with_baseline:
        splits = model.config.training.train_splits
        rows[BASELINE] = baseline_probabilities(model.config, dataset, splits, "test")
    group = dict(zip(dataset.scored_ids.tolist(), groups.tolist(), strict=True))
    group_of = np.unique([group[scored_id] for scored_id in scored_ids.tolist()], return_inverse=True)[1]
    strata = dataset.strata()
    scores = {name: Scores(p, truth, strata) for name, p in rows.items()}
    values = {name: _of_the_test(of_one()) for name, of_one in scores.items()}
    drawn = resampled(scores, group_of, n_resamples)
    members = [f"seed {m.seed}" for m in model.members]
    return {
        "schema": SCHEMA,
        "n": len(truth),
        "scored": dataset.facts["scored"],
        "n_groups": int(group_of.max()) + 1,
        "n_species": len(np.unique(truth)),
        "grouped_by": dataset.facts["grouped_by"],
        "bootstrap": {
            "n_resamples": n_resamples,
            "level": LEVEL,
            "interval": "percentile less bias, by group",
        },
        "rows": [
            {
                "name": name,
                "metrics": {
                    k: _with_interval(v, drawn[name][k], 0, math.inf if k == "test/loss" else 1)
                    for k, v in row.items()
                },
            }
            for name, row in values.items()
        ],
        "difference": {
            k: _with_interval(
                values["ensemble"][k] - float(np.mean([values[m][k] for m in members])),
                drawn["ensemble"][k] - np.mean([drawn[m][k] for m in members], axis=0),
            )
            for k in values["ensemble"]
        },
        "over_baseline": {
            k: _with_interval(
                values["ensemble, calibrated"][k] - values[BASELINE][k],
                drawn["ensemble, calibrated"][k] - drawn[BASELINE][k],
            )
            for k in values[BASELINE]
        }
        if with_baseline
        else None,
        "notes": _notes(group_of, truth) + (_ahead(values) if with_baseline else []),
        "species": _per_species(calibrated, truth, dataset),
        "temperature": model.temperature,
        "reliability": {"before": reliability(ensemble, truth), "after": reliability(calibrated, truth)},
    }


@torch.inference_mode()
def member_probabilities(
    model: Model, dataset: Dataset, split: str, device: str = "auto"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities [members, recordings, classes] of one split, true classes, and the recordings.

    Windows of a recording are averaged; single clips are scored where these were split at random.
    """
    classifier = Classifier(model, device)
    dataset = replace(
        dataset, mean=np.array(model.mean, dtype=np.float32), std=np.array(model.std, dtype=np.float32)
    )
    clips = _clips(model.config, dataset, (split,), classifier.device)
    windows: list[list[np.ndarray]] = [[] for _ in classifier.networks]
    for features, _ in clips.in_order(SCORING_BATCH):
        for scored, network in zip(windows, classifier.networks, strict=True):
            logits = logits_of(network, features, classifier.precision)
            scored.append(torch.softmax(logits.double(), dim=1).cpu().numpy())
    averaged = [average_windows(np.concatenate(each), clips.scored_ids)[0] for each in windows]
    truth, scored_ids = _truth(clips)
    return np.stack(averaged), truth, scored_ids


def baseline_probabilities(
    config: TrainConfig, dataset: Dataset, train_splits: tuple[str, ...], split: str
) -> np.ndarray:
    """Return probabilities [recordings, classes] of `split` by logistic regression on `train_splits`.

    Its inputs are the mean and the std over time of every bin of a clip's features, standardised; its
    regularisation is not tuned (C = 1).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cpu = torch.device("cpu")
    train, scored = (_clips(config, dataset, splits, cpu) for splits in (train_splits, (split,)))
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    fitted.fit(_over_time(train), train.labels.numpy())
    windows = np.zeros((len(scored), len(dataset.species)))
    windows[:, fitted.classes_] = fitted.predict_proba(_over_time(scored))
    return average_windows(windows, scored.scored_ids)[0]


def resampled(
    scores: Mapping[str, Scores], group: np.ndarray, n_resamples: int, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Return each metric of `records.TEST_METRICS` of each of `scores` in every bootstrap sample of groups.

    `group` [recordings] is numbered from 0. A sample draws as many groups as there are, with replacement, and
    takes all recordings of each (Davison and Hinkley 1997, section 3.8); all `scores` see the same samples.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(group.max()) + 1
    drawn: dict[str, list[dict[str, float]]] = {name: [] for name in scores}
    for _ in range(n_resamples):
        times = np.bincount(rng.integers(0, n_groups, n_groups), minlength=n_groups)
        for name, of_one in scores.items():
            drawn[name].append(_of_the_test(of_one(times[group])))
    return {
        name: {metric: np.array([values[metric] for values in samples]) for metric in samples[0]}
        for name, samples in drawn.items()
    }


def _of_the_test(scores: Mapping[str, float]) -> dict[str, float]:
    return {f"test/{name}": value for name, value in scores.items()}


def _with_interval(
    value: float, samples: np.ndarray, lowest: float = -math.inf, highest: float = math.inf
) -> dict[str, float]:
    low, high = bootstrap_interval(value, samples, lowest=lowest, highest=highest)
    return {"value": value, "low": low, "high": high}


def _notes(group: np.ndarray, truth: np.ndarray) -> list[str]:
    """Return sentences on intervals that are too narrow."""
    n_groups = int(group.max()) + 1
    counts = np.bincount(truth)
    notes = []
    if n_few := int((counts[counts > 0] < FEW_RECORDINGS).sum()):
        notes.append(
            f"{n_few} of {(counts > 0).sum()} species have fewer than {FEW_RECORDINGS} recordings in the "
            "test split: their F1 lies low on the average, and so do F1-macro and the strata, whose "
            "intervals are too narrow"
        )
    if n_groups < FEW_GROUPS:
        notes.append(
            f"the test split has only {n_groups} groups of recordings, of which the largest holds "
            f"{np.bincount(group).max() / len(group):.0%}: the intervals are too narrow"
        )
    return notes


def _ahead(values: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a sentence that names the scores in which the baseline is ahead; none where there are none."""
    ours, baseline = values["ensemble, calibrated"], values[BASELINE]
    ahead = [
        f"{label} ({baseline[key]:.4f} against {ours[key]:.4f})"
        for key, label in COMPARED.items()
        if baseline[key] > ours[key]
    ]
    if not ahead:
        return []
    return [
        f"{BASELINE} is ahead in {', '.join(ahead)}: the intervals of the difference say whether it may be "
        "chance"
    ]


def _per_species(probabilities: np.ndarray, truth: np.ndarray, dataset: Dataset) -> list[dict[str, Any]]:
    """Return F1 of every species in the test split, with its recordings there and in training."""
    f1 = f1_per_class(probabilities.argmax(axis=1), truth, len(dataset.species))
    counts = np.bincount(truth, minlength=len(dataset.species))
    stratum = {s: name for name, members in dataset.facts["strata"].items() for s in members}
    return [
        {
            "species": name,
            "stratum": stratum[name],
            "n_train": dataset.facts["train_counts"][name],
            "n_test": int(counts[c]),
            "f1": float(f1[c]) if counts[c] else None,
        }
        for c, name in enumerate(dataset.species)
    ]


def _clips(
    config: TrainConfig, dataset: Dataset, splits: tuple[str, ...], device: torch.device
) -> ClipBatches:
    is_computed = dataset.features is None
    return ClipBatches(config, dataset, splits, device, is_computed=is_computed, is_resident=False)


def _truth(clips: ClipBatches) -> tuple[np.ndarray, np.ndarray]:
    """Return the true class of every recording, and the recordings, in the order of `average_windows`."""
    scored_ids, first = np.unique(clips.scored_ids, return_index=True)
    return clips.labels.cpu().numpy()[first], scored_ids


def _over_time(clips: ClipBatches) -> np.ndarray:
    """Return mean and std over time of every bin, [clips, 2 * channels * bins]."""
    parts = []
    for features, _ in clips.in_order(SCORING_BATCH):
        bins = features.flatten(1, 2)
        parts.append(torch.cat([bins.mean(dim=2), bins.std(dim=2, correction=0)], dim=1).numpy())
    return np.concatenate(parts)
