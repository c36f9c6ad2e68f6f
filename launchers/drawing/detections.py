"""Detected boxes beside the labelled ones: from above and over the images, coloured by right, wrong and missed.

Pure functions on numpy arrays. Boxes are x, y, z of the centre, length, width, height (metres) and heading from +x
counter-clockwise about z (radians), in the LiDAR frame.

Letters: N points, K labelled boxes, D detected boxes, E edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from common.boxes.image import EDGES, NEAR_M, box_corners
from data.sample import CameraView
from launchers.drawing import canvas
from launchers.drawing.canvas import RgbImage
from launchers.drawing.scenes import birds_eye_uv, birds_eye_view, extent_of

RIGHT, WRONG, MISSED = (70, 160, 255), (225, 50, 0), (255, 235, 70)
TRUE, NOT_COUNTED = (255, 255, 255), (120, 124, 136)
"""Apart for normal vision and for people who see no red or no green, from each other and from the background."""

_ABOVE_PX, _SHEET_PX = 860, 1500
_MARGIN_M = 3.0
_NEAREST_RANGE_M, _FARTHEST_RANGE_M = 15.0, 80.0

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class MarkedFrame:
    """A frame with what was found in it, and what a benchmark says of that.

    Attributes:
        key: of the sample.
        points: of the sweep.
        truth: labelled boxes of the detector's classes.
        truth_names: class of each.
        missed: labelled boxes that nothing matches.
        found: detected boxes.
        found_names: class of each.
        scores: of each.
        right: detected boxes that match.
        wrong: detected boxes that match nothing. One that is neither does not count, or nobody judged it.
        cameras: with images where they are to be drawn.
        T_cam_lidar: of each camera.
    """

    key: str
    points: Float[np.ndarray, "N 3"]
    truth: Float[np.ndarray, "K 7"]
    truth_names: tuple[str, ...]
    missed: Bool[np.ndarray, " K"]
    found: Float[np.ndarray, "D 7"]
    found_names: tuple[str, ...]
    scores: Float[np.ndarray, " D"]
    right: Bool[np.ndarray, " D"]
    wrong: Bool[np.ndarray, " D"]
    cameras: tuple[CameraView, ...]
    T_cam_lidar: tuple[Float[np.ndarray, "4 4"], ...]

    def legend(self) -> list[tuple[str, Colour]]:
        """How many boxes have which colour."""
        rest = int((~self.right & ~self.wrong).sum())
        entries = [
            (f"right: {int(self.right.sum())}", RIGHT),
            (f"wrong: {int(self.wrong.sum())}", WRONG),
            (f"missed: {int(self.missed.sum())}", MISSED),
            (f"other labelled boxes: {int((~self.missed).sum())}", TRUE),
        ]
        return entries + [(f"found, does not count: {rest}", NOT_COUNTED)] * bool(rest)

    def drawn_boxes(self) -> Iterator[tuple[Float[np.ndarray, " 7"], str, Colour, int]]:
        """Each box with its text, colour and width of line, in the order in which they are drawn."""
        for number, box in enumerate(self.found):
            colour = RIGHT if self.right[number] else WRONG if self.wrong[number] else NOT_COUNTED
            text = f"{self.found_names[number]} {self.scores[number]:.2f}" if self.wrong[number] else ""
            yield box, text, colour, 1 if colour == NOT_COUNTED else 2
        for number, box in enumerate(self.truth):  # thin, over the thick ones, so that both are seen
            missed = bool(self.missed[number])
            text = self.truth_names[number] if missed else ""
            yield box, text, MISSED if missed else TRUE, 2 if missed else 1


def detection_views(frame: MarkedFrame, title: str) -> dict[str, RgbImage]:
    """The frame's pictures: "detections_above", and "detections_over_images" where a camera has an image."""
    views = {"detections_above": _with_title(boxes_from_above(frame), frame, title)}
    with_image = [number for number, camera in enumerate(frame.cameras) if camera.image is not None]
    if with_image:
        columns = min(len(with_image), 3)
        width = _SHEET_PX // columns
        cells = [
            canvas.captioned(boxes_over_image(frame, number, width), frame.cameras[number].name)
            for number in with_image
        ]
        sheet = canvas.tiled(cells, columns)
        views["detections_over_images"] = _with_title(sheet, frame, title)
    return views


