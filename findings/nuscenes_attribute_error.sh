#!/usr/bin/env bash
# Library: nuscenes-devkit 1.2.0. Seen: 2026-11-30.
# Surprise: the attribute error of the detection benchmark counts boxes without an attribute as right where they come
# first. `cummean` is to leave them out; until the first box that has an attribute it gives 0, the best value there is.
# Why it matters: attr_err is part of NDS. Two detectors that get every attribute wrong have 0.51 and 1.00, by whether
# their surest detections fall on boxes without an attribute (about 0.4 % of the annotations, the kit says).
# Tandem: its NDS is the benchmark's, this rule included (engine/detection/nuscenes_curve.py), so that it equals a
# leaderboard's; in measures of its own, what is left out of a mean is left out of the count as well.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check nuscenes-devkit==1.2.0
"$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_tp
from nuscenes.eval.detection.data_classes import DetectionBox


def car(place, attribute, score=-1.0):
    return DetectionBox(
        sample_token="sample",
        translation=(10.0 * place, 0, 0),
        size=(2, 4, 2),
        rotation=(1, 0, 0, 0),
        velocity=(0, 0),
        detection_name="car",
        detection_score=score,
        attribute_name=attribute,
    )


def attribute_error(true_attributes):
    """Of a detector that finds every car, the first one with most confidence, and always names the wrong attribute."""
    truth, detected = EvalBoxes(), EvalBoxes()
    truth.add_boxes("sample", [car(place, name) for place, name in enumerate(true_attributes)])
    wrong = [car(place, "vehicle.moving", 0.9 - 0.05 * place) for place in range(len(true_attributes))]
    detected.add_boxes("sample", wrong)
    return calc_tp(accumulate(truth, detected, "car", center_distance, 2.0), 0.1, "attr_err")


print("nuscenes-devkit", importlib.metadata.version("nuscenes-devkit"))
print("expected: boxes without an attribute are left out, so the error is 1.00 in either order")
known, unknown = ["vehicle.parked"] * 5, [""] * 5
first, last = attribute_error(unknown + known), attribute_error(known + unknown)
print(f"seen: boxes without an attribute detected first: {first:.2f}; detected last: {last:.2f}")
sys.exit(0 if (round(first, 2), round(last, 2)) == (0.51, 1.0) else "the kit no longer does what this script states")
PYTHON
