"""The earlier work took 1e-3 for the CNNs as it came, and never tuned it."""

from optuna.trial import BaseTrial

from birdnet_core.registry import studies
from search_spaces.study import QUICK, Overrides, Search


@studies.register("learning-rate")
def learning_rate() -> Search:
    """Which learning rate, with which weight decay, warm-up and loss?

    Learning rate and weight decay on a log scale, warm-up of 0 to 5 epochs, cross-entropy or focal loss with
    its gamma.
    """
    return Search(space=space, quick=QUICK)


def space(trial: BaseTrial) -> Overrides:
    choices: Overrides = {
        "optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True),
        "optim.weight_decay": trial.suggest_float("optim.weight_decay", 1e-4, 1e-1, log=True),
        "optim.warmup_epochs": trial.suggest_int("optim.warmup_epochs", 0, 5),
        "loss.name": trial.suggest_categorical("loss.name", ["cross_entropy", "focal"]),
    }
    if choices["loss.name"] == "focal":
        choices["loss.gamma"] = trial.suggest_float("loss.gamma", 0.5, 5.0)
    return choices
