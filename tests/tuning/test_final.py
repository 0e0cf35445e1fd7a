"""Final training on small synthetic birds, on a real Ray."""

import numpy as np
import pytest
import torch

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import ModelFolderError, RunFolderError
from birdnet_core.inference.model_folder import read_model
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.training.metrics import score
from birdnet_core.training.run import train
from reports import write_report
from tests.settings import SMALL
from tuning import final
from tuning.engine.halt import Budget
from tuning.engine.preparation import Data
from tuning.final import train_final

pytestmark = pytest.mark.ray

CONFIG = TrainConfig().override({**SMALL, "training.epochs": 4})


def n_epochs(out):
    return sum(event["event"] == "epoch" for event in RunFolder(out / "run").events())


@pytest.fixture(scope="module")
def made(cluster, birds, cache, tmp_path_factory):
    """A model of two seeds, and its evidence."""
    from birdnet_core.data.manifest import read_manifest

    out = tmp_path_factory.mktemp("final") / "model"
    data = Data(name="few", manifest=read_manifest(birds), cache=cache, workers=1)
    chosen = {"study": "capacity", "rule": "By mean", "trial_ids": ["a-r0"], "repeats": [0]}
    return out, train_final(CONFIG, data, out, n_seeds=2, chosen=chosen, command="birdtune train"), data


def test_the_members_are_the_last_weights_of_both_splits(made):
    out, evidence, data = made
    model = read_model(out)
    final_facts = evidence["final"]
    k = final_facts["established_epochs"]
    assert k == max(final_facts["epochs_of_seeds"])  # the higher of two is their upper median
    config = CONFIG.override(
        {"training.train_on": "train+val", "training.stop_after": k, "seed": 1, "runtime.threads": 1}
    )
    assert [m.trial_id for m in model.members] == final_facts["trial_ids"]
    assert [record.repeat for record in RunFolder(out / "run").records().values()] == [0] * 4  # on one fold
    assert (model.members[1].trial_id, model.members[1].epochs) == (config.trial_id, k)
    alone = train(config, Dataset.open(data.folder(config)))
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, model.members[1].weights[name]), name
    assert (model.provenance["study"], model.provenance["seeds"]) == ("capacity", [0, 1])
    assert not list((out / "run" / "checkpoints").glob("*/session.pt"))


def test_the_evidence_is_of_the_sessions_that_did_not_learn_validation(made):
    _, evidence, data = made
    dataset = Dataset.open(data.folder(CONFIG))
    each = []
    for member in evidence["validation"]["members"]:
        session = train(CONFIG.override({"seed": member["seed"]}), dataset)
        assert member["best_epoch"] == session.progress.best_epoch
        probabilities, truth = session.predict("val")
        assert member["metrics"]["val/loss"] == session.progress.best_metrics["val/loss"]
        assert score(probabilities, truth, dataset.strata())["loss"] == member["metrics"]["val/loss"]
        each.append(probabilities)
    mean = np.mean(each, axis=0)
    ensemble = evidence["validation"]["ensemble"]
    assert ensemble["val/loss"] == pytest.approx(score(mean, truth, dataset.strata())["loss"], rel=1e-6)
    assert ensemble["val/accuracy"] == (mean.argmax(1) == truth).mean()
    loss = evidence["validation"]["loss"]
    assert loss["after"] <= loss["before"] == ensemble["val/loss"]


def test_a_finished_model_trains_nothing_again_and_another_is_refused(made):
    out, evidence, data = made
    before = n_epochs(out)
    assert train_final(CONFIG, data, out, n_seeds=2) == evidence
    assert n_epochs(out) == before
    with pytest.raises(ModelFolderError, match=r"seeds \[0, 1\], requested \[0, 1, 2\]\); give"):
        train_final(CONFIG, data, out, n_seeds=3)


def test_a_report_of_the_run_holds_both_studies(made, tmp_path):
    out, evidence, _ = made
    report = write_report([out / "run"], tmp_path)
    names = {study["name"]: study for study in report["studies"]}
    k = evidence["final"]["established_epochs"]
    assert set(names) == {"validate", f"final-{k}-epochs"}
    (cell,) = names[f"final-{k}-epochs"]["cells"]
    assert cell["n"] == 2 and cell["metrics"]["val/f1_macro"]["mean"] is None
    text = (tmp_path / "report.md").read_text()
    assert "Not validated: these trials also trained on the validation split" in text
    assert f"final-{k}-epochs-cells.png" not in text


def test_an_interrupted_final_training_goes_on(cluster, data, tmp_path, monkeypatch):
    out = tmp_path / "model"
    config = CONFIG.override({"training.epochs": 2})
    with pytest.raises(RunFolderError, match="(?s)stopped before it was done: .*budget.*command continues"):
        train_final(config, data, out, n_seeds=1, budget=Budget(hours=1e-9))
    assert not (out / "model.json").exists()

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(final, "write_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train_final(config, data, out, n_seeds=1)
    trained = n_epochs(out)
    evidence = train_final(config, data, out, n_seeds=1)
    assert n_epochs(out) == trained == 2 + evidence["final"]["established_epochs"]
    assert len(read_model(out).members) == 1


def test_with_validation_kept_the_members_are_the_best_epochs(cluster, data, tmp_path):
    out = tmp_path / "model"
    evidence = train_final(CONFIG, data, out, n_seeds=1, keep_val=True)
    assert evidence["final"]["train_on"] == "train"
    (member,) = read_model(out).members
    session = train(CONFIG, Dataset.open(data.folder(CONFIG)))
    assert (member.epochs, member.trial_id) == (session.progress.best_epoch, CONFIG.trial_id)
    assert all(torch.equal(v, member.weights[name]) for name, v in session.progress.best_weights.items())
    assert RunFolder(out / "run").study_names() == ["validate"]


def test_a_seed_that_failed_is_an_error_and_makes_no_model(cluster, data, tmp_path):
    diverging = {
        "optim.lr": 10.0, "optim.grad_clip": 0.0, "optim.warmup_epochs": 0, "loss.name": "focal",
        "loss.alpha": 1e38,
    }  # fmt: skip
    with pytest.raises(RunFolderError, match="(?s)1 of 1 seeds did not complete.*diverged: .* not finite"):
        train_final(CONFIG.override(diverging), data, tmp_path / "model", n_seeds=1)
    assert not (tmp_path / "model" / "model.json").exists()


def test_a_single_model_is_not_replaced(made, small_config, small_dataset, data, tmp_path):
    from birdnet_core.training.run import save_model

    save_model(train(small_config.override({"training.epochs": 1}), small_dataset), tmp_path / "single")
    with pytest.raises(ModelFolderError, match="a single training.*another --out"):
        train_final(CONFIG, data, tmp_path / "single", n_seeds=1)
