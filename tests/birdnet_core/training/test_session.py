import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from birdnet_core import registry
from birdnet_core.build import input_ndim
from birdnet_core.config import RuntimeConfig, TrainConfig, TrainingConfig, cautions
from birdnet_core.errors import ConfigError, DataError, TrialDiverged
from birdnet_core.inference.model_folder import read_model
from birdnet_core.losses.class_weights import Scheme
from birdnet_core.models.backbone import BackboneClassifier
from birdnet_core.records.metrics import METRICS
from birdnet_core.training import device as training_device
from birdnet_core.training import memory
from birdnet_core.training import session as training
from birdnet_core.training.device import pick_precision
from birdnet_core.training.memory import forget_peak_rss
from birdnet_core.training.run import save_model, train
from birdnet_core.training.session import Session, uses_batch_statistics
from tests.spellings import OTHER_FAULTS, OUT_OF_MEMORY


@pytest.fixture(autouse=True)
def on_the_cpu_as_on_a_gpu(monkeypatch):
    """Let a session be ready to run out of memory."""
    monkeypatch.setattr(training, "may_run_out", lambda device: True)


def test_on_the_cpu_no_state_is_copied_to_repeat_an_epoch_from(small_config, small_dataset, monkeypatch):
    monkeypatch.setattr(training, "may_run_out", memory.may_run_out)
    session = Session(small_config.override({"training.train_on": "train"}), small_dataset)
    monkeypatch.setattr(training, "states", lambda parts: pytest.fail("the state was read"))
    session.step()


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


def test_the_training_loss_falls_and_training_clips_are_recognised(small_config, small_dataset):
    config = small_config.override({"training.epochs": 25, "training.patience": 0, "model.dropout": 0.0})
    rows = history(config, small_dataset)
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert rows[-1]["train/accuracy"] > 0.9


def test_the_best_epoch_is_the_monitors_and_its_weights_are_kept(small_config, small_dataset, tmp_path):
    config = small_config.override({"training.epochs": 4, "training.monitor": "val/loss"})
    values = []
    session = train(config, small_dataset, on_epoch=lambda e, m: values.append(m["val/loss"]))
    assert session.progress.best_epoch == 1 + int(np.argmin(values))
    save_model(session, tmp_path)
    (model,) = read_model(tmp_path).networks()
    session.model.load_state_dict(model.state_dict())
    probabilities, truth = session.predict("val")
    scores = training.score(probabilities, truth, session.strata)
    assert scores["loss"] == pytest.approx(min(values), rel=1e-6)


def test_predictions_are_those_of_every_epoch_and_the_likeliest_of_the_best(small_config, small_dataset):
    config = small_config.override({"training.epochs": 4, "training.patience": 0})
    session, rows = Session(config, small_dataset), []
    assert session.predictions is None
    while not session.finished:
        metrics = session.step()
        probabilities, truth = session._predicted("val")
        rows.append(probabilities.argmax(1))
        assert metrics["val/accuracy"] == pytest.approx(np.mean(rows[-1] == truth))
    kept, best = session.predictions, session.predict("val")[0]
    assert kept.classes.dtype == kept.top.dtype == np.uint16 and kept.probability.dtype == np.float16
    assert kept.classes.tolist() == np.array(rows).tolist()
    assert kept.top[:, 0].tolist() == kept.classes[session.progress.best_epoch - 1].tolist()
    # Of four species all are kept.
    np.testing.assert_array_equal(np.sort(kept.top, axis=1), np.tile(np.arange(4), (len(best), 1)))
    np.testing.assert_allclose(kept.probability, np.sort(best, axis=1)[:, ::-1], rtol=1e-3)


def test_a_run_that_is_not_validated_has_no_predictions(small_config, small_dataset):
    session = train(small_config.override({"training.train_on": "train+val"}), small_dataset)
    assert session.progress.best_epoch == 2 and session.predictions is None


def test_a_session_of_an_earlier_epoch_drops_the_predictions_after_it(small_config, small_dataset, tmp_path):
    config = small_config.override({"training.epochs": 4, "training.patience": 0})
    session = Session(config, small_dataset)
    for _ in range(2):
        session.step()
    session.save(tmp_path / "session.pt")
    whole = train(config, small_dataset).predictions
    for n_epochs in (2, 3, 4):
        session = Session.load(tmp_path / "session.pt", small_dataset)
        while session.progress.epoch < n_epochs:
            session.step()
        np.testing.assert_array_equal(session.predictions.classes, whole.classes[:n_epochs])


