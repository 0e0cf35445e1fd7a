"""The one honest test: what a model is worth on recordings that nothing was chosen by.

Every opening of the test side is written into the model folder before anything is computed, so that a reader
sees how often its scores were looked at. Intervals are bootstrap intervals over the test recordings,
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

from birdnet_core.batches import ClipBatches
from birdnet_core.calibration import calibration_error, reliability, tempered
from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import DataError
from birdnet_core.inference import Classifier
from birdnet_core.intervals import LEVEL, bootstrap_interval
from birdnet_core.metrics import average_windows, f1_per_class
from birdnet_core.model_folder import Model
from birdnet_core.records import read_json, write_json
from birdnet_core.training import SCORING_BATCH, logits_of

SCHEMA = 1
TESTS_FILE = "tests.json"
EVALUATION_FILE = "evaluation.json"
N_RESAMPLES = 1000
FEW_GROUPS = 20
FEW_RECORDINGS = 5  # of a species; see the simulation in docs/statistics.md


def check_split(model: Model, dataset: Dataset) -> None:
    """Raise DataError unless `dataset` is split as the one that `model` was trained on, and has a test side.

    Under another split the test side may hold recordings that the model has learnt.
    """
    trained_on, given = model.provenance.get("split_id"), dataset.facts["split_id"]
    if trained_on != given:
        raise DataError(
            f"the model was trained on split {trained_on}, and these recordings are split as {given}: their "
            "test side may hold what the model has learnt. Give --data the recordings that it was trained "
            "on, as they were then"
        )
    if not len(dataset.rows("test")):
        raise DataError("the test side of the split holds no recordings; there is nothing to evaluate on")


def record_opening(folder: Path, model: Model, dataset: Dataset, command: str) -> dict[str, Any]:
    """Enter in tests.json of the model folder that the test side is opened, and return the entry."""
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
    """Return the scores of a model's members, of their ensemble and of a baseline on the test side.

    `groups` names the group of every clip of `dataset` (`dataset.groups_of`). The rows are each member, the
    ensemble (the mean of their probabilities), the ensemble at its temperature, which is what prediction
    gives, and the baseline; each with the metrics of `records.TEST_METRICS` and their intervals. The
    difference is the ensemble minus the mean of its members, paired by resample; `over_baseline` what
    prediction gives minus the baseline, None without one.
    """
    of_members, truth, units = member_probabilities(model, dataset, "test", device)
    ensemble = of_members.mean(axis=0)
    calibrated = tempered(ensemble, model.temperature)
    rows = {f"seed {m.seed}": p for m, p in zip(model.members, of_members, strict=True)}
    rows |= {"ensemble": ensemble, "ensemble, calibrated": calibrated}
    if with_baseline:
        sides = model.config.training.sides
        rows[BASELINE] = baseline_probabilities(model.config, dataset, sides, "test")
    group = dict(zip(dataset.units.tolist(), groups.tolist(), strict=True))
    group_of = np.unique([group[unit] for unit in units.tolist()], return_inverse=True)[1]
    strata = dataset.strata()
    scores = {name: Scores(p, truth, strata) for name, p in rows.items()}
    values = {name: of_one() for name, of_one in scores.items()}
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
    model: Model, dataset: Dataset, side: str, device: str = "auto"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities [members, recordings, classes] of one side, true classes, and the recordings.

    Windows of a recording are averaged; single clips are scored where these were split at random.
    """
    classifier = Classifier(model, device)
    dataset = replace(
        dataset,
        mean=np.array(model.mean, dtype=np.float32),
        deviation=np.array(model.deviation, dtype=np.float32),
    )
    clips = _clips(model.config, dataset, (side,), classifier.device)
    windows: list[list[np.ndarray]] = [[] for _ in classifier.networks]
    for pictures, _ in clips.in_order(SCORING_BATCH):
        for scored, network in zip(windows, classifier.networks, strict=True):
            logits = logits_of(network, pictures, classifier.precision)
            scored.append(torch.softmax(logits.double(), dim=1).cpu().numpy())
    averaged = [average_windows(np.concatenate(each), clips.units)[0] for each in windows]
    truth, units = _truth(clips)
    return np.stack(averaged), truth, units


