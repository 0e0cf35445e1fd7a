"""The earlier work compared two networks, of about 4,000 and 47,000 parameters a species, and none between.

They differ in more than size: AudioCNN has six convolutions and up to 128 channels, AudioCNNv2 five and 512.
"""

from birdnet_core.registry import studies
from search_spaces.study import Ablation


@studies.register("width-depth")
def width_depth() -> Ablation:
    """How large a network does a species need, and should it be wider or deeper?

    AudioCNN with 32, 40 or 56 channels in its first block and three or four blocks: at 89 species 3,900,
    5,900 and 11,500 parameters a species, or 15,200, 23,600 and 45,800. No early stopping.
    """
    return Ablation(
        factors={"model.width": (32, 40, 56), "model.depth": (3, 4)},
        base={"model.name": "audio_cnn", "training.epochs": 50, "training.patience": 0},
    )