def test_patience_ends_a_run_that_does_not_get_better(small_config, small_dataset, monkeypatch):
    config = small_config.override({"training.epochs": 20, "training.patience": 3})
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.9])
    real = training.score
    monkeypatch.setattr(training, "score", lambda *a: {**real(*a), "f1_macro": next(scores)})
    session = train(config, small_dataset)
    assert (session.progress.epoch, session.progress.best_epoch) == (5, 2)


def test_no_patience_trains_the_whole_budget(small_config, small_dataset):
    session = train(small_config.override({"training.epochs": 3, "training.patience": 0}), small_dataset)
    assert session.progress.epoch == 3


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_value_that_is_not_finite_diverges_with_the_step(small_config, small_dataset, monkeypatch, broken):
    session = Session(small_config, small_dataset)
    session.step()
    if broken == "loss":
        monkeypatch.setattr(session.loss, "forward", lambda logits, classes: logits.sum() * float("nan"))
    else:
        monkeypatch.setattr(
            torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: torch.tensor(float("inf"))
        )
    with pytest.raises(
        TrialDiverged, match=rf"{broken} was not finite in epoch 2, step 1 .* good epoch is 1"
    ):
        session.step()
    assert session.record("diverged").best_epoch == 1


def test_the_test_split_cannot_be_predicted(small_config, small_dataset):
    session = Session(small_config, small_dataset)
    with pytest.raises(DataError, match="test split"):
        session.predict("test")
    assert not hasattr(session, "test_clips")


def test_record_says_what_was_trained_on_what(small_config, small_dataset):
    session = train(small_config, small_dataset)
    record = session.record("completed")
    assert record.trial_id == small_config.trial_id
    assert record.epochs == 2
    assert record.metrics["val/f1_macro"] == session.progress.best_metrics["val/f1_macro"]
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


def test_a_gpu_that_is_not_there_is_a_config_error(small_config, small_dataset):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="no GPU"):
        Session(small_config.override({"runtime.device": "cuda"}), small_dataset)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("feature", ["plain", "everything"])
def test_trains_on_the_gpu_with_the_values_resident(small_config, small_dataset, tmp_path, feature):
    config = small_config.override({"runtime.device": "cuda", "training.epochs": 3, **STATEFUL[feature]})
    session = Session(config, small_dataset)
    session.step()
    assert session.train_clips.raw(torch.arange(2)).values.device.type == "cuda"
    assert session.record("completed").peak_memory_mb > 0
    session.save(tmp_path / "session.pt")
    session = Session.load(tmp_path / "session.pt", small_dataset)
    assert np.isfinite(session.step()["train/loss"])


@pytest.mark.parametrize(
    ("has_bf16", "device", "wanted", "expected"),
    [
        (True, "cpu", "auto", "bf16"),
        (False, "cpu", "auto", "fp32"),
        (True, "cuda", "auto", "bf16"),
        (False, "cuda", "auto", "fp16"),
        (True, "cpu", "fp32", "fp32"),
        (False, "cpu", "bf16", "bf16"),
    ],
)
def test_auto_precision_is_what_the_hardware_is_fast_in(monkeypatch, has_bf16, device, wanted, expected):
    monkeypatch.setattr(training_device, "has_fast_bf16", lambda device: has_bf16)
    assert pick_precision(wanted, torch.device(device)) == expected


# Without fp16 in hardware, a CPU takes fifty times as long for a convolution.
NARROW = {"model.width": 8, "model.depth": 2}


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_every_precision_trains_and_is_recorded(small_config, small_dataset, precision):
    config = small_config.override({"training.precision": precision, "training.epochs": 12})
    config = config.override({"training.patience": 0, "model.dropout": 0.0, "optim.lr": 1e-2, **NARROW})
    rows = history(config, small_dataset)
    assert rows[-1]["train/loss"] < 0.9 * rows[0]["train/loss"]
    assert Session(config, small_dataset).record("completed").provenance["precision"] == precision


def test_an_empty_split_is_refused(small_config, small_dataset):
    nothing = dataclasses.replace(small_dataset, splits=np.full(len(small_dataset.splits), "train"))
    with pytest.raises(DataError, match="val split"):
        Session(small_config, nothing)


def test_patience_may_wait_for_another_metric_than_the_best_epochs(small_config, small_dataset, monkeypatch):
    config = small_config.override(
        {"training.epochs": 20, "training.patience": 2, "training.stop_on": "val/loss"}
    )
    losses, scores = iter([3.0, 2.0, 2.5, 2.1]), iter([0.1, 0.2, 0.3, 0.4])
    real = training.score
    monkeypatch.setattr(
        training, "score", lambda *a: {**real(*a), "loss": next(losses), "f1_macro": next(scores)}
    )
    session = train(config, small_dataset)
    assert (session.progress.epoch, session.progress.best_epoch) == (4, 4)


