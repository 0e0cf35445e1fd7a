import pandas as pd
import pytest

from birdnet_core.config import TrainConfig
from tuning.engine import preparation
from tuning.engine.halt import Halt
from tuning.engine.preparation import Data, Preparation


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The configs for which a dataset was made, in their order."""
    configs = []

    def prepare(manifest, config, **options):
        configs.append(config)
        return tmp_path / f"{config.data.window_s}-{config.repeat}"

    monkeypatch.setattr(preparation, "prepare", prepare)
    return configs


def test_each_repeat_has_a_dataset_and_each_is_made_once(made):
    data, config = Data(name="few", manifest=pd.DataFrame()), TrainConfig()
    for repeat, seed in ((0, 0), (1, 1), (0, 5), (1, 0)):
        folder = data.folder(config.override({"repeat": repeat, "seed": seed}))
        assert folder.name == f"{config.data.window_s}-{repeat}"
    assert [each.repeat for each in made] == [0, 1]


def test_a_dataset_that_cannot_be_made_leaves_those_of_other_repeats(made, monkeypatch):
    def prepare(manifest, config, **options):
        if config.repeat == 1:
            raise ValueError("no such fold")
        return made_as_before(manifest, config, **options)

    made_as_before = preparation.prepare
    monkeypatch.setattr(preparation, "prepare", prepare)
    configs = [TrainConfig().override({"repeat": repeat}) for repeat in range(3)]
    with Preparation(Data(name="few", manifest=pd.DataFrame()), Halt()) as prepared:
        for config in configs:
            prepared.folder(config)
    assert prepared.folder(configs[0]) and prepared.folder(configs[2])
    with pytest.raises(ValueError, match="no such fold"):
        prepared.folder(configs[1])
