"""The trainable without Ray: what it does about a session that hangs, is killed or cannot be saved."""

import errno
import functools
import json
import pickle
import platform
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from birdnet_core.data.dataset import Dataset, is_whole
from birdnet_core.data.manifest import read_manifest
from birdnet_core.errors import ConfigError
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.training.session import Session
from tests.spellings import OUT_OF_MEMORY
from tuning.engine import trainable
from tuning.engine.journal import epochs_of
from tuning.engine.nodes import TrialFault
from tuning.engine.trainable import RUN_ID, TrainTrial, await_memory

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def an_epoch_a_step(monkeypatch):
    monkeypatch.setattr(trainable, "STEP_S", 0.0)


@pytest.fixture
def payload(small_config, small_dataset, tmp_path):
    (tmp_path / RUN_ID).write_text("abc")
    return {
        "config": small_config.to_dict(),
        "dataset": str(small_dataset.folder),
        "journal": {"study": "s", "trial_id": small_config.trial_id, "number": 0, "factors": {}},
        "resources": {"cpu": 1.0, "gpu": 0.0},
        "memory_cap": None,
        "timeout_s": None,
        "decisions": [],
        "plugins": [],
        "checkpoints": {"folder": str(tmp_path), "run_id": "abc", "shorter": "", "keep": False},
    }


def steps(trial):
    """Return all results of a trial."""
    results = [trial.step()]
    while not results[-1]["done"]:
        results.append(trial.step())
    return results


def reported(results):
    return [{k: v for k, v in r.items() if k.startswith(("val/", "train/"))} for r in results]


def test_a_trial_in_a_new_process_reports_the_epochs_before_and_continues(payload):
    whole = steps(TrainTrial(payload))
    assert [r["replayed"] for r in whole] == [False, False]
    again = steps(TrainTrial(payload))  # it was killed after its last epoch, before the driver knew
    assert [r["replayed"] for r in again] == [True, True]
    assert [r["epoch"] for r in again] == [1, 2]
    assert [r["status"] for r in again] == [None, "completed"]
    assert json.dumps(reported(again)) == json.dumps(reported(whole))
    was, now = (json.loads(r[-1]["record"]) for r in (whole, again))
    for fact in ("metrics", "f1_per_species", "best_epoch", "epochs"):
        assert was[fact] == now[fact]
    assert again[-1]["predictions"] == whole[-1]["predictions"]


def test_a_completed_trial_hands_over_what_it_predicted_after_every_epoch(payload, tmp_path):
    trial = TrainTrial(payload)
    results = steps(trial)
    assert [result["predictions"] is None for result in results] == [True, False]
    run = RunFolder(tmp_path)
    run.write_predictions("ab-r0", results[-1]["predictions"])
    predictions, truth = run.predictions("ab-r0"), trial.session.predict("val")[1]
    for classes, metrics in zip(predictions.classes, epochs(results), strict=True):
        assert np.mean(classes == truth) == pytest.approx(metrics["val/accuracy"])


@pytest.mark.parametrize(("save_s", "expected"), [(0.4, [1, 2, 3, 4, 5, 6]), (5.0, [1, 3, 5]), (9.0, [1, 4])])
def test_saving_takes_no_more_than_its_share_of_the_time(
    payload, small_config, monkeypatch, save_s, expected
):
    """Of epochs of ten seconds, a quarter; less than half a second is no matter."""
    now, saved = [0.0], []
    monkeypatch.setattr(trainable, "SAVING_SHARE", 0.25)
    monkeypatch.setattr(trainable.time, "monotonic", lambda: now[0])

    def save(session, path):
        saved.append(session.progress.epoch)
        now[0] += save_s

    step = Session.step
    monkeypatch.setattr(Session, "save", save)
    monkeypatch.setattr(Session, "step", lambda s: now.append(now.pop() + 10) or step(s))
    config = small_config.override({"training.epochs": 6, "training.patience": 0})
    steps(TrainTrial({**payload, "config": config.to_dict()}))
    assert saved == expected


@pytest.mark.parametrize("keep", [False, True])
def test_a_completed_trial_that_is_kept_is_saved_at_any_cost(payload, monkeypatch, keep):
    monkeypatch.setattr(trainable, "SAVING_SHARE", 1e-6)
    monkeypatch.setattr(trainable, "QUICK_SAVE_S", 0.0)
    payload["checkpoints"]["keep"] = keep
    saved, save = [], Session.save
    monkeypatch.setattr(Session, "save", lambda s, path: saved.append(s.progress.epoch) or save(s, path))
    steps(TrainTrial(payload))
    assert saved == ([1, 2] if keep else [1])


