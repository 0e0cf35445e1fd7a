"""The value that says everything about one training run.

A `TrainConfig` is frozen, compares, hashes and round-trips through JSON. It is changed by
``config.override({"optim.lr": 3e-4})`` with flat, dotted keys, the form in which studies give their choices.
Names stay names here; `build.py` is where they become objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

from birdnet_core import registry
from birdnet_core.errors import ConfigError, did_you_mean
from birdnet_core.records import METRICS, metric_direction

Flat = Mapping[str, Any]


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
        val_fraction, test_fraction: shares of the recordings of a species.
        split_seed: draws the split; not the training seed, so that all seeds share one split.
    """

    sample_rate: int = 22_050
    window_s: float = 4.0
    windows_per_recording: int = 1
    highpass_hz: float = 500.0
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    split_seed: int = 0

    def __post_init__(self) -> None:
        _require(4_000 <= self.sample_rate <= 192_000, "data.sample_rate", self.sample_rate, "4000 to 192000")
        _require(0.1 <= self.window_s <= 60, "data.window_s", self.window_s, "0.1 to 60 seconds")
        _require(
            1 <= self.windows_per_recording <= 1000,
            "data.windows_per_recording",
            self.windows_per_recording,
            "1 to 1000",
        )
        _require(
            0 <= self.highpass_hz < self.sample_rate / 2,
            "data.highpass_hz",
            self.highpass_hz,
            f"0 (off) to below {self.sample_rate / 2:g}, half the sample rate",
        )
        _require(0 < self.val_fraction < 0.5, "data.val_fraction", self.val_fraction, "above 0, below 0.5")
        _require(0 <= self.test_fraction < 0.5, "data.test_fraction", self.test_fraction, "0 to below 0.5")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a linear warm-up into a cosine.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled weight decay; not applied to norms and biases.
        warmup_epochs: epochs from lr / 10 up to lr; 0 starts at lr.
        schedule: what follows the warm-up.
        grad_clip: largest gradient norm; 0 turns clipping off.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup_epochs: int = 5
    schedule: Literal["cosine", "constant"] = "cosine"
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        _require(0 < self.lr <= 10, "optim.lr", self.lr, "above 0, at most 10")
        _require(0 <= self.weight_decay <= 10, "optim.weight_decay", self.weight_decay, "0 to 10")
        _require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "0 or more")
        _require(self.grad_clip >= 0, "optim.grad_clip", self.grad_clip, "0 (off) or more")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long to learn, in which portions, and which epoch counts.

    Args:
        epochs: the budget.
        batch_size: clips a step.
        patience: epochs without a better `monitor` after which the run ends; 0 trains the whole budget.
        monitor: the metric whose best epoch is the run's result.
        mixed_precision: bf16 autocast and channels_last where the hardware has bf16.
    """

    epochs: int = 50
    batch_size: int = 32
    patience: int = 7
    monitor: str = "val/f1_macro"
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "training.epochs", self.epochs, "1 or more")
        _require(self.batch_size >= 2, "training.batch_size", self.batch_size, "2 or more (batch norm)")
        _require(self.patience >= 0, "training.patience", self.patience, "0 (off) or more")
        metric_direction(self.monitor)
        _require(
            self.monitor.startswith("val/"),
            "training.monitor",
            self.monitor,
            "a validation metric: " + ", ".join(m for m in METRICS if m.startswith("val/")),
        )


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where a run executes; not part of its identity.

    Args:
        device: ``auto`` takes the GPU where there is one.
        threads: CPU threads of torch. Results on the CPU repeat to the last digit for equal threads.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        _require(1 <= self.threads <= 1024, "runtime.threads", self.threads, "1 to 1024")


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


COMPONENTS = {"features": registry.features, "model": registry.models, "loss": registry.losses}
RUNTIME_FIELDS = ("seed", "runtime")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, complete. The defaults are the settings of the first experiment."""

    data: DataConfig = DataConfig()
    features: Component = field(default_factory=lambda: component(registry.features, "mfcc", {}))
    model: Component = field(default_factory=lambda: component(registry.models, "audio_cnn", {}))
    loss: Component = field(default_factory=lambda: component(registry.losses, "cross_entropy", {}))
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig = TrainingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, "seed", self.seed, "0 to 2147483647")

    def override(self, flat: Flat) -> TrainConfig:
        """Return a config with the dotted keys of `flat` replaced.

        A component's name is applied before its options, whatever the order of the keys; a new name
        starts from that component's defaults. Raises ConfigError that lists every fault at once.
        """
        groups: dict[str, dict[str, Any]] = {}
        changes: dict[str, Any] = {}
        faults: list[str] = []
        known = {f.name for f in fields(self)}
        for key, value in flat.items():
            group, _, name = key.partition(".")
            if group not in known or (group == "seed") == bool(name):
                faults.append(f"unknown setting {key!r}{did_you_mean(key, self.flat())}")
            elif group == "seed":
                changes["seed"] = _collect(faults, registry.checked_value, value, int, "seed")
            else:
                groups.setdefault(group, {})[name] = value
        for group, values in groups.items():
            change = self._overridden_component if group in COMPONENTS else self._overridden_section
            changes[group] = _collect(faults, change, group, values)
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
            else:
                out[f.name] = value if isinstance(value, int) else asdict(value)
        plain: dict[str, Any] = json.loads(json.dumps(out))
        return plain

    @classmethod
    def from_dict(cls, nested: Mapping[str, Any]) -> TrainConfig:
        """Return the config that `to_dict` wrote; keys that are left out keep their defaults."""
        return cls().override(flatten(nested))

    def flat(self) -> dict[str, Any]:
        """Return every setting under its dotted key."""
        return flatten(self.to_dict())

    def difference(self) -> dict[str, Any]:
        """Return the dotted settings that differ from the defaults, without seed and runtime.

        Options of a component count against the defaults of that component.
        """
        base = TrainConfig()
        names = {f"{group}.name": getattr(self, group).name for group in COMPONENTS}
        own_names = {f"{group}.name": getattr(base, group).name for group in COMPONENTS}
        defaults = {**base.override(names).flat(), **own_names}
        return {
            key: value
            for key, value in self.flat().items()
            if key.partition(".")[0] not in RUNTIME_FIELDS and value != defaults[key]
        }

    @property
    def config_id(self) -> str:
        """Ten hex digits that name this config whatever its seed and where it runs."""
        text = json.dumps(self.difference(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def trial_id(self) -> str:
        """The config_id with the seed: what is never trained twice in a run folder."""
        return f"{self.config_id}-s{self.seed}"


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"optim": {"lr": 1}}`` as ``{"optim.lr": 1}``; one level, which is all a config has."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{name}": v for name, v in value.items()})
        else:
            flat[key] = value
    return flat


def _collect(faults: list[str], call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except ConfigError as error:
        faults.append(str(error))
        return None