def test_a_plateau_lowers_the_learning_rate(small_config, small_dataset, monkeypatch):
    config = small_config.override(
        {
            "training.epochs": 5,
            "optim.schedule": "plateau",
            "optim.decay_epochs": 2,
            "optim.decay_factor": 0.5,
            "optim.warmup_epochs": 0,
        }
    )
    scores = iter([0.5, 0.4, 0.5, 0.3, 0.1])
    real = training.score
    monkeypatch.setattr(training, "score", lambda *a: {**real(*a), "f1_macro": next(scores)})
    session = Session(config, small_dataset)
    rates = []
    while not session.finished:
        session.step()
        rates.append(session.optimizer.param_groups[0]["lr"] / config.optim.lr)
    assert rates == [1, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_micro_batches_add_up_to_the_batch(small_config, small_dataset, micro_batch_size):
    """Without batch norm, that is: AudioCNN in evaluation mode, whose statistics are fixed."""

    def after_one_step(size):
        config = small_config.override(
            {
                "training.micro_batch_size": size,
                "training.precision": "fp32",
                "loss.class_weights": "inverse",
                "loss.label_smoothing": 0.1,
            }
        )
        session = Session(config, small_dataset)
        session.model.eval()
        index = torch.arange(8)
        loss, right, norm = session.train_batch(session.train_clips.raw(index))
        return float(loss), float(right), float(norm), session.model.state_dict()

    whole, parts = after_one_step(None), after_one_step(micro_batch_size)
    assert parts[:3] == pytest.approx(whole[:3], rel=1e-5)
    for name, value in whole[3].items():
        torch.testing.assert_close(parts[3][name], value, rtol=1e-3, atol=1e-5)


def test_out_of_memory_halves_the_micro_batch_and_repeats_the_epoch(small_config, small_dataset, monkeypatch):
    config = small_config.override({"training.epochs": 3})
    session = Session(config, small_dataset)
    first = session.step()
    real, seen = session._logits, []

    def greedy(model, features):
        seen.append(len(features))
        # The first steps fit, so that the epoch has changed the weights when memory runs out.
        if len(features) > 2 and model.training and len(seen) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, features)

    monkeypatch.setattr(session, "_logits", greedy)
    second = session.step()
    assert session.progress.micro_batch_size == 2 and session.progress.n_out_of_memory == 2
    assert session.progress.epoch == 2 and seen[0] == 8
    record = session.record("completed")
    assert record.provenance["micro_batch_size"] == 2 and record.provenance["n_out_of_memory"] == 2
    # What a run gives that comes to this epoch with such micro-batches from the start.
    expected = Session(config, small_dataset)
    assert expected.step()["train/loss"] == first["train/loss"]
    expected.progress.micro_batch_size = 2
    assert expected.step()["train/loss"] == second["train/loss"]


def test_out_of_memory_with_one_clip_is_raised(small_config, small_dataset, monkeypatch):
    session = Session(small_config.override({"training.micro_batch_size": 1}), small_dataset)

    def greedy(model, features):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(session, "_logits", greedy)
    with pytest.raises(torch.OutOfMemoryError):
        session.step()


def test_the_moving_average_is_what_is_validated_and_kept(small_config, small_dataset):
    decay = 0.9
    session = Session(
        small_config.override({"training.ema_decay": decay, "training.epochs": 1}), small_dataset
    )
    name = "head.0.weight"
    by_hand, real = [], session.optimizer.step

    def step(*arguments, **options):
        real(*arguments, **options)
        now = session.model.state_dict()[name].double()
        n = len(by_hand) + 1
        share = min(decay, (1 + n) / (10 + n))
        by_hand.append(now if not by_hand else share * by_hand[-1] + (1 - share) * now)

    session.optimizer.step = step
    session.step()
    assert len(by_hand) > 2
    torch.testing.assert_close(session.progress.best_weights[name].double(), by_hand[-1], rtol=0, atol=1e-6)
    assert not torch.equal(session.progress.best_weights[name], session.model.state_dict()[name])


def test_a_pretrained_backbone_with_its_own_rate_and_a_warm_up_is_warned_of():
    risky = {
        "model.name": "audio_ast",
        "model.pretrained": "somewhere",
        "features.name": "log_mel",
        "features.convention": "as_given",
        "optim.backbone_lr": 5e-5,
        "optim.warmup_epochs": 5,
    }
    (caution,) = cautions(TrainConfig().override(risky))
    assert "optim.warmup_epochs = 5" in caution and "diverged" in caution
    for change in ({"optim.warmup_epochs": 0}, {"optim.backbone_lr": None}, {"model.pretrained": None}):
        assert cautions(TrainConfig().override({**risky, **change})) == []


