"""What downstream results are measured in: name, unit, which way is better, what it means, and what guessing gives.

Tables, pages and comparisons ask here, so that none of them knows a task. A new metric is one entry of `METRICS`.
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
        meaning: what is counted, one line.
        guess: what a network that has learnt nothing gets, as far as that is known without measuring it.
        higher_is_better: False for errors.
        decimals: digits after the point in tables.
        high: largest value that makes sense; the smallest is 0.
        in_tables: False for figures that stay in results.json and TensorBoard.
    """

    title: str
    unit: str
    meaning: str
    guess: str
    higher_is_better: bool = False
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

    @property
    def explanation(self) -> str:
        """What it is, which way is better and how far that goes, and what guessing gives."""
        better = f"higher is better, up to {self.high:g}" if self.higher_is_better else "lower is better, down to 0"
        return f"{self.meaning} ({better}). Guessing gives: {self.guess}."

    def text(self, mean: float | None, std: float | None = None, *, sign: bool = False) -> str:
        """E.g. "31.2 ± 1.4", or the mean alone where there is one measurement; a dash where there is none."""
        if mean is None:
            return "–"
        number = f"{mean:{'+' if sign else ''}.{self.decimals}f}"
        return number if std is None else f"{number} ± {std:.{self.decimals}f}"

    def difference_text(self, value: float, reference: float, std: float | None = None) -> str:
        """`value` minus `reference`, with its sign, as the difference of the two figures that `text` shows.

        Rounding the exact difference could show +5.1 beside 25.0 and 20.0.
        """
        shown = round(value, self.decimals) - round(reference, self.decimals)
        return self.text(round(shown, self.decimals) + 0.0, std, sign=True)  # + 0.0: no "-0.0"


def _share(title: str, meaning: str, guess: str, *, in_tables: bool = True) -> Metric:
    """In percent, more is better."""
    return Metric(title, "%", meaning, guess, higher_is_better=True, high=100.0, in_tables=in_tables)


_ANY_CONSTANT = "depends on the set; compare with the row of random initialisation"
_RANDOM_TURN = "a random turn about the vertical: 90 deg"
_RANDOM_PIXEL = "a random pixel: a third (wide image) to a half (square image) of the image's width"
_RIGHT_MATCH = "below 5 pixels"
_FEW_PIXELS = "a random pixel: the share of the image that a circle of 5 pixels covers, below 1"
_OF_REGISTERED = " over the registered images (Euler sum) alone"

_ANY_BOX = "boxes at random: about 0"
_ANY_SEGMENT = "objects at random: about 0; a class of stuff that is everywhere: its share of the points"
_PANOPTIC = (
    "mean over the classes of the overlap of matched segments, times the share of segments that match; stuff is one "
    "segment a class and frame"
)
_BY_RECALL = "mean over the classes of the precision, averaged over recall, of boxes that "