def baseline_probabilities(
    config: TrainConfig, dataset: Dataset, learnt: tuple[str, ...], side: str
) -> np.ndarray:
    """Return probabilities [recordings, classes] of `side` by logistic regression on the sides `learnt`.

    It sees the mean and the deviation over time of every bin of a clip's picture, standardised; its strength
    of regularisation is not tuned (C = 1). What a network has to beat.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cpu = torch.device("cpu")
    train, asked = (_clips(config, dataset, sides, cpu) for sides in (learnt, (side,)))
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    fitted.fit(_over_time(train), train.labels.numpy())
    windows = np.zeros((len(asked), len(dataset.species)))
    windows[:, fitted.classes_] = fitted.predict_proba(_over_time(asked))
    return average_windows(windows, asked.units)[0]


class Scores:
    """The test's metrics of `probabilities` [recordings, classes], for any weights of the recordings.

    A bootstrap asks thousands of times, and what is sorted stays sorted: so average precision and ROC areas
    are computed here, for all classes at once, as scikit-learn defines them (equal probabilities share a
    threshold).
    """

    def __init__(
        self, probabilities: np.ndarray, truth: np.ndarray, strata: Mapping[str, np.ndarray]
    ) -> None:
        self.probabilities, self.truth, self.strata = probabilities, truth, strata
        n, self.n_classes = probabilities.shape
        self.predicted = probabilities.argmax(axis=1)
        of_truth = probabilities[np.arange(n), truth]
        self.losses = -np.log(np.maximum(of_truth, np.finfo(np.float32).tiny))
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
        self.is_in_top5 = (best == truth[:, None]).any(axis=1)
        present = np.unique(truth)
        asked = probabilities[:, present]
        self.order = np.argsort(-asked, axis=0, kind="stable")
        ranked = np.take_along_axis(asked, self.order, axis=0)
        self.is_hit = (truth[:, None] == present)[self.order, np.arange(len(present))]
        # The first and the last place of each run of equal probabilities.
        place = np.arange(n)[:, None]
        differs = ranked[1:] != ranked[:-1]
        edge = np.ones((1, len(present)), dtype=bool)
        self.first = np.maximum.accumulate(np.where(np.concatenate([edge, differs]), place, 0), axis=0)
        ends = np.where(np.concatenate([differs, edge]), place, n)
        self.last = np.minimum.accumulate(ends[::-1], axis=0)[::-1]

    def __call__(self, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return every metric of `records.TEST_METRICS`; `weights` count a recording several times.

        Classes are averaged over as in validation, see `metrics.score`. nan where nothing is left to average.
        """
        counted = np.ones(len(self.truth)) if weights is None else weights.astype(float)
        total = counted.sum()
        is_right = self.predicted == self.truth
        in_truth = np.bincount(self.truth, counted, self.n_classes)
        in_prediction = np.bincount(self.predicted, counted, self.n_classes)
        found = np.bincount(self.truth, counted * is_right, self.n_classes)
        f1 = 2 * found / np.maximum(in_truth + in_prediction, 1e-12)
        precision, area = self._of_rankings(counted)
        return {
            "test/loss": float(counted @ self.losses / total),
            "test/accuracy": float(counted @ is_right / total),
            "test/f1_macro": float(f1[in_truth + in_prediction > 0].mean()),
            "test/f1_weighted": float(f1 @ in_truth / total),
            "test/map": precision,
            **{
                f"test/f1_{name}": _mean(f1[classes][in_truth[classes] > 0])
                for name, classes in self.strata.items()
            },
            "test/top5": float(counted @ self.is_in_top5 / total),
            "test/auroc": area,
            "test/ece": calibration_error(self.probabilities, self.truth, counted),
        }

    def _of_rankings(self, counted: np.ndarray) -> tuple[float, float]:
        """Return the means over classes of average precision and of the area under the ROC curve."""
        weight = counted[self.order]
        hits = np.cumsum(weight * self.is_hit, axis=0)
        all_ = np.cumsum(weight, axis=0)
        positive, negative = hits[-1], all_[-1] - hits[-1]
        there = positive > 0
        hits_at, all_at = (np.take_along_axis(x, self.last, axis=0) for x in (hits, all_))
        precision = (weight * self.is_hit * hits_at / np.maximum(all_at, 1e-12)).sum(axis=0)
        # Negatives before each place, those that tie with it counted by half.
        misses = all_ - hits
        before = np.take_along_axis(misses - weight * ~self.is_hit, self.first, axis=0)
        above = (before + np.take_along_axis(misses, self.last, axis=0)) / 2
        outranked = (weight * self.is_hit * above).sum(axis=0)
        both = there & (negative > 0)
        return (
            _mean(precision[there] / positive[there]),
            _mean(1 - outranked[both] / (positive[both] * negative[both])),
        )


