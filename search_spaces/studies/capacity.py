"""The earlier work grew the network and changed the loss at once: which of the two helped stayed open."""

from birdnet_core.registry import studies
from search_spaces.study import QUICK, Ablation


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
        base={"training.patience": 0},
        quick=QUICK,
    )