METRICS: dict[str, Metric] = {
    "miou": _share(
        "mIoU",
        "mean over the classes of the overlap (intersection / union) of predicted and true points or pixels; a rare "
        "class counts as much as a common one",
        "with K classes, any class at random: at most 100 / (2K - 1); always the commonest: its share / K",
    ),
    "accuracy": _share(
        "accuracy",
        "share of all points or pixels whose class is right; common classes decide it",
        "always the commonest class: its share of the points",
    ),
    "abs_rel": Metric("abs rel", "", "mean of |error| / true depth", _ANY_CONSTANT, decimals=3),
    "sq_rel": Metric("sq rel", "m", "mean of error^2 / true depth; far errors decide it", _ANY_CONSTANT, decimals=3),
    "rmse": Metric(
        "RMSE",
        "m",
        "root of the mean squared error; far points decide it",
        "the best constant: the standard deviation of the depths",
        decimals=3,
    ),
    "rmse_log": Metric(
        "RMSE log",
        "",
        "root of the mean squared error of log depth: 0.1 is about 10 % of the depth, near or far",
        "the best constant: the standard deviation of log depth",
        decimals=3,
    ),
    "log10": Metric(
        "log10", "", "mean of the absolute error of the decimal logarithm of depth", _ANY_CONSTANT, decimals=3
    ),
    "silog": Metric(
        "SILog x 100",
        "",
        "standard deviation of the error of log depth in an image, times 100: blind to a wrong scale of all depths",
        "any constant: 100 times the standard deviation of log depth in an image",
        decimals=2,
    ),
    "delta1": _share("delta < 1.25", "share of pixels whose depth is right within a factor 1.25", _ANY_CONSTANT),
    "delta2": _share("delta < 1.25^2", "the same within a factor 1.56", _ANY_CONSTANT),
    "delta3": _share("delta < 1.25^3", "the same within a factor 1.95", _ANY_CONSTANT),
    "rre_median": Metric(
        "RRE median",
        "deg",
        "median angle between the found and the true rotation of image to sweep; 180 where none was found",
        _RANDOM_TURN,
        decimals=2,
        high=180.0,
    ),
    "rte_median": Metric(
        "RTE median", "m", "median distance between the found and the true position", _ANY_CONSTANT, decimals=2
    ),
    "rre": Metric(
        "RRE",
        "deg",
        "mean of the angle over the images with a pose",
        _RANDOM_TURN,
        decimals=2,
        high=180.0,
        in_tables=False,
    ),
    "rre_euler": Metric(
        "RRE (Euler sum)",
        "deg",
        "mean of the sum of the three Euler angles' errors, as papers have it, over the images with a pose",
        _ANY_CONSTANT,
        decimals=2,
        high=450.0,
        in_tables=False,
    ),
    "rte": Metric(
        "RTE", "m", "mean of the distance over the images with a pose", _ANY_CONSTANT, decimals=2, in_tables=False
    ),
    "rre_registered": Metric(
        "RRE, registered",
        "deg",
        "mean of the angle" + _OF_REGISTERED,
        "below 5 by its definition",
        decimals=2,
        high=180.0,
        in_tables=False,
    ),
    "rre_euler_registered": Metric(
        "RRE (Euler sum), registered",
        "deg",
        "mean of the Euler sum" + _OF_REGISTERED,
        "below 5 by its definition",
        decimals=2,
        high=450.0,
        in_tables=False,
    ),
    "rte_registered": Metric(
        "RTE, registered",
        "m",
        "mean of the distance" + _OF_REGISTERED,
        "below 2 by its definition",
        decimals=2,
        in_tables=False,
    ),
    "recall": _share(
        "registered", "share of images placed within 2 m and 5 degrees of the truth", "a random pose: about 0"
    ),
    "recall_euler": _share(
        "registered (Euler sum)", "the same, with the sum of the Euler angles' errors", "a random pose: about 0"
    ),
    "found": _share(
        "poses found", "share of images for which any pose was found, right or wrong", "says nothing of quality"
    ),
    "match_soft": Metric(
        "soft matching error",
        "px",
        "mean distance in the image between a point's true pixel and the mean of the pixels that resemble it",
        _RANDOM_PIXEL,
    ),
    "match_hard": Metric(
        "matching error",
        "px",
        "mean distance in the image between a point's true and its most similar pixel",
        _RANDOM_PIXEL,
    ),
    "match_soft_kept": Metric(
        "soft matching error, kept", "px", "the same, over the points that the method kept", _RANDOM_PIXEL
    ),
    "match_hard_kept": Metric(
        "matching error, kept", "px", "the same, over the points that the method kept", _RANDOM_PIXEL
    ),
    "match_soft_right": _share("right soft matches", f"share of soft matching errors {_RIGHT_MATCH}", _FEW_PIXELS),
    "match_hard_right": _share("right matches", f"share of matching errors {_RIGHT_MATCH}", _FEW_PIXELS),
    "match_soft_right_kept": _share(
        "right soft matches, kept", "the same, over the points that the method kept", _FEW_PIXELS
    ),
    "match_hard_right_kept": _share(
        "right matches, kept", "the same, over the points that the method kept", _FEW_PIXELS
    ),
    "overlap_precision": _share(
        "overlap precision",
        "of the points said to be seen in the image, the share that is",
        "everything said to be seen: the share of points that an image shows",
        in_tables=False,
    ),
    "overlap_recall": _share(
        "overlap recall",
        "of the points seen in the image, the share said to be",
        "everything said to be seen: 100",
        in_tables=False,
    ),
    # Of detectors: the first headline figure of each benchmark, in percent also where its tool gives a share of 1.
    "detection_kitti": _share("3D AP R40", _BY_RECALL + "overlap the truth, moderate objects", _ANY_BOX),
    "detection_nuscenes": _share(
        "NDS", "average precision, half of it, and five errors of the boxes that were found, the other half", _ANY_BOX
    ),
    "detection_waymo": _share(
        "mAPH LEVEL_2", _BY_RECALL + "overlap the truth, weighted by how right the heading is", _ANY_BOX
    ),
    "detection_once": _share("mAP", _BY_RECALL + "overlap the truth and do not look backwards", _ANY_BOX),
    "detection_indoor": _share("mAP@0.25", _BY_RECALL + "overlap the truth by a quarter, in rooms", _ANY_BOX),
    "detection_argoverse2": _share("CDS", "average precision, less for errors of place, size and turn", _ANY_BOX),
    # Of segmenters, likewise.
    "segmentation_semantic": _share(
        "mIoU",
        "mean over the classes of the overlap of found and true points",
        "always the commonest class: its share / the number of classes",
    ),
    "segmentation_panoptic_semantickitti": _share("PQ", _PANOPTIC, _ANY_SEGMENT),
    "segmentation_panoptic_nuscenes": _share("PQ", _PANOPTIC, _ANY_SEGMENT),
}
"""All metrics by the name that results.json and TensorBoard use."""
