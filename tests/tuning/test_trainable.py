"""The trainable without Ray: what it does about a session that hangs, is killed or cannot be saved."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from birdnet_core.data.dataset import Dataset, is_whole
from birdnet_core.data.manifest import read_manifest
from birdnet_core.training import Session
from tuning import trainable
from tuning.trainable import RUN_ID, TrainTrial, await_memory

ROOT = Path(__file__).parents[2]


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
        "checkpoints": {"folder": str(tmp_path), "run_id": "abc", "shorter": "", "keep": False},
    }


def steps(trial):
    """Return all results of a trial."""
    results = [trial.step()]
    while not results[-1]["done"]:
        results.append(trial.step())
    return results


def told(results):
    return [{k: v for k, v in r.items() if k.startswith(("val/", "train/"))} for r in results]


def test_a_trial_in_a_new_process_tells_the_epochs_before_and_goes_on(payload):
    whole = steps(TrainTrial(payload))
    assert [r["replayed"] for r in whole] == [False, False]
    again = steps(TrainTrial(payload))  # it was killed after its last epoch, before the driver knew
    assert [r["replayed"] for r in again] == [True, True]
    assert [r["epoch"] for r in again] == [1, 2]
    assert [r["status"] for r in again] == [None, "completed"]
    assert json.dumps(told(again)) == json.dumps(told(whole))
    was, now = (json.loads(r[-1]["record"]) for r in (whole, again))
    for fact in ("metrics", "f1_per_species", "best_epoch", "epochs"):
        assert was[fact] == now[fact]


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
    assert Session.load(own, Dataset.open(payload["dataset"])).epoch == 1


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
    assert json.dumps(told([trial.step()])) == json.dumps(told([TrainTrial(payload).step()]))
    assert (tmp_path / "elsewhere" / "datasets" / name).exists()


def test_a_dataset_that_a_killed_node_left_torn_is_not_taken(payload, elsewhere, birds, tmp_path):
    torn = tmp_path / "elsewhere" / "datasets" / Path(elsewhere["dataset"]).name
    torn.mkdir(parents=True)
    trial = TrainTrial()
    trial.setup({**elsewhere, "dataset": str(torn)}, manifest=read_manifest(birds))
    assert json.dumps(told([trial.step()])) == json.dumps(told([TrainTrial(payload).step()]))
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
        result = trial.step()
        assert result["done"] and re.search(
            f"does not see {elsewhere['dataset']}, and .*{words}", result["fault"]
        )


@pytest.mark.parametrize(
    ("freed_after_s", "told"),
    [(0, None), (30, None), (300, "1.0 GiB were free of the 4.0 GiB of its share")],
)
def test_a_trial_waits_for_the_memory_of_the_one_before_but_not_for_ever(freed_after_s, told):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    def free():
        return (8 if now[0] >= freed_after_s else 1) * 2**30

    assert await_memory(4 * 2**30, free, timeout_s=60, clock=lambda: now[0], sleep=sleep) == told
    assert now[0] == min(freed_after_s, 60)


def test_a_process_that_does_not_let_go_of_gpu_memory_is_not_used_again(payload, monkeypatch):
    caps = []
    for name, value in {
        "is_available": lambda: True,
        "empty_cache": lambda: None,
        "memory_allocated": lambda: held,
        "mem_get_info": lambda: (10 * 2**30, 10 * 2**30),
        "set_per_process_memory_fraction": caps.append,
    }.items():
        monkeypatch.setattr(trainable.torch.cuda, name, value)
    held = 0
    trial = TrainTrial({**payload, "memory_cap": 0.25})
    assert (caps, trial.gpu_memory) == ([0.25], None)
    assert trial.reset_config(payload)
    assert caps == [0.25, 1.0]
    held = 4096
    assert not trial.reset_config(payload)


def test_a_checkpoint_that_cannot_be_written_is_a_fault_and_not_a_failure(payload, small_config, tmp_path):
    (tmp_path / small_config.trial_id).write_text("a file in the way")
    result = TrainTrial(payload).step()
    assert (result["status"], result["done"]) == (None, False)
    assert result["fault"].startswith("cannot write ")


def test_a_trial_that_hangs_ends_its_process_and_the_next_one_says_where(payload, tmp_path):
    (tmp_path / "payload.json").write_text(json.dumps(payload))
    script = (
        "import json, sys, time\n"
        "from birdnet_core.training import Session\n"
        "from tuning.trainable import TrainTrial\n"
        "def stuck_for_ever(session):\n"
        "    time.sleep(600)\n"
        "payload = json.load(open(sys.argv[1]))\n"
        "payload['timeout_s'] = 100.0\n"
        "if sys.argv[2] == 'hang':\n"
        "    payload['timeout_s'] = 5.0\n"
        "    Session.step = stuck_for_ever\n"
        "result = TrainTrial(payload).step()\n"
        "print(json.dumps([result['status'], json.loads(result['record'])['error']]))\n"
    )

    def process(how):
        command = [sys.executable, "-c", script, tmp_path / "payload.json", how]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)

    assert process("hang").returncode == 1
    status, error = json.loads(process("run").stdout)
    assert status == "failed"
    assert error.startswith("TimeoutError: no epoch came within 100 s (--trial-timeout)")
    assert "stuck_for_ever" in error
    assert json.loads(process("run").stdout)[0] is None  # nothing is left of it
