"""MPS with a control program that keeps a file in place of its daemon."""

import os

import pytest

from tuning.engine import mps as module
from tuning.engine.mps import mps, shared_gpus

PROGRAM = """#!/bin/sh
echo "$@" >> {log}
mark="$CUDA_MPS_PIPE_DIRECTORY/alive"
if [ "$1" = "-d" ]; then
    {start}
    exit
fi
read command
echo "$command" >> {log}
[ -e "$mark" ] || exit 1
case "$command" in quit*) rm "$mark" ;; esac
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Return a function that installs a control program, whose daemon starts by `start`, and its log."""
    log = tmp_path / "log"
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "FOLDERS", ())

    def install(start='touch "$mark"', context="0"):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "nvidia-cuda-mps-control"
        program.write_text(PROGRAM.format(log=log, start=start))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(module, "_CONTEXT", f"raise SystemExit({context})")
        return log

    return install


def test_a_daemon_runs_within_the_block_and_its_processes_find_it(driver, tmp_path):
    log = driver()
    with mps(tmp_path) as words:
        assert words == "MPS"
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps")
        assert (tmp_path / "mps" / "alive").exists()
    assert not (tmp_path / "mps" / "alive").exists()
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ and "CUDA_MPS_LOG_DIRECTORY" not in os.environ
    assert log.read_text().split("\n")[-2] == "quit -t 5"


def test_the_daemon_ends_when_the_block_fails(driver, tmp_path):
    driver()
    with pytest.raises(ValueError, match="broken"), mps(tmp_path):
        raise ValueError("broken")
    assert not (tmp_path / "mps" / "alive").exists()


def test_a_daemon_that_runs_already_is_used_and_left(driver, tmp_path, monkeypatch):
    driver()
    pipes = tmp_path / "theirs"
    pipes.mkdir()
    (pipes / "alive").touch()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(pipes))
    with mps(tmp_path) as words:
        assert words == "MPS: the daemon that runs already"
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(pipes)
    assert (pipes / "alive").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"start": "echo not permitted >&2; exit 3"}, "-d: not permitted"),
        ({"start": "true"}, "does not answer"),
        ({"context": "805"}, "gets no GPU"),
    ],
)
def test_where_mps_cannot_serve_the_trials_take_turns(driver, tmp_path, given, words):
    driver(**given)
    with mps(tmp_path) as found:
        assert found.startswith("no MPS: ") and words in found
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert not (tmp_path / "mps" / "alive").exists()


def test_without_the_control_program_there_is_no_mps(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "control_program", lambda: None)
    with mps(tmp_path) as words:
        assert words == "no MPS: there is no nvidia-cuda-mps-control"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gpus", "address", "has_gpu", "is_started"),
    [
        ("auto", None, True, True),
        (0.25, None, True, True),
        (1.0, None, True, False),
        (None, None, True, False),
        ("auto", "auto", True, False),
        ("auto", None, False, False),
    ],
)
def test_mps_is_for_trials_that_share_a_gpu_of_this_machine(
    driver, monkeypatch, gpus, address, has_gpu, is_started
):
    driver()
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: has_gpu)
    with shared_gpus(gpus, address) as words:
        assert words == ("MPS" if is_started else None)