def resampled(
    scores: Mapping[str, Scores], group: np.ndarray, n_resamples: int, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Return each metric of each of `scores` in every bootstrap sample of groups.

    `group` [recordings] is numbered from 0. A sample draws as many groups as there are, with replacement, and
    takes all recordings of each (Davison and Hinkley 1997, section 3.8); all `scores` see the same samples.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(group.max()) + 1
    drawn: dict[str, list[dict[str, float]]] = {name: [] for name in scores}
    for _ in range(n_resamples):
        times = np.bincount(rng.integers(0, n_groups, n_groups), minlength=n_groups)
        for name, of_one in scores.items():
            drawn[name].append(of_one(times[group]))
    return {
        name: {metric: np.array([values[metric] for values in samples]) for metric in samples[0]}
        for name, samples in drawn.items()
    }


def _with_interval(
    value: float, samples: np.ndarray, lowest: float = -math.inf, highest: float = math.inf
) -> dict[str, float]:
    low, high = bootstrap_interval(value, samples, lowest=lowest, highest=highest)
    return {"value": value, "low": low, "high": high}


def _notes(group: np.ndarray, truth: np.ndarray) -> list[str]:
    """Return what must be known of the intervals, in sentences."""
    n_groups = int(group.max()) + 1
    counts = np.bincount(truth)
    notes = []
    if n_few := int((counts[counts > 0] < FEW_RECORDINGS).sum()):
        notes.append(
            f"{n_few} of {(counts > 0).sum()} species have fewer than {FEW_RECORDINGS} recordings on the "
            "test side: their F1 lies low on the average, and so do F1-macro and the strata, whose intervals "
            "are too narrow"
        )
    if n_groups < FEW_GROUPS:
        notes.append(
            f"the test side has only {n_groups} groups of recordings, of which the largest holds "
            f"{np.bincount(group).max() / len(group):.0%}: the intervals are too narrow"
        )
    return notes


def _ahead(values: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return in which scores the baseline is ahead of what prediction gives; no sentence where in none."""
    ours, baseline = values["ensemble, calibrated"], values[BASELINE]
    ahead = [
        f"{shown} ({baseline[key]:.4f} against {ours[key]:.4f})"
        for key, shown in COMPARED.items()
        if baseline[key] > ours[key]
    ]
    if not ahead:
        return []
    return [
        f"{BASELINE} is ahead in {', '.join(ahead)}: the intervals of the difference tell whether by more "
        "than chance"
    ]


def _per_species(probabilities: np.ndarray, truth: np.ndarray, dataset: Dataset) -> list[dict[str, Any]]:
    """Return F1 of every species in the test side, with its recordings there and in training."""
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
    config: TrainConfig, dataset: Dataset, sides: tuple[str, ...], device: torch.device
) -> ClipBatches:
    is_computed = dataset.features is None
    return ClipBatches(config, dataset, sides, device, is_computed=is_computed, is_resident=False)


def _truth(clips: ClipBatches) -> tuple[np.ndarray, np.ndarray]:
    """Return the true class of every recording, and the recordings, in the order of `average_windows`."""
    units, first = np.unique(clips.units, return_index=True)
    return clips.labels.cpu().numpy()[first], units


def _over_time(clips: ClipBatches) -> np.ndarray:
    """Return mean and deviation over time of every bin, [clips, 2 * channels * bins]."""
    parts = []
    for pictures, _ in clips.in_order(SCORING_BATCH):
        bins = pictures.flatten(1, 2)
        parts.append(torch.cat([bins.mean(dim=2), bins.std(dim=2, correction=0)], dim=1).numpy())
    return np.concatenate(parts)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
