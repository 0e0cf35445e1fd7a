"""Plugins in one process; `tests/tuning/engine/test_plugins.py` has the processes of a sweep."""

import hashlib
import importlib.metadata
import sys

import pytest

from birdnet_core import plugins, registry
from birdnet_core.build import build_model
from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.errors import ConfigError, ModelFolderError
from birdnet_core.inference.classifier import Classifier
from birdnet_core.inference.model_folder import read_model
from birdnet_core.records.provenance import provenance
from birdnet_core.training.probe import probe
from birdnet_core.training.run import save_model, train
from search_spaces.loading import load_study
from tests.plugged import STUDY, write_lab, write_study
from tests.settings import SMALL
from tuning.engine.placement import measured_apart

LOSS = '''from birdnet_core.registry import losses


@losses.register("zero")
class Zero:
    """Nothing."""

    def __init__(self, class_counts, *, power: int = 1):
        pass
'''


pytestmark = pytest.mark.usefixtures("own_names")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    folder = write_lab(tmp_path / "lab")
    monkeypatch.chdir(folder)
    return folder


def test_a_module_of_the_current_folder_registers_its_names(lab):
    with pytest.raises(ConfigError, match=r"unknown model 'lab_linear'.*one of your own comes with --plugin"):
        TrainConfig().override({"model.name": "lab_linear"})
    plugin = plugins.load("my_lab.models")
    config = TrainConfig().override({"model.name": "lab_linear", "model.scale": 2.0})
    assert build_model(config.model, (3, 8, 5), 4).head.in_features == 24
    assert (plugin.kind, plugin.version, plugin.folder) == ("module", None, str(lab))
    assert provenance()["plugins"] == [
        {"name": "my_lab.models", "kind": "module", "version": None, "sha256": plugin.sha256}
    ]
    # The hash is of the whole package: a module that the plugin imports counts.
    (lab / "my_lab" / "layers.py").write_text("FIRST = 3  # last\n")
    with pytest.raises(ConfigError, match=r"'my_lab\.models' is another one here: the SHA-256"):
        plugins.check_same(plugin)


