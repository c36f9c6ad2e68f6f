"""Depth metrics and loss, one pixel after another."""

from __future__ import annotations

import math
from collections.abc import Sequence


def metrics(predicted: Sequence[float], truth: Sequence[float], low: float, cap: float) -> dict[str, float]:
    """Of one image; predictions are clipped, pixels outside of low to cap are left out."""
    pairs = [(min(max(p, low), cap), t) for p, t in zip(predicted, truth, strict=True) if low < t < cap]
    n = len(pairs)
    logs = [math.log(p) - math.log(t) for p, t in pairs]
    variance = sum(d * d for d in logs) / n - (sum(logs) / n) ** 2
    return {
        "abs_rel": sum(abs(p - t) / t for p, t in pairs) / n,
        "sq_rel": sum((p - t) ** 2 / t for p, t in pairs) / n,
        "rmse": math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
        "rmse_log": math.sqrt(sum(d * d for d in logs) / n),
        "log10": sum(abs(math.log10(p) - math.log10(t)) for p, t in pairs) / n,
        "silog": 100 * math.sqrt(variance),
        **{f"delta{k}": 100 * sum(max(p / t, t / p) < 1.25**k for p, t in pairs) / n for k in (1, 2, 3)},
    }


def silog(predicted_log: Sequence[float], truth: Sequence[float], scale_invariance: float) -> float:
    """Of one image with known depth everywhere: eq. 4 of Eigen et al. 2014 by its double sum.

    1/n sum_i d_i^2 - lambda/n^2 sum_i sum_j d_i d_j
    """
    d = [p - math.log(t) for p, t in zip(predicted_log, truth, strict=True)]
    n = len(d)
    return sum(a * a for a in d) / n - scale_invariance / n**2 * sum(a * b for a in d for b in d)


def root_silog(predicted: Sequence[float], truth: Sequence[float]) -> float:
    """10 sqrt(Var(g) + 0.15 mean(g)^2), g = ln prediction - ln truth, as papers print it."""
    g = [math.log(p) - math.log(t) for p, t in zip(predicted, truth, strict=True)]
    mean = sum(g) / len(g)
    variance = sum((value - mean) ** 2 for value in g) / len(g)
    return 10 * math.sqrt(variance + 0.15 * mean**2)
