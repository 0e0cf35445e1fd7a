"""A whole training run in this process, without Ray: `train` and `save_model`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import DataError
from birdnet_core.inference.model_folder import Member, write_model
from birdnet_core.records.files import write_json
from birdnet_core.training.session import Session


def train(
    config: TrainConfig,
    dataset: Dataset,
    *,
    on_epoch: Callable[[int, dict[str, float]], Any] | None = None,
    checkpoint: Path | None = None,
) -> Session:
    """Train `config` to its end and return the session, which predicts by the weights of its best epoch.

    `on_epoch` is called with the number of the epoch, from 1, and its metrics. The session is saved to
    `checkpoint` after every epoch. If an earlier call was interrupted, it continues from there, under the
    `runtime` of this call. Raises DataError where `checkpoint` holds the session of another config or of
    other data.
    """
    if checkpoint and checkpoint.exists():
        session = Session.load(checkpoint, dataset, runtime=config.runtime)
        if session.config.trial_id != config.trial_id:
            raise DataError(
                f"{str(checkpoint)!r} is the interrupted training of another config or seed "
                f"({session.config.trial_id} instead of {config.trial_id}); finish that one, delete the "
                "file, or choose another folder"
            )
    else:
        session = Session(config, dataset)
    while not session.finished:
        metrics = session.step()
        if checkpoint:
            session.save(checkpoint)
        if on_epoch:
            on_epoch(session.progress.epoch, metrics)
    return session


def save_model(session: Session, folder: Path) -> None:
    """Write the best epoch's weights as a model folder, and the session's record next to them."""
    record = session.record("completed")
    dataset = session.dataset
    member = Member(
        session.progress.best_weights, record.seed, record.best_epoch or record.epochs, record.trial_id
    )
    write_model(
        folder,
        config=session.config,
        species=dataset.species,
        input_shape=dataset.input_shape,
        mean=dataset.mean.tolist(),
        std=dataset.std.tolist(),
        members=[member],
        provenance={**record.provenance, "trials": [record.trial_id], "seeds": [record.seed]},
    )
    write_json(folder / "record.json", record.to_dict())
