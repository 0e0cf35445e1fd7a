"""The earlier work used focal loss with gamma 2, as in the paper; gamma 1 and 3 were planned and skipped.

With gamma 2 the validation accuracy of AudioCNN fell from 39.4 % to 33.0 %; AudioCNNv2 reached 42.2 %.
"""

from birdnet_core.registry import studies
from search_spaces.study import Ablation


@studies.register("gamma-sensitivity")
def gamma_sensitivity(*, model: str | None = None) -> Ablation:
    """How much does the gamma of the focal loss matter, and does it depend on the network?

    Gamma 0, the baseline, is cross-entropy. No early stopping. With `model`, such as ``linear`` for
    embeddings (``--set features.name=embedding``), of that one alone.
    """
    networks = {"model.name": ("audio_cnn", "audio_cnn_v2")} if model is None else {}
    alone = {} if model is None else {"model.name": model}
    return Ablation(
        factors={"loss.gamma": (0.0, 0.5, 1.0, 2.0, 3.0, 5.0), **networks},
        base={**alone, "loss.name": "focal", "training.epochs": 50, "training.patience": 0},
        quick_repeats=1,
    )
