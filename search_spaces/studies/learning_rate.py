"""The earlier work never tuned its learning rates: 1e-3, and 5e-5 for the backbone of AST."""

from optuna.trial import BaseTrial

from birdnet_core.registry import studies
from search_spaces import fragments
from search_spaces.study import Overrides, Search


@studies.register("learning-rate")
def learning_rate(*, backbone: bool = False) -> Search:
    """Which learning rate, with which schedule, weight decay and loss?

    Learning rate and weight decay on a log scale, three schedules with a warm-up of 0 to 5 epochs,
    cross-entropy or focal loss with its gamma. With the option `backbone`, for a pretrained base config, also
    the learning rate of its backbone, and then no warm-up.
    """

    def space(trial: BaseTrial) -> Overrides:
        return {
            **fragments.optimiser(trial, is_pretrained=backbone),
            **fragments.weight_decay(trial),
            **fragments.loss(trial, ("cross_entropy", "focal")),
        }

    return Search(space=space, base={"training.epochs": 50})
