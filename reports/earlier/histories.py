"""The reader of one format: training histories and test results as JSON files of one folder.

A history is an object with the lists `LISTS`, one number an epoch; test results are an object with a test
accuracy, or with `predictions` and `labels`. Every file is accounted for: it is read, it has a fault, or it
is listed as no result. Accuracies become fractions, whichever way they were stored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from birdnet_core.errors import DataError, RunFolderError
from reports.earlier.experiments import EXPERIMENT_COLUMNS, EarlierWork

LISTS = {
    "train_loss": "train/loss", "train_acc": "train/accuracy",
    "val_loss": "val/loss", "val_acc": "val/accuracy",
}  # fmt: skip
SCORES = {
    "test_accuracy": ("test_accuracy", "test_acc", "accuracy"),
    "test_f1_macro": ("f1_macro",),
    "test_f1_weighted": ("f1_weighted",),
    "test_map": ("mAP", "map"),
}
VALIDATION = ("best_val_acc", "val_acc")
N_PARAMS = ("num_params", "n_params")

_CLOSE = 1e-6
_ROUNDED = 6e-4  # a share that was rounded to a tenth of a percent


@dataclass
class _History:
    file: str
    name: str
    is_percent: bool
    epochs: pd.DataFrame
    tests: list[_Test] = field(default_factory=list)

    @property
    def best(self) -> float:
        return float(self.epochs["val/accuracy"].max())


@dataclass(frozen=True)
class _Test:
    file: str
    name: str
    values: dict[str, float]  # by the columns of the experiment; nan where not stored
    validation: float | None


def read(folder: str | Path) -> EarlierWork:
    """Read the files of a folder; its subfolders are listed and not read.

    Test results belong to the history that `_owner` finds. Raises RunFolderError where there is no such
    folder, or nothing in it looks like a result.
    """
    path = Path(folder)
    wanted = f"a history is a JSON file with the lists {', '.join(LISTS)}"
    if not path.is_dir():
        raise RunFolderError(f"no earlier work at {str(folder)!r}: there is no such folder; {wanted}")
    histories: list[_History] = []
    tests: list[_Test] = []
    faults: list[tuple[str, str]] = []
    unread: list[str] = []
    for file in sorted(path.iterdir()):
        try:
            found = _read(file)
        except DataError as error:
            faults += [(file.name, fault) for fault in error.args]
            continue
        if isinstance(found, _History):
            histories.append(found)
        elif isinstance(found, _Test):
            tests.append(found)
        else:
            unread.append(file.name + "/" * file.is_dir())
    if not (histories or tests or faults):
        held = f"it holds {_some(unread)}" if unread else "it is empty"
        raise RunFolderError(f"no earlier work in {str(folder)!r}: {held}; {wanted}")
    histories = _without_doubtful(histories, faults)
    _assign(tests, histories, faults)
    epochs = [
        history.epochs.assign(trial_id=history.name, epoch=range(1, 1 + len(history.epochs)))
        for history in histories
    ]
    columns = ["trial_id", "epoch", *LISTS.values()]
    return EarlierWork(
        folder=str(folder),
        experiments=pd.DataFrame([_experiment(h) for h in histories], columns=list(EXPERIMENT_COLUMNS)),
        epochs=pd.concat(epochs, ignore_index=True)[columns] if epochs else pd.DataFrame(columns=columns),
        faults=[{"file": file, "fault": fault} for file, fault in sorted(faults, key=lambda each: each[0])],
        unread=unread,
    )


def _read(file: Path) -> _History | _Test | None:
    """Return the content of a file, None if it is no result; DataError with an argument a fault."""
    if file.suffix.lower() != ".json" or not file.is_file():
        return None
    try:
        # Whole numbers as floats: one of a thousand digits is then infinite, and not an overflow later.
        content = json.loads(file.read_bytes(), parse_int=float)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {' '.join(str(error).split())}") from error
    if isinstance(content, dict):
        if any(isinstance(content.get(key), list) for key in LISTS):
            return _history(file, content)
        if "predictions" in content or any(key in content for key in SCORES["test_accuracy"]):
            return _test(file, content)
    if re.search("history|results|predictions", file.stem, re.IGNORECASE) is None:
        return None
    held = f"a {type(content).__name__}"
    if isinstance(content, dict):
        held = f"an object with {_some(list(content)) or 'nothing in it'}"
    raise DataError(
        f"is named like a result and holds {held}; a history has the lists {', '.join(LISTS)}, test results "
        f"have one of {', '.join(SCORES['test_accuracy'])}, or predictions and labels"
    )


def _history(file: Path, content: dict[str, Any]) -> _History:
    if faults := list(_history_faults(content)):
        raise DataError(*faults)
    is_percent = max(content["val_acc"]) > 1 + _CLOSE
    epochs = pd.DataFrame({name: content[key] for key, name in LISTS.items()}, dtype="float64")
    if is_percent:
        epochs[["train/accuracy", "val/accuracy"]] /= 100
    name = re.sub(r"[\W_]*history$", "", file.stem, flags=re.IGNORECASE) or file.stem
    return _History(file.name, name, is_percent, epochs)


def _history_faults(content: dict[str, Any]) -> Iterator[str]:
    missing = [key for key in LISTS if not isinstance(content.get(key), list)]
    if missing:
        yield f"has no list {', '.join(missing)}; a history has {', '.join(LISTS)}"
        return
    lengths = {key: len(content[key]) for key in LISTS}
    if len(set(lengths.values())) > 1:
        named = ", ".join(f"{key} {n}" for key, n in lengths.items())
        yield f"has lists of unequal lengths ({named}); each has one number an epoch"
    elif not lengths["val_acc"]:
        yield "has no epoch: its lists are empty"
    largest = {}
    for key in LISTS:
        # A run that diverged stores nan or null as its loss: that is a result.
        is_accuracy = key.endswith("acc")
        is_right, accepted = (_is_accuracy, _ACCURACY) if is_accuracy else (_is_loss, "a number, or null")
        wrong = [(epoch, value) for epoch, value in enumerate(content[key], 1) if not is_right(value)]
        if wrong:
            more = f", and at {len(wrong) - 1} more epochs" if len(wrong) > 1 else ""
            yield f"has {_shortened(key, wrong[0][1])} at epoch {wrong[0][0]}{more}; accepted is {accepted}"
        elif is_accuracy and content[key]:
            largest[key] = max(content[key])
    if len(largest) == 2 and len({value > 1 + _CLOSE for value in largest.values()}) == 2:
        named = " and ".join(f"{key} up to {value:g}" for key, value in largest.items())
        yield f"has {named}: one in fractions and one in percents? Both need the same unit"


def _test(file: Path, content: dict[str, Any]) -> _Test:
    if faults := list(_test_faults(content)):
        raise DataError(*faults)
    stored = {score: _first(content, keys) for score, keys in SCORES.items()}
    # Predictions decide on the unit of the accuracy; any other score above 1 is in percents.
    values = {score: value / 100 if value > 1 + _CLOSE else value for score, value in stored.items()}
    accuracy, own, n = stored["test_accuracy"], math.nan, math.nan
    if "predictions" in content:
        pairs = list(zip(content["predictions"], content["labels"], strict=True))
        own, n = sum(predicted == truth for predicted, truth in pairs) / len(pairs), float(len(pairs))
        values["test_accuracy"] = min(accuracy, accuracy / 100, key=lambda share: abs(share - own))
    if math.isnan(accuracy):
        values["test_accuracy"] = own
    elif math.isfinite(own) and abs(values["test_accuracy"] - own) > _ROUNDED:
        raise DataError(
            f"contradicts itself: it stores the accuracy {accuracy:g}, and its {n:.0f} predictions agree "
            f"with its labels in {own:.2%}"
        )
    values |= {"n_test": n, "n_params": _first(content, N_PARAMS)}
    name = re.sub(r"[\W_]*(test)?[\W_]*(results|predictions)$", "", file.stem, flags=re.IGNORECASE)
    validation = _first(content, VALIDATION)
    return _Test(file.name, name or file.stem, values, None if math.isnan(validation) else validation)


def _test_faults(content: dict[str, Any]) -> Iterator[str]:
    for key in (*(key for keys in SCORES.values() for key in keys), *VALIDATION):
        if key in content and not _is_accuracy(content[key]):
            yield f"has {_shortened(key, content[key])}; accepted is {_ACCURACY}"
    for key in N_PARAMS:
        if key in content and not (isinstance(content[key], float) and 0 < content[key] < math.inf):
            yield f"has {_shortened(key, content[key])}; accepted is a number above 0"
    held = [content[key] for key in ("predictions", "labels") if key in content]
    are_lists = all(isinstance(each, list) and each for each in held)
    if held and not (len(held) == 2 and are_lists and len(held[0]) == len(held[1])):
        yield "has predictions and labels that are not two lists of one length, at least 1"


def _without_doubtful(histories: list[_History], faults: list[tuple[str, str]]) -> list[_History]:
    """Return the histories that can be used; append the faults of the others.

    Of equal copies the first is kept. Two that differ under one name are both left out, since neither is
    known to be right. One that never exceeds 1 is of fractions, or of percents of a run that failed: in a
    folder with histories in percents it is left out.
    """
    kept: list[_History] = []
    in_percent = [h.file for h in histories if h.is_percent]
    for history in histories:
        copy = next((h.file for h in kept if h.epochs.equals(history.epochs)), None)
        namesakes = [h for h in histories if _key(h.name) == _key(history.name)]
        others = [h.file for h in namesakes if not h.epochs.equals(history.epochs)]
        if copy:
            fault = f"is a copy of {copy}, which is read"
        elif others:
            fault = f"names the same experiment as {_some(others)} and differs; keep one"
        elif in_percent and not history.is_percent:
            fault = (
                f"has no accuracy above 1, and {_some(in_percent)} is in percents: fractions, or percents of "
                "a run that failed? Put histories in fractions into a folder of their own"
            )
        else:
            kept.append(history)
            continue
        faults.append((history.file, fault))
    return kept


def _assign(tests: list[_Test], histories: list[_History], faults: list[tuple[str, str]]) -> None:
    """Add each test result to the history that it belongs to; append the faults of those left over."""
    for test in tests:
        try:
            _owner(test, histories).tests.append(test)
        except DataError as error:
            faults.append((test.file, str(error)))
    for history in histories:
        if len({round(test.values["test_accuracy"], 4) for test in history.tests}) > 1:
            for test in history.tests:
                others = _some([t.file for t in history.tests if t is not test])
                fault = f"belongs to {history.file}, as {others} does, with another test accuracy; keep one"
                faults.append((test.file, fault))
            history.tests.clear()


def _owner(test: _Test, histories: list[_History]) -> _History:
    """Return the one history that a test result belongs to; DataError if there is not exactly one.

    A result that stores a validation accuracy belongs to the history with that best one; of several, to the
    one of its name. Any other belongs to the history of its name, or whose name begins with it, letters and
    digits alone compared.
    """
    named = [h for h in histories if _key(h.name) == _key(test.name)]
    named = named or [h for h in histories if _key(h.name).startswith(_key(test.name))]
    found, why = named, f"no history is named {test.name!r} or begins so"
    if (stored := test.validation) is not None:
        found = [h for h in histories if min(abs(stored - h.best), abs(stored / 100 - h.best)) < _CLOSE]
        found = [h for h in found if h in named] or found
        why = f"no history has its validation accuracy {stored:g} as the best"
        if named and not found:
            why += f"; that of {named[0].file} is {named[0].best:.2%}"
    if len(found) == 1:
        return found[0]
    several = f"may belong to {_some([h.file for h in found])}"
    raise DataError(several if found else f"belongs to no experiment: {why}")


def _experiment(history: _History) -> dict[str, Any]:
    keys = (*SCORES, "n_test", "n_params")
    known = {k: [t.values[k] for t in history.tests if not math.isnan(t.values[k])] for k in keys}
    return {
        "experiment": history.name,
        "file": history.file,
        "stored_as": "percents" if history.is_percent else "fractions",
        "test_files": [test.file for test in history.tests],
        **{key: values[0] if values else math.nan for key, values in known.items()},
    }


_ACCURACY = "0 to 1 or 0 to 100"


def _is_accuracy(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 100 * (1 + _CLOSE)


def _is_loss(value: Any) -> bool:
    return value is None or isinstance(value, float)


def _first(content: dict[str, Any], keys: tuple[str, ...]) -> float:
    return next((float(content[key]) for key in keys if key in content), math.nan)


def _shortened(key: str, value: Any) -> str:
    return f"{key} {json.dumps(value)[:40]}"


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _some(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
