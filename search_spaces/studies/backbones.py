"""What a small collection gains by embeddings of a network that has heard birds before."""

from birdnet_core.registry import studies
from search_spaces.studies.probe import BASE
from search_spaces.study import Ablation, Overrides


@studies.register("backbones")
def backbones(
    *,
    birdnet: bool = True,
    birdtune: str | None = None,
    onnx: str | None = None,
) -> Ablation:
    """Which embeddings tell the species apart best, and by how much against mel statistics?

    `birdtune` is a model folder of your own, `onnx` a file with its convention beside it; `birdnet=false`
    leaves BirdNET out. All cells train a linear head. No early stopping.
    """
    given = {"birdtune": birdtune, "onnx": onnx}
    levels: dict[str, Overrides] = {"mel statistics": {"features.name": "mel_statistics"}}
    if birdnet:
        levels["birdnet"] = {"features.name": "embedding", "features.backbone": "birdnet"}
    for name, weights in given.items():
        if weights is not None:
            levels[name] = {
                "features.name": "embedding", "features.backbone": name, "features.weights": weights
            }  # fmt: skip
    base = {key: value for key, value in BASE.items() if not key.startswith("features.")}
    return Ablation(
        factors={"embeddings": levels},
        base={**base, "model.name": "linear", "optim.lr": 1e-3},
        quick={"training.epochs": 15},
    )
