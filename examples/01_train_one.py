"""Train one config on synthetic birds, without Ray: python examples/01_train_one.py [EPOCHS]"""

import sys

from birdnet_core import Dataset, TrainConfig, prepare, train
from birdnet_core.data.building import default_cache
from birdnet_core.data.manifest import read_manifest
from birdnet_core.demo.synthetic import cached_synthetic_birds

if __name__ == "__main__":  # data is prepared by worker processes, which import this file
    config = TrainConfig().override(
        {
            "model.name": "audio_cnn",
            "loss.name": "focal",
            "loss.gamma": 2.0,
            "training.epochs": int(sys.argv[1]) if len(sys.argv) > 1 else 10,
            "training.batch_size": 16,
            "optim.warmup_epochs": 1,
        }
    )
    manifest = read_manifest(cached_synthetic_birds(default_cache()))
    dataset = Dataset.open(prepare(manifest, config))
    print(f"{dataset.facts['n_train']} recordings to train on, {dataset.facts['n_val']} to validate on")

    session = train(config, dataset, on_epoch=lambda n, m: print(n, f"F1-macro {m['val/f1_macro']:.3f}"))

    print(f"best epoch {session.progress.best_epoch}, {session.n_params:,} parameters")
    for species, f1 in sorted(session.progress.f1_per_species.items(), key=lambda item: -item[1]):
        print(f"{f1:.2f}  {species}  ({dataset.facts['train_counts'][species]} training recordings)")
