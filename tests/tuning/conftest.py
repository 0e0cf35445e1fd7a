import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from birdnet_core.data.manifest import read_manifest
from tuning import cli
from tuning.engine.cluster import ray_session
from tuning.engine.preparation import Data
from tuning.engine.schedulers import Fifo


@pytest.fixture
def an_epoch_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no step of an ablation's trials go beyond one epoch, however short it is."""
    monkeypatch.setattr(Fifo, "decisions", lambda rule, trial: list(range(1, 1000)))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all tests that run trials, as `sweep` starts it, but on one CPU.

    A second process for trials takes seconds of CPU to start. Two side by side are in the tests that start
    drivers of their own.
    """
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1}')
            stack.enter_context(ray_session(tmp_path_factory.mktemp("ray") / "ray.log"))
        yield
    assert not ray.is_initialized()


@pytest.fixture
def data(birds: Path, cache: Path) -> Data:
    return Data(name="few", manifest=read_manifest(birds), cache=cache, workers=1)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, of the size that the test's parameter is."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "none", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def birdtune(capfd, monkeypatch):
    """Run a command line in this process; returns exit code, standard output and standard error."""

    def run(line):
        monkeypatch.setattr(sys, "argv", ["birdtune", *shlex.split(line)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        output = capfd.readouterr()
        return code, output.out, output.err

    return run
