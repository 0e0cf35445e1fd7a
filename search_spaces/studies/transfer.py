"""Pretraining was the largest gain of the earlier work, which had one pretrained network, AST.

AST reached 54.9 % validation accuracy, the CNNs 42.2 %. EfficientNet and ConvNeXt were proposed.
"""

from birdnet_core.registry import studies
from search_spaces.fragments import CHECKPOINTS
from search_spaces.study import Ablation


@studies.register("transfer")
def transfer(
    *,
    ast: str | None = CHECKPOINTS["audio_ast"],
    vit: str | None = CHECKPOINTS["audio_vit"],
    efficientnet: str | None = CHECKPOINTS["efficientnet"],
    convnext: str | None = CHECKPOINTS["convnext"],
) -> Ablation:
    """Which pretrained network transfers best to birds?

    Each option is the checkpoint of a network, a hub id or a folder; `none` leaves the network out. Each
    network trains on the filter bank and clips of its checkpoint, one of photographs on the default log-mel;
    all with focal loss, at the learning rates of AST. No early stopping.
    """
    checkpoints = {
        "audio_ast": ast, "audio_vit": vit, "efficientnet": efficientnet, "convnext": convnext
    }  # fmt: skip
    return Ablation(
        factors={
            "network": {
                name: {"model.name": name, "model.pretrained": checkpoint}
                for name, checkpoint in checkpoints.items()
                if checkpoint is not None
            }
        },
        base={
            "features.name": "log_mel",
            "loss.name": "focal",
            "optim.lr": 1e-3,
            "optim.backbone_lr": 5e-5,
            "optim.warmup_epochs": 0,
            "training.epochs": 15,
            "training.patience": 0,
        },
        quick={"training.epochs": 4, "training.batch_size": 16},
        quick_repeats=1,
    )
