"""Class weights ruined accuracy in the earlier work; their effect on rare species was not measured.

AudioCNN: 39.4 % validation accuracy without weights, 25.6 % with the root of the inverse frequency, 6.4 %
with "balanced" weights. The loss is a weighted mean, which a common factor does not change. So "inverse" and
"balanced" are one loss: they differ by rounding alone, and the difference in their scores is chance.
"""

from birdnet_core.registry import studies
from search_spaces.study import Ablation


@studies.register("class-weights")
def class_weights() -> Ablation:
    """What helps rare species most: class weights, adjusted logits or sampling?

    Under cross-entropy, one remedy at a time. No early stopping.
    """
    weights = {name: {"loss.class_weights": name} for name in ("inverse", "balanced", "sqrt", "effective")}
    return Ablation(
        factors={
            "class_balance": {
                "none": {},
                **weights,
                "logit adjustment": {"loss.name": "logit_adjusted"},
                "class-balanced sampling": {"training.sampling": "class_balanced"},
            }
        },
        base={
            "loss.name": "cross_entropy",
            "loss.class_weights": "none",
            "training.sampling": "instance",
            "training.epochs": 50,
            "training.patience": 0,
        },
    )
