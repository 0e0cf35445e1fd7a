"""Cells of gamma x network, for the tests of levels and of their figure."""

import numpy as np

from reports import load
from reports.statistics.analysis import results
from reports.statistics.levels import level_means

GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.0, 5.0]
NETWORKS = ["small", "big"]
METRIC = "val/f1_macro"
FACTORS = {"loss.gamma": GAMMAS, "model.name": NETWORKS}


def scored(**metrics):
    return {"status": "completed", "metrics": {f"val/{name}": float(v) for name, v in metrics.items()}}


def of_gamma(slope=0.0, bend=0.0, *, rare=0.0, n_repeats=4, networks=NETWORKS, noise=0.004, seed=1):
    """Return cells of gamma x network: a parabola in gamma, and a level of its own for each seed."""
    rng = np.random.default_rng(seed)
    of_seed = rng.normal(0, 0.05, n_repeats)
    out = []
    for gamma in GAMMAS:
        for name in networks:
            endings = {}
            for i in range(n_repeats):
                e = noise * rng.normal(size=3)
                macro = 0.4 + slope * gamma + bend * gamma**2 + of_seed[i] + e[0]
                endings[i] = scored(
                    f1_macro=macro, f1_rare=0.2 + rare * gamma + of_seed[i] + e[1], f1_common=0.6 + e[2]
                )
            out.append(({"loss.gamma": gamma, "model.name": name}, endings))
    return out


def means_of(path):
    runs = load([path])
    _, cells, _ = results(runs, runs.studies[0])
    return level_means(cells, runs.studies[0])
