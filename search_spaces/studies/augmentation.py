"""The earlier work added SpecAugment and MixUp together; the other proposed augmentations were not trained.

On AST the two raised validation accuracy from 54.9 % to 57.5 %. Which of them helped is open.
"""

from birdnet_core.registry import studies
from search_spaces.designs import LeaveOneOut
from search_spaces.fragments import USUAL_P
from search_spaces.study import Ablation


@studies.register("augmentation")
def augmentation() -> Ablation:
    """Which augmentation lowers the score when it is left out?

    All five on, each at its usual p, then each left out, then all. The network is the base config's: AST with
    `--base phase3-baseline`. No early stopping.
    """
    key = "augment.{}.p"
    return Ablation(
        factors={
            name: {"on": {key.format(name): p}, "off": {key.format(name): 0.0}} for name, p in USUAL_P.items()
        },
        design=LeaveOneOut(),
        base={"training.epochs": 50, "training.patience": 0},
    )
