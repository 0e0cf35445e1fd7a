"""The same study as gamma_mixup.yaml: birdtune sweep examples/studies/gamma_mixup.py --data clips.csv"""

from search_spaces import Ablation, Gate, register_study


@register_study("gamma_mixup")
def gamma_mixup() -> Ablation:
    """Which gamma of the focal loss, and does MixUp help?"""
    return Ablation(
        base={"loss.name": "focal", "training.patience": 0, "training.epochs": 30},
        factors={
            "loss.gamma": (0.0, 1.0, 2.0, 3.0),
            "mixup": {"off": {}, "on": {"augment.mixup.p": 0.6}},
        },
        gates=(Gate(metric="val/f1_macro", target=0.22, stretch=0.25),),
    )