def boxes_from_above(frame: MarkedFrame) -> RgbImage:
    """Points in grey, boxes with a line to their front; names beside wrong and missed ones."""
    reach = np.abs(np.concatenate([frame.truth, frame.found])[:, :2])
    range_m = extent_of(frame.points).range_m
    if len(reach):
        range_m = float(np.clip(reach.max() + _MARGIN_M, _NEAREST_RANGE_M, _FARTHEST_RANGE_M))
    grey = np.full((len(frame.points), 3), 104, np.uint8)
    view = birds_eye_view(frame.points, grey, range_m=range_m, size_px=_ABOVE_PX)
    for box, text, colour, width in frame.drawn_boxes():
        bottom = box_corners(torch.from_numpy(box[None].astype(np.float64)))[0, :4].numpy()
        front = bottom[_front(bottom, box)].mean(axis=0)
        lines = [np.concatenate([bottom, bottom[:1]]), np.stack([box[:3], front])]
        at = [birds_eye_uv(line, range_m=range_m, size_px=_ABOVE_PX) for line in lines]
        # In 1/16 px: whole pixels turn small boxes.
        cv2.polylines(view, [np.round(line * 16).astype(np.int32) for line in at], False, colour, width, cv2.LINE_AA, 4)
        if text:
            left, top = at[0].max(axis=0)[0] + 3, at[0].min(axis=0)[1]
            canvas.put_text(view, text, round(left), round(top), scale=0.36, colour=colour, rim=True)
    return view


def _front(bottom: Float[np.ndarray, "4 3"], box: Float[np.ndarray, " 7"]) -> list[int]:
    """The two corners that lie farthest along the heading."""
    along = (bottom[:, :2] - box[:2]) @ np.array([np.cos(box[6]), np.sin(box[6])])
    return [int(corner) for corner in np.argsort(-along, kind="stable")[:2]]


def boxes_over_image(frame: MarkedFrame, number: int, width_px: int) -> RgbImage:
    """The 12 edges of each box over one camera's image, which is brought to about a width first."""
    camera = frame.cameras[number]
    assert camera.image is not None
    view = canvas.fit_width(canvas.enlarge(camera.image, -(-width_px // camera.image_size[1])), width_px)
    scale = view.shape[1] / camera.image_size[1]
    for box, _, colour, width in frame.drawn_boxes():
        lines = (edges_in_image(box, camera.K, frame.T_cam_lidar[number]) + 0.5) * scale - 0.5
        for start, end in np.round(lines).astype(int):
            inside, first, last = cv2.clipLine((0, 0, view.shape[1], view.shape[0]), start, end)
            if inside:
                cv2.line(view, first, last, colour, width, cv2.LINE_AA)
    return view


def edges_in_image(
    box: Float[np.ndarray, " 7"], K: Float[np.ndarray, "3 3"], T_cam_lidar: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "E 2 2"]:
    """Start and end pixel of each edge of a box, of the part in front of the camera; edges behind it are left out."""
    corners = box_corners(torch.from_numpy(box[None].astype(np.float64)))[0].numpy()
    ends = (corners @ T_cam_lidar[:3, :3].T + T_cam_lidar[:3, 3])[np.array(EDGES)]
    ends = ends[(ends[..., 2] >= NEAR_M).any(axis=1)]
    for one, other in ((0, 1), (1, 0)):
        behind = ends[:, one, 2] < NEAR_M
        start, end = ends[behind, one], ends[behind, other]
        share = (NEAR_M - start[:, 2:]) / (end[:, 2:] - start[:, 2:])
        ends[behind, one] = start + share * (end - start)
    pixels = ends @ K.T
    return np.asarray(pixels[..., :2] / pixels[..., 2:])


def _with_title(view: RgbImage, frame: MarkedFrame, title: str) -> RgbImage:
    names, colours = zip(*frame.legend(), strict=True)
    return canvas.captioned(canvas.with_legend(view, names, np.array(colours, np.uint8)), title)
