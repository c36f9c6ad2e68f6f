"""What a network predicts for each pixel of one sample's images, beside the truth: a picture that evaluations leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float
from torch import Tensor

from common.files import replace_file
from data.sample import Batch
from engine.downstream.depth import DepthConfig, predicted_depth
from launchers.drawing.canvas import RgbImage, captioned, class_colours, enlarge, enlargement, jpeg_bytes, tiled
from launchers.drawing.scenes import depth_view
from launchers.runs.files import EVALUATIONS, PREDICTIONS_FOLDER

_WIDTH_PX = 480
"""Images are enlarged by a whole factor towards this width."""


def draw_predictions(batch: Batch, output: Float[Tensor, "I C H W"], limits: DepthConfig) -> RgbImage:
    """A row for each image of one sample: the image, the truth, the prediction.

    The output is log depth (drawn within the limits) or scores of classes, whichever ground truth the batch has.
    """
    images = batch.need("images", by="a picture of predictions")
    cells = []
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
    return tiled(cells, columns=3)


def write_predictions(folder: Path, name: str, picture: RgbImage) -> Path:
    """Save a picture beside the results, replacing an earlier one of the same name."""
    path = folder / PREDICTIONS_FOLDER / (re.sub(r"[^A-Za-z0-9_.-]+", "-", name) + ".jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, jpeg_bytes(picture))
    return path


def read_predictions(run: Path) -> Mapping[str, RgbImage]:
    """The pictures that evaluations of a run left in its folder and in those of its elements, by title.

    One that cannot be read is left out: it is no number.
    """
    pictures = {}
    for path in sorted(run.glob(f"{PREDICTIONS_FOLDER}/*.jpg")) + sorted(
        run.glob(f"{EVALUATIONS}/*/{PREDICTIONS_FOLDER}/*.jpg")
    ):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is not None:
            pictures[path.stem] = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    return pictures
