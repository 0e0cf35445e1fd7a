"""How many seeds does a difference need? The power of the paired t-test of the reports.

    python benchmarks/seeds.py

Differences are in units of the standard deviation of the paired differences. Of t = mean(d) / (s / sqrt(n)),
power is P(|t| > t(n - 1, 1 - alpha / 2)), with mean(d) normal and s the root of a chi-square over its degrees
of freedom, integrated over the quantiles of s.
Under Holm the smallest of m p values is compared with alpha / m.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats

ALPHA, POWER = 0.05, 0.8


def power(difference: float, n_seeds: int, alpha: float = ALPHA) -> float:
    """Return the probability to find a difference of so many standard deviations."""
    quantiles = (np.arange(4000) + 0.5) / 4000
    spread = stats.chi(n_seeds - 1).ppf(quantiles) / np.sqrt(n_seeds - 1)
    limit, shift = stats.t.ppf(1 - alpha / 2, n_seeds - 1) * spread, np.sqrt(n_seeds) * difference
    return float(np.mean(stats.norm.sf(limit - shift) + stats.norm.cdf(-limit - shift)))


def detectable(n_seeds: int, n_comparisons: int) -> float:
    """Return the difference that is found with probability `POWER` as the first of several under Holm."""
    alpha = ALPHA / n_comparisons
    return float(optimize.brentq(lambda d: power(d, n_seeds, alpha) - POWER, 0.01, 1000))


def main() -> None:
    print("| seeds | 1 comparison | 3 | 11 | found of 1 | of 2 | of 3 |\n|---|---|---|---|---|---|---|")
    for n_seeds in (2, 3, 5, 7, 10, 20):
        sizes = " | ".join(f"{detectable(n_seeds, m):.1f}" for m in (1, 3, 11))
        chances = " | ".join(f"{power(d, n_seeds):.0%}" for d in (1, 2, 3))
        print(f"| {n_seeds} | {sizes} | {chances} |")


if __name__ == "__main__":
    main()
