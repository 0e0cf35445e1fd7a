import shlex
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
    """One Ray for all tests that run trials, as `sweep` starts it."""
    with ray_session(tmp_path_factory.mktemp("ray") / "ray.log"):
        yield
    assert not ray.is_initialized()


@pytest.fixture
def data(birds: Path, cache: Path) -> Data:
    return Data(name="few", manifest=read_manifest(birds), cache=cache, workers=1)


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
