"""The earlier work enlarged the network and changed the loss at once; which of the two helped is open.

AudioCNN (343,801 parameters) reached 39.4 % validation accuracy with cross-entropy and 33.0 % with focal
loss, AudioCNNv2 (4,222,041) 42.2 % with focal loss. AudioCNNv2 with cross-entropy was never trained.
"""

from birdnet_core.registry import studies
from search_spaces.study import Ablation


@studies.register("capacity")
def capacity() -> Ablation:
    """Does the gain come from capacity, from the loss, or from both together?

    AudioCNN and AudioCNNv2, each with cross-entropy and focal loss. No early stopping: every cell trains its
    whole budget, so that cells are compared at equal length.
    """
    return Ablation(
        factors={
            "model.name": ("audio_cnn", "audio_cnn_v2"),
            "loss.name": ("cross_entropy", "focal"),
        },
        base={"training.epochs": 50, "training.patience": 0},
    )
