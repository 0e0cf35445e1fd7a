"""`birdtune train --seeds` and `evaluate`, and who can reach the test split."""

import json

import numpy as np
import pytest

from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import DataError
from birdnet_core.records.metrics import TEST_METRICS
from birdnet_core.training.session import Session
from reports import choose, load, write_report
from tests.settings import SMALL

SET = " ".join(f"--set {key}={value}" for key, value in {**SMALL, "training.epochs": 1}.items())


@pytest.mark.ray
def test_from_best_config_to_a_tested_model(capacity_run, birdtune, birds, tmp_path):
    run, model = capacity_run, tmp_path / "model"
    assert birdtune(f"best {run} --out {tmp_path / 'best.json'}")[0] == 0
    train = f"train {tmp_path / 'best.json'} --data {birds} --seeds 2 --out {model}"
    code, out, err = birdtune(train)
    assert code == 0, err
    evidence = json.loads((model / "evidence.json").read_text())
    n_epochs = evidence["final"]["established_epochs"]
    assert f"members: the same seeds on training and validation, {n_epochs} epochs each" in out
    assert f"next: birdtune evaluate {model}" in out
    best = json.loads((tmp_path / "best.json").read_text())
    assert evidence["chosen"]["trial_ids"] == best["trial_ids"]
    assert evidence["validation"]["members"][0]["trial_id"] == best["trial_ids"][0]
    card = (model / "MODEL_CARD.md").read_text()
    assert "The test split has not been opened" in card and "Study capacity: val/f1_macro" in card
    before = (model / "run" / "journal.jsonl").read_text()
    code, out, _ = birdtune(f"{train} --json")
    assert json.loads(out)["validation"] == evidence["validation"]
    assert (model / "run" / "journal.jsonl").read_text() == before

    code, out, err = birdtune(f"evaluate {model} --data {birds} --json")
    assert code == 0, err
    result = json.loads(out)
    baselines = ["logistic regression", "k-nearest neighbours"]
    names = ["seed 0", "seed 1", "ensemble", "ensemble, calibrated", *baselines]
    assert [row["name"] for row in result["rows"]] == names
    assert all(set(row["metrics"]) == set(TEST_METRICS) for row in result["rows"])
    assert result["opening"]["number"] == 1
    assert (model / "evaluation" / "reliability.png").stat().st_size > 1000
    code, out, err = birdtune(f"evaluate {model} --data {birds}")
    assert code == 0 and "opening number 2 of the test split" in err, err
    for name in ("ensemble, calibrated", *(f"calibrated − {each}" for each in baselines)):
        assert f"{name}, with 95 % intervals:" in out
    assert len(json.loads((model / "tests.json").read_text())["openings"]) == 2
    card = (model / "MODEL_CARD.md").read_text()
    assert "The test split was opened 2 times" in card and "Opened 2 times:" in card


@pytest.mark.ray
def test_an_alone_trained_model_can_be_tested(birdtune, birds, tmp_path):
    model = tmp_path / "model"
    # One fixed split: fewer recordings, below, leave too few groups for five folds.
    code, _, err = birdtune(f"train --data {birds} {SET} --set data.folds=1 --out {model}")
    assert code == 0, err
    card = (model / "MODEL_CARD.md").read_text()
    assert "Not recorded: training started from a config" in card and "Not calibrated" in card
    code, out, err = birdtune(f"evaluate {model} --data {birds} --no-baseline --json")
    assert code == 0, err
    names = [row["name"] for row in json.loads(out)["rows"]]
    assert names == ["seed 0", "ensemble", "ensemble, calibrated"]
    # Other recordings: their test split may be what the model was trained on. Nothing is opened.
    (model / "tests.json").unlink()
    rows = birds.read_text().splitlines()
    # Beside the first, as its paths are relative to it.
    other = birds.with_name("other.csv")
    other.write_text("\n".join(rows[:-3]) + "\n")
    code, _, err = birdtune(f"evaluate {model} --data {other}")
    other.unlink()
    assert (
        code == 1
        and "trained on split" in err
        and "may hold recordings that it was trained on" in " ".join(err.split())
    )
    assert not (model / "tests.json").exists()