# Every switch of training that keeps state from one epoch to the next.
STATEFUL = {
    "plain": {},
    "constant": {"optim.schedule": "constant"},
    "step": {"optim.schedule": "step", "optim.decay_epochs": 1},
    "one_cycle": {"optim.schedule": "one_cycle"},
    "wsd": {"optim.schedule": "wsd", "optim.decay_before": [2]},
    "plateau": {"optim.schedule": "plateau", "optim.decay_epochs": 1, "training.patience": 0},
    "ema": {"training.ema_decay": 0.9},
    "fp16": {"training.precision": "fp16", **NARROW},
    "micro-batches": {"training.micro_batch_size": 3},
    "class-balanced": {"training.sampling": "class_balanced"},
    "square-root": {"training.sampling": "square_root"},
    **{f"augment-{name}": {f"augment.{name}.p": 0.7} for name in registry.augmentations.names()},
    "patience": {"training.patience": 1, "training.stop_on": "val/loss", "optim.lr": 3e-2},
    "everything": {
        "training.ema_decay": 0.9,
        "training.sampling": "square_root",
        "optim.schedule": "plateau",
        "optim.decay_epochs": 1,
        **{f"augment.{name}.p": 0.5 for name in registry.augmentations.names()},
    },
}


def resumed_equals_whole(config, dataset, tmp_path):
    whole = train(config, dataset)
    rest = Session(config, dataset)
    rest.step()
    rest.save(tmp_path / "session.pt")
    torch.rand(7)  # whatever else the process draws
    rest = Session.load(tmp_path / "session.pt", dataset)
    while not rest.finished:
        rest.step()
    assert rest.progress.epoch == whole.progress.epoch > 1
    assert json.dumps(rest.progress.best_metrics) == json.dumps(whole.progress.best_metrics)
    assert rest.progress.best_epoch == whole.progress.best_epoch
    for kind in ("stop_best", "stop_epoch", "f1_per_species", "classes", "top", "probability"):
        assert is_same(getattr(rest.progress, kind), getattr(whole.progress, kind)), kind
    assert rest.parts.keys() == whole.parts.keys()
    for kind, part in whole.parts.items():
        assert is_same(rest.parts[kind].state_dict(), part.state_dict()), kind
    assert is_same(rest.progress.best_weights, whole.progress.best_weights)


def is_same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one == other


@pytest.mark.parametrize("feature", STATEFUL)
def test_a_resumed_run_is_bit_identical(small_config, small_dataset, tmp_path, feature):
    config = small_config.override({"training.epochs": 3, **STATEFUL[feature]})
    resumed_equals_whole(config, small_dataset, tmp_path)


# The networks at a size that trains in a second; those that have a backbone give it a rate of its own.
SMALL_MODELS = {"audio_vit": {"model.size": "tiny"}, "audio_ast": {"model.size": "tiny"}}
OPTIMIZER_FEATURES = ("plain", "plateau", "ema", "micro-batches")


SPECTROGRAM_MODELS = [
    n for n in registry.models.names() if getattr(registry.models[n].make, "input_ndim", 3) == 3
]


@pytest.mark.parametrize("model", SPECTROGRAM_MODELS)
@pytest.mark.parametrize("feature", [*OPTIMIZER_FEATURES, "backbone-rate"])
def test_a_resumed_run_of_every_model_is_bit_identical(
    small_config, small_dataset, checkpoints, tmp_path, model, feature
):
    features = {**STATEFUL, "backbone-rate": {"optim.backbone_lr": 1e-4}}
    if feature == "backbone-rate" and model.startswith("audio_cnn"):
        pytest.skip("it has no backbone")
    # ConvNeXt and EfficientNet come in no small size; a checkpoint of a tiny one gives its own.
    tiny = {"model.pretrained": checkpoints[model]} if model in ("convnext", "efficientnet") else {}
    small = {"model.name": model, **SMALL_MODELS.get(model, {}), **tiny}
    config = small_config.override({**small, **features[feature]})
    resumed_equals_whole(config, small_dataset, tmp_path)


