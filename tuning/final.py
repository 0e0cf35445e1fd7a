"""Final training: one config on several seeds becomes a model folder.

Two sweeps of that config alone, in the folder's own run: `validate` in the training split, which says how
long to train and how far the probabilities can be believed, then `final` on training and validation together,
whose last weights are the members. What is known of them before the test lies in evidence.json.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import ModelFolderError, RunFolderError
from birdnet_core.inference.calibration import calibration_error, fit_temperature, reliability, tempered
from birdnet_core.inference.model_folder import MODEL_FILE, Member, write_model
from birdnet_core.records.files import read_json, write_json
from birdnet_core.records.provenance import provenance
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from birdnet_core.training.metrics import score
from birdnet_core.training.session import Session
from search_spaces.designs import SingleConfig
from search_spaces.study import Ablation
from tuning.engine.cluster import ray_session
from tuning.engine.halt import Budget
from tuning.engine.journal import Observer
from tuning.engine.launch import sweep
from tuning.engine.packing import Resources
from tuning.engine.preparation import Data

SCHEMA = 1
EVIDENCE_FILE = "evidence.json"
RUN = "run"


def train_final(
    config: TrainConfig,
    data: Data,
    out: Path,
    *,
    n_seeds: int,
    keep_val: bool = False,
    chosen: Mapping[str, Any] | None = None,
    resources: Resources | None = None,
    budget: Budget | None = None,
    command: str = "",
    observer: Observer = lambda event: None,
) -> dict[str, Any]:
    """Train the members of a model, write the folder `out`, and return what its evidence.json holds.

    Seeds are `n_seeds` from the config's own; all validate on the fold of its repeat. With `keep_val` nothing
    is trained in the validation split: the members are the best epochs of the first sweep. `chosen` is how
    the config was chosen, for the record. An interrupted call continues from the run in `out`; a finished one
    trains nothing again. Raises ModelFolderError where `out` holds another model, and RunFolderError where
    training stopped or failed before every seed was trained.
    """
    config = config.override({"training.train_on": "train", "training.stop_after": 0})
    final = config if keep_val else config.override({"training.train_on": "train+val"})
    dataset = Dataset.open(data.folder(config))
    request = {
        "config_id": config.config_id,
        "seeds": list(range(config.seed, config.seed + n_seeds)),
        "keep_val": keep_val,
        "data_id": dataset.facts["data_id"],
        "split_id": dataset.facts["split_id"],
    }
    if (out / MODEL_FILE).exists():
        return _finished(out, request)
    run = RunFolder(out / RUN)
    # Every trial's checkpoint is kept: it holds the weights.
    resources = replace(resources or Resources(), checkpoints=n_seeds)

    def train_each(name: str, question: str, each: TrainConfig) -> list[TrialRecord]:
        """Return how `each` ended on every seed, in their order."""
        study = Ablation(
            name=name,
            question=question,
            factors={},
            design=SingleConfig(),
            metric=each.training.monitor,
            n_repeats=n_seeds,
            vary="seed",
        )
        # Failed seeds are retried: else one bad seed would be the end of the model.
        summary = sweep(
            study, data, run.path, base=each, resources=resources, budget=budget, rerun_failed=True,
            command=command, observer=observer,
        )  # fmt: skip
        return _completed(run, each, request["seeds"], summary.halted)

    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_session(run.path / "ray.log"))  # one for both sweeps
        validated = train_each("validate", "How long, and how far can it be believed?", config)
        n_epochs = statistics.median_high(_best_epoch(record) for record in validated)
        trained = validated
        if not keep_val:
            final = final.override({"training.stop_after": n_epochs})
            trained = train_each(f"final-{n_epochs}-epochs", "The members of the model", final)

    validation = _validation(run, validated, dataset)
    of_seeds = {record.trial_id: record for record in (*validated, *trained)}.values()
    evidence = {
        "schema": SCHEMA,
        "request": request,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "chosen": dict(chosen) if chosen else None,
        "metric": config.training.monitor,
        "data": run.read_study("validate")["data"],
        "validation": validation,
        "final": {
            "train_on": final.training.train_on,
            "established_epochs": n_epochs,
            "epochs_of_seeds": [_best_epoch(record) for record in validated],
            "trial_ids": [record.trial_id for record in trained],
            "gpu_hours": sum(record.gpu_hours for record in of_seeds),
            "cpu_hours": sum(record.cpu_hours for record in of_seeds),
        },
    }
    write_json(out / EVIDENCE_FILE, evidence)
    _write_members(out, run, trained, dataset, validation, chosen)
    for record in of_seeds:  # the members hold their weights now
        shutil.rmtree(run.checkpoints_path / record.trial_id, ignore_errors=True)
    return read_json(out / EVIDENCE_FILE)


def _finished(out: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Return the evidence of a finished model, if it has the requested settings."""
    if not (out / EVIDENCE_FILE).exists():
        raise ModelFolderError(
            f"{str(out)!r} holds a model of a single training, not of `train --seeds`; give another --out"
        )
    evidence = read_json(out / EVIDENCE_FILE)
    there = evidence["request"]
    differing = [key for key in request if there.get(key) != request[key]]
    if differing:
        others = ", ".join(f"{key} {there.get(key)}, requested {request[key]}" for key in differing)
        raise ModelFolderError(f"{str(out)!r} holds another finished model ({others}); give another --out")
    return evidence