def test_a_model_whose_backbone_was_moved_is_tested_and_exported_with_the_weights_that_are_given(
    birdtune, birds, tmp_path, monkeypatch
):
    backbone, moved, model = (tmp_path / name for name in ("backbone", "moved", "model"))
    assert birdtune(f"train --data {birds} {SET} --out {backbone}")[0] == 0
    own = f"--set features.name=embedding --set features.backbone=birdtune --set features.weights={backbone}"
    head = f"{own} --set model.name=linear --set training.epochs=1"
    code, _, err = birdtune(f"train --data {birds} {head} --out {model}")
    assert code == 0, err
    backbone.rename(moved)
    code, _, err = birdtune(f"evaluate {model} --data {birds} --no-baseline --json")
    assert code == 1 and str(backbone) in " ".join(err.split()), err
    code, out, err = birdtune(f"evaluate {model} --data {birds} --no-baseline --weights {moved} --json")
    assert code == 0, err
    assert json.loads(out)["seen"]["backbone"] == "birdtune"
    exported = []
    monkeypatch.setattr(
        "birdnet_core.inference.onnx_export.export_onnx", lambda model, out: (exported.append(model), 0.0)[1]
    )
    code, out, err = birdtune(f"export {model} --weights {moved}")
    assert code == 0, err
    assert exported[0].config.features.kwargs["weights"] == str(moved)
    assert "embeddings of the backbone 'birdtune', which is not in the file" in " ".join(out.split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --keep-val --out {tmp}/m", ["--keep-val is for final training", "--seeds"]),
        ("train --budget-hours 2 --gpus-per-trial 0.5 --out {tmp}/m", ["--gpus-per-trial, --budget-hours"]),
        (
            "train --seeds 2 --data {birds} --set optim.schedule=plateau --out {tmp}/m",
            ["'plateau'", "--keep-val"],
        ),
        ("evaluate {tmp}/none", ["no model folder at"]),
    ],
)
def test_bad_input_is_an_error(birdtune, birds, tmp_path, line, words):
    code, _, err = birdtune(line.format(tmp=tmp_path, birds=birds))
    assert code == 1
    text = " ".join(err.split())
    assert all(word in text for word in words), err


def test_training_reads_no_row_of_the_test_split(small_config, small_dataset, monkeypatch):
    asked = []
    rows = Dataset.rows
    monkeypatch.setattr(Dataset, "rows", lambda self, *splits: (asked.append(splits), rows(self, *splits))[1])
    for train_on in ("train", "train+val"):
        session = Session(small_config.override({"training.train_on": train_on}), small_dataset)
        session.step()
        with pytest.raises(DataError, match="test split"):
            session.predict("test")
        clips = [session.train_clips, *([session.val_clips] if session.val_clips else [])]
        of_test = set(small_dataset.in_store[small_dataset.splits == "test"].tolist())
        assert all(of_test.isdisjoint(each.rows.tolist()) for each in clips)
    assert asked and not any("test" in splits for splits in asked)


@pytest.mark.ray
def test_what_is_in_the_test_recordings_changes_nothing_before_the_test(cluster, birds, cache, tmp_path):
    """Sweep, best and report say the same of two collections that differ in the sound of their test split."""
    import pandas as pd
    import soundfile

    from birdnet_core.config import TrainConfig
    from birdnet_core.data.dataset import prepare
    from birdnet_core.data.manifest import read_manifest
    from search_spaces.study import Ablation
    from tuning.engine.launch import sweep
    from tuning.engine.preparation import Data

    config = TrainConfig().override({**SMALL, "training.epochs": 1})
    given = read_manifest(birds)
    dataset = Dataset.open(prepare(given, config, cache=cache, workers=1))
    splits = pd.Series(dataset.splits).groupby(dataset.recording).first()
    manifest = given.assign(split=splits.reindex(range(len(given))).to_numpy())
    noisy = manifest.copy()
    rng = np.random.default_rng(0)
    for i in np.flatnonzero(manifest["split"] == "test"):
        noisy.loc[i, "path"] = str(tmp_path / f"{i}.wav")
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(44_100), 22_050)
    study = Ablation(name="losses", question="?", factors={"loss.name": ("cross_entropy", "focal")})
    outcomes = []
    for name, recordings in (("one", manifest), ("other", noisy)):
        run = tmp_path / name
        data = Data(name="birds", manifest=recordings, cache=cache, workers=1)
        sweep(study, data, run, settings={**SMALL, "training.epochs": 1}, n_repeats=1)
        (section,) = write_report([run], tmp_path / f"{name}-report")["studies"]
        cells = [{k: v for k, v in cell.items() if k != "hours"} for cell in section["cells"]]
        best = {k: v for k, v in choose(load([run])).items() if k != "run"}
        outcomes.append((json.dumps(cells), json.dumps(best), section["data"]["data_id"]))
    assert outcomes[0][:2] == outcomes[1][:2]
    assert outcomes[0][2] != outcomes[1][2]