def test_a_resume_in_another_process_is_bit_identical(small_config, small_dataset, tmp_path):
    config = small_config.override({"training.epochs": 3, **STATEFUL["everything"]})
    session = Session(config, small_dataset)
    session.step()
    session.save(tmp_path / "session.pt")
    code = (
        "import json, sys\n"
        "from birdnet_core.data.dataset import Dataset\n"
        "from birdnet_core.training.session import Session\n"
        "session = Session.load(sys.argv[1], Dataset.open(sys.argv[2]))\n"
        "metrics = [session.step() for _ in range(2)]\n"
        "print(json.dumps([{k: v for k, v in m.items() if k != 'epoch_s'} for m in metrics]))\n"
    )
    arguments = [str(tmp_path / "session.pt"), str(small_dataset.folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    expected = [{k: v for k, v in row.items() if k != "epoch"} for row in history(config, small_dataset)[1:]]
    assert done.stdout == json.dumps(expected) + "\n"


def test_an_interrupted_training_continues_from_its_checkpoint(small_config, small_dataset, tmp_path):
    config = small_config.override({"training.epochs": 4, "training.patience": 0})
    checkpoint = tmp_path / "out" / "session.pt"
    epochs = []

    def interrupt(epoch, metrics):
        epochs.append(epoch)
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, small_dataset, on_epoch=interrupt, checkpoint=checkpoint)
    with pytest.raises(DataError, match="another config or seed"):
        train(config.override({"seed": 1}), small_dataset, checkpoint=checkpoint)
    session = train(config, small_dataset, on_epoch=interrupt, checkpoint=checkpoint)
    assert epochs == [1, 2, 3, 4]
    assert json.dumps(session.progress.best_metrics) == json.dumps(
        train(config, small_dataset).progress.best_metrics
    )


def test_a_session_of_another_device_is_refused(small_config, small_dataset, tmp_path):
    Session(small_config, small_dataset).save(tmp_path / "session.pt")
    state = torch.load(tmp_path / "session.pt", weights_only=True)
    torch.save({**state, "device": "cuda"}, tmp_path / "session.pt")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="saved on cuda"):
        Session.load(tmp_path / "session.pt", small_dataset)


def test_a_session_of_other_recordings_or_of_no_birdtune_is_refused(small_config, small_dataset, tmp_path):
    session = Session(small_config, small_dataset)
    session.save(tmp_path / "session.pt")
    other = dataclasses.replace(small_dataset, facts={**small_dataset.facts, "split_id": "x"})
    with pytest.raises(DataError, match=r"another split.*split_id"):
        Session.load(tmp_path / "session.pt", other)
    (tmp_path / "text.pt").write_text("no session")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "half.pt").write_bytes((tmp_path / "session.pt").read_bytes()[:5000])
    for name in ("text.pt", "other.pt", "absent.pt", "empty.pt", "half.pt"):
        with pytest.raises(DataError, match=name):
            Session.load(tmp_path / name, small_dataset)


def test_computed_features_train_like_stored_ones(small_config, small_dataset):
    config = small_config.override({"model.dropout": 0.0})
    stored = Session(config, small_dataset)
    computed = Session(config.override({"runtime.features": "computed"}), small_dataset)
    assert stored.train_clips.feature is None and computed.train_clips.feature is not None
    assert stored.config.config_id == computed.config.config_id
    index = torch.arange(len(stored.train_clips))
    (a, a_classes), (b, b_classes) = (
        s.train_clips.features(s.train_clips.raw(index)) for s in (stored, computed)
    )
    assert (a - b).abs().max() < 1e-3
    assert torch.equal(a_classes, b_classes)
    assert stored.step()["train/loss"] == pytest.approx(computed.step()["train/loss"], rel=0.002)


def test_augmented_waveforms_are_computed_and_validation_is_left_alone(small_config, small_dataset):
    session = Session(small_config.override({"augment.gain.p": 1.0}), small_dataset)
    assert session.train_clips.feature is not None and session.val_clips.feature is None
    raw = session.train_clips.raw(torch.arange(6))
    plain, _ = session.train_clips.features(raw)
    louder, _ = session.train_clips.features(raw, torch.Generator().manual_seed(1))
    assert not torch.allclose(plain, louder)


