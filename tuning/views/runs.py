"""The run folders below a folder, one row a study: its state, its trials, the best one, and when it began."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from birdnet_core.errors import RunFolderError
from birdnet_core.records.run_folder import RunFolder
from tuning.views.status import FAULTS, Best, run_status

N_ALONE = 50  # of fewer folders, processes that read them would take longer to start


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A study of a run folder.

    Args:
        state: of `StudyStatus`. n_ended: trials that are over; `n_failed` of them failed.
        best: the best value of `metric` in any epoch of a trial.
        begun: UTC, ISO 8601. hours: that drivers of the run folder have run.
        version: of birdtune, where the study has it.
    """

    run: str
    study: str
    kind: str
    state: str
    n_trials: int
    n_ended: int
    n_failed: int
    metric: str
    best: Best | None
    begun: str
    hours: float
    version: str | None


@dataclass(frozen=True, kw_only=True)
class UnreadableRun:
    """A run folder that this version cannot read, and why."""

    run: str
    error: str


def list_runs(folder: Path) -> tuple[list[StudyRow], list[UnreadableRun]]:
    """Return the studies of all run folders at or below `folder`, newest first, and the unreadable folders.

    Raises RunFolderError where there is no run folder.
    """
    if not folder.is_dir():
        raise RunFolderError(f"there is no folder {str(folder)!r}")
    paths = sorted(_run_folders(folder))
    if not paths:
        raise RunFolderError(f"no run folder of `birdtune sweep` is at or below {str(folder)!r}")
    if len(paths) < N_ALONE:
        found = list(map(_read, paths))
    else:
        with ProcessPoolExecutor() as pool:
            found = list(pool.map(_read, paths, chunksize=8))
    rows = [row for each in found if isinstance(each, list) for row in each]
    return sorted(rows, key=lambda row: row.begun, reverse=True), [
        each for each in found if isinstance(each, UnreadableRun)
    ]


def _run_folders(folder: Path) -> Iterator[str]:
    """Yield the run folders at or below `folder`; links and hidden folders are not followed."""
    for path, folders, files in os.walk(folder):
        studies = Path(path, "studies")
        if "journal.jsonl" in files or ("studies" in folders and any(studies.glob("*.json"))):
            yield path
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]


def _read(path: str) -> list[StudyRow] | UnreadableRun:
    try:
        run = RunFolder(path)
        if not run.study_names():
            return UnreadableRun(run=path, error="it has a journal, and no studies/*.json")
        status = run_status(run)
        if status.begun is None:
            run.check_journal()
        rows = []
        for of in status.studies:
            study = run.read_study(of.name)
            begun = study.get("created", "")
            if status.begun is not None:
                begun = datetime.fromtimestamp(status.begun, UTC).isoformat(timespec="seconds")
            counts = of.counts
            rows.append(
                StudyRow(
                    run=path,
                    study=of.name,
                    kind=of.kind,
                    state=of.state,
                    n_trials=of.n_trials,
                    n_ended=sum(
                        n for status, n in counts.items() if status not in ("running", "interrupted")
                    ),
                    n_failed=sum(counts.get(status, 0) for status in FAULTS),
                    metric=of.metric,
                    best=of.best,
                    begun=begun,
                    hours=status.hours,
                    version=study.get("provenance", {}).get("versions", {}).get("birdtune"),
                )
            )
        return rows
    except (RunFolderError, OSError) as error:
        return UnreadableRun(run=path, error=str(error))
