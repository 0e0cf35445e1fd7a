"""SpecAugment and MixUp came together in the earlier work, and the others that were proposed were not tried.

On AST the two took validation accuracy from 54.9 % to 57.5 %: whose gain it was stayed open.
"""

from birdnet_core.registry import studies
from search_spaces.designs import LeaveOneOut
from search_spaces.fragments import USUAL_P
from search_spaces.study import QUICK, TARGETS, Ablation


@studies.register("augmentation")
def augmentation() -> Ablation:
    """Which augmentation would be missed if it were left out?

    All five on, each at its usual p, then each left out, then all. Of the base config's network: `--base
    phase3-baseline` asks it of AST. No early stopping.
    """
    key = "augment.{}.p"
    return Ablation(
        factors={
            name: {"on": {key.format(name): p}, "off": {key.format(name): 0.0}} for name, p in USUAL_P.items()
        },
        design=LeaveOneOut(),
        gates=TARGETS,
        base={"training.epochs": 50, "training.patience": 0},
        quick=QUICK,
    )
