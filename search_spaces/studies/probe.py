"""Heads on embeddings of a frozen backbone train in seconds, so that many settings can be compared."""

from optuna.trial import BaseTrial

from birdnet_core.registry import backbones, studies
from search_spaces import fragments
from search_spaces.study import Overrides, Search

HEADS = ("linear", "mlp", "prototype")
BASE: Overrides = {
    "features.name": "embedding",
    "data.windows_per_recording": 4,
    "training.epochs": 50,
    "training.batch_size": 128,
    "training.patience": 0,
    "training.precision": "fp32",
    "optim.warmup_epochs": 0,
}


@studies.register("probe")
def probe(*, backbone: str = "birdnet", weights: str | None = None, labels: bool = True) -> Search:
    """Which head, loss and learning rate make the most of a frozen backbone's embeddings?

    `backbone` is a name of `birdtune list backbones`, `weights` its file, folder or hub id. Every setting is
    of the head; embeddings are computed once for each number of windows a recording. A linear head may start
    from the backbone's own classifier, where it has one; `labels=false` leaves these starts out. The
    scheduler compares trials of the same head. `--quick` leaves the windows as they are.
    """

    def space(trial: BaseTrial) -> Overrides:
        head: str = trial.suggest_categorical("model.name", list(HEADS))
        choices: Overrides = {"model.name": head}
        if labels and head == "linear" and getattr(backbones[backbone].make, "has_label_layer", False):
            choices["model.start"] = trial.suggest_categorical("model.start", ["random", "labels"])
        choices |= fragments.loss(trial)
        choices |= fragments.class_balance(trial, choices["loss.name"])
        choices["optim.lr"] = trial.suggest_float("optim.lr", 1e-4, 3e-2, log=True)
        choices |= fragments.regularization(trial, model=head, loss=choices["loss.name"])
        return {**choices, **fragments.mixup(trial)}

    def space_with_windows(trial: BaseTrial) -> Overrides:
        windows = trial.suggest_categorical("data.windows_per_recording", [1, 2, 4])
        return {**space(trial), "data.windows_per_recording": windows}

    return Search(
        space=space_with_windows,
        quick_space=space,
        n_trials=100,
        asha_within="model.name",
        base={**BASE, "features.backbone": backbone, "features.weights": weights},
        quick={"training.epochs": 15},
    )
