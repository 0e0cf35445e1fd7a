"""MODEL_CARD.md of a model folder: what it is for, what it is made of, and how far it can be trusted.

Everything stands in the folder's JSON files; the card says it in words (Mitchell et al. 2019, Model Cards for
Model Reporting).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from birdnet_core.records.trial import LEAKAGE
from birdnet_core.records.files import read_json, write_text
from reports.page import tables

CARD = "MODEL_CARD.md"
VALIDATION = {
    "val/accuracy": "accuracy", "val/f1_macro": "F1-macro", "val/map": "mAP", "val/f1_rare": "F1 rare",
    "val/f1_medium": "F1 medium", "val/f1_common": "F1 common", "val/loss": "log loss",
}  # fmt: skip
TEST = {
    "test/accuracy": "accuracy", "test/top5": "top-5", "test/f1_macro": "F1-macro",
    "test/f1_weighted": "F1-weighted", "test/map": "mAP", "test/auroc": "AUROC", "test/f1_rare": "F1 rare",
    "test/f1_medium": "F1 medium", "test/f1_common": "F1 common", "test/loss": "log loss", "test/ece": "ECE",
}  # fmt: skip


def write_card(folder: str | Path) -> Path:
    """Write the card of the model in `folder` from model.json and what else lies there; return its path.

    evidence.json is there after final training, record.json after a single one, tests.json and
    evaluation.json once the test split was opened.
    """
    folder = Path(folder)
    model = read_json(folder / "model.json")
    parts = {
        name: read_json(folder / f"{name}.json") if (folder / f"{name}.json").exists() else None
        for name in ("evidence", "record", "tests", "evaluation")
    }
    evidence, evaluation = parts["evidence"], parts["evaluation"]
    data = evidence["data"] if evidence else {}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports.page"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"md": tables.escape_markdown, "md_table": tables.to_markdown, "num": _number}
    text = environment.get_template("model_card.md.j2").render(
        model=model,
        config=model["config"],
        evidence=evidence,
        data=data,
        openings=parts["tests"]["openings"] if parts["tests"] else [],
        evaluation=evaluation,
        leaks=[note for note in data.get("notes", []) if note.startswith(LEAKAGE)],
        notes=[note for note in data.get("notes", []) if not note.startswith(LEAKAGE)],
        rare_most=max((data["train_counts"][s] for s in data["strata"]["rare"]), default=0) if data else None,
        species=_species_table(model, data, evaluation),
        validation=_validation_table(parts),
        test=test_table(evaluation) if evaluation else None,
    )
    path = folder / CARD
    write_text(path, text)
    return path


def test_table(evaluation: dict[str, Any]) -> pd.DataFrame:
    """Return a row a metric and a column a member, ensemble or baseline, each value with its interval."""
    columns = {row["name"]: row["metrics"] for row in evaluation["rows"]}
    columns |= differences(evaluation)
    return pd.DataFrame(
        [
            {"metric": shown, **{name: _interval(metrics[key]) for name, metrics in columns.items()}}
            for key, shown in TEST.items()
        ]
    )


def differences(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metrics of each paired difference of an evaluation, by its name."""
    named = {
        "ensemble − mean of seeds": evaluation["difference"],
        # An evaluation of an older version has none.
        "calibrated − logistic regression": evaluation.get("over_baseline"),
    }
    return {name: metrics for name, metrics in named.items() if metrics}


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
            {"": name, **{shown: _number(metrics.get(key)) for key, shown in VALIDATION.items()}}
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
            row |= {"training recordings": counts[name], "stratum": stratum[name]}
        if tested:
            row |= {"test recordings": tested[name]["n_test"], "test F1": _number(tested[name]["f1"])}
        rows.append(row)
    return pd.DataFrame(rows)


def _interval(value: dict[str, Any]) -> str:
    if value["low"] is None:
        return _number(value["value"])
    return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float | None) -> str:
    # Plus zero, so that what rounds to -0 has no sign.
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}".replace("-", "−")
