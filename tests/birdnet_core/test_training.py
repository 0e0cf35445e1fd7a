import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from birdnet_core import training
from birdnet_core.build import build_model
from birdnet_core.config import OptimConfig
from birdnet_core.errors import ConfigError, DataError, TrialDiverged
from birdnet_core.optim import build_optimizer, learning_rate
from birdnet_core.records import METRICS
from birdnet_core.training import ClipBatches, Session, save_model, train


def history(config, dataset):
    rows = []
    train(config, dataset, on_epoch=lambda epoch, metrics: rows.append({**metrics, "epoch": epoch}))
    return [{k: v for k, v in row.items() if k != "epoch_s"} for row in rows]


def test_an_epoch_reports_every_metric(small_config, small_dataset):
    metrics = Session(small_config, small_dataset).step()
    assert set(metrics) == {*METRICS, "epoch_s"}
    scored = [v for name, v in metrics.items() if name not in ("val/loss", "train/loss", "epoch_s")]
    assert all(0 <= v <= 1 or np.isnan(v) for v in scored)


def test_a_replay_gives_the_same_numbers_to_the_last_digit(small_config, small_dataset):
    first = history(small_config, small_dataset)
    other = history(small_config.override({"seed": 1}), small_dataset)
    again = history(small_config, small_dataset)
    assert json.dumps(first) == json.dumps(again)
    assert json.dumps(first) != json.dumps(other)


def test_learns_the_training_clips(small_config, small_dataset):
    config = small_config.override({"training.epochs": 25, "training.patience": 0, "model.dropout": 0.0})
    rows = history(config, small_dataset)
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert rows[-1]["train/accuracy"] > 0.9


def test_the_best_epoch_is_the_monitors_and_its_weights_are_kept(small_config, small_dataset, tmp_path):
    config = small_config.override({"training.epochs": 4, "training.monitor": "val/loss"})
    values = []
    session = train(config, small_dataset, on_epoch=lambda e, m: values.append(m["val/loss"]))
    assert session.best_epoch == 1 + int(np.argmin(values))
    save_model(session, tmp_path)
    model = build_model(config.model, small_dataset.input_shape, len(small_dataset.species))
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    session.model.load_state_dict(model.state_dict())
    probabilities, truth = session.predict("val")
    scores = training.score(probabilities, truth, session.strata)
    assert scores["loss"] == pytest.approx(min(values), rel=1e-6)


def test_patience_ends_a_run_that_does_not_get_better(small_config, small_dataset, monkeypatch):
    config = small_config.override({"training.epochs": 20, "training.patience": 3})
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.9])
    real = training.score
    monkeypatch.setattr(training, "score", lambda *a: {**real(*a), "f1_macro": next(scores)})
    session = train(config, small_dataset)
    assert (session.epoch, session.best_epoch) == (5, 2)


def test_no_patience_trains_the_whole_budget(small_config, small_dataset):
    session = train(small_config.override({"training.epochs": 3, "training.patience": 0}), small_dataset)
    assert session.epoch == 3


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_value_that_is_not_finite_diverges_with_the_step(small_config, small_dataset, monkeypatch, broken):
    session = Session(small_config, small_dataset)
    session.step()
    if broken == "loss":
        monkeypatch.setattr(session, "loss", lambda logits, classes: logits.sum() * float("nan"))
    else:
        monkeypatch.setattr(
            torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: torch.tensor(float("inf"))
        )
    with pytest.raises(
        TrialDiverged, match=rf"{broken} was not finite in epoch 2, step 1 .* good epoch is 1"
    ):
        session.step()
    assert session.record("diverged").best_epoch == 1


def test_the_test_side_cannot_be_predicted(small_config, small_dataset):
    session = Session(small_config, small_dataset)
    with pytest.raises(DataError, match="test side"):
        session.predict("test")
    assert not hasattr(session, "test_clips")


def test_record_says_what_was_trained_on_what(small_config, small_dataset):
    session = train(small_config, small_dataset)
    record = session.record("completed")
    assert record.trial_id == small_config.trial_id
    assert record.epochs == 2
    assert record.metrics["val/f1_macro"] == session.best_metrics["val/f1_macro"]
    assert set(record.f1_per_species) <= set(small_dataset.species)
    assert record.n_params == sum(p.numel() for p in session.model.parameters())
    for key in ("versions", "git_commit", "data_id", "split_id", "device", "precision"):
        assert key in record.provenance
    json.dumps(record.to_dict())