def test_a_damaged_checkpoint_starts_the_trial_anew_and_says_so(payload, small_config, tmp_path, caplog):
    first = TrainTrial(payload)
    first.step()
    checkpoint = tmp_path / small_config.trial_id / "session.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    results = steps(TrainTrial(payload))
    assert [r["replayed"] for r in results] == [False, False]
    assert "starts anew" in caplog.text and "damaged" in caplog.text


def test_a_node_that_does_not_see_the_run_folder_keeps_its_own_checkpoints(payload, small_config, tmp_path):
    (tmp_path / RUN_ID).write_text("another run")
    TrainTrial(payload).step()
    own = trainable.default_cache() / "checkpoints" / "abc" / small_config.trial_id / "session.pt"
    assert own.exists() and not (tmp_path / small_config.trial_id).exists()
    assert Session.load(own, Dataset.open(payload["dataset"])).progress.epoch == 1


@pytest.mark.parametrize("ended", ["completed", "by the scheduler", "out of memory"])
@pytest.mark.parametrize("keep", [False, True])
def test_a_node_drops_its_own_checkpoints_of_trials_that_are_over(
    payload, small_config, tmp_path, monkeypatch, ended, keep
):
    (tmp_path / RUN_ID).write_text("another run")
    payload["checkpoints"]["keep"] = keep
    trial = TrainTrial(payload)
    own = trainable.default_cache() / "checkpoints" / "abc" / small_config.trial_id / "session.pt"
    trial.step()
    if ended == "completed":
        steps(trial)
    elif ended == "out of memory":

        def runs_out(session):
            raise torch.OutOfMemoryError("too large")

        monkeypatch.setattr(Session, "step", runs_out)
        assert trial.step()["out_of_memory"]
    assert own.exists()
    other = small_config.override({"seed": small_config.seed + 1})
    line = {**payload["journal"], "trial_id": other.trial_id}
    assert trial.reset_config({**payload, "config": other.to_dict(), "journal": line})
    may_be_needed = ended == "out of memory" or (ended == "completed" and keep)
    assert own.exists() == may_be_needed


def test_a_node_leaves_checkpoints_in_the_run_folder_to_the_driver(payload, small_config, tmp_path):
    trial = TrainTrial(payload)
    trial.step()
    assert trial.reset_config(payload)
    assert (tmp_path / small_config.trial_id / "session.pt").exists()


@pytest.fixture
def elsewhere(payload, small_dataset, tmp_path, monkeypatch):
    """The payload as on a node that sees neither the driver's cache nor another one."""
    monkeypatch.setenv("BIRDTUNE_CACHE", str(tmp_path / "elsewhere"))
    return {**payload, "dataset": str(tmp_path / "unseen" / small_dataset.folder.name)}


def test_a_node_that_does_not_see_the_dataset_makes_it_from_the_audio(payload, elsewhere, birds, tmp_path):
    trial = TrainTrial()
    trial.setup(elsewhere, manifest=read_manifest(birds))
    name = Path(elsewhere["dataset"]).name
    assert json.dumps(reported([trial.step()])) == json.dumps(reported([TrainTrial(payload).step()]))
    assert (tmp_path / "elsewhere" / "datasets" / name).exists()


def test_a_dataset_that_a_killed_node_left_torn_is_not_taken(payload, elsewhere, birds, tmp_path):
    torn = tmp_path / "elsewhere" / "datasets" / Path(elsewhere["dataset"]).name
    torn.mkdir(parents=True)
    trial = TrainTrial()
    trial.setup({**elsewhere, "dataset": str(torn)}, manifest=read_manifest(birds))
    assert json.dumps(reported([trial.step()])) == json.dumps(reported([TrainTrial(payload).step()]))
    assert is_whole(torn)


def test_a_node_with_other_recordings_is_a_fault_and_not_a_failure(elsewhere, birds):
    manifest = read_manifest(birds)
    fewer, none = manifest.copy(), manifest.copy()
    fewer.loc[0, "path"] = none["path"] = "/nowhere.wav"
    for given, words in (
        (fewer, r"make another dataset \(\w+, with 1 of 40 recordings unreadable\)"),
        (none, "cannot make it: .*"),
    ):
        trial = TrainTrial()
        trial.setup(elsewhere, manifest=given)
        with pytest.raises(TrialFault, match=f"does not see {elsewhere['dataset']}, and .*{words}") as caught:
            trial.step()
        assert caught.value.at_fault == "node" and caught.value.host == platform.node()


