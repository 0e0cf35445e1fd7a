import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from birdnet_core.records import RunFolder
from tuning.resources import scratch_folder

ROOT = Path(__file__).parents[2]


def test_the_scratch_folder_of_a_killed_process_is_removed_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = (
        "import os, sys, tempfile\n"
        "from tuning.resources import scratch_folder\n"
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


SCRIPT = """
import sys
import ray
from pathlib import Path
from tests.tuning import driver

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
        told, complaints = driver.communicate(timeout=120)
    assert driver.returncode == 0, complaints
    assert "interrupted (Ctrl-C)" in told and "after the sweep True" in told
    records = RunFolder(run).records().values()
    assert records and {r.status for r in records} == {"killed"}
    assert all("interrupted (Ctrl-C); it can be resumed" in r.error for r in records)
