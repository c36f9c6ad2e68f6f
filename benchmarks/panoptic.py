"""The panoptic metric beside nuScenes' development kit, and mean shift beside scikit-learn, on made-up scenes.

    python -m benchmarks.panoptic [--frames 40] [--seed 0] [--devkit PYTHON] [--sklearn PYTHON]

PYTHON is that of an environment of its own with nuscenes-devkit==1.2.0, or with scikit-learn==1.5.2. Without one, the
times of Tandem alone are printed.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import markdown, seconds_of, setting
from engine.scores import MEAN, Scores
from engine.segmentation.frames import SegmentNames
from engine.segmentation.panoptic import NUSCENES, count_segments, score_panoptic
from models.segmentation.mean_shift import mean_shift

_POINTS, _CLASSES, _THINGS, _BANDWIDTH_M = 34_000, 16, 10, 1.2

_DEVKIT = """
import json, sys, time
import numpy as np
from nuscenes.eval.panoptic.panoptic_seg_evaluator import PanopticEval
frames = np.load(sys.argv[1])["frames"]
began = time.process_time()
judge = PanopticEval(17, ignore=[0], min_points=15)
for true_class, true_id, found_class, found_id in frames:
    judge.addBatch(found_class, found_id, true_class, true_id)
pq, sq, rq, pqs, sqs, rqs = judge.getPQ()
iou, ious = judge.getSemIoU()
seconds = time.process_time() - began
values = {"PQ": pqs.tolist()[1:], "SQ": sqs.tolist()[1:], "RQ": rqs.tolist()[1:], "IoU": ious.tolist()[1:]}
values["mean"] = [pq.item(), sq.item(), rq.item(), iou.item()]
json.dump({"seconds": seconds, "values": values}, open(sys.argv[2], "w"))
"""
_SKLEARN = """
import json, sys, time, warnings
import numpy as np
from sklearn.cluster import MeanShift
warnings.simplefilter("ignore")
result = {}
for name, points in np.load(sys.argv[1]).items():
    began = time.process_time()
    labels = MeanShift(bandwidth=1.2, bin_seeding=True).fit(points).labels_
    result[name] = {"seconds": time.process_time() - began, "labels": labels.tolist()}
json.dump(result, open(sys.argv[2], "w"))
"""


def frame(rng: np.random.Generator) -> np.ndarray:
    """True class and id, found class and id of each point; class 0 is ignored among the true, and is never found."""
    of_object = np.sort(rng.integers(0, 120, _POINTS))
    true_class = rng.integers(0, _CLASSES + 1, 120)[of_object]
    found_class = np.where(
        rng.random(_POINTS) < 0.15, rng.integers(1, _CLASSES + 1, _POINTS), np.maximum(true_class, 1)
    )
    moved = np.where(rng.random(120) < 0.3, rng.integers(0, 120, 120), np.arange(120))
    true_id = true_class * 1000 + np.where((true_class > 0) & (true_class <= _THINGS), of_object + 1, 0)
    found_id = found_class * 1000 + np.where(found_class <= _THINGS, moved[of_object] + 1, 0)
    return np.stack([true_class, true_id, found_class, found_id])


def ours(frames: np.ndarray) -> Scores:
    """The metric here."""
    names = SegmentNames(
        classes=tuple(str(n) for n in range(_CLASSES)), things=tuple(str(n) for n in range(_THINGS)), dataset="nuscenes"
    )
    kept = {
        str(number): count_segments(
            *(part[0] - 1, part[1], part[2] - 1, part[3]), num_classes=_CLASSES, min_points=15, key=str(number)
        )
        for number, part in enumerate(frames)
    }
    return score_panoptic(kept, names, NUSCENES)


def largest_difference(scores: Scores, kit: Mapping[str, Any]) -> float:
    """Between any figure of the kit, 0 to 1, and ours."""
    apart = [
        abs(scores.value(str(number), "", metric) / 100 - value)
        for metric in ("PQ", "SQ", "RQ", "IoU")
        for number, value in enumerate(kit[metric])
    ]
    means = zip(("PQ", "SQ", "RQ", "IoU"), kit["mean"], strict=True)
    apart += [abs(scores.value(MEAN, "", metric) / 100 - value) for metric, value in means]
    return float(max(apart))


def clouds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Points of objects whose offsets are right to so many metres."""
    made = {}
    for objects, each, spread_m in ((10, 2000, 0.2), (20, 100, 0.3), (40, 200, 0.8), (60, 300, 2.0), (300, 3, 0.1)):
        middles = rng.uniform(-50, 50, (objects, 3)) * [1, 1, 0.05]
        made[f"{objects} objects of {each} points, {spread_m:g} m"] = np.repeat(middles, each, 0) + rng.normal(
            0, spread_m, (objects * each, 3)
        )
    return made


def elsewhere(python: str, program: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a program in another environment says of some arrays."""
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "given.npz"), Path(folder, "answer.json")
        np.savez(given, **arrays)  # type: ignore[arg-type]
        subprocess.run([python, "-c", program, str(given), str(answer)], check=True, cwd=folder, env={})
        values: dict[str, Any] = json.loads(answer.read_text())
    return values


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    results: list[Any] = []
    return seconds_of(lambda: results.append(call())), results[0]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devkit", metavar="PYTHON", help="of an environment with nuscenes-devkit==1.2.0")
    parser.add_argument("--sklearn", metavar="PYTHON", help="of an environment with scikit-learn==1.5.2")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    frames = np.stack([frame(rng) for _ in range(options.frames)])
    print(setting(options.seed))
    seconds, scores = _timed(lambda: ours(frames))
    rows = [["here", f"{seconds:.2f}", ""]]
    if options.devkit:
        kit = elsewhere(options.devkit, _DEVKIT, {"frames": frames})
        rows.append(
            ["nuscenes-devkit 1.2.0", f"{kit['seconds']:.2f}", f"{largest_difference(scores, kit['values']):.0e}"]
        )
    print(f"\n{options.frames} frames of {_POINTS} points, PQ {scores.headline['PQ']:.2f} %\n")
    print(markdown(("by", "seconds of a core", "largest difference"), rows))
    made = clouds(rng)
    theirs = elsewhere(options.sklearn, _SKLEARN, made) if options.sklearn else {}
    rows = []
    for name, points in made.items():
        seconds, labels = _timed(functools.partial(mean_shift, points, _BANDWIDTH_M))
        other = theirs.get(name)
        differ = "" if other is None else f"{int((labels != np.array(other['labels'])).sum())}"
        rows.append([name, f"{seconds:.2f}", "" if other is None else f"{other['seconds']:.2f}", differ])
    print()
    print(markdown(("cloud", "here, s", "scikit-learn 1.5.2, s", "points of another cluster"), rows))


if __name__ == "__main__":
    main()
