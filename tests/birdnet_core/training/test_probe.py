"""What a run takes, against what it then takes."""

import gc
import random
import time

import numpy as np
import pytest
import torch

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.training import session as training
from birdnet_core.training.probe import arm_id, by_arm, context_bytes, probe
from birdnet_core.training.session import Session

MIB = 2**20


@pytest.fixture(autouse=True)
def on_the_cpu_as_on_a_gpu(monkeypatch):
    """Let a session be ready to run out of memory."""
    monkeypatch.setattr(training, "may_run_out", lambda device: True)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7},
        {"optim.lr": 0.1, "optim.weight_decay": 0.0, "optim.backbone_lr": 1e-5, "optim.schedule": "step"},
        {"training.epochs": 3, "training.patience": 1, "training.sampling": "square_root"},
        {"loss.gamma": 4.0, "loss.label_smoothing": 0.1},
        {"model.dropout": 0.2},
        {"training.ema_decay": 0.999},
        {"augment.mixup.p": 0.1, "augment.mixup.alpha": 1.0, "augment.noise.color": "white"},
    ],
)
def test_what_changes_no_step_is_one_arm(change):
    base = TrainConfig().override(
        {"loss.name": "focal", "augment.mixup.p": 0.6, "training.ema_decay": 0.9, "model.dropout": 0.5}
    )
    assert arm_id(base.override(change)) == arm_id(base)


@pytest.mark.parametrize(
    "change",
    [
        {"model.name": "audio_cnn_v2"},
        {"model.dropout": 0.0},
        {"training.batch_size": 64},
        {"training.micro_batch_size": 8},
        {"training.precision": "fp32"},
        {"training.ema_decay": 0.9},
        {"loss.name": "focal"},
        {"loss.class_weights": "sqrt"},
        {"augment.mixup.p": 0.1},
        {"features.n_mfcc": 20},
        {"data.windows_per_recording": 2},
        {"runtime.threads": 2},
    ],
)
def test_what_changes_a_step_is_another_arm(change):
    assert arm_id(TrainConfig().override(change)) != arm_id(TrainConfig())


def test_arms_come_in_the_order_in_which_they_appear():
    small, large = TrainConfig(), TrainConfig().override({"model.name": "audio_cnn_v2"})
    again = small.override({"optim.lr": 0.01})
    assert list(by_arm([large, small, again]).values()) == [[large], [small, again]]


def test_the_figures_are_those_of_a_real_epoch(small_config, small_dataset, tmp_path):
    measured = probe(small_config, small_dataset, n_steps=2)
    session = Session(small_config, small_dataset)
    session.step()
    session.save(tmp_path / "session.pt")
    assert measured.n_steps == next(iter(session.optimizer.state.values()))["step"]
    assert measured.n_params == session.n_params
    assert measured.checkpoint_bytes == pytest.approx((tmp_path / "session.pt").stat().st_size, rel=0.02)
    assert measured.n_val_batches == -(-len(session.val_clips) // 32)  # 4 x the batch of 8
    assert measured.epoch_s == pytest.approx(
        measured.n_steps * measured.step_s + measured.n_val_batches * measured.val_batch_s
    )
    if session.device.type == "cpu":
        assert (measured.device, measured.gpu_peak_bytes, measured.gpu_context_bytes) == ("cpu", None, None)


def test_seconds_are_of_a_step_after_the_first(small_config, small_dataset, monkeypatch):
    real, calls = Session.train_batch, []

    def slow(self, raw):
        calls.append(len(raw.classes))
        time.sleep(1.0 if len(calls) == 1 else 0.05)
        return real(self, raw)

    monkeypatch.setattr(Session, "train_batch", slow)
    measured = probe(small_config, small_dataset, n_steps=4)
    assert calls == [8] * 5  # whole batches only, over the end of the epoch
    assert 0.05 <= measured.step_s < 0.9


def test_everything_is_left_as_it_was(small_config, small_dataset):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    try:
        probe(small_config.override({"seed": 3, "runtime.threads": 1}), small_dataset, n_steps=1)
        assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert not [o for o in gc.get_objects() if type(o) is Session]


def test_the_process_growth_is_of_this_probe_and_not_of_a_larger_one_before(
    small_config, small_dataset, monkeypatch
):
    real = Session.train_batch

    def greedy(self, raw):
        np.ones(300 * MIB, np.uint8)
        return real(self, raw)

    probe(small_config, small_dataset, n_steps=1)
    with monkeypatch.context() as patched:
        patched.setattr(Session, "train_batch", greedy)
        large = probe(small_config, small_dataset, n_steps=1).rss_growth_bytes
    small = probe(small_config, small_dataset, n_steps=1).rss_growth_bytes
    if large is None or small is None:
        pytest.skip("this system does not measure a process's peak")
    assert large >= 300 * MIB
    assert small < 200 * MIB


def _with_room_for(n_clips):
    real = Session.train_batch

    def learn_batch(self, raw):
        if self.progress.micro_batch_size > n_clips:
            raise torch.OutOfMemoryError("no room")
        return real(self, raw)

    return learn_batch


def test_micro_batches_are_halved_until_they_fit_as_in_a_trial(small_config, small_dataset, monkeypatch):
    monkeypatch.setattr(Session, "train_batch", _with_room_for(3))
    measured = probe(small_config, small_dataset, n_steps=1)
    assert measured.micro_batch_size == 2  # 8, 4, 2
    assert (
        measured.n_val_batches
        == probe(
            small_config.override({"training.micro_batch_size": 2}), small_dataset, n_steps=1
        ).n_val_batches
    )


def test_a_model_without_room_for_one_clip_is_a_config_error(small_config, small_dataset, monkeypatch):
    monkeypatch.setattr(Session, "train_batch", _with_room_for(0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU of a test")
    with pytest.raises(ConfigError, match=r"'audio_cnn' has no room on GPU of a test.*smaller") as caught:
        probe(small_config, small_dataset, n_steps=1)
    assert not [o for o in gc.get_objects() if type(o) is Session], caught


def test_no_steps_are_refused(small_config, small_dataset):
    with pytest.raises(ValueError, match="n_steps = 0"):
        probe(small_config, small_dataset, n_steps=0)


def test_the_context_is_what_is_in_use_and_not_torchs():
    assert context_bytes(free=70, total=100, reserved=20) == 10
    assert context_bytes(free=90, total=100, reserved=20) == 0  # freed by others between two questions


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_peak_and_context_are_measured_and_given_back(small_config, small_dataset):
    torch.zeros(1, device="cuda")
    probe(small_config, small_dataset, n_steps=1)
    reserved = torch.cuda.memory_reserved()
    state = torch.cuda.get_rng_state()
    small = probe(small_config, small_dataset)
    assert torch.cuda.memory_reserved() == reserved
    assert torch.equal(torch.cuda.get_rng_state(), state)
    large = probe(small_config.override({"model.name": "audio_cnn_v2"}), small_dataset)
    assert large.device == torch.cuda.get_device_name()
    # Weights, gradients and the two moments of AdamW, in float32.
    assert large.gpu_peak_bytes >= 16 * large.n_params
    assert large.gpu_peak_bytes > small.gpu_peak_bytes > 0
    assert 50 * MIB < small.gpu_context_bytes < 3000 * MIB
