"""The earlier experiments, each of which was run once, in one table with intervals over repeats.

Best validation accuracies there: phase 0 39.4 %, phase 1 6.4 % (balanced) and 25.6 % (sqrt), phase 2A 33.0 %,
phase 2B 42.2 %, phase 3 54.9 % (baseline) and 57.5 % (full), after 29, 23, 26, 23, 33, 11 and 17 epochs. All
had 50 epochs, and ended after 7 without a better validation accuracy.
"""

from birdnet_core.presets import PRESETS
from birdnet_core.registry import studies
from search_spaces.fragments import CHECKPOINTS
from search_spaces.study import Ablation, Gate, Overrides


@studies.register("phases")
def phases(*, ast: str | None = CHECKPOINTS["audio_ast"]) -> Ablation:
    """Do the earlier experiments reproduce?

    The presets, each stopped early by accuracy as then, so that cells are not of equal length. `ast` is the
    checkpoint of phase 3, a hub id or a folder; `none` leaves phase 3 out. The gates are the targets of then,
    for 89 species.
    """
    levels: dict[str, Overrides] = {}
    for name, preset in PRESETS.items():
        is_pretrained = "model.pretrained" in preset.overrides
        if not is_pretrained:
            levels[name] = preset.overrides
        elif ast is not None:
            levels[name] = {**preset.overrides, "model.pretrained": ast}
    return Ablation(
        factors={"phase": levels},
        metric="val/accuracy",
        gates=(
            Gate(metric="val/accuracy", target=0.40, stretch=0.50),
            Gate(metric="val/f1_macro", target=0.15, stretch=0.25),
            Gate(metric="val/f1_rare", target=0.05, stretch=0.10),
        ),
        base={"training.epochs": 50, "training.patience": 7},
        quick_repeats=1,
    )