def test_a_trial_that_fails_at_once_is_raised_and_one_that_has_trained_is_recorded(payload, monkeypatch):
    """What fails at once may be the process's fault; Ray ends a process that raises."""

    def fail(session):
        raise RuntimeError("strange")

    step = Session.step
    monkeypatch.setattr(Session, "step", fail)
    with pytest.raises(TrialFault, match="RuntimeError: strange") as caught:
        TrainTrial(payload).step()
    assert caught.value.at_fault == "chance"
    fault = pickle.loads(pickle.dumps(caught.value))
    assert json.loads(fault.record)["status"] == "failed"
    assert "in fail" in json.loads(fault.record)["traceback"]

    monkeypatch.setattr(Session, "step", step)
    trial = TrainTrial(payload)
    assert trial.step()["status"] is None
    monkeypatch.setattr(Session, "step", fail)
    assert trial.step()["status"] == "failed"


def test_a_refused_setting_is_recorded_at_once(payload, monkeypatch):
    def refuse(session):
        raise ConfigError("no such thing")

    monkeypatch.setattr(Session, "step", refuse)
    result = TrainTrial(payload).step()
    assert (result["status"], json.loads(result["record"])["error"]) == (
        "failed",
        "ConfigError: no such thing",
    )


@pytest.mark.parametrize(
    ("error", "is_of_node"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (TimeoutError("no epoch came"), False),
    ],
)
def test_faults_of_the_machine_differ_from_those_of_a_trial(payload, monkeypatch, error, is_of_node):
    def fail(session):
        try:
            raise error
        except Exception as inner:
            raise ValueError("while reading") from inner

    trial = TrainTrial(payload)
    trial.step()
    monkeypatch.setattr(Session, "step", fail)
    if is_of_node:
        with pytest.raises(TrialFault, match="ValueError: while reading"):
            trial.step()
    else:
        assert trial.step()["status"] == "failed"


def test_a_dataset_that_the_driver_opened_and_this_machine_cannot_is_a_fault_of_the_machine(payload):
    with pytest.raises(TrialFault, match="cannot read /nowhere") as caught:
        TrainTrial({**payload, "dataset": "/nowhere"}).step()
    assert caught.value.at_fault == "node"


GIB = 2**30


@pytest.mark.parametrize(
    ("freed", "waited_s", "reported"),
    [
        ([(0, 8)], 0, None),
        ([(0, 1), (3, 8)], 3, None),
        ([(0, 1), (3, 2), (7, 3), (11, 4)], 11, None),  # a process that ends takes its time
        ([(0, 1)], 5, "1.0 GiB were free of the 4.0 GiB of its share"),  # others': it never comes back
        ([(0, 1), (3, 2)], 8, "2.0 GiB were free of the 4.0 GiB of its share"),
        ([(second, second * 0.01) for second in range(100)], 60, "614.4 MiB were free of the 4.0 GiB of its"),
    ],
)
def test_a_trial_waits_for_memory_as_long_as_more_comes_back(freed, waited_s, reported):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    def free():
        return int([gib for second, gib in freed if second <= now[0]][-1] * GIB)

    missing = await_memory(4 * GIB, free, timeout_s=60, clock=lambda: now[0], sleep=sleep)
    assert (missing or "").startswith(reported or "") and (missing is None) == (reported is None)
    assert now[0] == pytest.approx(waited_s, abs=0.25)


class FakeGpu:
    """A GPU of ten GiB by torch.cuda's functions; nothing is computed on it."""

    def __init__(self, monkeypatch):
        self.total, self.others, self.context, self.held = 10 * GIB, 0, GIB // 2, 0
        self.caps, self.waits = [], []
        for name, value in {
            "is_available": lambda: True,
            "empty_cache": lambda: None,
            "memory_allocated": lambda: self.held,
            "memory_reserved": lambda: self.held,
            "get_device_properties": lambda device: types.SimpleNamespace(total_memory=self.total),
            "mem_get_info": lambda: (self.total - self.others - self.context - self.held, self.total),
            "set_per_process_memory_fraction": self.caps.append,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)


@pytest.fixture
def gpu(monkeypatch):
    # No waiting for real: the clock advances by what would be slept.
    made = FakeGpu(monkeypatch)
    monkeypatch.setattr(
        trainable, "await_memory", functools.partial(await_memory, clock=lambda: sum(made.waits),
                                                     sleep=made.waits.append)
    )  # fmt: skip
    return made


