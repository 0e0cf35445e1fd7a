import json
import subprocess
import sys
import tempfile
from pathlib import Path

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
