"""Functions to compose search spaces from.

Each samples one kind of setting from an Optuna trial, define by run, and returns it as overrides. Several
make a space::

    def space(trial):
        choices = loss(trial)
        return {**choices, **class_balance(trial, choices["loss.name"]), **optimiser(trial)}

No two of them sample the same setting, and each samples only what has an effect: gamma under the focal loss,
alpha of MixUp where MixUp is on. A function that depends on a choice takes it as an argument. What depends on
a model or a loss is read from its options, so that plug-ins need no line here. MixUp goes with every loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna.trial import BaseTrial

from birdnet_core import registry
from search_spaces.study import Overrides

# Options of the models that change what they can learn; dropout is drawn by `regularization`. A choice has
# the model's name before it in the trial, because Optuna takes one range for one name.
MODEL_OPTIONS: dict[str, dict[str, Sequence[int | str]]] = {
    "audio_cnn": {"width": (16, 32, 48, 64), "depth": (2, 3, 4)},
    "audio_vit": {"size": ("tiny", "small", "base")},
    "audio_ast": {"size": ("tiny", "small", "base")},
    "efficientnet": {"variant": ("b0", "b2")},
    "convnext": {"variant": ("tiny", "small", "base")},
}
# Public checkpoints, by hub id.
CHECKPOINTS = {
    "audio_ast": "MIT/ast-finetuned-audioset-10-10-0.4593",
    "audio_vit": "google/vit-base-patch16-224-in21k",
    "efficientnet": "google/efficientnet-b0",
    "convnext": "facebook/convnext-tiny-224",
}
# Probabilities that the augmentations' own descriptions give.
USUAL_P = {"spec_augment": 0.8, "mixup": 0.6, "noise": 0.5, "time_shift": 0.5, "time_stretch": 0.3}


def model(trial: BaseTrial, names: Sequence[str], checkpoints: Mapping[str, str] | None = None) -> Overrides:
    """Draw one of the models `names` and its own options.

    A model with one of the `checkpoints` starts from it, which decides the options.
    """
    name: str = trial.suggest_categorical("model.name", list(names))
    choices: Overrides = {"model.name": name}
    if _has("model", name, "pretrained"):
        choices["model.pretrained"] = (checkpoints or {}).get(name)
        if choices["model.pretrained"] is not None:
            return choices
    for option, values in MODEL_OPTIONS.get(name, {}).items():
        choices[f"model.{option}"] = trial.suggest_categorical(f"{name}.{option}", list(values))
    return choices


def features(trial: BaseTrial, model: str) -> Overrides:
    """Draw the features for `model`; log-mel, undrawn, for one that can be pretrained.

    Those read features: their weights come from photographs or spectrograms, and neighbouring bins of an MFCC
    have nothing in common.
    """
    if _has("model", model, "pretrained"):
        return {"features.name": "log_mel"}
    return {"features.name": trial.suggest_categorical("features.name", ["mfcc", "log_mel"])}


def loss(trial: BaseTrial, names: Sequence[str] = ("cross_entropy", "focal", "logit_adjusted")) -> Overrides:
    """Draw one of the losses `names`, with its gamma or tau."""
    choices: Overrides = {"loss.name": trial.suggest_categorical("loss.name", list(names))}
    if _has("loss", choices["loss.name"], "gamma"):
        choices["loss.gamma"] = trial.suggest_float("loss.gamma", 0.5, 5.0)
    if _has("loss", choices["loss.name"], "tau"):
        choices["loss.tau"] = trial.suggest_float("loss.tau", 0.25, 2.0)
    return choices


def class_balance(trial: BaseTrial, loss: str) -> Overrides:
    """Draw what makes up for rare classes under `loss`: nothing, class weights or sampling, never two.

    Nothing is drawn for the logit-adjusted loss, which does so itself. Weights "balanced" are left out: they
    are "inverse" times a number.
    """
    choices: Overrides = {"training.sampling": "instance"}
    options = registry.losses[loss].options
    option = next((options[name] for name in ("class_weights", "alpha") if name in options), None)
    if option is None:
        return choices
    ways = ["none", "inverse", "sqrt", "effective", "square_root sampling", "class_balanced sampling"]
    way: str = trial.suggest_categorical("class_balance", ways)
    choices[f"loss.{option.name}"] = option.default
    if way.endswith(" sampling"):
        choices["training.sampling"] = way.removesuffix(" sampling")
    elif way != "none":
        choices[f"loss.{option.name}"] = way
    return choices


def optimiser(
    trial: BaseTrial, *, lr: tuple[float, float] = (1e-4, 1e-2), is_pretrained: bool = False
) -> Overrides:
    """Draw the learning rate, log-uniform within `lr`, its schedule and warm-up.

    A pretrained model gets a learning rate of its own for its backbone, and no warm-up, with which it
    diverged in the earlier work. The one-cycle schedule has a warm-up of its own.
    """
    schedules = ["cosine", "one_cycle", "constant"]
    choices: Overrides = {
        "optim.lr": trial.suggest_float("optim.lr", *lr, log=True),
        "optim.schedule": trial.suggest_categorical("optim.schedule", schedules),
        "optim.warmup_epochs": 0,
    }
    if is_pretrained:
        choices["optim.backbone_lr"] = trial.suggest_float("optim.backbone_lr", 1e-6, 1e-3, log=True)
    elif choices["optim.schedule"] != "one_cycle":
        choices["optim.warmup_epochs"] = trial.suggest_int("optim.warmup_epochs", 0, 5)
    return choices


def weight_decay(trial: BaseTrial) -> Overrides:
    """Draw the weight decay, log-uniform within 1e-4 to 0.1."""
    return {"optim.weight_decay": trial.suggest_float("optim.weight_decay", 1e-4, 1e-1, log=True)}


def regularization(trial: BaseTrial, *, model: str, loss: str) -> Overrides:
    """Draw weight decay, and dropout of `model` and label smoothing of `loss` where they have them."""
    choices = weight_decay(trial)
    if _has("model", model, "dropout"):
        choices["model.dropout"] = trial.suggest_float("model.dropout", 0.0, 0.7)
    if _has("loss", loss, "label_smoothing"):
        choices["loss.label_smoothing"] = trial.suggest_float("loss.label_smoothing", 0.0, 0.2)
    return choices


def augmentation(trial: BaseTrial) -> Overrides:
    """Draw for each of five augmentations whether it is on, at its usual p, and how strong where it is."""
    choices: Overrides = {}
    for name, p in USUAL_P.items():
        if name == "mixup":
            choices |= mixup(trial)
            continue
        choices[f"augment.{name}.p"] = trial.suggest_categorical(f"augment.{name}.p", [0.0, p])
    if choices["augment.spec_augment.p"]:
        for option, most in (("max_bins", 30), ("max_frames", 50)):
            key = f"augment.spec_augment.{option}"
            choices[key] = trial.suggest_int(key, 5, most)
    if choices["augment.noise.p"]:
        choices["augment.noise.min_snr_db"] = trial.suggest_float("augment.noise.min_snr_db", 0.0, 20.0)
    return choices


def mixup(trial: BaseTrial) -> Overrides:
    """Draw whether MixUp is on, at its usual p, and its alpha where it is."""
    p: float = trial.suggest_categorical("augment.mixup.p", [0.0, USUAL_P["mixup"]])
    if not p:
        return {"augment.mixup.p": p}
    return {"augment.mixup.p": p, "augment.mixup.alpha": trial.suggest_float("augment.mixup.alpha", 0.1, 1.0)}


def _has(kind: str, name: str, option: str) -> bool:
    return option in {"model": registry.models, "loss": registry.losses}[kind][name].options