@pytest.mark.parametrize("cap", [None, 0.25])
def test_a_gpu_of_its_own_is_waited_for_by_nobody(payload, gpu, cap):
    trial = TrainTrial({**payload, "memory_cap": cap})
    assert trial.gpu_memory is None and trial.reset_config({**payload, "memory_cap": cap})
    assert trial.gpu_memory is None and gpu.waits == []
    assert gpu.caps == [cap or 1.0] * 2


def test_what_others_hold_from_the_start_is_waited_for_once_and_briefly(payload, gpu):
    gpu.others = 3 * GIB
    trial = TrainTrial(payload)
    assert sum(gpu.waits) == pytest.approx(5, abs=0.25)
    assert trial.gpu_memory == "6.5 GiB were free of the 8.5 GiB of its share"
    for _ in range(3):
        assert trial.reset_config(payload)
    assert sum(gpu.waits) == pytest.approx(5, abs=0.25)
    with pytest.raises(TrialFault) as caught:  # there is no GPU to train on
        trial.step()
    assert json.loads(caught.value.record)["provenance"]["actor"]["gpu_memory"] == trial.gpu_memory


def test_what_a_library_keeps_is_recorded_and_what_a_trial_leaves_is_not_carried_on(payload, gpu):
    gpu.held = 100 * 2**20  # before the first trial: no fault of one
    trial = TrainTrial({**payload, "memory_cap": 0.25})
    gpu.held += 8 * 2**20
    assert trial.reset_config({**payload, "memory_cap": 0.25}) is True
    assert trial.gpu_memory == "8.0 MiB of the trials before were still held"
    gpu.held += GIB
    assert trial.reset_config({**payload, "memory_cap": 0.25}) is True
    held = r"it still holds 1.0 GiB of the trials .* 5% of the 2.5 GiB"
    with pytest.raises(TrialFault, match=held) as caught:
        trial.step()
    assert caught.value.at_fault == "process"


def test_a_gpu_without_room_for_a_context_is_waited_for_and_the_trial_says_so(payload, gpu, monkeypatch):
    def full():
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    assert TrainTrial(payload).gpu_memory == "0 B were free of the 8.5 GiB of its share"
    assert sum(gpu.waits) == pytest.approx(5, abs=0.25)


def test_a_process_whose_context_is_broken_is_not_used_again(payload, gpu, monkeypatch):
    trial = TrainTrial(payload)

    def broken():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert trial.reset_config(payload) is True
    with pytest.raises(TrialFault, match="cannot train on the GPU any more: CUDA error: an illegal mem"):
        trial.step()


@pytest.mark.parametrize(("kind", "text"), OUT_OF_MEMORY)
def test_every_spelling_of_out_of_memory_is_recognised(payload, monkeypatch, kind, text):
    def runs_out(session):
        raise kind(text)

    monkeypatch.setattr(Session, "step", runs_out)
    result = TrainTrial(payload).step()
    assert (result["status"], result["out_of_memory"]) == ("failed", True)
    assert json.loads(result["record"])["error"] == f"{kind.__name__}: {text}"


def test_a_trial_that_continues_elsewhere_takes_the_runtime_from_there(payload, small_config):
    TrainTrial(payload).step()
    there = small_config.override({"runtime.features": "computed"})
    trial = TrainTrial({**payload, "config": there.to_dict()})
    trial.step()
    assert trial.session.config == there and trial.session.train_clips.feature is not None


def test_a_checkpoint_that_cannot_be_written_is_a_fault_and_not_a_failure(payload, small_config, tmp_path):
    (tmp_path / small_config.trial_id).write_text("a file in the way")
    result = TrainTrial(payload).step()
    assert (result["status"], result["done"]) == (None, False)
    assert result["fault"].startswith("cannot write ")


def test_a_trial_that_hangs_ends_its_process_and_the_next_one_says_where(payload, tmp_path):
    payload = {**payload, "decisions": [1]}
    (tmp_path / "payload.json").write_text(json.dumps({**payload, "timeout_s": 5.0}))
    script = (
        "import json, sys, time\n"
        "import torch._dynamo\n"  # as the first optimizer of a process does, which takes seconds
        "from birdnet_core.training.session import Session\n"
        "from tuning.engine.trainable import TrainTrial\n"
        "def stuck_for_ever(session):\n"
        "    time.sleep(600)\n"
        "Session.step = stuck_for_ever\n"
        "TrainTrial(json.load(open(sys.argv[1]))).step()\n"
    )
    hanging = [sys.executable, "-c", script, tmp_path / "payload.json"]
    assert subprocess.run(hanging, cwd=ROOT, timeout=120).returncode == 1
    result = TrainTrial({**payload, "timeout_s": 100.0}).step()
    error = json.loads(result["record"])["error"]
    assert result["status"] == "failed"
    assert error.startswith("TimeoutError: no epoch came within 100 s (--trial-timeout)")
    assert "stuck_for_ever" in error
    assert TrainTrial({**payload, "timeout_s": 100.0}).step()["status"] is None  # nothing is left of it