def test_a_file_registers_its_names_and_is_known_by_its_text(tmp_path):
    file = tmp_path / "zero.py"
    file.write_text(LOSS)
    plugin = plugins.load(str(file))
    assert plugin.sha256 == hashlib.sha256(LOSS.encode()).hexdigest()
    assert plugin.source == LOSS
    assert registry.losses["zero"].options["power"].annotation is int
    assert plugins.load(str(file)) == plugin  # a second time is no clash of names
    other = tmp_path / "other" / "zero.py"
    other.parent.mkdir()
    other.write_text(LOSS.replace("Nothing", "Less"))
    with pytest.raises(ConfigError, match=r"two plugins are files called zero\.py"):
        plugins.load(str(other))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere.models",
            "'nowhere.models' is not found: there is no module 'nowhere' where Python looks, nor",
        ),
        ("os", "'os' is a part of Python itself"),
        ("birdnet_core.models", "is a part of birdtune itself"),
        ("../evil", "it takes a module such as my_lab.models, or a .py file"),
        ("gone.py", "cannot read '.*gone.py': No such file"),
        ("my_lab.broken", "'my_lab.broken' cannot be imported: ZeroDivisionError: division by zero"),
        ("my_lab.nothing", "'my_lab.nothing' cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_loaded_says_why(lab, name, message):
    (lab / "my_lab" / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=message):
        plugins.load(name)
    assert plugins.loaded() == []


def test_a_name_that_is_taken_is_refused_with_both_owners(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(LOSS.replace('"zero"', '"focal"'))
    with pytest.raises(ConfigError, match=r"'focal' is registered twice: by birdnet_core\.losses\.focal"):
        plugins.load(str(file))


def test_an_installed_package_declares_its_plugins(lab, monkeypatch):
    points = [importlib.metadata.EntryPoint("lab", "my_lab.models", plugins.GROUP)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(plugins, "_has_loaded_installed", False)
    monkeypatch.setattr(registry.models, "_is_complete", False)
    monkeypatch.syspath_prepend(lab)
    assert "lab_linear" in registry.models.names()
    assert [p.kind for p in plugins.loaded()] == ["installed"]


def test_an_installed_plugin_that_fails_names_its_entry_point(lab, monkeypatch):
    points = [importlib.metadata.EntryPoint("lab", "my_lab.gone", plugins.GROUP)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(plugins, "_has_loaded_installed", False)
    monkeypatch.syspath_prepend(lab)
    with pytest.raises(ConfigError, match=r"my_lab\.gone.*entry point \(birdtune\.plugins\): mend or"):
        plugins.load_installed()


def test_the_loss_in_a_studys_file_is_a_plugin_and_a_study_alone_is_none(tmp_path):
    alone = tmp_path / "alone.py"
    alone.write_text(
        "from search_spaces import Ablation, register_study\n"
        '@register_study("alone")\ndef alone():\n    "Is it?"\n'
        '    return Ablation(factors={"optim.lr": (1e-3, 1e-4)})\n'
    )
    load_study(str(alone))
    assert plugins.loaded() == [] and "birdtune_file_alone" not in sys.modules
    study = load_study(str(write_study(tmp_path)))
    assert [(p.kind, p.label, p.source) for p in plugins.loaded()] == [("study", "halves.py", STUDY)]
    assert TrainConfig().override(study.overrides(study.cells()[1])).loss.name == "half_entropy"
    assert "halves" not in registry.studies.names()
    load_study(str(tmp_path / "halves.py"))  # as `sweep` does, which asks twice


def test_what_another_process_has_loaded_is_loaded_once_and_its_study_stays_apart(tmp_path):
    text = STUDY.replace('"halves"', '"capacity"')  # a study may be called like a built-in one
    plugin = plugins.Plugin(str(tmp_path / "x.py"), "study", plugins.digest(text), source=text)
    registry.load_shipped([plugin.to_dict()])
    registry.load_shipped([plugin.to_dict()])
    assert plugins.loaded() == [plugin]
    assert "half_entropy" in registry.losses.names()


def test_workers_of_prepare_and_a_measuring_process_have_the_plugins(lab, birds, tmp_path):
    plugins.load("my_lab.features")
    load_study(str(write_study(tmp_path)))
    settings = {k: v for k, v in SMALL.items() if not k.startswith("features.")}
    config = TrainConfig().override(
        {**settings, "features.name": "lab_envelope", "loss.name": "half_entropy"}
    )
    folder = prepare(read_manifest(birds), config, cache=tmp_path / "cache", workers=2)
    assert Dataset.open(folder).facts["n_clips"] > 30
    found = measured_apart(config, folder)
    assert found.n_params == probe(config, Dataset.open(folder)).n_params


def test_a_model_folder_says_which_plugin_it_needs(lab, small_dataset, tmp_path, caplog):
    plugin = plugins.load("my_lab.models")
    config = TrainConfig().override({**SMALL, "model.name": "lab_linear", "training.epochs": 1})
    save_model(train(config, small_dataset), tmp_path / "model")
    assert read_model(tmp_path / "model").config == config
    (lab / "my_lab" / "layers.py").write_text("FIRST = 3  # last\n")
    for name in ("my_lab.models", "my_lab.layers", "my_lab"):
        del sys.modules[name]
    del registry.models._entries["lab_linear"]
    plugins._loaded.clear()
    message = (
        rf"its model 'lab_linear' comes with the plugin 'my_lab\.models' \(SHA-256 {plugin.sha256[:12]}\)"
    )
    with pytest.raises(
        ModelFolderError, match=rf"{message}, which is not loaded; give --plugin my_lab\.models"
    ):
        Classifier.load(tmp_path / "model")
    plugins.load("my_lab.models")
    assert read_model(tmp_path / "model").config == config
    assert "is not of the same files as when the model was trained" in caplog.text


def test_an_augmentation_of_a_plugin_that_is_off_is_not_needed(tmp_path):
    file = tmp_path / "hush.py"
    file.write_text(
        "from birdnet_core.registry import augmentations\n"
        '@augmentations.register("hush")\nclass Hush:\n    "Silence."\n'
        "    def __init__(self, sample_rate, *, p: float = 0.0):\n        pass\n"
    )
    before = TrainConfig()
    plugins.load(str(file))
    off, on = TrainConfig().to_dict(), TrainConfig().override({"augment.hush.p": 0.5}).to_dict()
    del registry.augmentations._entries["hush"]
    assert TrainConfig.from_dict(off) == before
    with pytest.raises(ConfigError, match="unknown augmentation 'hush'"):
        TrainConfig.from_dict(on)
