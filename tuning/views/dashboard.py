"""optuna-dashboard on a copy of a run's Optuna storage.

On a copy, because a dashboard opened on the SQLite file of a study in progress has crashed the study
(optuna-dashboard issue 545), and because it can alter what it shows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sqlite3
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.run_folder import RunFolder

HOST = "127.0.0.1"


def copy_storage(run: RunFolder, folder: Path) -> BaseStorage:
    """Return a copy, made in `folder`, of the Optuna storage in a run folder; a driver may be writing it.

    Raises RunFolderError where the folder holds no searches, or keeps them in a database elsewhere.
    """
    searches = [name for name in run.study_names() if run.read_study(name)["kind"] == "search"]
    if not searches:
        raise RunFolderError(
            f"{str(run.path)!r} holds no searches, only ablations: {', '.join(run.study_names())}; "
            "`birdtune report` shows those"
        )
    if run.storage_path.exists():
        copy = folder / run.storage_path.name
        source = sqlite3.connect(f"{run.storage_path.absolute().as_uri()}?mode=ro", uri=True)
        # SQLite's own backup: a transaction is in the copy as a whole or not at all.
        with contextlib.closing(source), contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        return RDBStorage(f"sqlite:///{copy}")
    journal = run.path / "optuna.jsonl"
    if journal.exists():
        # Lines are only ever appended, and Optuna leaves out a last one without its end.
        return JournalStorage(JournalFileBackend(shutil.copy(str(journal), str(folder))))
    raise RunFolderError(
        f"{str(run.path)!r} holds the searches {', '.join(searches)}, and no Optuna storage: either none has "
        "begun, or they are in a database; for that, run optuna-dashboard with the database's URL"
    )


def serve(storage: BaseStorage, port: int) -> None:
    """Serve `storage` on this machine alone until interrupted; ConfigError where that is not possible."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise ConfigError(
            "the dashboard needs the package optuna-dashboard, which is not installed: "
            "pip install 'birdtune[dashboard]'"
        )
    from optuna_dashboard import run_server

    try:
        run_server(storage, host=HOST, port=port)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"cannot listen on port {port}: {reason}; give another --port") from None