def test_probabilities_of_a_recordings_windows_are_averaged(small_config, birds, cache):
    from birdnet_core.data.dataset import Dataset, prepare
    from birdnet_core.data.manifest import read_manifest

    config = small_config.override({"data.windows_per_recording": 3})
    dataset = Dataset.open(prepare(read_manifest(birds), config, cache=cache, workers=1))
    session = Session(config, dataset)
    probabilities, truth = session.predict("val")
    assert len(session.val_clips) > len(probabilities) == dataset.facts["n_val"] == len(truth)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_resident_batches_equal_mapped_ones(small_dataset):
    """The GPU path keeps the features on the device; its logic is the same on the CPU."""
    cpu = torch.device("cpu")
    mapped = ClipBatches(small_dataset, "train", cpu, is_resident=False)
    resident = ClipBatches(small_dataset, "train", cpu, is_resident=True)
    index = torch.tensor([5, 0, 3])
    for a, b in zip(mapped.take(index), resident.take(index), strict=True):
        assert torch.equal(a, b)


def test_batches_are_standardised_by_the_training_side(small_dataset):
    clips = ClipBatches(small_dataset, "train", torch.device("cpu"), is_resident=False)
    whole = torch.cat([batch for batch, _ in clips.in_order(8)])
    torch.testing.assert_close(whole.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(whole.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_a_gpu_that_is_not_there_is_a_config_error(small_config, small_dataset):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="no GPU"):
        Session(small_config.override({"runtime.device": "cuda"}), small_dataset)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_trains_on_the_gpu_with_the_features_resident(small_config, small_dataset):
    session = train(small_config.override({"runtime.device": "cuda"}), small_dataset)
    assert session.train_clips.take(torch.arange(2))[0].device.type == "cuda"
    assert session.record("completed").peak_memory_mb > 0


def test_bf16_is_used_only_where_it_is_fast_and_wanted(small_config, small_dataset, monkeypatch):
    for has, wanted in ((True, True), (True, False), (False, True)):
        monkeypatch.setattr(training, "has_fast_bf16", lambda device, has=has: has)
        session = Session(small_config.override({"training.mixed_precision": wanted}), small_dataset)
        assert session.is_mixed == (has and wanted)
        assert session.record("completed").provenance["precision"] == ("bf16" if has and wanted else "fp32")


def test_an_empty_side_is_refused(small_config, small_dataset):
    nothing = dataclasses.replace(small_dataset, sides=np.full(len(small_dataset.sides), "train"))
    with pytest.raises(DataError, match="val side"):
        Session(small_config, nothing)


def test_learning_rate_warms_up_from_a_tenth_and_falls_to_zero():
    config = OptimConfig(lr=1.0, warmup_epochs=2)
    rates = [learning_rate(config, step, 10, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.55)
    assert rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert max(rates) == pytest.approx(1.0)
    assert np.all(np.diff(rates[:20]) > 0) and np.all(np.diff(rates[20:]) < 0)


def test_no_warm_up_starts_at_the_peak_and_constant_stays_there():
    config = OptimConfig(lr=0.3, warmup_epochs=0, schedule="constant")
    assert {learning_rate(config, step, 10, 10) for step in range(100)} == {0.3}


def test_weight_decay_spares_norms_and_biases(small_config):
    model = build_model(small_config.model, (3, 16, 24), 4)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_trains_where_ray_optuna_and_matplotlib_are_absent(small_config, small_dataset):
    code = (
        "import sys\n"
        "for name in ('ray', 'optuna', 'matplotlib', 'typer', 'rich'): sys.modules[name] = None\n"
        "from birdnet_core.config import TrainConfig\n"
        "from birdnet_core.data.dataset import Dataset\n"
        "from birdnet_core.training import train\n"
        "import json\n"
        "config = TrainConfig.from_dict(json.loads(sys.argv[1]))\n"
        "print(train(config, Dataset.open(sys.argv[2])).best_metrics['val/loss'])\n"
    )
    arguments = [json.dumps(small_config.to_dict()), str(small_dataset.folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    expected = train(small_config, small_dataset).best_metrics["val/loss"]
    assert float(done.stdout) == expected
