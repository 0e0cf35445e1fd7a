"""The captured training step, on a CPU that plays back what a graph would: the same operations on the same
tensors, with every number of Python as it was at the capture."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from birdnet_core import registry
from birdnet_core.config import RuntimeConfig
from birdnet_core.training import optim
from birdnet_core.training import session as session_module
from birdnet_core.training.batches import Raw
from birdnet_core.training.graph import WARM_UP, CapturedStep, why_eager
from birdnet_core.training.session import Session

GPU = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Tape(TorchDispatchMode):
    """Records operations as they are made; `play` makes them again, into the tensors of the recording."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def play(self):
        with torch.no_grad():
            for func, args, kwargs, out in self.operations:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)


class CpuWithTape:
    """In place of `graph.Gpu`: its capture makes the step, and the first replay does nothing."""

    def __init__(self, waits=False):
        self.waits = waits
        self.n_captured = self.n_replayed = 0

    def copy(self, raw):
        return Raw(raw.values.clone(), raw.scale.clone(), raw.offset.clone(), raw.classes.clone())

    def warm_up(self, work):
        return work(), self.waits

    def capture(self, work, generators):
        self.n_captured += 1
        with Tape() as tape:
            result = work()
        is_made = [True]

        def replay():
            self.n_replayed += 1
            if not is_made.pop():
                tape.play()
            is_made.append(False)
            return result.clone()

        return replay


@pytest.fixture
def taped(monkeypatch):
    """Sessions on the CPU capture their steps on a tape, as those on a GPU in a graph."""
    machine = CpuWithTape()
    monkeypatch.setattr(optim, "has_rates_in_tensors", lambda device: True)
    monkeypatch.setattr(session_module, "why_eager", lambda *a: None)
    monkeypatch.setattr(
        session_module, "CapturedStep", lambda step, generators: CapturedStep(step, generators, machine)
    )
    return machine


