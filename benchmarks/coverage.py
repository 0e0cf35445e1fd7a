"""How often the interval over recordings holds the F1 of unlimited recordings.

    python benchmarks/coverage.py [N_STUDIES]

By simulation: a network with a known confusion matrix predicts validation splits with fixed numbers of
recordings a species, as a stratified split gives them. It predicts common species well and rare ones badly;
half of its errors are any other species, half a common one.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np

from reports.statistics.predictions import Predictions, f1_intervals

N_RESAMPLES = 500


def long_tail(n_species: int, n: int, decay: float) -> np.ndarray:
    """Return recordings a species [species], most first and at least one."""
    shares = decay ** np.arange(n_species)
    return np.maximum(1, np.round(n * shares / shares.sum())).astype(int)


def confusion(counts: np.ndarray) -> np.ndarray:
    """Return the probability that a recording of species i is predicted as species j [species, species]."""
    n = len(counts)
    right = np.linspace(0.8, 0.2, n)
    others = (np.full((n, n), 1 / n) + counts / counts.sum()) * (1 - np.eye(n))
    return np.diag(right) + (1 - right)[:, None] * others / others.sum(axis=1, keepdims=True)


def size(n_val: int) -> str:
    """Return the row of the table that a species with `n_val` recordings counts in."""
    bounds = ((2, "2 to 4"), (5, "5 to 9"), (10, "10 to 19"), (20, "20 or more"))
    return f"a species with {[name for least, name in bounds if n_val >= least][-1]}"


def main() -> None:
    n_studies = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    splits = {
        "89 species, 1,662 recordings": long_tail(89, 1662, 0.95),
        "89 species, 300 recordings": long_tail(89, 300, 0.95),
        "12 species, 120 recordings": long_tail(12, 120, 0.8),
        "12 species, 37 recordings": long_tail(12, 37, 0.8),
        "89 species of 20 recordings": np.full(89, 20),
        "12 species of 30 recordings": np.full(12, 30),
    }
    by_size: defaultdict[str, list[bool]] = defaultdict(list)
    print("| validation split | all species: held | low by | rare third: held | low by |")
    print("|---|---|---|---|---|")
    for name, counts in splits.items():
        rng = np.random.default_rng(0)
        k = len(counts)
        joint = counts[:, None] * confusion(counts)
        f1 = 2 * np.diag(joint) / (joint.sum(axis=0) + joint.sum(axis=1))
        species = [f"species {i}" for i in range(k)]
        true = dict(zip(species, f1, strict=True)) | {
            "all species": f1.mean(),
            "rare": f1[-(k // 3) :].mean(),
        }
        truth = np.repeat(np.arange(k), counts)
        held, below = defaultdict(list), defaultdict(list)
        for _ in range(n_studies):
            predicted = np.array([rng.choice(k, p=row) for row in confusion(counts)[truth]])
            split = Predictions(species, truth, np.arange(len(truth)), predicted[None])
            found = f1_intervals(split, {"rare": species[-(k // 3) :]}, n_resamples=N_RESAMPLES)
            for row in found.dropna(subset="low").itertuples():
                is_held = row.low <= true[row.name] <= row.high
                if row.kind == "species":
                    by_size[size(row.n_val)].append(is_held)
                else:
                    held[row.name].append(is_held)
                    below[row.name].append(true[row.name] - row.f1)
        cells = [
            cell
            for which in ("all species", "rare")
            for cell in (f"{np.mean(held[which]):.0%}", f"{100 * np.mean(below[which]):.1f}")
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for name, each in sorted(by_size.items()):
        print(f"{name}: {np.mean(each):.0%}")


if __name__ == "__main__":
    main()