def test_trains_where_ray_optuna_and_matplotlib_are_absent(small_config, small_dataset):
    code = (
        "import sys\n"
        "for name in ('ray', 'optuna', 'matplotlib', 'typer', 'rich'): sys.modules[name] = None\n"
        "from birdnet_core.config import TrainConfig\n"
        "from birdnet_core.data.dataset import Dataset\n"
        "from birdnet_core.training.run import train\n"
        "import json\n"
        "config = TrainConfig.from_dict(json.loads(sys.argv[1]))\n"
        "print(train(config, Dataset.open(sys.argv[2])).progress.best_metrics['val/loss'])\n"
    )
    arguments = [json.dumps(small_config.to_dict()), str(small_dataset.folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    expected = train(small_config, small_dataset).progress.best_metrics["val/loss"]
    assert float(done.stdout) == expected


def test_no_batch_is_left_with_a_single_clip(small_config, small_dataset):
    n = len(small_dataset.rows("train"))
    config = small_config.override({"training.batch_size": n - 1, "model.name": "audio_cnn_v2"})
    session = Session(config, small_dataset)
    sizes, real = [], session.train_batch
    session.train_batch = lambda raw: sizes.append(len(raw.classes)) or real(raw)
    session.step()
    assert sizes == [n]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_kept():
    script = (
        "import resource, sys, torch\n"
        "from birdnet_core.training.device import keep_freed_memory\n"
        "if sys.argv[1] == 'kept':\n"
        "    keep_freed_memory()\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.empty(7 * 2**18).fill_(1)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(min(faults() for _ in range(10)))\n"
    )
    # So that glibc does not learn by itself to keep blocks of this size.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", script, how], env=environment))
        for how in ("kept", "as usual")
    }
    assert faults["as usual"] >= 1792 and faults["kept"] < 100  # pages of 7 MiB


FINAL = {"training.train_on": "train+val", "training.patience": 1}


def test_final_training_uses_both_splits_and_keeps_its_last_epoch(small_config, small_dataset):
    config = small_config.override({**FINAL, "training.epochs": 4, "training.stop_after": 3})
    session = train(config, small_dataset)
    progress = session.progress
    assert len(session.train_clips) == len(small_dataset.rows("train")) + len(small_dataset.rows("val"))
    assert (progress.epoch, progress.best_epoch) == (3, 3)  # patience of one epoch waits for nothing
    assert [set(epoch) for epoch in progress.history] == [{"train/loss", "train/accuracy", "epoch_s"}] * 3
    assert all(
        torch.equal(value, progress.best_weights[name]) for name, value in session.model.state_dict().items()
    )
    assert set(session.record("completed").metrics) == {"train/loss", "train/accuracy"}
    with pytest.raises(DataError, match="was trained on"):
        session.predict("val")


def test_final_training_counts_the_classes_of_both_splits(small_config, small_dataset, monkeypatch):
    seen = []
    real = training.build
    monkeypatch.setattr(training, "build", lambda *a: (seen.append(a[2]), real(*a))[1])
    Session(small_config.override(FINAL), small_dataset)
    both = np.isin(small_dataset.splits, ("train", "val"))
    assert seen[0].tolist() == np.bincount(small_dataset.labels[both], minlength=4).tolist()


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_a_run_that_is_cut_has_the_first_epochs_of_the_whole_one(small_config, small_dataset, schedule):
    whole = small_config.override({"training.epochs": 4, "optim.schedule": schedule})
    cut = whole.override({"training.stop_after": 2})
    assert json.dumps(history(cut, small_dataset)) == json.dumps(history(whole, small_dataset)[:2])


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_session_predicts_by_its_best_epoch_and_trains_on_from_its_last(
    small_config, small_dataset, monkeypatch, tmp_path, ema_decay
):
    config = small_config.override({"training.epochs": 3, "training.ema_decay": ema_decay})
    real = training.score

    def scripted():
        scores = iter([0.1, 0.3, 0.2])
        monkeypatch.setattr(training, "score", lambda *a: {**real(*a), "f1_macro": next(scores)})

    scripted()
    expected = history(config, small_dataset)
    scripted()
    epochs = []
    session = Session(config, small_dataset)
    session.predict("val")  # nothing is trained yet: by the weights that there are
    while not session.finished:
        epochs.append(session.step())
        session.predict("val")
    # As text, in which a nan, of a stratum that is not validated, equals another.
    assert [{k: repr(v) for k, v in epoch.items() if k != "epoch_s"} for epoch in epochs] == [
        {k: repr(v) for k, v in epoch.items() if k != "epoch"} for epoch in expected
    ]
    scripted()
    trained = train(config, small_dataset, checkpoint=tmp_path / "session.pt")
    loaded = Session.load(tmp_path / "session.pt", small_dataset)
    for each in (session, trained, loaded):
        assert real(*each.predict("val"), each.strata)["loss"] == expected[1]["val/loss"]
        assert is_same(each.model.state_dict(), session.model.state_dict())


@pytest.mark.parametrize("name", ["monitor", "stop_on"])
def test_a_stratum_that_validation_has_not_cannot_decide(small_config, small_dataset, name):
    scored = "common"
    facts = {**small_dataset.facts, "strata": {**small_dataset.facts["strata"], scored: []}}
    empty = dataclasses.replace(small_dataset, facts=facts)
    config = small_config.override({f"training.{name}": f"val/f1_{scored}"})
    Session(config, small_dataset)
    with pytest.raises(ConfigError, match=rf"training.{name} = 'val/f1_{scored}' is nan in every epoch: no"):
        Session(config, empty)


def test_a_monitor_that_is_nan_in_every_epoch_does_not_complete(small_config, small_dataset, monkeypatch):
    real = training.score
    monkeypatch.setattr(training, "score", lambda *a: {**real(*a), "f1_macro": float("nan")})
    with pytest.raises(TrialDiverged, match=r"val/f1_macro \(training.monitor\) was nan in each of the 2"):
        train(small_config, small_dataset)


def test_probabilities_that_are_not_finite_diverge_with_the_epoch(small_config, small_dataset, monkeypatch):
    session = Session(small_config, small_dataset)
    session.step()
    real = session._logits

    def broken(model, features):
        return real(model, features) * (1.0 if model.training else float("nan"))

    monkeypatch.setattr(session, "_logits", broken)
    with pytest.raises(
        TrialDiverged, match=r"of (\d+) of \1 validation recordings were not finite after epoch 2; the last"
    ):
        session.step()
    record = session.record("diverged")
    assert (record.epochs, record.best_epoch) == (1, 1)


def test_a_loaded_session_runs_under_the_runtime_of_now(small_config, small_dataset, tmp_path):
    threads = torch.get_num_threads()
    session = Session(small_config, small_dataset)
    assert session.train_clips.feature is None
    session.step()
    session.save(tmp_path / "session.pt")
    now = RuntimeConfig(threads=2, features="computed")
    try:
        loaded = Session.load(tmp_path / "session.pt", small_dataset, runtime=now)
        assert torch.get_num_threads() == 2
        assert loaded.train_clips.feature is not None
        assert loaded.config.runtime == now and loaded.config.trial_id == small_config.trial_id
        assert loaded.record("killed").config["runtime"]["threads"] == 2
        wanted = small_config.override({"runtime.threads": 2})
        assert train(wanted, small_dataset, checkpoint=tmp_path / "session.pt").config == wanted
        with pytest.raises(DataError, match="prepared without features"):
            Session.load(
                tmp_path / "session.pt",
                dataclasses.replace(small_dataset, features=None),
                runtime=RuntimeConfig(features="stored"),
            )
    finally:
        torch.set_num_threads(threads)


def test_a_session_continues_in_its_own_precision_only(small_config, small_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(training_device, "has_fast_bf16", lambda device: True)
    Session(small_config, small_dataset).save(tmp_path / "session.pt")
    monkeypatch.setattr(training_device, "has_fast_bf16", lambda device: False)
    with pytest.raises(ConfigError, match=r"trained in bf16, and training.precision = 'auto' is fp32 on"):
        Session.load(tmp_path / "session.pt", small_dataset)


MIB = 2**20


def test_the_peak_of_memory_is_of_this_trial_and_not_of_a_larger_one_before(
    small_config, small_dataset, tmp_path, monkeypatch
):
    if forget_peak_rss() is None:
        pytest.skip("this system does not measure a process's peak")
    real = Session.train_batch

    def greedy(self, raw):
        np.ones(400 * MIB, np.uint8)
        return real(self, raw)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "train_batch", greedy)
        session = Session(small_config, small_dataset)
        session.step()
        large = session.record("killed").peak_memory_mb
        session.save(tmp_path / "session.pt")
    small = train(small_config, small_dataset).record("completed").peak_memory_mb
    assert large - small > 300
    # What a trial took before it was saved is its own.
    loaded = Session.load(tmp_path / "session.pt", small_dataset)
    assert loaded.record("killed").peak_memory_mb >= large


def test_a_system_that_does_not_measure_the_peak_records_none(small_config, small_dataset, monkeypatch):
    monkeypatch.setattr(memory, "forget_peak_rss", lambda: None)
    assert Session(small_config, small_dataset).record("killed").peak_memory_mb is None


@pytest.mark.parametrize(("kind", "text"), OUT_OF_MEMORY)
def test_every_spelling_of_out_of_memory_halves_the_micro_batch(
    small_config, small_dataset, monkeypatch, kind, text
):
    session = Session(small_config, small_dataset)
    real = session._logits

    def greedy(model, features):
        if len(features) > 4 and model.training:
            raise kind(text)
        return real(model, features)

    monkeypatch.setattr(session, "_logits", greedy)
    session.step()
    assert (session.progress.micro_batch_size, session.progress.n_out_of_memory) == (4, 1)


@pytest.mark.parametrize(("kind", "text"), OTHER_FAULTS)
def test_another_fault_is_not_taken_for_out_of_memory(small_config, small_dataset, monkeypatch, kind, text):
    session = Session(small_config, small_dataset)

    def broken(model, features):
        raise kind(text)

    monkeypatch.setattr(session, "_logits", broken)
    with pytest.raises(kind):
        session.step()
    assert session.progress.n_out_of_memory == 0


@pytest.mark.parametrize(
    ("change", "runs_out", "is_marked"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"training.micro_batch_size": 4}, False, False),  # its config says so
        ({"training.micro_batch_size": 4}, True, True),
        ({"model.name": "audio_vit", "model.size": "tiny"}, True, False),  # without batch norm
    ],
)
def test_smaller_micro_batches_than_the_config_has_are_marked_under_batch_norm(
    small_config, small_dataset, tmp_path, monkeypatch, change, runs_out, is_marked
):
    session = Session(small_config.override(change), small_dataset)
    real = session._logits

    def greedy(model, features):
        if runs_out and len(features) > 2 and model.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, features)

    monkeypatch.setattr(session, "_logits", greedy)
    session.step()
    session.save(tmp_path / "session.pt")
    for each in (session, Session.load(tmp_path / "session.pt", small_dataset)):
        why = each.record("completed").provenance["not_comparable"]
        assert bool(why) == is_marked
        if is_marked:
            assert "micro-batches of 2 clips" in why


