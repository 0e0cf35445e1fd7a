"""`TrainConfig`: every setting of one training run, as one value.

A `TrainConfig` is frozen, compares, hashes and round-trips through JSON. It is changed by
``config.override({"optim.lr": 3e-4})`` with flat, dotted keys, the form in which studies give their choices.
Names stay names here; `build.py` is where they become objects.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

from birdnet_core import conventions, registry
from birdnet_core.errors import ConfigError, check_range, did_you_mean
from birdnet_core.records.metrics import VALIDATION_METRICS, metric_direction
from birdnet_core.records.trial import trial_id

Flat = Mapping[str, Any]


MOST_EPOCHS = 1_000_000
MOST_CLIPS = 1_000_000  # of a batch
LARGEST_SEED = 2**31 - 1

_hints = functools.lru_cache(get_type_hints)


def _check_types(section: Any, name: str) -> None:
    """Bring every field to its type, as `override` does: an int hashes as another config than its float."""
    for key, annotation in _hints(section.__class__).items():
        value = registry.checked_value(getattr(section, key), annotation, f"{name}.{key}")
        object.__setattr__(section, key, value)


def _require(holds: bool, name: str, given: Any, accepted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} = {given!r} is out of range; it takes {accepted}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How recordings become clips and how they are split.

    Args:
        sample_rate: Hz, after resampling.
        window_s: length of a clip in seconds.
        windows_per_recording: the most active windows of each recording; each trains on its own, and
            their probabilities are averaged when the recording is scored.
        highpass_hz: corner of the high-pass filter; 0 turns it off.
        split: ``grouped`` keeps recordings, and where known recordists and sites, in one split.
            ``random-windows`` splits clips at random, so that clips of one recording are in several splits
            and are scored one by one: leakage on purpose, to measure how much it adds to a score.
        folds: the recordings that are not of the test split are dealt into so many folds, and each repeat
            validates on another; 1 is one fixed validation split of `val_fraction`.
        val_fraction, test_fraction: shares of the recordings of a species, or of its clips; that for
            validation holds for a single fold only.
        split_seed: draws the test split and the folds; not the training seed, so that all seeds share them.
    """

    sample_rate: int = 22_050
    window_s: float = 4.0
    windows_per_recording: int = 1
    highpass_hz: float = 500.0
    split: Literal["grouped", "random-windows"] = "grouped"
    folds: int = 5
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    split_seed: int = 0

    def __post_init__(self) -> None:
        _check_types(self, "data")
        check_range("data.sample_rate", self.sample_rate, 4_000, 192_000)
        check_range("data.window_s", self.window_s, 0.1, 60)
        check_range("data.windows_per_recording", self.windows_per_recording, 1, 1000)
        _require(
            0 <= self.highpass_hz < self.sample_rate / 2,
            "data.highpass_hz",
            self.highpass_hz,
            f"0 (off) to below {self.sample_rate / 2:g}, half the sample rate",
        )
        check_range("data.folds", self.folds, 1, 100)
        _require(0 < self.val_fraction < 0.5, "data.val_fraction", self.val_fraction, "above 0, below 0.5")
        _require(0 <= self.test_fraction < 0.5, "data.test_fraction", self.test_fraction, "0 to below 0.5")
        check_range("data.split_seed", self.split_seed, 0, LARGEST_SEED)

    @property
    def n_samples(self) -> int:
        """Samples of a clip."""
        return round(self.window_s * self.sample_rate)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, and the learning rate over time: a linear warm-up into a schedule.

    Args:
        lr: peak learning rate.
        backbone_lr: peak learning rate of the model's backbone, usually the pretrained part; None takes `lr`.
        weight_decay: decoupled weight decay; not applied to norms and biases.
        warmup_epochs: epochs from lr / 10 up to lr; 0 starts at lr.
        schedule: what follows the warm-up: a cosine to 0; ``step``, times `decay_factor` every
            `decay_epochs`; ``plateau``, the same after `decay_epochs` without a better `training.monitor`;
            ``one_cycle``, up over the first 30 % and down to nearly 0 (Smith 2018); ``constant``; or ``wsd``,
            constant but for a decay towards 0 at the end, over the last fifth of the budget.
        decay_epochs, decay_factor: of ``step`` and ``plateau``.
        decay_before: of ``wsd``: epochs at whose end the rate has decayed as well, over the last fifth of the
            epochs up to there; the next begins at the peak again. A search fills in those at which its
            scheduler compares trials.
        grad_clip: largest gradient norm; 0 turns clipping off.
    """

    lr: float = 1e-3
    backbone_lr: float | None = None
    weight_decay: float = 1e-2
    warmup_epochs: int = 5
    schedule: Literal["cosine", "step", "one_cycle", "plateau", "constant", "wsd"] = "cosine"
    decay_epochs: int = 5
    decay_factor: float = 0.1
    decay_before: tuple[int, ...] = ()
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        _check_types(self, "optim")
        _require(0 < self.lr <= 10, "optim.lr", self.lr, "above 0, at most 10")
        _require(
            self.backbone_lr is None or 0 < self.backbone_lr <= 10,
            "optim.backbone_lr",
            self.backbone_lr,
            "none, or above 0, at most 10; freeze a backbone by model.freeze_backbone",
        )
        check_range("optim.decay_epochs", self.decay_epochs, 1, MOST_EPOCHS)
        _require(0 < self.decay_factor < 1, "optim.decay_factor", self.decay_factor, "above 0, below 1")
        is_rising = list(self.decay_before) == sorted({*self.decay_before})
        _require(
            is_rising and min(self.decay_before, default=1) >= 1,
            "optim.decay_before",
            self.decay_before,
            "rising epochs, from 1",
        )
        check_range("optim.weight_decay", self.weight_decay, 0, 10)
        check_range("optim.warmup_epochs", self.warmup_epochs, 0, MOST_EPOCHS)
        _require(0 <= self.grad_clip <= 1e6, "optim.grad_clip", self.grad_clip, "0 (off) to 1000000")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long to train, on which clips, in which batches, and which epoch is kept.

    Args:
        epochs: the budget, which the schedule of the learning rate follows.
        stop_after: end after so many epochs of that budget, as if the run were cut there; 0 trains all of it.
        train_on: the splits to train on. Under ``train+val`` nothing is left to validate on or
            ``unused``: there are no validation metrics and no patience, and the last epoch is kept. For final
            training, with `stop_after` at the best epoch of an earlier, validated run.
        batch_size: clips a step of the optimizer.
        micro_batch_size: clips a forward pass, whose gradients add up to the batch's; None takes the batch.
            Batch norm takes its statistics from the clips of a forward pass, so that with it another value is
            other training.
        sampling: each clip once an epoch (``instance``), or as many draws with replacement, in which classes
            are equally likely (``class_balanced``) or by the root of their clips (``square_root``), see
            Kang et al. 2020.
        patience: epochs without a better `stop_on` after which the run ends; 0 trains the whole budget.
        monitor: the metric whose best epoch is the run's result.
        stop_on: the metric that patience waits for; None takes `monitor`.
        ema_decay: validate and keep an exponential moving average of the weights; 0 turns it off.
        precision: ``auto`` is bf16 autocast and channels_last where the hardware has bf16, on other GPUs
            fp16 with a gradient scaler, elsewhere fp32. ``tf32`` is fp32 that a GPU
            multiplies with the mantissa of fp16.
    """

    epochs: int = 50
    stop_after: int = 0
    train_on: Literal["train", "train+val"] = "train"
    batch_size: int = 32
    micro_batch_size: int | None = None
    sampling: Literal["instance", "class_balanced", "square_root"] = "instance"
    patience: int = 7
    monitor: str = "val/f1_macro"
    stop_on: str | None = None
    ema_decay: float = 0.0
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"

    def __post_init__(self) -> None:
        _check_types(self, "training")
        check_range("training.epochs", self.epochs, 1, MOST_EPOCHS)
        epochs = f"0 (off) to training.epochs = {self.epochs}"
        _require(0 <= self.stop_after <= self.epochs, "training.stop_after", self.stop_after, epochs)
        sizes = f"2 (batch norm) to {MOST_CLIPS}"
        _require(2 <= self.batch_size <= MOST_CLIPS, "training.batch_size", self.batch_size, sizes)
        micro, sizes = self.micro_batch_size, f"none, or 1 to training.batch_size = {self.batch_size}"
        _require(micro is None or 1 <= micro <= self.batch_size, "training.micro_batch_size", micro, sizes)
        epochs = f"0 (off) to {MOST_EPOCHS}"
        _require(0 <= self.patience <= MOST_EPOCHS, "training.patience", self.patience, epochs)
        _require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "0 (off) to below 1")
        metric_direction(self.monitor)
        metric_direction(self.stop_on or self.monitor)
        _require(
            self.monitor in VALIDATION_METRICS,
            "training.monitor",
            self.monitor,
            "a validation metric: " + ", ".join(VALIDATION_METRICS),
        )

    @property
    def most_epochs(self) -> int:
        """The most epochs that are trained; patience may end a run before."""
        return self.stop_after or self.epochs

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The splits that are trained on; where none is validated, nothing needs to be ``unused``."""
        return ("train",) if self.train_on == "train" else ("train", "val", "unused")

    @property
    def is_validated(self) -> bool:
        """Whether the validation split is kept to validate on."""
        return "val" not in self.train_splits


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where a run executes; not part of its identity.

    Args:
        device: ``auto`` takes the GPU where there is one.
        threads: CPU threads of torch. Results on the CPU repeat to the last digit for equal threads.
        features: ``stored`` reads features from disk, ``computed`` computes them on the batch, on the
            device; ``auto`` stores features that are no larger than their clips, and computes others.
            Training clips whose waveform is augmented are always computed.
        cuda_graph: ``auto`` captures the training step in a CUDA graph on a GPU, see `training.graph`.
        deterministic: take only kernels of the GPU that give the same numbers again; slower. Without it, the
            last digits differ from run to run on a GPU.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    features: Literal["auto", "stored", "computed"] = "auto"
    cuda_graph: Literal["auto", "off"] = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        _check_types(self, "runtime")
        check_range("runtime.threads", self.threads, 1, 1024)


@dataclass(frozen=True)
class Component:
    """A registered name with the value of every option it has."""

    name: str
    options: tuple[tuple[str, Any], ...]

    @property
    def kwargs(self) -> dict[str, Any]:
        return dict(self.options)


def component(registered: registry.Registry, name: str, options: Mapping[str, Any]) -> Component:
    """Return `name` with `options` checked and every other option at its default."""
    entry = registered[name]
    values = entry.defaults()
    for key, value in options.items():
        if key not in entry.options:
            raise ConfigError(
                f"{registered.kind} {name!r} has no option {key!r}{did_you_mean(key, entry.options)} "
                f"(it takes {', '.join(entry.options) or 'none'})"
            )
        where = f"option {key!r} of {registered.kind} {name!r}"
        values[key] = registry.checked_value(value, entry.options[key].annotation, where)
    return Component(name, tuple(sorted(values.items())))


def _no_augmentation() -> tuple[Component, ...]:
    names = registry.augmentations.names()
    return tuple(component(registry.augmentations, name, {}) for name in names)


COMPONENTS = {"features": registry.features, "model": registry.models, "loss": registry.losses}
RUNTIME_FIELDS = ("seed", "repeat", "runtime.")
NUMBERS = ("seed", "repeat")  # settings without a section
# Settings that may name a folder or a file: trials run elsewhere, so whoever reads them makes those absolute.
PATH_SETTINGS = ("model.pretrained", "features.weights", "augment.noise.folder")
# What a backbone or the filter bank of a checkpoint decides unless it is given.
CLIP_SETTINGS = ("data.sample_rate", "data.window_s", "data.highpass_hz")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, complete. The defaults are the settings of the first experiment.

    Args:
        augment: every registered augmentation, in the order of names; those with p = 0 are off.
        seed: draws initial weights, batches and augmentation.
        repeat: repeat r validates on fold ``r mod data.folds``; after every fold has been validated once, the
            next repeat deals the recordings anew.
    """

    data: DataConfig = DataConfig()
    features: Component = field(default_factory=lambda: component(registry.features, "mfcc", {}))
    model: Component = field(default_factory=lambda: component(registry.models, "audio_cnn", {}))
    loss: Component = field(default_factory=lambda: component(registry.losses, "cross_entropy", {}))
    augment: tuple[Component, ...] = field(default_factory=_no_augmentation)
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig = TrainingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    seed: int = 0
    repeat: int = 0

    def __post_init__(self) -> None:
        for name in NUMBERS:
            registry.checked_value(getattr(self, name), int, name)
            check_range(name, getattr(self, name), 0, LARGEST_SEED)
        if self.optim.schedule == "plateau" and not self.training.is_validated:
            raise ConfigError(
                "optim.schedule = 'plateau' follows a validation metric, and training.train_on = "
                f"{self.training.train_on!r} leaves nothing to validate on; take another schedule, or keep "
                "the validation split: training.train_on = 'train' (--keep-val of `birdtune train`)"
            )

    def override(self, flat: Flat) -> TrainConfig:
        """Return a config with the dotted keys of `flat` replaced.

        A component's name is applied before its options, whatever the order of the keys; a new name
        starts from that component's defaults. Where features change to or from embeddings, or to those of
        another backbone, the format of the clips follows unless it is given. With `model.pretrained`, clips
        and features follow the filter bank of the checkpoint (`conventions`). Raises ConfigError
        that lists every fault at once.
        """
        groups: dict[str, dict[str, Any]] = {}
        changes: dict[str, Any] = {}
        faults: list[str] = []
        known = {f.name for f in fields(self)}
        for key, value in flat.items():
            group, _, name = key.partition(".")
            if group not in known or (group in NUMBERS) == bool(name):
                faults.append(f"unknown setting {key!r}{did_you_mean(key, self.flat())}")
            elif group in NUMBERS:
                changes[group] = _collect(faults, registry.checked_value, value, int, group)
            else:
                groups.setdefault(group, {})[name] = value
        for group, values in groups.items():
            change: Callable[[str, dict[str, Any]], Any] = self._overridden_section
            if group == "augment":
                change = self._overridden_augment
            elif group in COMPONENTS:
                change = self._overridden_component
            changes[group] = _collect(faults, change, group, values)
        if not faults and changes.keys() & {"features", "model", "data"}:
            changes |= _collect(faults, self._followed, changes, flat) or {}
        if not faults:
            try:
                return replace(self, **changes)
            except ConfigError as error:
                faults.append(str(error))
        raise ConfigError("\n".join(faults))

    def _overridden_component(self, group: str, values: dict[str, Any]) -> Component:
        now: Component = getattr(self, group)
        name = values.pop("name", now.name)
        if not isinstance(name, str):
            raise ConfigError(f"{group}.name = {name!r} is not a name")
        kept = now.kwargs if name == now.name else {}
        return component(COMPONENTS[group], name, {**kept, **values})

    def _followed(self, changes: Mapping[str, Any], flat: Flat) -> dict[str, Any]:
        """Return features and data with the settings that new features decide, less those given in `flat`.

        Raises ConfigError for settings that differ from the filter bank of their convention.
        """
        before: Component = changes.get("features", self.features)
        model: Component = changes.get("model", self.model)
        features, bank = self._with_convention(before, model, flat)
        now, new = _source(self.features, self.model), _source(features, model)
        decided: dict[str, Any] = {}
        if now != new and new is None:
            decided = {f"data.{name}": value for name, value in asdict(DataConfig()).items()}
            decided = {key: decided[key] for key in CLIP_SETTINGS}
        elif now != new and bank is not None:
            decided = bank.settings
        elif now != new and "backbone" in features.kwargs:
            if not flat.keys() >= {"features.weights_hash", *CLIP_SETTINGS}:
                decided = registry.features[features.name].make.follows(features.kwargs)  # type: ignore[attr-defined]
        elif features == before and bank is None:
            return {}
        taken = {key: value for key, value in decided.items() if key not in flat}
        of_data = {key.partition(".")[2]: value for key, value in taken.items() if key.startswith("data.")}
        own = {key.partition(".")[2]: value for key, value in taken.items() if key.startswith("features.")}
        data = replace(changes.get("data", self.data), **of_data)
        features = component(registry.features, features.name, {**features.kwargs, **own})
        if bank is not None:
            bank.check(features.kwargs["convention"], features.kwargs, data.sample_rate, data.window_s)
        return {"data": data, "features": features}

    def _with_convention(
        self, features: Component, model: Component, flat: Flat
    ) -> tuple[Component, conventions.FilterBank | None]:
        """Return `features` with the convention of the model's checkpoint, and its filter bank if it has one.

        A convention that is stated has to be that of the checkpoint, where that is known.
        """
        convention, pretrained = features.kwargs.get("convention"), model.kwargs.get("pretrained")
        bank = conventions.named(convention)
        if not pretrained or convention == conventions.AS_GIVEN:
            return features, bank
        started_from = self.model.kwargs.get("pretrained")
        is_new = pretrained != started_from
        is_followed = is_new and started_from is not None and "features.convention" not in flat
        if convention is not None and not is_followed:
            found = conventions.convention_of(pretrained, look_up=False)
            if found is not None and found.name != convention:
                raise ConfigError(
                    f"features.convention = {convention!r}, and that of model.pretrained = {pretrained!r} is "
                    f"{found.name!r}; leave features.convention out, and it follows"
                )
            return features, bank if found is None else found.bank
        takes_one = "convention" in registry.features[features.name].options
        if not takes_one and not is_new and features.name == self.features.name:
            return features, None
        if not takes_one and flat.keys() >= {"features.name", *CLIP_SETTINGS}:
            return features, None
        found = conventions.convention_of(pretrained)
        if found is None and conventions.is_no_checkpoint(pretrained):
            return features, None
        if found is None:
            raise conventions.not_known(
                "model.pretrained",
                pretrained,
                f"set features.name = 'log_mel' and features.convention = {', '.join(conventions.TABLE)}, or "
                f"{conventions.AS_GIVEN} with the options of log_mel that it was trained with",
            )
        if not takes_one and found.bank is None:
            return features, None
        if not takes_one and "features.name" in flat:
            raise ConfigError(
                f"features.name = {features.name!r}, and model.pretrained = {pretrained!r} takes 'log_mel' "
                f"of the convention {found.name!r}; leave features.name out, and it follows"
            )
        given = features.kwargs
        if not takes_one:
            own = {key.partition(".")[2]: value for key, value in flat.items() if key.startswith("features.")}
            given = component(registry.features, "log_mel", own).kwargs
        return component(registry.features, "log_mel", {**given, "convention": found.name}), found.bank

    def _overridden_augment(self, group: str, values: dict[str, Any]) -> tuple[Component, ...]:
        options: dict[str, dict[str, Any]] = {}
        faults: list[str] = []
        for key, value in values.items():
            name, _, option = key.partition(".")
            options.setdefault(name, {})[option] = value
        changed = {}
        for name, values_of in options.items():
            now = {c.name: c.kwargs for c in self.augment}.get(name, {})
            if "" in values_of:
                faults.append(
                    f"augment.{name} = {values_of['']!r} is not accepted; set an option of it, "
                    f"for example augment.{name}.p = 0.5"
                )
            else:
                changed[name] = _collect(
                    faults, component, registry.augmentations, name, {**now, **values_of}
                )
        if faults:
            raise ConfigError("\n".join(faults))
        return tuple(changed.get(c.name, c) for c in self.augment)

    def _overridden_section(self, group: str, values: dict[str, Any]) -> Any:
        now = getattr(self, group)
        hints = get_type_hints(type(now))
        faults: list[str] = []
        checked = {}
        for name, value in values.items():
            where = f"{group}.{name}"
            if name not in hints:
                faults.append(
                    f"unknown setting {where!r}{did_you_mean(name, hints)} ({group} has {', '.join(hints)})"
                )
            else:
                checked[name] = _collect(faults, registry.checked_value, value, hints[name], where)
        if faults:
            raise ConfigError("\n".join(faults))
        return replace(now, **checked)

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested JSON values; `from_dict` reads them back."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Component):
                out[f.name] = {"name": value.name, **value.kwargs}
            elif f.name == "augment":
                out[f.name] = {c.name: c.kwargs for c in value}
            else:
                out[f.name] = value if isinstance(value, int) else asdict(value)
        plain: dict[str, Any] = json.loads(json.dumps(out))
        return plain

    @classmethod
    def from_dict(cls, nested: Mapping[str, Any]) -> TrainConfig:
        """Return the config that `to_dict` wrote; keys that are left out keep their defaults.

        An augmentation that is off changes nothing, and may be a plugin's that is not loaded here.
        """
        augment = nested.get("augment")
        if isinstance(augment, Mapping):
            known = registry.augmentations.names()
            kept = {
                name: options
                for name, options in augment.items()
                if name in known or not isinstance(options, Mapping) or options.get("p") != 0
            }
            nested = {**nested, "augment": kept}
        return cls().override(flatten(nested))

    def components(self) -> list[tuple[registry.Registry, str]]:
        """Return registry and name of every component of a run; of augmentations, those that are on."""
        named = [(COMPONENTS[group], getattr(self, group).name) for group in COMPONENTS]
        if backbone := self.features.kwargs.get("backbone"):
            named.append((registry.backbones, backbone))
        return named + [(registry.augmentations, c.name) for c in self.augment if c.kwargs["p"]]

    def flat(self) -> dict[str, Any]:
        """Return every setting under its dotted key."""
        return flatten(self.to_dict())

    def difference(self) -> dict[str, Any]:
        """Return the dotted settings that differ from the defaults, without seed, repeat and runtime.

        Options of a component count against the defaults of that component, and those of an augmentation
        only when it is on.
        """
        base = TrainConfig()
        own_names = {f"{group}.name": getattr(base, group).name for group in COMPONENTS}
        options = {
            f"{group}.{name}": value
            for group, registered in COMPONENTS.items()
            for name, value in registered[getattr(self, group).name].defaults().items()
        }
        defaults = {**base.flat(), **flatten(json.loads(json.dumps(options))), **own_names}
        return {key: value for key, value in self._settings().items() if value != defaults[key]}

    def _settings(self) -> dict[str, Any]:
        """Return the dotted settings of a result: without `RUNTIME_FIELDS` and augmentations that are off."""
        left_out = (*RUNTIME_FIELDS, *(f"augment.{c.name}." for c in self.augment if not c.kwargs["p"]))
        # `features.weights_hash` says which weights they are, wherever they lie.
        settings = {key: value for key, value in self.flat().items() if key != "features.weights"}
        return {key: value for key, value in settings.items() if not key.startswith(left_out)}

    @property
    def config_id(self) -> str:
        """Ten hex digits that name this config whatever its seed and repeat and where it runs.

        A hash of every setting with its value, defaults included: under another default, results of the old
        one are those of another config.
        """
        text = json.dumps(self._settings(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def trial_id(self) -> str:
        """The config_id with repeat and seed (`records.trial.trial_id`); a run folder holds each once."""
        return trial_id(self.config_id, self.repeat, self.seed)


def _source(features: Component, model: Component) -> tuple[Any, ...] | None:
    """Return what the format of clips follows from: a backbone with its weights, a convention, or None."""
    options = features.kwargs
    if "backbone" in options:
        return features.name, options["backbone"], options["weights"]
    convention = options.get("convention")
    in_folder = model.kwargs.get("pretrained") if convention == conventions.IN_FOLDER else None
    return (features.name, convention, in_folder) if convention else None


def cautions(config: TrainConfig) -> list[str]:
    """Return warnings, in sentences, of settings that are allowed but have failed before."""
    found = []
    if config.data.split == "random-windows":
        found.append(
            "data.split = 'random-windows' trains on clips of the recordings that it validates on: its "
            "scores are of clips, and too high for new recordings; it is there to be compared with 'grouped'"
        )
    pretrained = config.model.kwargs.get("pretrained")
    if pretrained and config.optim.backbone_lr is not None and config.optim.warmup_epochs:
        found.append(
            f"optim.warmup_epochs = {config.optim.warmup_epochs} with a pretrained backbone and a learning "
            "rate of its own: in the earlier work a run like this diverged; optim.warmup_epochs = 0 did not"
        )
    return found


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"optim": {"lr": 1}}`` as ``{"optim.lr": 1}``, at any depth."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{name}": v for name, v in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def _collect(faults: list[str], call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except ConfigError as error:
        faults.append(str(error))
        return None