def epochs(results):
    """Return the epochs of results without their times."""
    return [
        {k: v for k, v in epoch.items() if k == "epoch" or k.startswith(("val/", "train/"))}
        for result in results
        for epoch in epochs_of(result)
    ]


@pytest.fixture
def long(payload, small_config):
    """The payload of a trial of five epochs."""
    config = small_config.override({"training.epochs": 5})
    line = {**payload["journal"], "trial_id": config.trial_id}
    return {**payload, "config": config.to_dict(), "journal": line}


def elsewhere_in(folder, payload):
    folder.mkdir()
    (folder / RUN_ID).write_text("abc")
    return {**payload, "checkpoints": {**payload["checkpoints"], "folder": str(folder)}}


def test_short_epochs_are_trained_several_a_step_with_the_same_numbers(long, tmp_path, monkeypatch):
    one_by_one = steps(TrainTrial(long))
    assert [len(epochs_of(result)) for result in one_by_one] == [1] * 5
    monkeypatch.setattr(trainable, "STEP_S", 600.0)
    together = steps(TrainTrial(elsewhere_in(tmp_path / "other", long)))
    assert [len(epochs_of(result)) for result in together] == [5]
    assert json.dumps(epochs(together)) == json.dumps(epochs(one_by_one))
    was, now = (json.loads(results[-1]["record"]) for results in (one_by_one, together))
    for fact in ("status", "metrics", "f1_per_species", "best_epoch", "epochs"):
        assert was[fact] == now[fact]
    assert together[-1]["predictions"] == one_by_one[-1]["predictions"]


def test_no_step_goes_beyond_an_epoch_at_which_the_trial_may_be_stopped(long, monkeypatch):
    monkeypatch.setattr(trainable, "STEP_S", 600.0)
    results = steps(TrainTrial({**long, "decisions": [1, 3]}))
    assert [result["epoch"] for result in results] == [1, 3, 5]
    assert [json.loads(result["record"])["epochs"] for result in results] == [1, 3, 5]


def test_a_step_of_several_epochs_is_saved_once_and_replayed_whole(long, monkeypatch):
    monkeypatch.setattr(trainable, "STEP_S", 600.0)
    saved = []
    save = Session.save
    monkeypatch.setattr(Session, "save", lambda s, path: saved.append(s.progress.epoch) or save(s, path))
    payload = {**long, "decisions": [3]}
    first = TrainTrial(payload)
    first.step()
    first.session.step()  # its process dies here, before the driver and the disk know
    assert saved == [3]
    results = steps(TrainTrial(payload))
    flags = [[(e["epoch"], e["replayed"]) for e in epochs_of(result)] for result in results]
    assert flags == [[(1, True), (2, True), (3, True)], [(4, False), (5, False)]]
    assert saved == [3, 5]


def test_the_epochs_before_a_failure_in_the_same_step_are_reported(long, monkeypatch):
    monkeypatch.setattr(trainable, "STEP_S", 600.0)
    step = Session.step

    def fail(session):
        if session.progress.epoch == 2:
            raise RuntimeError("strange")
        return step(session)

    monkeypatch.setattr(Session, "step", fail)
    (result,) = steps(TrainTrial(long))
    assert result["status"] == "failed" and "val/loss" not in result
    assert [epoch["epoch"] for epoch in epochs_of(result)] == [1, 2]
    assert json.loads(result["record"])["epochs"] == 2


def test_trials_of_one_process_share_a_dataset_until_it_is_made_anew(payload, small_config):
    trial = TrainTrial(payload)
    trial.step()
    dataset = trial.session.dataset
    other = small_config.override({"seed": small_config.seed + 1})
    line = {**payload["journal"], "trial_id": other.trial_id}
    payload = {**payload, "config": other.to_dict(), "journal": line}
    trial.reset_config(payload)
    trial.step()
    assert trial.session.dataset is dataset
    facts = Path(payload["dataset"]) / "dataset.json"
    text = facts.read_text()
    facts.unlink()
    facts.write_text(text)
    trial.reset_config(payload)
    trial.step()
    assert trial.session.dataset is not dataset