def test_the_batch_norm_of_a_frozen_backbone_sees_no_batch():
    backbone = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    for is_frozen in (False, True):
        model = BackboneClassifier(backbone, torch.nn.Identity(), freeze_backbone=is_frozen)
        assert uses_batch_statistics(model) != is_frozen


# ------------------------------------------------------- a class that is unused in the repeat


def with_unused(dataset):
    """Return `dataset` with its first class unused."""
    is_unused = (dataset.labels == 0) & (dataset.splits != "test")
    assert is_unused.any()
    return dataclasses.replace(dataset, splits=np.where(is_unused, "unused", dataset.splits))


def assert_trains(config, dataset):
    """Assert that training stays finite while the first class has no clips."""
    session = Session(config, dataset)
    assert session.dataset.class_counts("train")[0] == 0 and (session.train_clips.labels > 0).all()
    metrics = [session.step() for _ in range(config.training.epochs)]
    assert all(np.isfinite([m["train/loss"], m["val/loss"], m["val/f1_macro"]]).all() for m in metrics)
    assert all(weight.isfinite().all() for weight in session.model.state_dict().values())
    probabilities, truth = session.predict("val")
    assert np.isfinite(probabilities).all() and (truth > 0).all()


HEADS = [name for name in registry.models.names() if input_ndim(name) == 1]
LOSSES = [
    *({"loss.name": name} for name in registry.losses.names()),
    *({"loss.name": "cross_entropy", "loss.class_weights": scheme} for scheme in get_args(Scheme)),
    *({"loss.name": "focal", "loss.alpha": scheme} for scheme in get_args(Scheme) if scheme != "none"),
]


