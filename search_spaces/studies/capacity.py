"""The earlier work grew the network and changed the loss at once: which of the two helped stayed open.

AudioCNN (343,801 parameters) came to 39.4 % validation accuracy with cross-entropy and 33.0 % with focal
loss, AudioCNNv2 (4,222,041) with focal loss to 42.2 %. AudioCNNv2 with cross-entropy was never run.
"""

from birdnet_core.registry import studies
from search_spaces.study import QUICK, TARGETS, Ablation


@studies.register("capacity")
def capacity() -> Ablation:
    """Is the gain the capacity's, the loss's, or both together's?

    AudioCNN and AudioCNNv2, each with cross-entropy and focal loss. No early stopping: every cell trains its
    whole budget, so that cells are compared at equal length.
    """
    return Ablation(
        factors={
            "model.name": ("audio_cnn", "audio_cnn_v2"),
            "loss.name": ("cross_entropy", "focal"),
        },
        gates=TARGETS,
        base={"training.epochs": 50, "training.patience": 0},
        quick=QUICK,
    )
