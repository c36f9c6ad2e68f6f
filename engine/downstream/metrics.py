"""What downstream results are measured in: name, unit, and which way is better.

Tables, pages and comparisons ask here, so that none of them knows a task. A new metric is one line of `METRICS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One kind of number.

    Attributes:
        title: for people, without the unit.
        unit: "%", "m", "deg", "px" or "" for a plain number.
        higher_is_better: False for errors.
        decimals: digits after the point in tables.
        high: largest value that makes sense; the smallest is 0.
        in_tables: False for figures that stay in results.json and TensorBoard.
    """

    title: str
    unit: str
    higher_is_better: bool
    decimals: int = 1
    high: float = math.inf
    in_tables: bool = True

    @property
    def heading(self) -> str:
        """Of a column: title and unit."""
        return f"{self.title} {self.unit}".rstrip()

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is: what a value or a difference is multiplied with to compare."""
        return 1 if self.higher_is_better else -1

    def text(self, mean: float | None, std: float | None = None, *, sign: bool = False) -> str:
        """E.g. "31.2 ± 1.4", or the mean alone where there is one measurement; a dash where there is none."""
        if mean is None:
            return "–"
        number = f"{mean:{'+' if sign else ''}.{self.decimals}f}"
        return number if std is None else f"{number} ± {std:.{self.decimals}f}"


METRICS: dict[str, Metric] = {
    "miou": Metric("mIoU", "%", higher_is_better=True, high=100.0),
    "accuracy": Metric("accuracy", "%", higher_is_better=True, high=100.0),
    "abs_rel": Metric("abs rel", "", higher_is_better=False, decimals=3),
    "sq_rel": Metric("sq rel", "m", higher_is_better=False, decimals=3),
    "rmse": Metric("RMSE", "m", higher_is_better=False, decimals=3),
    "rmse_log": Metric("RMSE log", "", higher_is_better=False, decimals=3),
    "silog": Metric("SILog x 100", "", higher_is_better=False, decimals=2),
    "delta1": Metric("delta < 1.25", "%", higher_is_better=True, high=100.0),
    "delta2": Metric("delta < 1.25^2", "%", higher_is_better=True, high=100.0),
    "delta3": Metric("delta < 1.25^3", "%", higher_is_better=True, high=100.0),
    "rre_median": Metric("RRE median", "deg", higher_is_better=False, decimals=2, high=180.0),
    "rte_median": Metric("RTE median", "m", higher_is_better=False, decimals=2),
    "rre": Metric("RRE", "deg", higher_is_better=False, decimals=2, high=180.0, in_tables=False),
    "rre_euler": Metric("RRE (Euler sum)", "deg", higher_is_better=False, decimals=2, high=450.0, in_tables=False),
    "rte": Metric("RTE", "m", higher_is_better=False, decimals=2, in_tables=False),
    "rre_registered": Metric("RRE, registered", "deg", higher_is_better=False, decimals=2, high=180.0, in_tables=False),
    "rre_euler_registered": Metric(
        "RRE (Euler sum), registered", "deg", higher_is_better=False, decimals=2, high=450.0, in_tables=False
    ),
    "rte_registered": Metric("RTE, registered", "m", higher_is_better=False, decimals=2, in_tables=False),
    "recall": Metric("registered", "%", higher_is_better=True, high=100.0),
    "recall_euler": Metric("registered (Euler sum)", "%", higher_is_better=True, high=100.0),
    "found": Metric("poses found", "%", higher_is_better=True, high=100.0),
    "match_soft": Metric("soft matching error", "px", higher_is_better=False),
    "match_hard": Metric("matching error", "px", higher_is_better=False),
    "match_soft_kept": Metric("soft matching error, kept", "px", higher_is_better=False),
    "match_hard_kept": Metric("matching error, kept", "px", higher_is_better=False),
    "overlap_precision": Metric("overlap precision", "%", higher_is_better=True, high=100.0, in_tables=False),
    "overlap_recall": Metric("overlap recall", "%", higher_is_better=True, high=100.0, in_tables=False),
}
"""All metrics by the name that results.json and TensorBoard use."""