def _completed(
    run: RunFolder, config: TrainConfig, seeds: Sequence[int], halted: str | None
) -> list[TrialRecord]:
    """Return the records of `config` on `seeds`; RunFolderError where one has not completed."""
    records = run.records()
    wanted = [config.override({"seed": seed}).trial_id for seed in seeds]
    missing = [name for name in wanted if name not in records or records[name].status != "completed"]
    if missing and halted:
        raise RunFolderError(
            f"final training stopped before it was done: {halted}\nwhat was finished is kept: the same "
            "command continues from there, with a larger budget if that was what ended it"
        )
    if missing:
        ended = {name: f"{r.status}: {r.error}" for name, r in records.items()}
        reasons = [f"{name} {ended.get(name, 'was never started')}" for name in missing]
        raise RunFolderError(
            f"{len(missing)} of {len(wanted)} seeds did not complete, and an ensemble takes all of them; the "
            "same command tries those again, and --seeds takes fewer\n" + "\n".join(reasons)
        )
    return [records[name] for name in wanted]


def _best_epoch(record: TrialRecord) -> int:
    if record.best_epoch is None:
        raise RunFolderError(
            f"trial {record.trial_id} has no epoch with a finite {record.config['training']['monitor']}; "
            "there is nothing to keep"
        )
    return record.best_epoch


def _session(run: RunFolder, record: TrialRecord, dataset: Dataset) -> Session:
    """Return the session of a trial, as it ended."""
    checkpoint = run.checkpoints_path / record.trial_id / "session.pt"
    if not checkpoint.exists():
        raise RunFolderError(
            f"the checkpoint of trial {record.trial_id} is not in {str(run.path)!r}, and its weights with "
            f"it; delete {str(run.path.parent)!r} and train again"
        )
    return Session.load(checkpoint, dataset)


def _validation(run: RunFolder, records: Sequence[TrialRecord], dataset: Dataset) -> dict[str, Any]:
    """Return what the validation split says of each seed and of their ensemble, and its temperature.

    Of the sessions that did not learn it, at their best epochs. The ensemble is the mean of probabilities.
    """
    strata = dataset.strata()
    total, truth = np.zeros(()), np.zeros(0, dtype=int)
    for record in records:
        session = _session(run, record, dataset)
        probabilities, truth = session.predict("val")
        total = total + probabilities
    ensemble = total / len(records)
    temperature = fit_temperature(ensemble, truth)
    before_and_after = {"before": ensemble, "after": tempered(ensemble, temperature)}
    return {
        "members": [
            {
                "seed": record.seed,
                "trial_id": record.trial_id,
                "best_epoch": record.best_epoch,
                "epochs": record.epochs,
                "metrics": {name: v for name, v in record.metrics.items() if name.startswith("val/")},
            }
            for record in records
        ],
        "ensemble": {f"val/{name}": value for name, value in score(ensemble, truth, strata).items()},
        "temperature": temperature,
        "n": len(truth),
        "loss": {name: score(p, truth, strata)["loss"] for name, p in before_and_after.items()},
        "ece": {name: calibration_error(p, truth) for name, p in before_and_after.items()},
        "reliability": {name: reliability(p, truth) for name, p in before_and_after.items()},
    }


def _write_members(
    out: Path,
    run: RunFolder,
    records: Sequence[TrialRecord],
    dataset: Dataset,
    validation: dict[str, Any],
    chosen: Mapping[str, Any] | None,
) -> None:
    members = [
        Member(
            _session(run, record, dataset).progress.best_weights,
            record.seed,
            _best_epoch(record),
            record.trial_id,
        )
        for record in records
    ]
    first = records[0]
    kept = ("device", "precision", "data_id", "split_id")
    write_model(
        out,
        config=TrainConfig.from_dict(first.config),
        species=dataset.species,
        input_shape=dataset.input_shape,
        mean=dataset.mean.tolist(),
        std=dataset.std.tolist(),
        members=members,
        temperature=validation["temperature"],
        calibration={
            "fitted_on": "validation recordings, by the ensemble before it trained on them",
            "n": validation["n"],
            "loss": validation["loss"],
            "ece": validation["ece"],
        },
        provenance={
            **provenance(),
            **{key: first.provenance[key] for key in kept},
            "study": chosen["study"] if chosen else None,
            "trials": [record.trial_id for record in records],
            "seeds": [record.seed for record in records],
        },
    )
