"""The networks of the earlier work overfitted.

AudioCNNv2 ended at 94.6 % accuracy in training and 41.8 % in validation, with dropout 0.5 and weight decay
1e-2. Dropout of 0.6 to 0.7, label smoothing of 0.1 and other weight decays were proposed, but not trained.
"""

from birdnet_core.registry import studies
from search_spaces.designs import OneAtATime
from search_spaces.study import Ablation


@studies.register("regularization")
def regularization() -> Ablation:
    """Does more dropout, label smoothing or weight decay help, each alone?

    The network is the base config's: AudioCNNv2, which overfits most, with `--base phase2b`. No early
    stopping.
    """
    return Ablation(
        factors={
            "model.dropout": (0.5, 0.3, 0.6, 0.7),
            "loss.label_smoothing": (0.0, 0.05, 0.1),
            "optim.weight_decay": (1e-2, 1e-3, 1e-1),
        },
        design=OneAtATime(),
        base={"training.epochs": 50, "training.patience": 0},
    )
