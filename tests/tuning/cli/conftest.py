import contextlib
import importlib
import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.settings import SMALL

SET = shlex.join(word for key, value in SMALL.items() for word in ("--set", f"{key}={value}"))


@pytest.fixture
def no_early_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `sweep` start Ray when its first trial needs it: seconds that a sweep that is refused is spared."""
    importlib.import_module("tuning.engine.launch")  # which keeps the real one
    monkeypatch.setattr("tuning.engine.cluster.ray_session", lambda log: contextlib.nullcontext())


@pytest.fixture(scope="session")
def _capacity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("capacity") / "run"


@pytest.fixture
def capacity_run(_capacity, cluster, birdtune, birds, tmp_path) -> Path:
    """A copy of a run folder: four cells that `sweep` trained, with one repeat and a dropout of 0.4."""
    if not _capacity.exists():
        line = f"sweep capacity --data {birds} --repeats 1 --out {_capacity} {SET} --set model.dropout=0.4"
        code, out, err = birdtune(f"{line} --json")
        assert code == 0, err
        assert json.loads(out)["counts"] == {"completed": 4}
        assert "Traceback" not in err
    return shutil.copytree(_capacity, tmp_path / "run")
