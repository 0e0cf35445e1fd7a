"""The earlier work changed one setting at a time by hand, so interactions are unknown."""

from optuna.trial import BaseTrial

from birdnet_core.registry import studies
from search_spaces import fragments
from search_spaces.study import QUICK, Overrides, Search

CNNS = ("audio_cnn", "audio_cnn_v2")


@studies.register("joint")
def joint(
    *,
    ast: str | None = None,
    vit: str | None = None,
    efficientnet: str | None = None,
    convnext: str | None = None,
) -> Search:
    """Which combination of network, features, loss, optimiser and augmentation is best?

    Each option is the checkpoint that a network starts from, a hub id or a folder; without one, it starts
    from scratch. The scheduler compares trials of the same network. `--quick` takes the CNNs, networks with a
    checkpoint, and one window a recording.
    """
    given = {"audio_ast": ast, "audio_vit": vit, "efficientnet": efficientnet, "convnext": convnext}
    checkpoints = {name: checkpoint for name, checkpoint in given.items() if checkpoint is not None}

    def space(trial: BaseTrial, names: tuple[str, ...] = (*CNNS, *given)) -> Overrides:
        choices = fragments.model(trial, names, checkpoints)
        model = choices["model.name"]
        choices |= fragments.features(trial, model)
        choices |= fragments.loss(trial)
        loss = choices["loss.name"]
        choices |= fragments.class_balance(trial, loss)
        choices |= fragments.optimiser(trial, lr=(1e-5, 1e-2), is_pretrained=model in checkpoints)
        choices |= fragments.regularization(trial, model=model, loss=loss)
        choices |= fragments.augmentation(trial)
        return choices

    def quick_space(trial: BaseTrial) -> Overrides:
        return space(trial, (*CNNS, *checkpoints))

    return Search(
        space=space,
        quick_space=quick_space,
        n_trials=200,
        asha_within="model.name",
        base={"optim.backbone_lr": None, "training.epochs": 50},
        quick={**QUICK, "data.windows_per_recording": 1},
    )