@pytest.mark.parametrize("sampling", get_args(get_type_hints(TrainingConfig)["sampling"]))
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(loss.values()))
def test_every_loss_and_sampling_trains_with_a_class_without_training_clips(
    small_config, embeddings, loss, sampling
):
    changes = {"model.name": "linear", **loss, "training.sampling": sampling}
    assert_trains(small_config.override(changes), with_unused(embeddings))


@pytest.mark.parametrize("loss", registry.losses.names())
def test_mixed_and_smoothed_targets_train_with_a_class_without_training_clips(small_config, embeddings, loss):
    changes = {"model.name": "linear", "loss.name": loss, "loss.label_smoothing": 0.1, "augment.mixup.p": 1.0}
    if loss == "cross_entropy":
        changes["loss.class_weights"] = "inverse"
    assert_trains(small_config.override(changes), with_unused(embeddings))


@pytest.mark.parametrize("model", HEADS)
def test_every_head_trains_with_a_class_without_training_clips(small_config, embeddings, model):
    assert_trains(small_config.override({"model.name": model}), with_unused(embeddings))


def test_a_network_trains_with_a_class_without_training_clips(small_config, small_dataset):
    assert_trains(small_config, with_unused(small_dataset))


def test_final_training_takes_what_is_unused_too(small_config, embeddings):
    session = train(small_config.override({**FINAL, "model.name": "linear"}), with_unused(embeddings))
    assert len(session.train_clips) == (embeddings.splits != "test").sum()


@pytest.fixture
def kernels_as_before():
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, benchmark


def test_only_tf32_multiplies_float32_with_less_than_its_precision(kernels_as_before):
    gpu, found = torch.device("cuda"), {}
    for precision in ("tf32", "fp32", "bf16"):
        training_device.choose_kernels(gpu, precision)
        found[precision] = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert found == {"tf32": (True, True), "fp32": (False, False), "bf16": (False, False)}
    assert pick_precision("tf32", gpu) == "tf32" and pick_precision("tf32", torch.device("cpu")) == "fp32"


def test_determinism_is_of_the_run_and_not_of_the_process(kernels_as_before, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    gpu = torch.device("cuda")
    training_device.choose_kernels(gpu, "bf16", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    training_device.choose_kernels(gpu, "bf16")
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
