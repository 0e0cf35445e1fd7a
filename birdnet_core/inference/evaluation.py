"""Scores of a model on the test split, with intervals and baselines.

Every evaluation is entered in tests.json of the model folder before anything is computed, so that a reader
sees how often the test split was used. Intervals are bootstrap intervals over the test recordings,
resampled by the groups that the split kept together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from birdnet_core.build import build_feature
from birdnet_core.data.building import Progress, no_progress
from birdnet_core.data.dataset import Dataset
from birdnet_core.data.seen import Seen, seen_before
from birdnet_core.errors import DataError
from birdnet_core.features.embedding import Embedding
from birdnet_core.inference.baselines import (
    LOGISTIC_REGRESSION,
    NEAREST_NEIGHBOURS,
    ZERO_SHOT,
    clips_of,
    logistic_regression,
    nearest_neighbours,
    without_label,
    zero_shot,
)
from birdnet_core.inference.calibration import reliability, tempered
from birdnet_core.inference.classifier import Classifier
from birdnet_core.inference.model_folder import Model
from birdnet_core.intervals import LEVEL, bootstrap_interval
from birdnet_core.records.files import read_json, write_json
from birdnet_core.records.metrics import EVALUATION_SCHEMA
from birdnet_core.records.seen import SEEN
from birdnet_core.training.batches import SCORING_BATCH, ClipBatches
from birdnet_core.training.device import logits_of
from birdnet_core.training.metrics import Scores, average_windows, f1_per_class

SCHEMA = 1  # of tests.json
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


COMPARED = {
    "test/accuracy": "accuracy", "test/f1_macro": "F1-macro", "test/f1_rare": "F1 rare", "test/map": "mAP",
}  # fmt: skip
ENSEMBLE, CALIBRATED = "ensemble", "ensemble, calibrated"


def evaluate(
    model: Model,
    dataset: Dataset,
    manifest: pd.DataFrame,
    *,
    with_baselines: bool = True,
    n_resamples: int = N_RESAMPLES,
    device: str = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Return the scores of a model's members, of their ensemble and of baselines in the test split.

    `dataset` was made of `manifest`. The rows are each member, the ensemble (the mean of their
    probabilities), the calibrated ensemble (at its temperature, as prediction gives it), and the baselines;
    each with the metrics of `records.TEST_METRICS` and their intervals. The difference is the ensemble minus
    the mean of its members, paired by resample; `over_baseline` the calibrated ensemble minus each baseline.
    `seen` has the scores of the recordings that a backbone may have been trained on and of the others apart;
    None for a model without a backbone. `progress` counts the windows that its labels are
    scored on.
    """
    of_members, truth, scored_ids = member_probabilities(model, dataset, "test", device)
    ensemble = of_members.mean(axis=0)
    calibrated = tempered(ensemble, model.temperature)
    members = {f"seed {m.seed}": p for m, p in zip(model.members, of_members, strict=True)}
    baselines, notes = _baselines(model, dataset, progress) if with_baselines else ({}, [])
    rows = {**members, ENSEMBLE: ensemble, CALIBRATED: calibrated, **baselines}
    group = dict(zip(dataset.scored_ids.tolist(), dataset.group.tolist(), strict=True))
    group_of = np.array([group[scored_id] for scored_id in scored_ids.tolist()])
    compared = _Compared(rows, truth, group_of, dataset.strata(), n_resamples)
    before = seen_before(manifest, dataset, model.config)
    seen = _by_seen(before, {CALIBRATED: calibrated, **baselines}, compared) if before else None
    return {
        "schema": EVALUATION_SCHEMA,
        "n": len(truth),
        "scored": dataset.facts["scored"],
        "n_groups": compared.n_groups,
        "n_species": len(np.unique(truth)),
        "grouped_by": dataset.facts["grouped_by"],
        "bootstrap": {
            "n_resamples": n_resamples,
            "level": LEVEL,
            "interval": "percentile less bias, by group",
        },
        "rows": compared.rows(),
        "difference": compared.difference(ENSEMBLE, list(members)),
        "over_baseline": {name: compared.difference(CALIBRATED, [name]) for name in baselines},
        "seen": seen,
        "notes": [
            *_notes(group_of, truth),
            *(_few_groups(seen) if seen else []),
            *notes,
            *_ahead(compared.values, baselines),
        ],
        "species": _per_species(calibrated, truth, dataset),
        "temperature": model.temperature,
        "reliability": {"before": reliability(ensemble, truth), "after": reliability(calibrated, truth)},
    }


