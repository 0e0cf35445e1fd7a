"""Fixtures of more than one package: a cache of their own, small synthetic birds, and shared recordings."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.demo.synthetic import SyntheticBirds, write_synthetic_birds
from tests.checkpoints import write_tiny_checkpoints
from tests.plugged import own_process
from tests.settings import SMALL

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let garbage collections, of which each training starts some, pass over what is there for good."""
    if hasattr(session.config, "workerinput"):  # one of pytest-xdist's processes, which will train
        import torch._dynamo  # noqa: F401  a third of all objects; torch loads it when it first trains
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIRDTUNE_CACHE", str(cache))


@pytest.fixture
def own_names() -> Iterator[None]:
    """Forget afterwards what a test registers and imports of its own."""
    with own_process():
        yield


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 40 recordings of 4 synthetic species."""
    return write_synthetic_birds(
        tmp_path_factory.mktemp("birds") / "few",
        SyntheticBirds(n_species=4, n_recordings=40, n_recordists=12),
    )


@pytest.fixture(scope="session")
def small_config() -> TrainConfig:
    return TrainConfig().override(SMALL)


@pytest.fixture(scope="session")
def small_dataset(birds: Path, small_config: TrainConfig, cache: Path) -> Dataset:
    return Dataset.open(prepare(read_manifest(birds), small_config, cache=cache, workers=1))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folder of a tiny checkpoint for every model that can be pretrained."""
    return write_tiny_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def shared() -> Path:
    """The folder of real recordings that stands beside the project where it is developed."""
    if not SHARED.is_dir():
        pytest.skip("the folder of shared real recordings is not beside this checkout")
    return SHARED
