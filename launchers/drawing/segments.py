"""Pictures of a frame's points: found and true classes, found and true objects, and which points are wrong.

Letters: N points, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from data.sample import IGNORE_LABEL, CameraView, Sample
from data.views.pairs import point_pixel_pairs
from engine.segmentation.frames import SegmentedFrame, SegmentNames
from launchers.drawing import canvas
from launchers.drawing.canvas import RgbImage
from launchers.drawing.scenes import birds_eye_view, class_legend, extent_of, projection_view

RIGHT, WRONG = (70, 130, 180), (230, 80, 30)
"""Points whose class is right or not, and unlabelled ones in `canvas.UNLABELLED`."""
_VIEW_PX = 640
_CAMERA_PX = 640
_SHEET_PX = 1500


@dataclass(frozen=True, kw_only=True)
class MarkedPoints:
    """A frame to be drawn.

    Attributes:
        key: of the frame.
        sample: with its points and images.
        frame: what was found, and the truth; -1 for every point of a frame that nobody has labelled.
        names: of the classes.
    """

    key: str
    sample: Sample
    frame: SegmentedFrame
    names: SegmentNames


def segment_views(marked: MarkedPoints, title: str) -> dict[str, RgbImage]:
    """The frame's pictures: "segments_above", and "segments_over_images" where a camera has an image."""
    frame, points = marked.frame, marked.sample.points_lidar.astype(np.float64)
    range_m, names = extent_of(points).range_m, marked.names.classes
    cells = []
    for heading, classes in (("found classes", frame.found_class), ("true classes", frame.true_class)):
        view = birds_eye_view(points, _class_colours(classes, names), range_m=range_m, size_px=_VIEW_PX)
        cells.append(canvas.captioned(class_legend(view, _labels(classes), names), heading))
    if marked.names.things:
        true = np.full(len(points), -1) if frame.true_object is None else frame.true_object
        for heading, classes, objects in (
            ("found objects", frame.found_class, frame.found_object),
            ("true objects", frame.true_class, true),
        ):
            shown = np.where(np.append(marked.names.is_thing, np.False_)[classes], objects, -1)
            view = birds_eye_view(points, _object_colours(shown), range_m=range_m, size_px=_VIEW_PX)
            cells.append(canvas.captioned(view, f"{heading}: {len(np.unique(shown[shown >= 0]))}"))
    views = {"segments_above": canvas.captioned(canvas.tiled(cells, 2), title)}
    over = [_over_image(marked, camera, number) for number, camera in enumerate(marked.sample.cameras)]
    drawn = [cell for cell in over if cell is not None]
    if drawn:
        views["segments_over_images"] = canvas.captioned(canvas.tiled(drawn, min(len(drawn), 3)), title)
    return views


def _over_image(marked: MarkedPoints, camera: CameraView, number: int) -> RgbImage | None:
    """The points that a camera sees: right and wrong ones."""
    if camera.image is None:
        return None
    pairs = point_pixel_pairs(marked.sample, (number,))
    T_cam_lidar = marked.sample.T_cam_lidar(camera)
    depth_m = (marked.sample.points_lidar[pairs.point] @ T_cam_lidar[:3, :3].T + T_cam_lidar[:3, 3])[:, 2]
    true, found = marked.frame.true_class[pairs.point], marked.frame.found_class[pairs.point]
    wrong = (true >= 0) & (true != found)
    colours = np.where(wrong[:, None], WRONG, np.where(true[:, None] < 0, canvas.UNLABELLED, RIGHT)).astype(np.uint8)
    view = canvas.fit_width(projection_view(camera.image, pairs.uv, depth_m, colours, _CAMERA_PX), _SHEET_PX // 3)
    names = (f"wrong class: {int(wrong.sum())}", f"right class: {int((true == found).sum())}")
    return canvas.captioned(canvas.with_legend(view, names, np.array((WRONG, RIGHT), np.uint8)), camera.name)


def _labels(classes: Int64[np.ndarray, " N"]) -> UInt8[np.ndarray, " N"]:
    return np.where(classes < 0, IGNORE_LABEL, classes).astype(np.uint8)


def _class_colours(classes: Int64[np.ndarray, " N"], names: tuple[str, ...]) -> UInt8[np.ndarray, "N 3"]:
    return canvas.class_colours(_labels(classes), len(names))


def _object_colours(objects: Int64[np.ndarray, " N"]) -> UInt8[np.ndarray, "N 3"]:
    """A colour each, of few that are far apart; points of no object are dark."""
    colours = np.full((len(objects), 3), 70, np.uint8)
    known: Bool[np.ndarray, " N"] = objects >= 0
    numbers = np.unique(objects[known], return_inverse=True)[1].reshape(-1)
    colours[known] = canvas.class_palette(24)[numbers % 24]
    return colours
