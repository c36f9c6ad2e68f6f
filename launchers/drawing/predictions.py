"""What a network predicts for the points or pixels of one sample, beside the truth: pictures that evaluations leave."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from common.files import replace_file
from data.sample import IGNORE_LABEL, Batch
from engine.downstream.common import point_labels
from engine.downstream.depth import DepthConfig, predicted_depth
from launchers.drawing.canvas import (
    RgbImage,
    captioned,
    class_colours,
    enlarge,
    enlargement,
    jpeg_bytes,
    tiled,
    with_legend,
)
from launchers.drawing.scenes import birds_eye_view, class_legend, depth_view, extent_of
from launchers.runs.files import PREDICTIONS_FOLDER

_WIDTH_PX = 480
"""Images are enlarged by a whole factor towards this width."""


_SWEEP_PX = 420
"""Width of each of the three views of a sweep."""
_RIGHT, _WRONG = (86, 96, 112), (255, 140, 30)


def draw_sweep_predictions(batch: Batch, predicted: Int[np.ndarray, " N"], class_names: Sequence[str]) -> RgbImage:
    """One sweep from above three times: true classes, predicted ones in the same colours, and where they differ.

    `predicted` has a class for each point of the batch, negative where none was asked for (kNN looks at some voxels of
    a sweep). Those points, and points without a true class, are left out of the last two.
    """
    labels = point_labels(batch).cpu().numpy().astype(np.uint8)
    points, known = batch.points.cpu().numpy().astype(np.float64), (labels != IGNORE_LABEL) & (predicted >= 0)
    range_m = extent_of(points).range_m
    guess = np.where(known, predicted, IGNORE_LABEL).astype(np.uint8)
    wrong = known & (guess != labels)
    differ = np.where(wrong[:, None], np.array(_WRONG), np.array(_RIGHT)).astype(np.uint8)
    right = 100 * float((known & ~wrong).sum()) / max(int(known.sum()), 1)
    views = (
        ("true classes", np.ones_like(known), class_colours(labels, len(class_names))),
        ("predicted classes", known, class_colours(guess, len(class_names))),
        (f"where they differ: {right:.1f} % of {int(known.sum())} right", known, differ),
    )
    cells = [
        captioned(birds_eye_view(points[keep], colours[keep], range_m=range_m, size_px=_SWEEP_PX), title)
        for title, keep, colours in views
    ]
    sheet = class_legend(tiled(cells, columns=3), np.concatenate([labels, guess]), class_names)
    names = ("right", "wrong")
    return captioned(with_legend(sheet, names, np.array([_RIGHT, _WRONG], np.uint8)), f"sweep {batch.keys[0]}")


def draw_predictions(
    batch: Batch, output: Float[Tensor, "I C H W"], limits: DepthConfig, class_names: Sequence[str] = ()
) -> RgbImage:
    """A row for each image of one sample: the image, the truth, the prediction.

    The output is log depth (drawn within the limits) or scores of classes, whichever ground truth the batch has.
    """
    images = batch.need("images", by="a picture of predictions")
    cells = []
    shown: list[np.ndarray] = []
    factor = enlargement((images.shape[-2], images.shape[-1]), _WIDTH_PX)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        cells.append(captioned(enlarge(np.ascontiguousarray(image), factor), f"{batch.keys[0]}, image {number}"))
        if batch.image_depth_m is not None:
            guess = predicted_depth(output[number, 0], low=limits.min_depth_m, high=limits.cap_m).numpy()
            cells += [
                captioned(depth_view(depth, width=_WIDTH_PX), title)
                for depth, title in ((batch.image_depth_m[number].numpy(), "depth"), (guess, "predicted depth"))
            ]
        elif batch.image_labels is not None:
            maps = (batch.image_labels[number].numpy(), output[number].argmax(0).numpy().astype(np.uint8))
            for classes, title in zip(maps, ("classes", "predicted classes"), strict=True):
                colours = class_colours(classes.ravel(), output.shape[1]).reshape(*classes.shape, 3)
                cells.append(captioned(enlarge(colours, factor, smooth=False), title))
                shown.append(classes.ravel())
    sheet = tiled(cells, columns=3)
    return class_legend(sheet, np.concatenate(shown), class_names) if shown and class_names else sheet


def write_predictions(folder: Path, name: str, picture: RgbImage) -> Path:
    """Save a picture beside the results, replacing an earlier one of the same name.

    `name` begins with what all initialisations have in common, so that they stand beside each other in a list.
    """
    path = folder / PREDICTIONS_FOLDER / (re.sub(r"[^A-Za-z0-9_.-]+", "-", name) + ".jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, jpeg_bytes(picture))
    return path


def read_predictions(folders: Sequence[Path], most: int) -> tuple[dict[str, RgbImage], int]:
    """The pictures that evaluations left beside their results, of each protocol one after another.

    Args:
        folders: of results.
        most: so many are read, of all protocols equally many as far as there are.

    Returns:
        Pictures by title, and how many more there are. One that cannot be read is left out: it is no number.
    """
    common = Path(os.path.commonpath(folders)) if folders else Path()
    by_protocol: dict[str, list[tuple[Path, Path]]] = {}
    for folder in sorted(folders):
        for path in sorted(folder.glob(f"{PREDICTIONS_FOLDER}/*.jpg")):
            by_protocol.setdefault(path.name.partition("-")[0], []).append((path, folder.relative_to(common)))
    turns = [place for turn in zip_longest(*by_protocol.values()) for place in turn if place is not None]
    pictures = {}
    for path, where in sorted(turns[:most], key=lambda place: (place[0].name, place[1])):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is not None:
            title = path.stem if where == Path() else f"{path.stem} ({where.as_posix()})"
            pictures[title] = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    return pictures, len(turns[most:])
