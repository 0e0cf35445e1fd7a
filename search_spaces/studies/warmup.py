"""With a warm-up of 5 epochs the pretrained AST of the earlier work diverged.

Its validation accuracy was 40.6 % after the first epoch and 13.4 % after the eighth; without a warm-up it
was 54.9 % after the fourth. Each was run once.
"""

from birdnet_core.registry import studies
from search_spaces.fragments import CHECKPOINTS
from search_spaces.study import Ablation


@studies.register("warmup")
def warmup(*, ast: str = CHECKPOINTS["audio_ast"]) -> Ablation:
    """Does a warm-up help a network from scratch, and harm a pretrained one?

    AST with fresh weights and with those of the checkpoint `ast`, a hub id or a folder, each without and with
    5 epochs of warm-up, all on the features of the checkpoint; head and backbone at the learning rates of the
    earlier work. No early stopping.
    """
    pretrained, scratch = {"model.pretrained": ast}, {"model.pretrained": None}
    return Ablation(
        factors={
            "optim.warmup_epochs": (0, 5),
            "weights": {"pretrained": pretrained, "scratch": scratch},
        },
        base={
            "model.name": "audio_ast",
            # What features and clips follow; a network that starts from scratch keeps them.
            "model.pretrained": ast,
            "loss.name": "focal",
            "optim.lr": 1e-3,
            "optim.backbone_lr": 5e-5,
            "training.epochs": 15,
            "training.patience": 0,
        },
        quick={"training.epochs": 4, "training.batch_size": 16},
        quick_factors={
            "optim.warmup_epochs": (0, 2),
            "weights": {"pretrained": pretrained, "scratch": {**scratch, "model.size": "tiny"}},
        },
        quick_repeats=1,
    )
