import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from birdnet_core.records.run_folder import RunFolder
from tuning.engine.cluster import nodes_to_come, scratch_folder
from tuning.engine.packing import Node

ROOT = Path(__file__).parents[3]


def test_the_scratch_folder_of_a_killed_process_is_removed_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = (
        "import os, sys, tempfile\n"
        "from tuning.engine.cluster import scratch_folder\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'session').mkdir()\n"
        "    print(folder, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    left = Path(killed.stdout.strip())
    assert (left / "session").is_dir()
    with scratch_folder() as first:
        assert not left.exists()
        with scratch_folder() as second:  # that of a living one stays
            assert first.is_dir() and second.is_dir()
    assert not list(tmp_path.glob("bt-*"))


def test_what_an_autoscaler_may_start_is_read_from_the_launchers_file(tmp_path):
    assert nodes_to_come(0, tmp_path / "none.yaml") == []
    kinds = {
        "head": {"resources": {"CPU": 4}, "max_workers": 0},
        "plain": {"resources": {"CPU": 8}, "max_workers": 2},
        "unknown": {"resources": {}, "max_workers": 3},
        "gpu": {"resources": {"CPU": 16, "GPU": 2}},
    }
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps({"max_workers": 4, "available_node_types": kinds}))
    plain, gpu = Node(cpus=8), Node(cpus=16, gpus=2)
    assert nodes_to_come(0, file) == [plain, plain, gpu, gpu]  # four in all
    assert nodes_to_come(3, file) == [gpu]
    file.write_text(json.dumps({"max_workers": 0, "available_node_types": kinds}))
    assert nodes_to_come(0, file) == []


SCRIPT = """
import sys
import ray
from pathlib import Path
from tests.tuning.engine import driver

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[3])
driver.run(Path(sys.argv[1]), Path(sys.argv[2]), 50)
print("after the sweep", ray.is_initialized(), flush=True)
"""


@pytest.mark.ray
def test_ctrl_c_ends_a_sweep_in_a_ray_that_the_caller_has_started(birds, tmp_path):
    run = tmp_path / "run"
    with tempfile.TemporaryDirectory(prefix="bt") as scratch:  # short: Ray keeps sockets there
        driver = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, run, birds, scratch],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + 120
        while not any(e["event"] == "epoch" for e in RunFolder(run).events()):
            assert time.monotonic() < end and driver.poll() is None, driver.stderr.read()
            time.sleep(0.1)
        driver.send_signal(signal.SIGINT)
        printed, complaints = driver.communicate(timeout=120)
    assert driver.returncode == 0, complaints
    assert "interrupted (Ctrl-C)" in printed and "after the sweep True" in printed
    records = RunFolder(run).records().values()
    assert records and {r.status for r in records} == {"killed"}
    assert all("interrupted (Ctrl-C); it can be resumed" in r.error for r in records)
