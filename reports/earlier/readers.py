"""Histories and test results of earlier work, which other programs wrote as JSON, as tidy frames.

Every file of the folder is accounted for: it is read, or it has a fault with its reason, or it is named as
no result. Units are made one: an accuracy is a fraction here, whichever way it was stored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from birdnet_core.errors import DataError, RunFolderError

LISTS = {
    "train_loss": "train/loss", "train_acc": "train/accuracy",
    "val_loss": "val/loss", "val_acc": "val/accuracy",
}  # fmt: skip
TEST_SCORES = {
    "accuracy": ("test_accuracy", "test_acc", "accuracy"),
    "f1_macro": ("f1_macro",),
    "f1_weighted": ("f1_weighted",),
    "map": ("mAP", "map"),
}
EXPERIMENT_COLUMNS = (
    "experiment", "file", "stored_as", "test_files", "test_stored_as", "n_test",
    *(f"test_{score}" for score in TEST_SCORES), "n_params",
)  # fmt: skip

_CLOSE = 1e-6
_ROUNDED = 6e-4  # a share that was rounded to a tenth of a percent


@dataclass(frozen=True)
class Imports:
    """What a folder of earlier work holds.

    Args:
        folder: as it was given.
        experiments: one row a history, by name, with the columns EXPERIMENT_COLUMNS. `stored_as` and
            `test_stored_as` say "fractions" or "percents"; test scores are fractions, nan where none is
            stored; `n_test` is the number of stored predictions, else nan.
        epochs: one row an epoch: `trial_id` (the experiment's name), `epoch` from 1, losses as stored and
            accuracies as fractions, named as in a run.
        faults: `file` and `fault` of everything that looks like a result and cannot be used.
        unread: the files and folders that hold no result.
    """

    folder: str
    experiments: pd.DataFrame
    epochs: pd.DataFrame
    faults: list[dict[str, str]]
    unread: list[str]


@dataclass
class _History:
    file: str
    name: str
    percents: bool
    lists: dict[str, list[float]]
    printed: str  # the lists; unlike them, equal in two copies with nan
    tests: list[_Test] = field(default_factory=list)

    @property
    def best(self) -> float:
        return max(self.lists["val/accuracy"])


@dataclass(frozen=True)
class _Test:
    file: str
    name: str
    scores: dict[str, float]
    stored_as: str
    n: float
    validation: float | None
    n_params: float


def read_imports(folder: str | Path) -> Imports:
    """Read the files of a folder of earlier work; its subfolders are named and not read.

    A history is a JSON object with the lists LISTS; test results are one with a test accuracy, or with
    `predictions` and `labels`. Files of one experiment find each other by what they say: see `_owner`.
    Raises RunFolderError where there is no such folder, or nothing in it looks like a result.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunFolderError(
            f"no earlier work at {str(folder)!r}: there is no such folder; give one with JSON files that "
            f"hold the lists {', '.join(LISTS)}"
        )
    histories: list[_History] = []
    tests: list[_Test] = []
    faults: list[dict[str, str]] = []
    unread: list[str] = []
    for file in sorted(path.iterdir()):
        try:
            found = _read(file)
        except DataError as error:
            faults += [{"file": file.name, "fault": line} for line in str(error).splitlines()]
            continue
        if isinstance(found, _History):
            histories.append(found)
        elif isinstance(found, _Test):
            tests.append(found)
        else:
            unread.append(file.name + "/" * file.is_dir())
    if not (histories or tests or faults):
        held = f"it holds {_some(unread)}" if unread else "it is empty"
        raise RunFolderError(
            f"no earlier work in {str(folder)!r}: {held}; a history is a JSON file with the lists "
            f"{', '.join(LISTS)}"
        )
    histories, left_out = _without_doubtful(histories)
    faults += left_out + _give_tests(tests, histories)
    return Imports(
        str(folder),
        _frame([_experiment(h) for h in histories], EXPERIMENT_COLUMNS),
        _frame([row for h in histories for row in _epochs(h)], ("trial_id", "epoch", *LISTS.values())),
        sorted(faults, key=lambda fault: fault["file"]),
        unread,
    )


def _read(file: Path) -> _History | _Test | None:
    """Return what a file holds, None if that is no result; DataError with a line a fault."""
    is_named = re.search("history|results|predictions", file.stem, re.IGNORECASE) is not None
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
        if "predictions" in content or any(key in content for key in TEST_SCORES["accuracy"]):
            return _test(file, content)
    if is_named:
        keys = f"an object with {_some(list(content)) or 'nothing in it'}" if isinstance(content, dict) else (
            f"a {type(content).__name__}"
        )  # fmt: skip
        raise DataError(
            f"is named like a result and holds {keys}; a history has the lists {', '.join(LISTS)}, test "
            f"results have one of {', '.join(TEST_SCORES['accuracy'])}, or predictions and labels"
        )
    return None


def _history(file: Path, content: dict[str, Any]) -> _History:
    if faults := list(_history_faults(content)):
        raise DataError("\n".join(faults))
    percents = max(content["val_acc"]) > 1 + _CLOSE
    lists = {
        name: [_as_fraction(v, percents) if "acc" in key else _number(v) for v in content[key]]
        for key, name in LISTS.items()
    }
    name = re.sub(r"[\W_]*history$", "", file.stem, flags=re.IGNORECASE) or file.stem
    return _History(file.name, name, percents, lists, repr(lists))


def _history_faults(content: dict[str, Any]) -> Iterator[str]:
    missing = [key for key in LISTS if not isinstance(content.get(key), list)]
    if missing:
        yield f"has no list {', '.join(missing)}; a history has {', '.join(LISTS)}"
        return
    lengths = {key: len(content[key]) for key in LISTS}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{key} {n}" for key, n in lengths.items())
        yield f"has lists of unequal lengths ({said}); each has one number an epoch"
    elif not lengths["val_acc"]:
        yield "has no epoch: its lists are empty"
    largest = {}
    for key in LISTS:
        # A run that diverged stores nan or null as its loss: that is a result.
        right = _is_accuracy if key.endswith("acc") else _is_loss
        wrong = [(epoch, value) for epoch, value in enumerate(content[key], 1) if not right(value)]
        if wrong:
            epoch, value = wrong[0]
            accepted = "0 to 1 or 0 to 100" if key.endswith("acc") else "a number, or null"
            more = f", and at {len(wrong) - 1} more epochs" if len(wrong) > 1 else ""
            yield f"has {key} {json.dumps(value)[:40]} at epoch {epoch}{more}; accepted is {accepted}"
        elif key.endswith("acc") and content[key]:
            largest[key] = max(content[key])
    if len(largest) == 2 and len({value > 1 + _CLOSE for value in largest.values()}) == 2:
        said = " and ".join(f"{key} up to {value:g}" for key, value in largest.items())
        yield f"has {said}: one in fractions and one in percents? Both need the same unit"


def _test(file: Path, content: dict[str, Any]) -> _Test:
    if faults := list(_test_faults(content)):
        raise DataError("\n".join(faults))
    stored = {
        score: next((content[key] for key in keys if key in content), math.nan)
        for score, keys in TEST_SCORES.items()
    }
    own, n = _own_accuracy(content)
    # Predictions say which unit it is; without them, a test score above 1 is of percents.
    percents = {score: value > 1 + _CLOSE for score, value in stored.items()}
    if math.isfinite(own):
        percents["accuracy"] = abs(stored["accuracy"] / 100 - own) < abs(stored["accuracy"] - own)
    scores = {score: _as_fraction(value, percents[score]) for score, value in stored.items()}
    if math.isnan(scores["accuracy"]):
        scores["accuracy"] = own
    elif math.isfinite(own) and abs(scores["accuracy"] - own) > _ROUNDED:
        raise DataError(
            f"contradicts itself: it stores the accuracy {stored['accuracy']:g}, and its {n:.0f} predictions "
            f"agree with its labels in {own:.2%}"
        )
    units = {
        "percents" if percents[score] else "fractions" for score, v in stored.items() if not math.isnan(v)
    }
    name = re.sub(r"[\W_]*(test)?[\W_]*(results|predictions)$", "", file.stem, flags=re.IGNORECASE)
    return _Test(
        file=file.name,
        name=name or file.stem,
        scores=scores,
        stored_as=_stored(stored, percents, units),
        n=n,
        validation=next((content[key] for key in ("best_val_acc", "val_acc") if key in content), None),
        n_params=next((content[key] for key in ("num_params", "n_params") if key in content), math.nan),
    )


def _stored(stored: dict[str, float], percents: dict[str, bool], units: set[str]) -> str:
    if len(units) < 2:
        return next(iter(units), "predictions")
    named = ", ".join(score for score in stored if percents[score])
    return f"{named} in percents, the rest fractions"


def _test_faults(content: dict[str, Any]) -> Iterator[str]:
    keys = [key for keys in TEST_SCORES.values() for key in keys] + ["best_val_acc", "val_acc"]
    for key in keys:
        if key in content and not _is_accuracy(content[key]):
            yield f"has {key} {json.dumps(content[key])[:40]}; accepted is 0 to 1 or 0 to 100"
    for key in ("num_params", "n_params"):
        if key in content and not (_is_loss(content[key]) and 0 < _number(content[key]) < math.inf):
            yield f"has {key} {json.dumps(content[key])[:40]}; accepted is a number above 0"
    held = [content[key] for key in ("predictions", "labels") if key in content]
    if held and not (
        len(held) == 2 and all(isinstance(x, list) and x for x in held) and len(held[0]) == len(held[1])
    ):
        yield "has predictions and labels that are not two lists of one length, at least 1"


def _own_accuracy(content: dict[str, Any]) -> tuple[float, float]:
    """Return the accuracy of the stored predictions and their number; nan without predictions."""
    if "predictions" not in content:
        return math.nan, math.nan
    pairs = list(zip(content["predictions"], content["labels"], strict=True))
    return sum(said == truth for said, truth in pairs) / len(pairs), float(len(pairs))


def _without_doubtful(histories: list[_History]) -> tuple[list[_History], list[dict[str, str]]]:
    """Return the histories of which it is clear what they are, and the faults of the others.

    Of equal copies the first is kept. Two that differ under one name are both left out, since neither says
    which is right. A history that never exceeds 1 is of fractions, or of percents and hardly learnt: next to
    histories of percents it is left out.
    """
    kept: list[_History] = []
    faults: list[dict[str, str]] = []
    in_percents = [h.file for h in histories if h.percents]
    for history in histories:
        copy = next((h.file for h in kept if h.printed == history.printed), None)
        namesakes = [h for h in histories if _key(h.name) == _key(history.name)]
        others = [h.file for h in namesakes if h.printed != history.printed]
        if copy:
            fault = f"is a copy of {copy}, which is read"
        elif others:
            fault = f"is a second file of one experiment, beside {_some(others)}, and differs; keep one"
        elif in_percents and not history.percents:
            fault = (
                f"has no accuracy above 1, and {_some(in_percents)} is in percents: fractions, or percents "
                "of a run that learnt nothing? Put histories in fractions into a folder of their own"
            )
        else:
            kept.append(history)
            continue
        faults.append({"file": history.file, "fault": fault})
    return kept, faults


def _give_tests(tests: list[_Test], histories: list[_History]) -> list[dict[str, str]]:
    """Hand each test result to the history that it belongs to; return the faults of those left over."""
    faults = []
    for test in tests:
        try:
            _owner(test, histories).tests.append(test)
        except DataError as error:
            faults.append({"file": test.file, "fault": str(error)})
    for history in histories:
        if len({round(test.scores["accuracy"], 4) for test in history.tests}) > 1:
            for test in history.tests:
                others = _some([t.file for t in history.tests if t is not test])
                fault = (
                    f"belongs to {history.file}, as {others} does, and says another test accuracy; keep one"
                )
                faults.append({"file": test.file, "fault": fault})
            history.tests.clear()
    return faults


def _owner(test: _Test, histories: list[_History]) -> _History:
    """Return the one history that a test result belongs to; DataError if there is not exactly one.

    A result that stores a validation accuracy belongs to the history with that best one; of several, to the
    one of its name. Any other belongs to the history of its name, or whose name begins with it, letters and
    digits alone compared.
    """
    named = [h for h in histories if _key(h.name) == _key(test.name)]
    named = named or [h for h in histories if _key(h.name).startswith(_key(test.name))]
    found = named
    why = f"no history is named {test.name!r} or begins so"
    if test.validation is not None:
        found = [h for h in histories if _says(test.validation, h.best)]
        found = [h for h in found if h in named] or found
        why = f"no history has its validation accuracy {test.validation:g} as the best"
        if named and not found:
            why += f"; that of {named[0].file} is {named[0].best:.2%}"
    if len(found) == 1:
        return found[0]
    several = f"may belong to {_some([h.file for h in found])}"
    raise DataError(several if found else f"belongs to no experiment: {why}")


def _says(stored: float, best: float) -> bool:
    return any(abs(reading - best) < _CLOSE for reading in (stored, stored / 100))


def _experiment(history: _History) -> dict[str, Any]:
    scores = {
        f"test_{score}": next(
            (t.scores[score] for t in history.tests if not math.isnan(t.scores[score])), math.nan
        )
        for score in TEST_SCORES
    }
    return {
        "experiment": history.name,
        "file": history.file,
        "stored_as": "percents" if history.percents else "fractions",
        "test_files": [test.file for test in history.tests],
        "test_stored_as": "; ".join(dict.fromkeys(test.stored_as for test in history.tests)),
        "n_test": max((test.n for test in history.tests if not math.isnan(test.n)), default=math.nan),
        **scores,
        "n_params": next((t.n_params for t in history.tests if not math.isnan(t.n_params)), math.nan),
    }


def _epochs(history: _History) -> Iterator[dict[str, Any]]:
    for epoch, values in enumerate(zip(*history.lists.values(), strict=True), 1):
        yield {"trial_id": history.name, "epoch": epoch, **dict(zip(history.lists, values, strict=True))}


def _frame(rows: list[dict[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(columns), dtype=object)
    texts = {"experiment", "file", "stored_as", "test_files", "test_stored_as", "trial_id"}
    return frame.astype({c: "int64" if c == "epoch" else "float64" for c in frame if c not in texts})


def _is_accuracy(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 100 * (1 + _CLOSE)


def _is_loss(value: Any) -> bool:
    return value is None or isinstance(value, float)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _as_fraction(value: float, percents: bool) -> float:
    return value / 100 if percents else value


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _some(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
