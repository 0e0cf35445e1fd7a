"""Checks of the files of a run folder, which may come from another program or have been edited by hand.

A file that cannot be used raises RunFolderError with its path and its fault, and no name in it leads out of
the folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.bounds import Bound
from birdnet_core.records.trial import SCHEMA, STATUSES, TrialRecord

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
A_NAME = (
    "letters, digits, dots, dashes and underscores, begins with a letter or a digit, and is at most 100 long"
)
"""The rest of a message that begins "a name holds"."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TRIAL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}-r[0-9]{1,10}(-s[0-9]{1,10})?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_name(name: Any) -> bool:
    """Return whether a study, a trial or a split may be called so: it becomes the name of a file."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_trial_id(name: Any) -> bool:
    """Return whether `name` is ``<config_id>-r<repeat>`` or ``<config_id>-r<repeat>-s<seed>``."""
    return isinstance(name, str) and _TRIAL_ID.fullmatch(name) is not None


def local_path(path: str | Path) -> Path:
    """Return `path`; RunFolderError for an address such as ``s3://bucket/run``, which no verb writes to."""
    if address := _SCHEME.match(str(path)):
        # A Path has one slash of the two.
        given = f"{address[0]}/{str(path)[address.end() :].lstrip('/')}"
        raise RunFolderError(
            f"{given!r} is an address, and birdtune reads and writes folders: give a path on this "
            "machine or on a file system that is mounted here, and copy the folder to the store afterwards"
        )
    return Path(path)


# ------------------------------------------------------------------------------------------- contents

Types = tuple[type, ...]
_NUMBER: Types = (int, float)
_NUMBERS = frozenset((*_NUMBER, type(None)))
_WORDS = {
    str: "text", int: "a whole number", float: "a number", dict: "an object", list: "a list",
    bool: "true or false", type(None): "null",
}  # fmt: skip


def _types_of(annotation: Any) -> Types:
    """Return the types that JSON may have for a field of `annotation`."""
    if get_origin(annotation) is UnionType:
        return tuple(t for member in get_args(annotation) for t in _types_of(member))
    if get_origin(annotation) is Literal:
        return (str,)
    return _NUMBER if annotation is float else (get_origin(annotation) or annotation,)


def _has_default(field: Field[Any]) -> bool:
    return not (field.default is MISSING and field.default_factory is MISSING)


_STUDY: Mapping[str, Types] = {
    "name": (str,), "kind": (str,), "metric": (str,), "direction": (str,), "epochs": (int,),
    "repeats": (list,), "seed": (int,),
}  # fmt: skip
_STUDY_MAY: Mapping[str, Types] = {
    "question": (str,), "base": (dict,), "data": (dict,), "provenance": (dict,), "gates": (list,),
    "constraints": (list,), "rung_metric": (str,),
    "request": (dict, type(None)), "design": (dict, type(None)), "factors": (dict, type(None)),
    "baseline": (dict, type(None)), "cells": (list, type(None)), "n_trials": (int, type(None)),
}  # fmt: skip
_BOUND: Mapping[str, Types] = {"name": (str,), "comparison": (str,), "limit": _NUMBER}
_CELL: Mapping[str, Types] = {"config_id": (str,), "factors": (dict,)}
_RECORD_MAY = {name: _types_of(annotation) for name, annotation in get_type_hints(TrialRecord).items()}
_RECORD = {f.name: _RECORD_MAY[f.name] for f in fields(TrialRecord) if not _has_default(f)}
_EVENTS: Mapping[str, Mapping[str, Types]] = {
    "trial": {"study": (str,), "trial_id": (str,), "number": (int,), "factors": (dict,), "reused": (bool,)},
    "epoch": {"trial_id": (str,), "epoch": (int,), "metrics": (dict,), "epoch_s": _NUMBER},
    "restart": {"trial_id": (str,)},
    "audit": {"trial_id": (str,), "epoch": (int,)},
    "spared": {"trial_id": (str,), "epoch": (int,)},
    "rerun": {"trial_id": (str,)},
    "next_fold": {"study": (str,), "trial_id": (str,), "number": (int,)},
    "end": {"trial_id": (str,), "status": (str,)},
}


