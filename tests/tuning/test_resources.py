import subprocess
import sys
import tempfile
from pathlib import Path

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
