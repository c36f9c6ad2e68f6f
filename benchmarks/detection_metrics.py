"""Seconds and peak memory of detection metrics on simulated predictions of the size of a validation set.

    python -m benchmarks.detection_metrics kitti                      # 3,769 frames, some 20 found objects each
    python -m benchmarks.detection_metrics kitti --found 500 --frames 1000
    python -m benchmarks.detection_metrics nuscenes --devkit PYTHON   # 6,019 samples, up to 500 found objects each

PYTHON: of an environment with nuscenes-devkit==1.2.0, which judges the same objects: values and time are compared.

Objects stand along a road and are found with noise, twice, or not at all; the rest of what is found is wrong.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks import detection_nuscenes
from benchmarks.common import markdown, seconds_of, setting
from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.judge import judge

KITTI_VAL = 3769
"""Frames of the usual validation split."""
_TYPES = ("Car", "Van", "Pedestrian", "Person_sitting", "Cyclist", "Truck")
_SHARES = (0.6, 0.08, 0.16, 0.01, 0.06, 0.09)
_SIZES = {"Car": (3.9, 1.6, 1.56), "Van": (5.0, 1.9, 2.2), "Truck": (10.0, 2.6, 3.2), "Cyclist": (1.76, 0.6, 1.73)}
_PERSON = (0.8, 0.6, 1.73)
_FOCAL_PX, _IMAGE = 720.0, (375.0, 1242.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one metric."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = p.add_subparsers(dest="metric", required=True)
    kitti = verbs.add_parser("kitti", help="simulated KITTI frames")
    kitti.add_argument("--frames", type=int, default=KITTI_VAL)
    kitti.add_argument("--found", type=int, default=20, help="objects found in a frame, on average")
    kitti.add_argument("--seed", type=int, default=0)
    detection_nuscenes.add_options(verbs.add_parser("nuscenes", help="simulated nuScenes samples"))
    options = p.parse_args(argv)
    measures: Mapping[str, Callable[[argparse.Namespace], None]] = {
        "kitti": measure_kitti,
        "nuscenes": detection_nuscenes.measure,
    }
    measures[options.metric](options)
    return 0


def measure_kitti(options: argparse.Namespace) -> None:
    """All of KITTI's figures in one process."""
    rng = np.random.default_rng(options.seed)
    pairs = [kitti_frame(rng, str(number), options.found) for number in range(options.frames)]
    truth, found = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = []
    seconds = seconds_of(lambda: scores.append(judge("kitti", truth, found)))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(setting(options.seed))
    counts = f"{sum(map(len, truth)):,}", f"{sum(map(len, found)):,}"
    row = ["kitti", f"{options.frames:,}", *counts, f"{seconds:.1f}", f"{more:.0f}"]
    print(markdown(("metric", "frames", "true", "found", "seconds of a core", "peak MB beyond input"), [row]))
    print(", ".join(f"{name} {value:.2f}" for name, value in scores[0].headline.items()))


def kitti_frame(rng: np.random.Generator, key: str, num_found: int) -> tuple[TrueObjects, FoundObjects]:
    """A frame of a few objects, each found with noise, twice or not at all, and of wrong ones."""
    count = rng.poisson(5)
    names = [str(name) for name in rng.choice(_TYPES, count, p=_SHARES)]
    boxes = _boxes(rng, names)
    copies = rng.choice(3, count, p=(0.15, 0.6, 0.25))
    source = np.repeat(np.arange(count), copies)
    near = boxes[source] + rng.normal(0, 0.05, (len(source), 7)) * np.array([2, 2, 1, 1, 1, 1, 1])
    wrong = [str(name) for name in rng.choice(_TYPES, max(0, rng.poisson(num_found) - len(source)), p=_SHARES)]
    classes = [*(names[row] for row in source), *wrong]
    found = np.concatenate([near, _boxes(rng, wrong)])
    scores = np.concatenate([rng.beta(4, 2, len(source)), rng.beta(1.5, 5, len(wrong))])
    true = TrueObjects(
        key=key,
        boxes=boxes,
        categories=tuple(names),
        truncations=np.round(rng.random(count) ** 4, 2),
        occlusions=rng.choice(4, count, p=(0.5, 0.25, 0.2, 0.05)),
        alphas=rng.uniform(-np.pi, np.pi, count),
        image_boxes_px=_in_image(boxes),
        ignored_px=_in_image(_boxes(rng, ["Car"] * int(rng.poisson(1.5)))),
    )
    return true, FoundObjects(
        key=key,
        boxes=found,
        scores=scores,
        classes=tuple({"Van": "Car", "Truck": "Car", "Person_sitting": "Pedestrian"}.get(n, n) for n in classes),
        image_boxes_px=_in_image(found),
        alphas=rng.uniform(-np.pi, np.pi, len(found)),
    )


def _boxes(rng: np.random.Generator, names: Sequence[str]) -> np.ndarray:
    """Upright boxes at the camera, x forward, most of them along the road."""
    count = len(names)
    sizes = np.array([_SIZES.get(name, _PERSON) for name in names], dtype=np.float64).reshape(-1, 3)
    place = np.column_stack([rng.uniform(4, 70, count), rng.uniform(-20, 20, count), sizes[:, 2] / 2 - 1.7])
    heading = rng.choice((0.0, np.pi, np.pi / 2), count) + rng.normal(0, 0.1, count)
    return np.column_stack([place, sizes, heading])


def _in_image(boxes: np.ndarray) -> np.ndarray:
    """Roughly: as wide as the box is long, in the image's bounds."""
    depth = np.maximum(boxes[:, 0], 1.0)
    u, v = _IMAGE[1] / 2 - _FOCAL_PX * boxes[:, 1] / depth, _IMAGE[0] / 2 - _FOCAL_PX * boxes[:, 2] / depth
    half = _FOCAL_PX * boxes[:, [3, 5]] / depth[:, None] / 2
    corners = np.column_stack([u - half[:, 0], v - half[:, 1], u + half[:, 0], v + half[:, 1]])
    return np.asarray(np.clip(corners, 0.0, np.array([_IMAGE[1], _IMAGE[0]] * 2) - 1))


if __name__ == "__main__":
    main()
