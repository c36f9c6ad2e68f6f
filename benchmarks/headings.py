"""Whether a detector knows how objects stand and which way they head, apart from how well it finds them.

    python -m benchmarks.headings RUN [judge.split=train] [judge.limit=40]

Found objects of a checkpoint are matched with true ones of their class within 2 m, best scores first. Of the matches of
a class: share whose heading is within 30 degrees of the true axis, either way round (of random ones a third), and the
share of those that are the right way round (of random ones half). nuScenes' AOE counts a heading that is the wrong
way round with pi, so that a detector that knows every axis and guesses the ends has an AOE of pi / 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from benchmarks.common import markdown, setting
from benchmarks.found_objects import found_by
from launchers.evaluation.detections import JudgedFrame

REACH_M = 2.0
NEAR_RAD = np.pi / 6
HEADER = (
    "class",
    "matches",
    "apart, median m",
    "axis within 30 degrees",
    "right way round, of those",
    "AOE of all, rad",
)


def main() -> None:
    """Read the command line, detect, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of tandem finetune")
    parser.add_argument("overrides", nargs="*", help="of the section judge")
    args = parser.parse_args()
    config, judged, frames = found_by(args.run, args.overrides)
    print(f"{setting(config.seed)}, {args.run}, split {config.judge.split}, {len(frames)} frames")
    numbers = {name: judged.manifest.class_names.index(name) for name in config.model.classes}
    print(markdown(HEADER, [_row(name, number, own, frames) for own, (name, number) in enumerate(numbers.items())]))


def _row(name: str, number: int, own: int, frames: Sequence[JudgedFrame]) -> list[str]:
    """A class: its number in the set and its own in the detector."""
    pairs = np.array([pair for frame in frames for pair in _matches(frame, number, own)]).reshape(-1, 2)
    if len(pairs) == 0:
        return [name, "0", "–", "–", "–", "–"]
    whole = np.abs(np.remainder(pairs[:, 1] + np.pi, 2 * np.pi) - np.pi)
    axis = np.minimum(whole, np.pi - whole)
    near = axis < NEAR_RAD
    right = f"{(whole[near] < np.pi / 2).mean():.2f}" if near.any() else "–"
    return [name, str(len(pairs)), f"{np.median(pairs[:, 0]):.2f}", f"{near.mean():.2f}", right, f"{whole.mean():.2f}"]


def _matches(frame: JudgedFrame, number: int, own: int) -> Iterator[tuple[float, float]]:
    """Distance and difference of headings of each match of a class."""
    boxes, found = frame.truth.boxes, frame.found
    if boxes is None:
        return
    rows = np.flatnonzero(boxes.classes == number)
    free = np.ones(len(rows), dtype=np.bool_)
    for here in np.argsort(-found.scores, kind="stable"):
        if found.classes[here] != own or not free.any():
            continue
        apart: Float64[np.ndarray, " n"] = np.linalg.norm(boxes.centers_m[rows, :2] - found.boxes[here, :2], axis=1)
        nearest = int(np.argmin(np.where(free, apart, np.inf)))
        if apart[nearest] < REACH_M:
            free[nearest] = False
            yield float(apart[nearest]), float(found.boxes[here, 6] - boxes.yaws[rows[nearest]])


if __name__ == "__main__":
    main()
