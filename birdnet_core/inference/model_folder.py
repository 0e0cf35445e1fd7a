"""Write and read a model folder: everything that prediction needs of a trained model.

    MODEL/model.json              config, species, statistics, temperature, members, provenance, hashes
    MODEL/member-0.safetensors    the weights of one seed; more of them are an ensemble
    MODEL/backbone.json           the config of the checkpoint that a pretrained network started from

Folders are passed on, so nothing in them is trusted. Reading needs neither the checkpoint nor a network,
runs no code of the folder, and takes no more memory than the network that the config describes: what does not
fit it is refused before it is read. `docs/model-folder.md` describes every field.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from birdnet_core import plugins, registry
from birdnet_core.build import build_model, count_parameters, input_shape
from birdnet_core.config import CLIP_SETTINGS, TrainConfig
from birdnet_core.errors import ModelFolderError, RunFolderError
from birdnet_core.features.embedding import opened
from birdnet_core.models.pretrained import built_from, config_to_keep, is_of_the_network
from birdnet_core.records.checks import Types, check_fields, local_path
from birdnet_core.records.files import write_json

log = logging.getLogger(__name__)

SCHEMA = 4
MODEL_FILE = "model.json"
BACKBONE_FILE = "backbone.json"
MOST_JSON_BYTES = 16 * 2**20
MOST_HEADER_BYTES = 16 * 2**20
MOST_PARAMETERS = 20_000  # tensors; the largest network here has 400
MOST_FILTER_VALUES = 2**28  # of a feature, such as n_fft times n_mels: 1 GiB

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MEMBER_KEYS: Mapping[str, Types] = {"file": (str,), "seed": (int,), "epochs": (int,), "trial_id": (str,)}
_KEYS: Mapping[str, Types] = {
    "schema": (int,), "config": (dict,), "species": (list,), "input_shape": (list,), "mean": (list,),
    "std": (list,), "temperature": (int, float), "calibration": (dict,), "members": (list,),
    "n_params": (int,), "provenance": (dict,), "plugins": (list,), "files": (dict,), "checksum": (str,),
}  # fmt: skip
_PLUGIN_KEYS: Mapping[str, Types] = {
    "name": (str,), "kind": (str,), "version": (str,), "sha256": (str,), "registers": (dict,),
}  # fmt: skip
_FILE_KEYS: Mapping[str, Types] = {"sha256": (str,), "bytes": (int,)}


@dataclass(frozen=True)
class Member:
    """The weights of one seed, by the names of the network's state, and where they come from.

    `epochs` is the number of epochs that these weights were trained for.
    """

    weights: Mapping[str, torch.Tensor]
    seed: int
    epochs: int
    trial_id: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """The checked content of a model folder.

    Args:
        config: of the members, but for their seeds.
        species: the name of each class.
        input_shape: channels, bins and frames of a window's features, or dim of an embedding.
        mean, std: of each channel, or one for all; the input of a network is (features - mean) / std.
        temperature: divides the logarithms of probabilities; 1 where nothing was fitted.
        calibration: the data that the temperature was fitted on; empty where it was not fitted.
        n_params: trainable values of one member.
        checkpoint: the config of the checkpoint that a pretrained network started from.
    """

    config: TrainConfig
    species: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    members: tuple[Member, ...]
    temperature: float
    calibration: dict[str, Any]
    n_params: int
    provenance: dict[str, Any]
    checkpoint: dict[str, Any] | None

    def networks(self) -> list[nn.Module]:
        """Return the network of every member with its weights, on the CPU and in eval mode."""
        made = []
        for member in self.members:
            # Fresh weights are drawn and replaced; the caller's random state is unchanged.
            with torch.random.fork_rng(devices=[]), _backbone_of(self.checkpoint):
                network = build_model(self.config.model, self.input_shape, len(self.species))
            network.load_state_dict(dict(member.weights))
            made.append(network.eval())
        return made


def write_model(
    folder: Path,
    *,
    config: TrainConfig,
    species: Sequence[str],
    input_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    members: Sequence[Member],
    provenance: Mapping[str, Any],
    temperature: float = 1.0,
    calibration: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder that `read_model` accepts, whole or not at all.

    The files are made in a folder next to it and move into `folder`, model.json last: until then there is
    no model to read. A model that is there is replaced; other files stay. Raises
    ModelFolderError for what `read_model` would refuse, and ConfigError where the config of the checkpoint
    behind `model.pretrained` cannot be read.
    """
    folder = local_path(folder)
    pretrained = config.model.kwargs.get("pretrained")
    partial = folder.absolute().with_name(f".{folder.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if pretrained:
            write_json(partial / BACKBONE_FILE, config_to_keep(pretrained))
        listed = []
        for n, member in enumerate(members):
            file = f"member-{n}.safetensors"
            (partial / file).write_bytes(save({k: v.contiguous().cpu() for k, v in member.weights.items()}))
            listed.append(
                {"file": file, "seed": member.seed, "epochs": member.epochs, "trial_id": member.trial_id}
            )
        checkpoint = _read_backbone(partial) if pretrained else None
        network = _outline(partial, config, tuple(input_shape), len(species), checkpoint)
        content = {
            "schema": SCHEMA,
            "config": config.to_dict(),
            "species": list(species),
            "input_shape": list(input_shape),
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            "temperature": float(temperature),
            "calibration": dict(calibration or {}),
            "members": listed,
            "n_params": count_parameters(network),
            "provenance": {**provenance, **_backbone_facts(config)},
            "plugins": _plugins_of(config),
            "files": {file.name: _described(file.read_bytes()) for file in sorted(partial.iterdir())},
        }
        # The checksum is of the values as they are read back.
        write_json(partial / MODEL_FILE, content)
        content = _parsed(partial / MODEL_FILE, (partial / MODEL_FILE).read_bytes())
        write_json(partial / MODEL_FILE, {**content, "checksum": checksum(content)})
        read_model(partial)
        _move_in(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_model(folder: str | Path, *, weights: str | None = None) -> Model:
    """Return the model in `folder`; `weights` is where those of its backbone are now, None as in training.

    Raises ModelFolderError, which names the file and its fault, for a folder that is missing, cut
    short, altered, or made by a later version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(
            f"no model folder at {str(folder)!r}; give the folder that `birdtune train --out` wrote"
        )
    where = folder / MODEL_FILE
    if not os.path.lexists(where):
        raise ModelFolderError(
            f"{str(folder)!r} is not a model folder, or was cut short: it holds no {MODEL_FILE}; give the "
            "folder that `birdtune train --out` wrote"
        )
    content = _checked_content(where, _parsed(where, _bytes(where, MOST_JSON_BYTES)))
    _check_plugins(where, content["plugins"])
    config = _config(where, content["config"])
    if weights is not None:
        if "backbone" not in config.features.kwargs:
            raise ModelFolderError(
                f"{str(where)!r}: its features, {config.features.name}, have no weights; leave out "
                f"{weights!r}"
            )
        config = config.override(
            {
                "features.weights": weights,
                **{key: config.flat()[key] for key in ("features.weights_hash", *CLIP_SETTINGS)},
            }
        )
    shape = _checked_numbers(where, content, config)
    members = _checked_members(where, content)
    checkpoint = _read_backbone(folder, content["files"]) if BACKBONE_FILE in content["files"] else None
    pretrained = config.model.kwargs.get("pretrained")
    if bool(pretrained) != (checkpoint is not None):
        raise ModelFolderError(
            f"{str(where)!r}: model.pretrained = {pretrained!r}, and its files "
            f"{'lack' if pretrained else 'name'} {BACKBONE_FILE}, which pretrained networks have and no other"
        )
    n_files = len(members) + (checkpoint is not None)
    if n_files != len(content["files"]):
        raise ModelFolderError(
            f"{str(where)!r} lists {len(content['files'])} files, and its members and backbone are {n_files}"
        )
    network = _outline(where, config, shape, len(content["species"]), checkpoint)
    if content["n_params"] != count_parameters(network):
        raise ModelFolderError(
            f"{str(where)!r}: n_params = {content['n_params']}, and the network of its config has "
            f"{count_parameters(network)}"
        )
    return Model(
        config=config,
        species=tuple(content["species"]),
        input_shape=shape,
        mean=tuple(map(float, content["mean"])),
        std=tuple(map(float, content["std"])),
        members=tuple(
            Member(
                _weights(folder / member["file"], content["files"][member["file"]], network),
                member["seed"],
                member["epochs"],
                member["trial_id"],
            )
            for member in members
        ),
        temperature=float(content["temperature"]),
        calibration=content["calibration"],
        n_params=content["n_params"],
        provenance=content["provenance"],
        checkpoint=checkpoint,
    )


def _backbone_facts(config: TrainConfig) -> dict[str, Any]:
    """Return the source and the licence of the backbone's weights, which the folder does not hold."""
    options = config.features.kwargs
    if "backbone" not in options:
        return {}
    stated = opened(options["backbone"], options["weights"]).convention
    return {"backbone": {"source": stated.source, "licence": stated.licence}}


def _plugins_of(config: TrainConfig) -> list[dict[str, Any]]:
    """Return the plugins that the config needs, and the names of it that each registers."""
    found: dict[str, dict[str, Any]] = {}
    for registered, name in config.components():
        plugin = plugins.owner(registered[name].make.__module__)
        if plugin is not None:
            facts = {**plugin.facts(), "version": plugin.version or "", "registers": {}}
            found.setdefault(plugin.module, facts)["registers"].setdefault(registered.kind, []).append(name)
    return list(found.values())


def _check_plugins(where: Path, listed: list[Any]) -> None:
    """Raise ModelFolderError for a plugin that is not loaded; loading its code is left to the user."""
    registries = {registered.kind: registered for registered in registry.COMPONENTS}
    for plugin in listed:
        _check_keys(f"{str(where)!r}: a plugin", plugin, _PLUGIN_KEYS)
        name, version = plugin["name"], plugin["version"]
        what = f"{name!r:.120} ({f'version {version}, ' if version else ''}SHA-256 {plugin['sha256'][:12]})"
        for kind, names in plugin["registers"].items():
            known = registries[kind].names() if kind in registries else []
            for each in names if isinstance(names, list) else ():
                if each not in known:
                    by = "FILE, your copy of it" if name.endswith(".py") else name
                    raise ModelFolderError(
                        f"{str(where)!r}: its {kind} {each!r:.80} comes with the plugin {what}, which is not "
                        f"loaded; give --plugin {by:.120}, or in Python birdnet_core.plugins.load(...) before"
                    )
                owner = plugins.owner(registries[kind][each].make.__module__)
                if owner is None or owner.sha256 != plugin["sha256"]:
                    log.warning(
                        "the %s %r of %s is not of the same files as when the model was trained: %s",
                        kind, each, where, what,
                    )  # fmt: skip


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of model.json's values, whatever the order and the spacing of their text."""
    values = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# ----------------------------------------------------------------------------------- files and bytes


def _move_in(partial: Path, folder: Path) -> None:
    """Move what `partial` holds into `folder`, in place of the model that may be there; model.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).unlink(missing_ok=True)
    for old in [folder / BACKBONE_FILE, *folder.glob("member-*.safetensors")]:
        old.unlink(missing_ok=True)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == MODEL_FILE):
        file.rename(folder / file.name)


def _described(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes; no link is followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ModelFolderError(f"{str(path)!r} is missing; the folder was cut short") from None
    except OSError as error:
        what = "it is a link" if path.is_symlink() else error.strerror
        raise ModelFolderError(
            f"cannot read {str(path)!r}: {what}; a model folder holds plain files"
        ) from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise ModelFolderError(f"{str(path)!r} is not a plain file; a model folder holds plain files")
    with open(descriptor, "rb") as file:
        if facts.st_size > most:
            raise ModelFolderError(
                f"{str(path)!r} holds {facts.st_size:,} bytes; at most {most:,} can belong there"
            )
        return file.read(most)


def _listed_bytes(path: Path, listed: Mapping[str, Any], most: int) -> bytes:
    """Return the content of a file; raises ModelFolderError unless it has the size and hash in model.json."""
    data = _bytes(path, most)
    if len(data) != listed["bytes"]:
        raise ModelFolderError(
            f"{str(path)!r} holds {len(data):,} bytes, and {MODEL_FILE} says {listed['bytes']:,}; the file "
            "was cut short or replaced"
        )
    if hashlib.sha256(data).hexdigest() != listed["sha256"]:
        raise ModelFolderError(
            f"{str(path)!r} was altered: its SHA-256 is not the one in {MODEL_FILE}; copy the folder again"
        )
    return data


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(data, parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(
            f"{str(path)!r} is not JSON, or was cut short: {error or 'nested too deeply'}"
        ) from None
    if not isinstance(value, dict):
        raise ModelFolderError(f"{str(path)!r} holds a {type(value).__name__}; a JSON object was expected")
    return value


def _read_backbone(folder: Path, files: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the config of the checkpoint, checked against its hash in `files` where these are given."""
    path = folder / BACKBONE_FILE
    listed = files and files[BACKBONE_FILE]
    data = _listed_bytes(path, listed, MOST_JSON_BYTES) if listed else _bytes(path, MOST_JSON_BYTES)
    stated = _parsed(path, data)
    foreign = sorted(key for key in stated if not is_of_the_network(key))
    if foreign:
        raise ModelFolderError(f"{str(path)!r} sets {foreign[0]!r}, which does not describe a network")
    return stated


# -------------------------------------------------------------------------------- values of model.json


def _checked_content(where: Path, content: dict[str, Any]) -> dict[str, Any]:
    if content.get("schema") != SCHEMA:
        raise ModelFolderError(
            f"{str(where)!r}: schema = {content.get('schema')!r} is unknown; this version reads {SCHEMA}"
        )
    _check_keys(repr(str(where)), content, _KEYS)
    if content["checksum"] != checksum(content):
        raise ModelFolderError(
            f"{str(where)!r} was altered: its values do not give its checksum; copy the folder again"
        )
    return content


def _check_keys(where: str, values: Any, keys: Mapping[str, Types]) -> None:
    """Raise ModelFolderError unless `values` is an object of exactly `keys`, each of its types."""
    try:
        check_fields(where, values, keys, {})
    except RunFolderError as error:
        raise ModelFolderError(str(error)) from None
    if extra := sorted(values.keys() - keys.keys()):
        raise ModelFolderError(f"{where} has an unknown {extra[0]!r:.80}; there are {', '.join(keys)}")


def _config(where: Path, nested: dict[str, Any]) -> TrainConfig:
    with _refused(where, "its config cannot be used"):
        config = TrainConfig.from_dict(nested)
        sizes = sorted(v for v in config.features.kwargs.values() if isinstance(v, int))
        if math.prod(sizes[-2:]) > MOST_FILTER_VALUES:
            raise ValueError(f"the sizes of features = {config.features.kwargs} would take gigabytes")
        return config


def _checked_numbers(where: Path, content: dict[str, Any], config: TrainConfig) -> tuple[int, ...]:
    """Check species, statistics and temperature, and return the shape of the features."""
    species = content["species"]
    if not species or not all(isinstance(name, str) and name for name in species):
        raise ModelFolderError(f"{str(where)!r}: species {species!r:.80} are not a list of names")
    name, n = Counter(species).most_common(1)[0]
    if n > 1:
        raise ModelFolderError(f"{str(where)!r}: species name {name!r} {n} times; each is one class")
    with _refused(where, "its features cannot be built"):
        shape = input_shape(config)
    if content["input_shape"] != list(shape):
        raise ModelFolderError(
            f"{str(where)!r}: input_shape = {content['input_shape']!r:.80}, and the features of its config "
            f"give {list(shape)}"
        )
    for name in ("mean", "std"):
        values = content[name]
        is_right = len(values) in (1, shape[0]) and all(_is_finite(v) for v in values)
        if not is_right or (name == "std" and min(values) <= 0):
            above = " above 0" if name == "std" else ""
            raise ModelFolderError(
                f"{str(where)!r}: {name} = {values!r:.80} is not accepted; it takes 1 or {shape[0]} "
                f"numbers{above}"
            )
    if not (_is_finite(content["temperature"]) and content["temperature"] > 0):
        raise ModelFolderError(
            f"{str(where)!r}: temperature = {content['temperature']!r} is not accepted; it takes a "
            "number above 0"
        )
    return shape


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _checked_members(where: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the members, each with a plain name that `files` describes."""
    for name, listed in content["files"].items():
        if not _PLAIN_NAME.fullmatch(name):
            raise ModelFolderError(
                f"{str(where)!r} names the file {name!r:.120}; it takes plain names of files in the folder"
            )
        _check_keys(f"{str(where)!r}: file {name!r}", listed, _FILE_KEYS)
    members: list[dict[str, Any]] = content["members"]
    if not members:
        raise ModelFolderError(f"{str(where)!r} has no members; it takes one or more")
    for n, member in enumerate(members):
        _check_keys(f"{str(where)!r}: member {n}", member, _MEMBER_KEYS)
        file = member["file"]
        if file not in content["files"] or file == BACKBONE_FILE:
            raise ModelFolderError(
                f"{str(where)!r}: member {n} is {file!r:.120}, which is none of its files of weights"
            )
    if len({member["file"] for member in members}) < len(members):
        raise ModelFolderError(f"{str(where)!r}: two of its members are one file")
    return members


# ------------------------------------------------------------------------------------------- weights


@contextlib.contextmanager
def _refused(where: Path, what: str) -> Iterator[None]:
    """Turn any error of code that was given values of a folder into ModelFolderError."""
    try:
        yield
    except ModelFolderError:
        raise
    except Exception as error:  # values that nobody checked may fail anywhere in a network's code
        raise ModelFolderError(f"{str(where)!r}: {what}: {error}") from error


def _backbone_of(checkpoint: Mapping[str, Any] | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if checkpoint is None else built_from(checkpoint)


def _outline(
    where: Path,
    config: TrainConfig,
    shape: tuple[int, ...],
    n_classes: int,
    checkpoint: Mapping[str, Any] | None,
) -> nn.Module:
    """Return the network of `config` without memory for its weights."""
    n_registered = 0

    def count(*_: Any) -> None:
        nonlocal n_registered
        n_registered += 1
        if n_registered > MOST_PARAMETERS:
            raise ValueError(f"it has more than {MOST_PARAMETERS:,} tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        with (
            _refused(where, f"model {config.model.name!r} cannot be built"),
            torch.device("meta"),
            _backbone_of(checkpoint),
        ):
            return build_model(config.model, shape, n_classes)
    finally:
        hook.remove()


def _weights(path: Path, listed: Mapping[str, Any], network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, which are those of `network` in name, shape and type, and finite."""
    expected = network.state_dict()
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    data = _listed_bytes(path, listed, n_bytes + MOST_HEADER_BYTES)
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > min(MOST_HEADER_BYTES, len(data) - 8):
        raise ModelFolderError(
            f"{str(path)!r} is not safetensors: its header would take {header:,} of {len(data):,} bytes"
        )
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelFolderError(f"{str(path)!r} is not safetensors: {error}") from None
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        fault = f"lacks {missing[0]!r}" if missing else f"holds {extra[0]!r:.120}, which it has not"
        raise ModelFolderError(f"{str(path)!r} is of another network than that of {MODEL_FILE}: it {fault}")
    for name, tensor in tensors.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise ModelFolderError(
                f"{str(path)!r}: {name} is {tensor.dtype} {list(tensor.shape)}, and the network of "
                f"{MODEL_FILE} takes {wanted.dtype} {list(wanted.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ModelFolderError(f"{str(path)!r}: {name} holds values that are not finite")
    return tensors