class _Compared:
    """Scores of several probabilities [recordings, classes] of the same recordings, and their resamples.

    Recordings of a single group have no intervals.
    """

    def __init__(
        self,
        probabilities: Mapping[str, np.ndarray],
        truth: np.ndarray,
        group: np.ndarray,
        strata: Mapping[str, np.ndarray],
        n_resamples: int,
    ) -> None:
        self.truth, self.group, self.strata, self.n_resamples = truth, group, strata, n_resamples
        numbered = np.unique(group, return_inverse=True)[1]
        self.n_groups = int(numbered.max()) + 1
        scores = {name: Scores(p, truth, strata) for name, p in probabilities.items()}
        self.values = {name: _of_the_test(of_one()) for name, of_one in scores.items()}
        self.drawn = resampled(scores, numbered, n_resamples)
        if self.n_groups == 1:  # every resample is the sample itself
            nothing = np.full(n_resamples, np.nan)
            self.drawn = {name: dict.fromkeys(row, nothing) for name, row in self.values.items()}

    def rows(self) -> list[dict[str, Any]]:
        """Return the name and the metrics, with intervals, of each."""
        return [
            {
                "name": name,
                "metrics": {
                    k: _with_interval(v, self.drawn[name][k], 0, math.inf if k == "test/loss" else 1)
                    for k, v in row.items()
                },
            }
            for name, row in self.values.items()
        ]

    def difference(self, name: str, others: list[str]) -> dict[str, dict[str, float]]:
        """Return each metric of `name` minus the mean of `others`, paired by resample."""
        return {
            k: _with_interval(
                value - float(np.mean([self.values[other][k] for other in others])),
                self.drawn[name][k] - np.mean([self.drawn[other][k] for other in others], axis=0),
            )
            for k, value in self.values[name].items()
        }


def _baselines(model: Model, dataset: Dataset, progress: Progress) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the probabilities of every baseline that these features have, and notes on them."""
    splits = model.config.training.train_splits
    found = {
        LOGISTIC_REGRESSION: logistic_regression(model.config, dataset, splits, "test"),
        NEAREST_NEIGHBOURS: nearest_neighbours(model.config, dataset, splits, "test"),
    }
    data = model.config.data
    feature = build_feature(model.config.features, data.sample_rate, data.n_samples)
    if not isinstance(feature, Embedding) or not feature.backbone.convention.labels:
        return found, []
    missing = without_label(feature.backbone, dataset)
    if len(missing) == len(dataset.species):
        return found, [f"no {ZERO_SHOT} baseline: the backbone has a label for none of the species"]
    found[ZERO_SHOT] = zero_shot(feature.backbone, dataset, "test", progress)
    if not missing:
        return found, []
    return found, [
        f"{ZERO_SHOT} never predicts {len(missing)} of {len(dataset.species)} species, for which the "
        f"backbone has no label: {', '.join(missing)}"
    ]


def _by_seen(seen: Seen, probabilities: Mapping[str, np.ndarray], compared: _Compared) -> dict[str, Any]:
    """Return the counts of `seen`, and scores of the test recordings of each status, if there are several."""
    of_test = seen.of("test")
    rows = []
    present = [status for status in SEEN if (of_test == status).any()]
    for status in present if len(present) > 1 else ():
        chosen = of_test == status
        alone = _Compared(
            {name: p[chosen] for name, p in probabilities.items()},
            compared.truth[chosen],
            compared.group[chosen],
            compared.strata,
            compared.n_resamples,
        )
        rows.append(
            {
                "status": status,
                "n": int(chosen.sum()),
                "n_species": len(np.unique(alone.truth)),
                "n_groups": alone.n_groups,
                "rows": alone.rows(),
            }
        )
    return {**seen.to_dict(), "rows": rows}


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
    clips = clips_of(model.config, dataset, (split,), classifier.device)
    windows: list[list[np.ndarray]] = [[] for _ in classifier.networks]
    for features, _ in clips.in_order(SCORING_BATCH):
        for scored, network in zip(windows, classifier.networks, strict=True):
            logits = logits_of(network, features, classifier.precision)
            scored.append(torch.softmax(logits.double(), dim=1).cpu().numpy())
    averaged = [average_windows(np.concatenate(each), clips.scored_ids)[0] for each in windows]
    truth, scored_ids = _truth(clips)
    return np.stack(averaged), truth, scored_ids


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
    of_groups = np.unique(group, return_counts=True)[1]
    n_groups = len(of_groups)
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
            f"{of_groups.max() / len(group):.0%}: the intervals are too narrow"
        )
    return notes


def _few_groups(seen: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each part of `seen` whose intervals are too narrow."""
    return [
        f"the {seen['scored']} that are {part['status']} come from only {part['n_groups']} "
        f"group{'s' if part['n_groups'] != 1 else ''}: their intervals are too narrow"
        for part in seen["rows"]
        if part["n_groups"] < FEW_GROUPS
    ]


def _ahead(values: Mapping[str, Mapping[str, float]], baselines: Iterable[str]) -> list[str]:
    """Return a sentence for each baseline that is ahead in a score; none where none is."""
    ours = values[CALIBRATED]
    notes = []
    for name in baselines:
        ahead = [
            f"{label} ({values[name][key]:.4f} against {ours[key]:.4f})"
            for key, label in COMPARED.items()
            if values[name][key] > ours[key]
        ]
        if ahead:
            notes.append(
                f"{name} is ahead in {', '.join(ahead)}: the intervals of the difference say whether it may "
                "be chance"
            )
    return notes


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


def _truth(clips: ClipBatches) -> tuple[np.ndarray, np.ndarray]:
    """Return the true class of every recording, and the recordings, in the order of `average_windows`."""
    scored_ids, first = np.unique(clips.scored_ids, return_index=True)
    return clips.labels.numpy()[first], scored_ids
