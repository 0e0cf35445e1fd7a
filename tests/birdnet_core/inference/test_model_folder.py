"""Model folders: what is written is what is read, and what was altered is refused, whoever made it."""

import hashlib
import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load, save, save_file

from birdnet_core.build import build_model, count_parameters, input_shape
from birdnet_core.config import TrainConfig
from birdnet_core.errors import BirdtuneError, ModelFolderError
from birdnet_core.inference.model_folder import Member, checksum, read_model, write_model
from tests.settings import SMALL

SPECIES = ["blackbird", "robin", "wren"]
PRETRAINED = ("audio_ast", "audio_vit", "efficientnet", "convnext")


def network(config, seed):
    torch.manual_seed(seed)
    return build_model(config.model, input_shape(config), len(SPECIES)).eval()


def written(folder, config, *, n=2, **changes):
    networks = [network(config, seed) for seed in range(n)]
    values = {
        "config": config,
        "species": SPECIES,
        "input_shape": input_shape(config),
        "mean": [0.1, -0.2, 1 / 3],
        "std": [1.5, 2.5, 1e-3],
        "members": [
            Member(network.state_dict(), seed, 7 + seed, f"abc-s{seed}")
            for seed, network in enumerate(networks)
        ],
        "provenance": {"data_id": "d", "trials": ["abc-s0", "abc-s1"], "loss": float("nan")},
        "temperature": 1.37,
        "calibration": {"n_recordings": 40},
    }
    write_model(folder, **{**values, **changes})
    return networks


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_config):
    folder = tmp_path_factory.mktemp("whole") / "model"
    written(folder, small_config)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def test_a_model_comes_back_to_the_last_digit(tmp_path, small_config):
    networks = written(tmp_path / "model", small_config)
    model = read_model(tmp_path / "model")
    assert (model.config, model.species) == (small_config, tuple(SPECIES))
    assert model.input_shape == (3, 16, 24)
    assert (model.mean, model.std) == ((0.1, -0.2, 1 / 3), (1.5, 2.5, 1e-3))
    assert (model.temperature, model.calibration) == (1.37, {"n_recordings": 40})
    assert [(m.seed, m.epochs, m.trial_id) for m in model.members] == [(0, 7, "abc-s0"), (1, 8, "abc-s1")]
    assert model.n_params == count_parameters(networks[0])
    assert model.provenance == {"data_id": "d", "trials": ["abc-s0", "abc-s1"], "loss": None}
    features = torch.randn(4, 3, 16, 24)
    for made, loaded in zip(networks, model.networks(), strict=True):
        assert not loaded.training
        assert torch.equal(made(features), loaded(features))
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_networks_leave_the_callers_random_numbers_alone(whole):
    model = read_model(whole)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.networks()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretrained_network_loads_without_its_checkpoint_and_the_network(
    name, checkpoints, small_config, tmp_path, monkeypatch
):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(checkpoints[name], checkpoint)
    config = small_config.override({"model.name": name, "model.pretrained": str(checkpoint)})
    (made,) = written(tmp_path / "model", config, n=1, mean=[0.1], std=[1.5])
    shutil.rmtree(checkpoint)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model = read_model(tmp_path / "model")
    (loaded,) = model.networks()
    features = torch.randn(2, *model.input_shape)
    assert torch.equal(made(features), loaded(features))
    assert model.config == config


def test_a_checkpoint_that_is_gone_is_named_when_a_model_is_written(checkpoints, small_config, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["convnext"], checkpoint)
    config = small_config.override({"model.name": "convnext", "model.pretrained": str(checkpoint)})
    weights = network(config, 0).state_dict()
    shutil.rmtree(checkpoint)
    with pytest.raises(BirdtuneError, match=r"checkpoint.* cannot be read any more"):
        write_model(
            tmp_path / "model",
            config=config,
            species=SPECIES,
            input_shape=(3, 16, 24),
            mean=[0.0],
            std=[1.0],
            members=[Member(weights, 0, 1, "abc-s0")],
            provenance={},
        )
    assert os.listdir(tmp_path) == []


def test_a_model_replaces_the_one_before_and_leaves_other_files(tmp_path, small_config):
    written(tmp_path / "model", small_config, n=3)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    (second,) = written(tmp_path / "model", small_config.override({"model.width": 8}), n=1)
    assert sorted(os.listdir(tmp_path / "model")) == ["member-0.safetensors", "model.json", "notes.txt"]
    assert read_model(tmp_path / "model").n_params == count_parameters(second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 0.0}, "temperature"),
        ({"species": ["robin", "robin", "wren"]}, "robin"),
        ({"input_shape": (3, 16, 25)}, "cannot be built|input_shape"),
        ({"members": []}, "no members"),
        ({"std": [0.0]}, "std"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, small_config, change, words):
    with pytest.raises(ModelFolderError, match=words):
        written(tmp_path / "model", small_config, **change)
    assert os.listdir(tmp_path) == []


