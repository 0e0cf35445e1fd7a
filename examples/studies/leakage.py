"""The same study as leakage.yaml: birdtune sweep examples/studies/leakage.py --data clips.csv"""

from search_spaces import Ablation, register_study


@register_study("leakage")
def leakage() -> Ablation:
    """How much of a score is leakage?"""
    return Ablation(
        # Windows of one recording are alike: split at random, they stand in both splits.
        base={"data.windows_per_recording": 5, "training.patience": 0, "training.epochs": 30},
        factors={"data.split": ("grouped", "random-windows")},
    )
