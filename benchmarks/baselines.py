"""What a network has to beat: the commonest species, and logistic regression on averages of the log-mel bins.

Both are scored in the validation split of the same split as a sweep, recordings with their windows averaged:

    python benchmarks/baselines.py clips.csv --windows 5

Logistic regression sees the mean and the standard deviation over time of the 128 log-mel bins (dB below the
clip's maximum), standardised over the training clips; its strength of regularisation is untuned (C = 1).
"""

from __future__ import annotations

import argparse

import numpy as np

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.inference.baselines import logistic_regression
from birdnet_core.training.metrics import average_windows, score

SHOWN = ("accuracy", "f1_macro", "f1_weighted", "map", "f1_rare", "f1_medium", "f1_common")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("--windows", type=int, default=1, help="windows per recording")
    arguments = parser.parse_args()
    config = TrainConfig().override(
        {
            "features.name": "log_mel",
            "features.standardise": "none",
            "data.windows_per_recording": arguments.windows,
        }
    )
    dataset = Dataset.open(prepare(read_manifest(arguments.manifest), config))
    val = dataset.rows("val")
    counts = dataset.class_counts("train")
    majority = np.tile(counts / counts.sum(), (len(val), 1))

    regression = logistic_regression(config, dataset, ("train",), "val")

    facts = dataset.facts
    print(f"{facts['n_train']} train, {facts['n_val']} val {facts['scored']}, {facts['n_species']} species")
    print(f"{'':24}" + "".join(f"{name:>12}" for name in SHOWN))
    _, first = np.unique(dataset.scored_ids[val], return_index=True)
    truth = dataset.labels[val][first]
    averaged, _ = average_windows(majority, dataset.scored_ids[val])
    for name, probabilities in (("majority class", averaged), ("logistic regression", regression)):
        scores = score(probabilities, truth, dataset.strata())
        print(f"{name:24}" + "".join(f"{scores[s]:12.4f}" for s in SHOWN))


if __name__ == "__main__":
    main()
