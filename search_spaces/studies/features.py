"""The earlier work trained its CNNs on MFCC and AST on log-mel: features and networks changed together."""

from birdnet_core.registry import studies
from search_spaces.study import Ablation


@studies.register("features")
def features() -> Ablation:
    """Do the CNNs learn more from MFCC or from log-mel?

    In both networks, because only the larger may be able to use log-mel. No early stopping.
    """
    return Ablation(
        factors={
            "features.name": ("mfcc", "log_mel"),
            "model.name": ("audio_cnn", "audio_cnn_v2"),
        },
        base={"training.epochs": 50, "training.patience": 0},
    )