def test_weights_of_another_network_are_not_written(tmp_path, small_config):
    other = network(small_config.override({"model.width": 8}), 0).state_dict()
    with pytest.raises(ModelFolderError, match="takes torch.float32"):
        written(tmp_path / "model", small_config, members=[Member(other, 0, 1, "abc-s0")])
    assert os.listdir(tmp_path) == []


# Folders that somebody altered. Most keep checksum and hashes right, as one who means harm would.


def altered(folder, change, *, is_sealed=True):
    """Apply `change` to model.json, and make its checksum right again."""
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content)
    if is_sealed:
        content["checksum"] = checksum(content)
    path.write_text(json.dumps(content))


def replaced(folder, data, name="member-0.safetensors"):
    """Put `data` in the place of a file, with its size and hash in model.json."""
    (folder / name).write_bytes(data)
    listed = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    altered(folder, lambda content: content["files"].__setitem__(name, listed))


def tensors(folder):
    return load((folder / "member-0.safetensors").read_bytes())


def with_value(*keys, value):
    """Return what sets a value of model.json by the keys that lead to it."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return lambda folder: altered(folder, change)


class Intruder:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def renamed_member(name):
    def change(folder):
        def rename(content):
            content["members"][0]["file"] = name
            content["files"][name] = content["files"].pop("member-0.safetensors")

        altered(folder, rename)

    return change


def outside(folder):
    """Return a copy of a member next to the folder."""
    copy = folder.parent / "outside.safetensors"
    if not copy.exists():
        shutil.copy(folder / "member-0.safetensors", copy)
    return copy


def escape(folder):
    outside(folder)
    renamed_member("../outside.safetensors")(folder)


def absolute(folder):
    renamed_member(str(outside(folder)))(folder)


def linked(folder):
    target = outside(folder)
    (folder / "member-0.safetensors").unlink()
    (folder / "member-0.safetensors").symlink_to(target)


def linked_json(folder):
    (folder / "model.json").rename(folder.parent / "outside.json")
    (folder / "model.json").symlink_to(folder.parent / "outside.json")


def pipe(folder):
    (folder / "member-0.safetensors").unlink()
    os.mkfifo(folder / "member-0.safetensors")


def directory(folder):
    (folder / "member-0.safetensors").unlink()
    (folder / "member-0.safetensors").mkdir()


def flipped(folder):
    data = bytearray((folder / "member-0.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "member-0.safetensors").write_bytes(data)


def cut(name, share):
    def change(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return change


def cut_and_sealed(folder):
    data = (folder / "member-0.safetensors").read_bytes()
    replaced(folder, data[: len(data) // 2])


def huge_header(folder):
    data = (folder / "member-0.safetensors").read_bytes()
    replaced(folder, struct.pack("<Q", 2**40) + data[8:])


def lying_header(folder):
    data = (folder / "member-0.safetensors").read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    first = next(name for name in header if name != "__metadata__")
    header[first]["data_offsets"] = [0, 2**40]
    text = json.dumps(header).encode()
    replaced(folder, struct.pack("<Q", len(text)) + text + data[8 + n :])


def sparse(name):
    def change(folder):
        with open(folder / name, "r+b") as file:
            file.truncate(50 * 2**30)
        if name != "model.json":
            altered(folder, lambda content: content["files"][name].__setitem__("bytes", 50 * 2**30))

    return change


def weights_changed(change):
    def apply(folder):
        values = tensors(folder)
        change(values)
        replaced(folder, save(values))

    return apply


def first_of(values):
    return next(name for name, tensor in sorted(values.items()) if tensor.is_floating_point())


def set_nan(values):
    values[first_of(values)].view(-1)[0] = float("nan")


def pickled(folder):
    replaced(folder, pickle.dumps(Intruder(folder.parent / "intruded")))


def torch_saved(folder):
    torch.save(tensors(folder), folder / "made.pt")
    data = (folder / "made.pt").read_bytes()
    (folder / "made.pt").unlink()
    replaced(folder, data)


def extra_file(folder):
    altered(folder, lambda c: c["files"].__setitem__("member-9.safetensors", {"sha256": "", "bytes": 0}))


def deep_json(folder):
    (folder / "model.json").write_text("[" * 200_000 + "]" * 200_000)


def same_member_twice(folder):
    altered(folder, lambda content: content["members"].__setitem__(1, content["members"][0]))


HOSTILE = {
    "no model.json": (lambda f: (f / "model.json").unlink(), "holds no model.json"),
    "model.json cut": (cut("model.json", 0.5), "model.json' is not JSON, or was cut short"),
    "model.json empty": (cut("model.json", 0), "model.json' is not JSON, or was cut short"),
    "model.json a list": (lambda f: (f / "model.json").write_text("[1]"), "holds a list"),
    "model.json not text": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    "model.json deep": (deep_json, "is not JSON"),
    "model.json of 50 GB": (sparse("model.json"), "model.json' holds 53,687,091,200 bytes; at most"),
    "model.json a link": (linked_json, "model.json': it is a link"),
    "model.json with NaN": (
        lambda f: altered(f, lambda c: c.__setitem__("temperature", float("nan")), is_sealed=False),
        "NaN is no number of JSON",
    ),
    "one value changed": (
        lambda f: altered(f, lambda c: c["mean"].__setitem__(0, 0.2), is_sealed=False),
        "model.json' was altered",
    ),
    "later schema": (with_value("schema", value=5), "schema = 5 is unknown; this version reads 4"),
    "no schema": (lambda f: altered(f, lambda c: c.pop("schema")), "schema = None"),
    "no species": (lambda f: altered(f, lambda c: c.pop("species")), "lacks 'species'"),
    "an extra key": (with_value("hook", value="os.system"), "unknown 'hook'"),
    "an extra key of a member": (
        with_value("members", 0, "code", value="x"),
        "member 0 has an unknown 'code'",
    ),
    "a member of another kind": (with_value("members", 0, value="x"), "member 0: it is text, not an object"),
    "species empty": (with_value("species", value=[]), "not a list of names"),
    "species of numbers": (with_value("species", value=[1, 2, 3]), "not a list of names"),
    "species twice": (with_value("species", value=["wren", "wren", "robin"]), "'wren' 2 times"),
    "species more": (with_value("species", value=[*SPECIES, "owl"]), "n_params"),
    "temperature 0": (with_value("temperature", value=0), "temperature = 0"),
    "temperature below 0": (with_value("temperature", value=-1.5), "temperature = -1.5"),
    "temperature infinite": (
        lambda f: (f / "model.json").write_text((f / "model.json").read_text().replace("1.37", "1e999")),
        "was altered|temperature = inf",
    ),
    "temperature text": (with_value("temperature", value="1"), "temperature = '1'"),
    "temperature true": (with_value("temperature", value=True), "temperature = True"),
    "mean of two": (with_value("mean", value=[0.0, 0.0]), "mean = .* takes 1 or 3 numbers"),
    "std 0": (with_value("std", value=[1.0, 0.0, 1.0]), "std = .* above 0"),
    "another input_shape": (with_value("input_shape", value=[3, 16, 25]), "input_shape"),
    "an input_shape of gigabytes": (with_value("input_shape", value=[3, 2**20, 2**20]), "input_shape"),
    "unknown model": (with_value("config", "model", value={"name": "evil"}), "unknown model 'evil'"),
    "unknown option": (with_value("config", "model", "hook", value=1), "no option 'hook'"),
    "config no object": (with_value("config", value=[]), "config = .* an object"),
    "a wide network": (with_value("config", "model", "width", value=2**40), "cannot be built|n_params"),
    "a deep network": (with_value("config", "model", "depth", value=10**6), "cannot be built"),
    "a feature of gigabytes": (with_value("config", "features", "n_mels", value=2**40), "gigabytes"),
    "pretrained without its config": (
        with_value("config", "model", value={"name": "convnext", "pretrained": "evil/hub"}),
        "lack backbone.json",
    ),
    "no members": (with_value("members", value=[]), "no members"),
    "one member twice": (same_member_twice, "two of its members"),
    "seed of text": (with_value("members", 0, "seed", value="0"), "seed = '0'"),
    "path escape": (escape, "'../outside.safetensors'"),
    "absolute path": (absolute, "outside.safetensors'; it takes plain names"),
    "hidden name": (renamed_member(".member"), "'.member'"),
    "name with a zero byte": (renamed_member("a\0b"), "plain names"),
    "member that is model.json": (with_value("members", 0, "file", value="model.json"), "none of its files"),
    "link out of the folder": (linked, "member-0.safetensors': it is a link"),
    "a pipe": (pipe, "not a plain file"),
    "a directory": (directory, "not a plain file"),
    "member missing": (lambda f: (f / "member-1.safetensors").unlink(), "member-1.safetensors' is missing"),
    "member not listed": (lambda f: altered(f, lambda c: c["files"].pop("member-0.safetensors")), "none of"),
    "a file too many": (extra_file, "lists 3 files"),
    "size of text": (with_value("files", "member-0.safetensors", "bytes", value="9"), "bytes = '9'"),
    "flipped bit": (flipped, "member-0.safetensors' was altered"),
    "member cut": (cut("member-0.safetensors", 0.9), "cut short or replaced"),
    "member empty": (cut("member-0.safetensors", 0), "cut short or replaced"),
    "member cut, hash right": (cut_and_sealed, "is not safetensors"),
    "member of 3 bytes": (lambda f: replaced(f, b"abc"), "is not safetensors"),
    "member of 50 GB": (sparse("member-0.safetensors"), "holds 53,687,091,200 bytes; at most"),
    "header of a terabyte": (huge_header, "header would take 1,099,511,627,776"),
    "offsets beyond the file": (lying_header, "is not safetensors"),
    "a pickle": (pickled, "is not safetensors"),
    "a file of torch.save": (torch_saved, "is not safetensors"),
    "wrong shape": (
        weights_changed(lambda v: v.__setitem__(first_of(v), torch.zeros(2, 2))),
        r"torch.float32 \[2, 2\], and the network",
    ),
    "wrong type": (
        weights_changed(lambda v: v.__setitem__(first_of(v), v[first_of(v)].double())),
        "torch.float64",
    ),
    "a tensor less": (weights_changed(lambda v: v.pop(first_of(v))), "lacks"),
    "a tensor more": (weights_changed(lambda v: v.__setitem__("hook", torch.zeros(1))), "holds 'hook'"),
    "weights not finite": (weights_changed(set_nan), "not finite"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_altered_folder_is_refused_by_name_and_leaves_nothing_behind(name, folder):
    change, words = HOSTILE[name]
    change(folder)
    before = sorted(str(path) for path in folder.parent.rglob("*"))
    with pytest.raises(ModelFolderError, match=words) as caught:
        read_model(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 1_000
    assert sorted(str(path) for path in folder.parent.rglob("*")) == before


def test_the_intruder_would_have_been_seen(tmp_path):
    pickle.loads(pickle.dumps(Intruder(tmp_path / "intruded"))).close()
    assert (tmp_path / "intruded").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_channels": "three"}, "cannot be built"),
        ({"depths": [10**6, 1, 1, 1]}, "more than 20,000 tensors"),
        ({"model_type": "vit"}, "model_type"),
        ({"auto_map": {"AutoModel": "evil--code"}}, "'auto_map'"),
        ({"attn_implementation": "evil/kernels"}, "'attn_implementation'"),
        ({"_attn_implementation_internal": "evil/kernels"}, "'_attn_implementation_internal'"),
        ({"hidden_sizes": [2**20] * 4}, "n_params"),
    ],
)
def test_an_altered_backbone_is_refused(change, words, checkpoints, small_config, tmp_path):
    settings = {"model.name": "convnext", "model.pretrained": checkpoints["convnext"]}
    written(tmp_path / "model", small_config.override(settings), n=1)
    path = tmp_path / "model" / "backbone.json"
    replaced(tmp_path / "model", json.dumps({**json.loads(path.read_text()), **change}).encode(), path.name)
    with pytest.raises(ModelFolderError, match=words):
        read_model(tmp_path / "model")


@pytest.mark.parametrize("given", ["absent", "file", "empty"])
def test_anything_but_a_model_folder_is_refused_by_name(given, tmp_path):
    place = tmp_path / given
    if given == "file":
        place.write_text("")
    elif given == "empty":
        place.mkdir()
    with pytest.raises(ModelFolderError, match="birdtune train --out"):
        read_model(place)


def test_an_older_config_that_lacks_a_setting_takes_its_default(folder):
    altered(folder, lambda content: content["config"]["training"].pop("ema_decay"))
    assert read_model(folder).config == TrainConfig().override(SMALL)


def test_safetensors_of_other_tools_are_accepted(folder):
    """Metadata in the header is allowed by the format."""
    values = tensors(folder)
    save_file(values, folder / "other.safetensors", metadata={"format": "pt"})
    replaced(folder, (folder / "other.safetensors").read_bytes())
    loaded = read_model(folder).members[0].weights
    assert loaded.keys() == values.keys()
    assert all(torch.equal(loaded[name], values[name]) for name in values)
