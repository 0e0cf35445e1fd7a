"""MODEL_CARD.md of a model folder: its use, data, training, scores and limits.

All of it is read from the folder's JSON files (Mitchell et al. 2019, Model Cards for Model Reporting).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from birdnet_core.records.files import read_json, write_text
from birdnet_core.records.metrics import EVALUATION_SCHEMA, METRICS, TEST_METRICS
from birdnet_core.records.seen import seen_caution, seen_text
from birdnet_core.records.trial import LEAKAGE
from reports.page.formats import templates

CARD = "MODEL_CARD.md"
VALIDATION = {name: metric.title for name, metric in METRICS.items() if name.startswith("val/")}
TEST = {name: metric.title for name, metric in TEST_METRICS.items()}
OF_TEST = ("test/accuracy", "test/f1_macro", "test/f1_rare", "test/map", "test/loss", "test/ece")
BY_SEEN = ("test/accuracy", "test/f1_macro", "test/map")


OPTIMISTIC = (
    "Scores are of the validation split, which also chose each training's best epoch and the config: they "
    "are too high on average."
)


def write_card(folder: str | Path) -> Path:
    """Write the card of the model in `folder` from its JSON files; return its path.

    Besides model.json, final training writes evidence.json, training of a single config record.json, and
    `birdtune evaluate` tests.json and evaluation.json.
    """
    folder = Path(folder)
    model = read_json(folder / "model.json")
    parts = {
        name: read_json(folder / f"{name}.json") if (folder / f"{name}.json").exists() else None
        for name in ("evidence", "record", "tests", "evaluation")
    }
    evidence, evaluation = parts["evidence"], parts["evaluation"]
    if evaluation and evaluation.get("schema") != EVALUATION_SCHEMA:
        evaluation = None  # of an older version
    data = evidence["data"] if evidence else {}
    environment = templates()
    environment.filters |= {"num": _number, "seen_text": seen_text}
    environment.globals["seen_caution"] = seen_caution
    text = environment.get_template("model_card.md.j2").render(
        model=model,
        optimistic=OPTIMISTIC,
        config=model["config"],
        backbone=_backbone(model),
        evidence=evidence,
        data=data,
        openings=parts["tests"]["openings"] if parts["tests"] else [],
        evaluation=evaluation,
        leaks=[note for note in data.get("notes", []) if note.startswith(LEAKAGE)],
        notes=[note for note in data.get("notes", []) if not note.startswith(LEAKAGE)],
        rare_most=max((data["train_counts"][s] for s in data["strata"]["rare"]), default=0) if data else None,
        species=_species_table(model, data, evaluation),
        validation=_validation_table(parts),
        test=test_table({row["name"]: row["metrics"] for row in evaluation["rows"]}) if evaluation else None,
        test_differences=test_table(differences(evaluation)) if evaluation else None,
        seen=evaluation["seen"] if evaluation else None,
        by_seen=seen_table(evaluation["seen"])
        if evaluation and (evaluation["seen"] or {}).get("rows")
        else None,
    )
    path = folder / CARD
    write_text(path, text)
    return path


def _backbone(model: dict[str, Any]) -> dict[str, Any] | None:
    """Return name, weights_hash, source and licence of the backbone of a model on embeddings, else None."""
    features, stated = model["config"]["features"], model["provenance"].get("backbone")
    if stated is None:
        return None
    return {"name": features["backbone"], "weights_hash": features["weights_hash"], **stated}


def test_table(scored: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Return a row a member, ensemble, baseline or difference, with the scores that fit a page and intervals.

    `scored` has the metrics of an evaluation by the name of each row. evaluation.json has all of them.
    """
    return pd.DataFrame(
        [
            {"": name, **{TEST[key]: _interval(metrics[key]) for key in OF_TEST}}
            for name, metrics in scored.items()
        ]
    )


def differences(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metrics of each paired difference of an evaluation, by its name."""
    return {
        "ensemble − mean of seeds": evaluation["difference"],
        **{f"calibrated − {name}": metrics for name, metrics in evaluation["over_baseline"].items()},
    }


def seen_table(seen: dict[str, Any]) -> pd.DataFrame:
    """Return a row for the ensemble and each baseline, on recordings of every status of `records.seen`."""
    return pd.DataFrame(
        [
            {
                f"{seen['scored']}": _part(part),
                "": row["name"],
                **{TEST[key]: _interval(row["metrics"][key]) for key in BY_SEEN},
            }
            for part in seen["rows"]
            for row in part["rows"]
        ]
    )


def _part(part: dict[str, Any]) -> str:
    groups = f"{part['n_groups']} group{'s' if part['n_groups'] != 1 else ''}"
    return f"{part['status']} ({part['n']} of {part['n_species']} species, {groups})"


def _validation_table(parts: dict[str, Any]) -> pd.DataFrame | None:
    """Return the validation scores of each seed and of the ensemble, as text; None where none are known."""
    if evidence := parts["evidence"]:
        scored = {f"seed {m['seed']}": m["metrics"] for m in evidence["validation"]["members"]}
        scored["ensemble"] = evidence["validation"]["ensemble"]
    elif record := parts["record"]:
        scored = {f"seed {record['seed']}": record["metrics"]}
    else:
        return None
    return pd.DataFrame(
        [
            {"": name, **{title: _number(metrics.get(key)) for key, title in VALIDATION.items()}}
            for name, metrics in scored.items()
        ]
    )


def _species_table(
    model: dict[str, Any], data: dict[str, Any], evaluation: dict[str, Any] | None
) -> pd.DataFrame:
    """Return a row a species, commonest in training first, with its stratum and its F1 in the test."""
    counts = data.get("train_counts", {})
    stratum = {s: name for name, members in data.get("strata", {}).items() for s in members}
    tested = {row["species"]: row for row in evaluation["species"]} if evaluation else {}
    rows = []
    for name in sorted(model["species"], key=lambda s: (-counts.get(s, 0), s)):
        row: dict[str, Any] = {"species": name}
        if counts:
            row |= {"in training split": counts[name], "stratum": stratum[name]}
        if tested:
            row |= {"in test split": tested[name]["n_test"], "test F1": _number(tested[name]["f1"])}
        rows.append(row)
    return pd.DataFrame(rows)


def _interval(value: dict[str, Any]) -> str:
    if value["low"] is None:
        return _number(value["value"])
    return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float | None) -> str:
    # Plus zero, so that what rounds to -0 has no sign.
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}".replace("-", "−")