FOUR = {"training.batch_size": 4}
SETTINGS = {
    "plain": {},
    "fp32": {"training.precision": "fp32"},
    "ema": {"training.ema_decay": 0.9},
    "schedule": {"optim.schedule": "one_cycle", "optim.warmup_epochs": 0},
    "micro-batches": {"training.micro_batch_size": 3},
    "mixup": {"augment.mixup.p": 0.7, "loss.name": "focal"},
    "spec_augment": {"augment.spec_augment.p": 0.7, "augment.time_shift.p": 0.5},
    "waveforms": {"augment.noise.p": 0.7, "augment.gain.p": 0.5},
    "v2": {"model.name": "audio_cnn_v2", "optim.grad_clip": 0.5},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_captured_run_has_the_losses_and_scores_of_an_eager_one(
    small_config, small_dataset, taped, monkeypatch, setting
):
    config = small_config.override(
        {"training.epochs": 3, "training.patience": 0, **FOUR, **SETTINGS[setting]}
    )
    captured = Session(config, small_dataset)
    rows = [captured.step() for _ in range(3)]
    n_whole = len(small_dataset.rows("train")) // 4
    assert taped.n_captured == 1 and taped.n_replayed == 3 * n_whole - WARM_UP > 3
    assert captured.record("completed").provenance["training_step"] == "captured"
    monkeypatch.setattr(session_module, "why_eager", lambda *a: "for comparison")
    eager = Session(config, small_dataset)
    for row, expected in zip(rows, [eager.step() for _ in range(3)], strict=True):
        for name, value in expected.items():
            if name != "epoch_s":
                assert row[name] == pytest.approx(value, rel=1e-4, nan_ok=True), name
    assert eager.record("completed").provenance["training_step"] == "eager: for comparison"
    for name, value in eager.scored_model.state_dict().items():
        torch.testing.assert_close(captured.scored_model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_captures_anew_and_gives_the_numbers_of_a_whole_one(
    small_config, small_dataset, taped, tmp_path
):
    config = small_config.override(
        {**FOUR, "training.epochs": 4, "training.patience": 0, "training.ema_decay": 0.9}
    )
    whole = Session(config, small_dataset)
    expected = [whole.step() for _ in range(4)]
    rest = Session(config, small_dataset)
    rest.step(), rest.step()
    rest.save(tmp_path / "session.pt")
    rest = Session.load(tmp_path / "session.pt", small_dataset)
    found = [rest.step(), rest.step()]
    assert taped.n_captured == 3
    for row, of_whole in zip(found, expected[2:], strict=True):
        assert row["train/loss"] == pytest.approx(of_whole["train/loss"], rel=1e-5)
        assert row["val/loss"] == pytest.approx(of_whole["val/loss"], rel=1e-5)


def test_out_of_memory_drops_the_graph_and_captures_one_of_smaller_micro_batches(
    small_config, small_dataset, taped, monkeypatch
):
    config = small_config.override({"training.epochs": 2, "training.patience": 0, **FOUR})
    monkeypatch.setattr(session_module, "may_run_out", lambda device: True)
    session = Session(config, small_dataset)
    session.step()
    real, first = session.train_step, [True]

    def full(raw):
        if first.pop():
            first.append(False)
            raise torch.OutOfMemoryError("CUDA out of memory")
        first.append(False)
        return real(raw)

    monkeypatch.setattr(session, "train_step", full)
    session.step()
    assert (session.progress.n_out_of_memory, session.progress.micro_batch_size) == (1, 2)
    assert taped.n_captured == 2
    assert session.record("completed").provenance["training_step"] == "captured"


def test_a_step_that_waits_for_the_gpu_stays_eager_and_says_so(small_config, small_dataset, taped):
    taped.waits = True
    session = Session(small_config.override(FOUR), small_dataset)
    session.step(), session.step()
    assert taped.n_captured == 0
    assert session.training_step == "eager: a part of the step makes the CPU wait for the GPU"


def test_a_run_of_fewer_batches_than_the_warm_up_has_does_not_count_as_captured(
    small_config, small_dataset, taped
):
    config = small_config.override({"training.batch_size": 8, "training.epochs": 1})
    session = Session(config, small_dataset)
    session.step()
    assert len(small_dataset.rows("train")) // 8 <= WARM_UP and taped.n_captured == 0
    assert session.training_step == "eager: not more than 3 whole batches yet"


def test_a_replayed_step_reads_the_batch_that_it_is_given():
    step = CapturedStep(lambda raw: (2 * raw.values).sum()[None], [], CpuWithTape())
    empty = torch.zeros(1)
    found = [float(step(Raw(torch.full((3,), float(n)), empty, empty, empty))) for n in range(8)]
    assert found == [6.0 * n for n in range(8)]


class Plugin(torch.nn.Module):
    pass


class Stated(torch.nn.Module):
    is_capturable = True


def test_why_a_step_is_not_captured():
    own = registry.models["audio_cnn"].make((3, 16, 24), 4)
    runtime = RuntimeConfig()
    assert why_eager(GPU, runtime, "bf16", [own, Stated()]) is None
    assert why_eager(torch.device("cpu"), runtime, "bf16", [own]) == "on the CPU"
    assert why_eager(GPU, RuntimeConfig(cuda_graph="off"), "bf16", [own]) == "runtime.cuda_graph = 'off'"
    assert "fp16" in why_eager(GPU, runtime, "fp16", [own])
    assert why_eager(GPU, runtime, "fp32", [own, Plugin()]) == "Plugin does not state is_capturable = True"


# ---- on a GPU


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("setting", SETTINGS)
def test_on_a_gpu_a_captured_run_has_the_losses_of_an_eager_one(small_config, small_dataset, setting):
    settings = {"training.epochs": 3, "training.patience": 0, "training.precision": "fp32"}
    settings |= {"runtime.device": "cuda", "runtime.deterministic": True, **FOUR} | SETTINGS[setting]
    losses = {}
    for cuda_graph in ("auto", "off"):
        config = small_config.override({**settings, "runtime.cuda_graph": cuda_graph})
        session = Session(config, small_dataset)
        losses[cuda_graph] = [session.step()["train/loss"] for _ in range(3)]
        assert (
            session.training_step
            == {"auto": "captured", "off": "eager: runtime.cuda_graph = 'off'"}[cuda_graph]
        )
    np.testing.assert_allclose(losses["auto"], losses["off"], rtol=1e-3)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("cuda_graph", ["auto", "off"])
def test_on_a_gpu_no_step_of_an_epoch_makes_the_cpu_wait(small_config, small_dataset, cuda_graph):
    config = small_config.override(
        {
            **FOUR,
            "runtime.device": "cuda",
            "runtime.cuda_graph": cuda_graph,
            "training.epochs": 3,
            "training.ema_decay": 0.9,
            "augment.mixup.p": 0.5,
            "augment.spec_augment.p": 0.5,
        }
    )
    session = Session(config, small_dataset)
    session.step()
    clips = session.train_clips
    batches = clips.placed(torch.arange(8).repeat(4)).split(4)
    optim.set_rates(session.optimizer, 0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for raw in clips.batches(batches):
            optim.set_rates(session.optimizer, 0.25)
            session.train_step(raw)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert session.training_step.startswith("captured" if cuda_graph == "auto" else "eager")


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_a_random_stretch_stays_eager(small_config, small_dataset):
    config = small_config.override({"runtime.device": "cuda", "augment.time_stretch.p": 0.5, **FOUR})
    session = Session(config, small_dataset)
    session.step(), session.step()
    assert session.training_step == "eager: a part of the step makes the CPU wait for the GPU"


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_a_graph_survives_the_memory_that_another_session_gives_back(small_config, small_dataset):
    config = small_config.override({"runtime.device": "cuda", "training.epochs": 6, "training.patience": 0})
    config = config.override({"runtime.deterministic": True, "training.precision": "fp32", **FOUR})
    alone = Session(config, small_dataset)
    expected = [alone.step()["train/loss"] for _ in range(4)]
    session = Session(config, small_dataset)
    found = [session.step()["train/loss"] for _ in range(2)]
    state = torch.cuda.get_rng_state()
    other = Session(config.override({"model.name": "audio_cnn_v2"}), small_dataset)
    other.step()
    torch.cuda.set_rng_state(state)
    found += [session.step()["train/loss"] for _ in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert session.training_step == "captured"