def checked_study(path: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `path`, studies/<name>.json; RunFolderError where it is not a study."""
    where = f"{str(path)!r} is no study of birdtune"
    _check_file(where, study, _STUDY, _STUDY_MAY)
    if study["name"] != path.stem or not is_name(study["name"]):
        raise RunFolderError(f"{where}: its name is {study['name']!r:.120}, and the file's is {path.stem!r}")
    if study["kind"] not in ("ablation", "search"):
        raise RunFolderError(f"{where}: kind = {study['kind']!r:.80}; it takes 'ablation' or 'search'")
    if study["direction"] not in ("maximize", "minimize"):
        raise RunFolderError(
            f"{where}: direction = {study['direction']!r:.80}; it takes 'maximize', 'minimize'"
        )
    needed = "cells" if study["kind"] == "ablation" else "n_trials"
    if study.get(needed) is None:
        raise RunFolderError(f"{where}: it lacks {needed!r}, which a study of kind {study['kind']!r} has")
    if not all(type(repeat) is int for repeat in study["repeats"]):
        raise RunFolderError(f"{where}: repeats = {study['repeats']!r:.80}; they are whole numbers")
    for cell in study.get("cells") or ():
        check_fields(f"{where}: a cell", cell, _CELL, {})
    for bound in study.get("constraints", ()):
        check_fields(f"{where}: a constraint", bound, _BOUND, {})
        try:
            Bound(**bound)
        except (ConfigError, TypeError) as error:
            raise RunFolderError(f"{where}: a constraint: {error}") from None
    return study


def checked_record(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `path`, trials/<trial_id>.json; RunFolderError where it is not a record."""
    where = f"{str(path)!r} is no trial's record"
    _check_file(where, record, _RECORD, _RECORD_MAY)
    if record["trial_id"] != path.stem:
        raise RunFolderError(f"{where}: its trial_id is {record['trial_id']!r:.120}, not that of the file")
    if record["status"] not in STATUSES:
        raise RunFolderError(f"{where}: status = {record['status']!r:.80}; it takes {', '.join(STATUSES)}")
    for scores in ("metrics", "f1_per_species"):
        _check_numbers(where, record.get(scores, {}))
    return record


def checked_event(where: str, event: Any, known_ids: set[str]) -> dict[str, Any]:
    """Return an event of a journal; raises RunFolderError, which begins with `where`, for anything else.

    Kinds of event that this version does not know are passed on: readers leave them out. `known_ids` are
    trial_ids that were checked before, and gains this one.
    """
    if not isinstance(event, dict):
        raise RunFolderError(f"{where} is no event of birdtune: it is {_kind_of(event)}, not an object")
    kind = event.get("event")
    if type(kind) is not str or type(event.get("time")) not in _NUMBER:
        raise RunFolderError(f"{where} is no event of birdtune: it lacks 'event' (text) or 'time' (seconds)")
    for key, types in _EVENTS.get(kind, {}).items():
        if type(event.get(key)) not in types:
            check_fields(f"{where}, {kind!r},", event, _EVENTS[kind], {})
    trial_id = event.get("trial_id")
    if trial_id is not None and trial_id not in known_ids:
        if not is_trial_id(trial_id):
            raise RunFolderError(
                f"{where}, {kind!r}, has trial_id = {trial_id!r:.120}; it takes <config_id>-r<repeat>"
            )
        known_ids.add(trial_id)
    if kind == "trial":
        needed: Mapping[str, Types] = {"status": (str,)} if event["reused"] else {}
        check_fields(f"{where}, {kind!r},", event, needed, {"gpus": _NUMBER, "cpus": _NUMBER, "fold": (int,)})
    elif kind == "epoch":
        _check_numbers(where, event["metrics"])
    elif kind == "end":
        check_fields(f"{where}, {kind!r},", event, {}, {"error": (str,), "peak_memory_mb": _NUMBER})
        if event["status"] not in STATUSES:
            raise RunFolderError(f"{where}: status = {event['status']!r:.80}; it takes {', '.join(STATUSES)}")
    return event


def _check_file(
    where: str, values: dict[str, Any], needed: Mapping[str, Types], may: Mapping[str, Types]
) -> None:
    if "schema" not in values:  # else a file of another version, which may lack fields, is named as such
        check_fields(where, values, needed, may)
    if values.get("schema") != SCHEMA:
        raise RunFolderError(f"{where}: schema = {values.get('schema')!r:.40}; this version reads {SCHEMA}")
    check_fields(where, values, needed, may)


def check_fields(where: str, values: Any, needed: Mapping[str, Types], may: Mapping[str, Types]) -> None:
    """Raise RunFolderError unless `values` is an object with the keys `needed`, each of its types."""
    if not isinstance(values, dict):
        raise RunFolderError(f"{where}: it is {_kind_of(values)}, not an object")
    if missing := [key for key in needed if key not in values]:
        raise RunFolderError(f"{where}: it lacks {', '.join(map(repr, missing))}")
    for key, types in {**needed, **may}.items():
        if key in values and type(values[key]) not in types:
            words = " or ".join(_WORDS[t] for t in types if not (t is int and float in types))
            raise RunFolderError(f"{where}: {key} = {values[key]!r:.80} is not accepted; it takes {words}")


def _check_numbers(where: str, values: Mapping[str, Any]) -> None:
    if _NUMBERS.issuperset(map(type, values.values())):
        return
    for name, value in values.items():
        if value is not None and type(value) not in _NUMBER:
            raise RunFolderError(f"{where}: {name!r:.80} = {value!r:.80} is not accepted; it takes a number")


def _kind_of(value: Any) -> str:
    return _WORDS.get(type(value), type(value).__name__)
