"""Pictures of one scene: superpixels, LiDAR over the image, bird's-eye view, similarities, colours of features.

Pure functions from arrays to uint8 RGB images, with captions, scales and legends, at a size that a person can read:
small images are enlarged by a whole factor before anything is drawn on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Integer, UInt8

from data.sample import IGNORE_LABEL, Boxes, CameraView, Sample
from data.views.pairs import point_pixel_pairs
from launchers.drawing import canvas
from launchers.drawing.canvas import RgbImage

CAMERA_WIDTH_PX = 960
"""Images are enlarged up to about this width."""
_SHEET_PX = 1500
"""Large images are shrunk until their sheet is about this wide: shrunk by a browser, its captions could not be read."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How far the pictures of a scene reach: those of all drives alike, those of a room as far as the room.

    Attributes:
        range_m: bird's-eye views, from the middle to each side.
        near_m: red end of the depth scale.
        far_m: blue end.
        marks_m: depths named below pictures.
    """

    range_m: float
    near_m: float
    far_m: float
    marks_m: tuple[float, ...]


STREET = Extent(range_m=40.0, near_m=2.0, far_m=60.0, marks_m=(2.0, 5.0, 10.0, 20.0, 40.0, 60.0))
_ROOM_M = 15.0
"""Scans whose points lie nearer than this, all but one in fifty, are rooms."""


def extent_of(points: Float[np.ndarray, "n 3"]) -> Extent:
    """By the horizontal distances of a scan's points from its origin; STREET for an empty one."""
    far = float(np.percentile(np.abs(points[:, :2]).max(axis=1), 98)) if len(points) else math.inf
    if far > _ROOM_M:
        return STREET
    depth = max(1.0, float(np.ceil(np.percentile(np.linalg.norm(points, axis=1), 98))))
    marks = tuple(mark for mark in (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0) if mark <= depth)
    return Extent(range_m=max(1.0, float(np.ceil(far))), near_m=0.5, far_m=depth, marks_m=marks)


# ---- cameras


def superpixel_view(
    image: RgbImage, segments: Integer[np.ndarray, "height width"], target_width: int = CAMERA_WIDTH_PX
) -> RgbImage:
    """Boundaries of the superpixels over the image; id -1 (no superpixel) is a segment of its own here."""
    factor = canvas.enlargement((image.shape[0], image.shape[1]), target_width)
    view = canvas.enlarge(image, factor)
    edges = canvas.boundaries(np.kron(segments, np.ones((factor, factor), dtype=segments.dtype)))
    if factor == 1:  # one-pixel lines of a large image vanish when a browser shrinks it
        edges = cv2.dilate(edges.astype(np.uint8), np.ones((2, 2), np.uint8)).astype(bool)
    view[edges] = (255, 225, 40)
    return view


def projection_view(
    image: RgbImage,
    pixels_uv: Float[np.ndarray, "n 2"],
    depth_m: Float[np.ndarray, " n"],
    colours: UInt8[np.ndarray, "n 3"] | None = None,
    target_width: int = CAMERA_WIDTH_PX,
    extent: Extent = STREET,
) -> RgbImage:
    """Points over the darkened image, nearer ones larger and on top.

    `depth_m` may be the range where depth is not known. Without colours, points are coloured by depth, from red (near)
    to blue (far) on a logarithmic scale.
    """
    factor = canvas.enlargement((image.shape[0], image.shape[1]), target_width)
    view = canvas.enlarge(canvas.dimmed(image), factor)
    order = np.argsort(-depth_m, kind="stable")
    shown = depth_colours(depth_m, extent) if colours is None else colours
    # Dots cover about a third of the picture however dense the LiDAR, so that the scene stays visible behind them.
    spacing_px = np.sqrt(view.shape[0] * view.shape[1] / max(len(depth_m), 1))
    nearness = np.clip(extent.far_m / 5 / np.maximum(depth_m, 0.1), 0.6, 1.3)
    radius = np.maximum(np.clip(0.3 * spacing_px, 1.0, 5.0) * nearness, 1.0)
    return canvas.paint_points(view, canvas.enlarged_uv(pixels_uv, factor)[order], shown[order], radius[order])


def depth_colours(depth_m: Float[np.ndarray, " n"], extent: Extent = STREET) -> UInt8[np.ndarray, "n 3"]:
    """Red (near) to blue (far), logarithmic: half of a street's points lie within 10 m."""
    # Minus, so that near is red, the high end.
    return canvas.turbo(-np.log(np.maximum(depth_m, 1e-3)), -math.log(extent.far_m), -math.log(extent.near_m))


def with_depth_scale(view: RgbImage, extent: Extent = STREET) -> RgbImage:
    """The picture with the colours of some depths below it."""
    marks = np.array(extent.marks_m)
    return canvas.with_legend(view, [f"{mark:g} m" for mark in marks], depth_colours(marks, extent))


# ---- bird's-eye view


def birds_eye_view(
    points_lidar: Float[np.ndarray, "n 3"],
    colours: UInt8[np.ndarray, "n 3"],
    *,
    range_m: float = STREET.range_m,
    size_px: int = 640,
    boxes: Boxes | None = None,
) -> RgbImage:
    """The sweep from above: x (forward) up, y (left) to the left, sensor in the middle, rings every 10 m (rooms: 1 m).

    Higher points lie over lower ones. `range_m` is from the middle to each side. Boxes are drawn as outlines with a
    line from the centre to the front.
    """
    view = np.full((size_px, size_px, 3), canvas.BACKGROUND, dtype=np.uint8)
    scale, middle = size_px / (2 * range_m), (size_px - 1) / 2
    u = round(middle)
    every = 10.0 if range_m > 12.0 else 1.0
    rings = np.arange(every, range_m, every).tolist()
    for ring in rings:
        cv2.circle(view, (u, u), round(ring * scale), (58, 61, 70), 1, cv2.LINE_AA)
    order = np.argsort(points_lidar[:, 2], kind="stable")
    at = birds_eye_uv(points_lidar, range_m=range_m, size_px=size_px)[order]
    near = np.abs(points_lidar[order, :2]).max(axis=1) <= range_m if len(order) else np.zeros(0, dtype=bool)
    dot = 0.5 if len(order) >= 60_000 else 1.0 if len(order) >= 1500 else 3.0  # a few units should be seen as well
    view = canvas.paint_points(view, at[near], colours[order][near], np.full(int(near.sum()), dot))
    for outline in [] if boxes is None else _footprints(boxes):
        corners = birds_eye_uv(outline, range_m=range_m, size_px=size_px)
        cv2.polylines(view, [np.round(corners).astype(np.int32)], False, (255, 255, 255), 1, cv2.LINE_AA)
    for ring in rings:
        canvas.put_text(view, f"{ring:.0f} m", u + 4, round(middle - ring * scale) - 4, scale=0.4, rim=True)
    # The sensor, pointing forward.
    cv2.fillConvexPoly(view, np.array([[u, u - 7], [u - 5, u + 6], [u + 5, u + 6]], np.int32), canvas.FOREGROUND)
    return view


def birds_eye_uv(
    points_lidar: Float[np.ndarray, "n 3"], *, range_m: float = STREET.range_m, size_px: int = 640
) -> Float[np.ndarray, "n 2"]:
    """Pixel of each point in `birds_eye_view`."""
    scale, middle = size_px / (2 * range_m), (size_px - 1) / 2
    return np.stack([middle - points_lidar[:, 1] * scale, middle - points_lidar[:, 0] * scale], axis=1)


def _footprints(boxes: Boxes) -> list[Float[np.ndarray, "7 3"]]:
    """Closed outline of each box, then from the centre to the middle of its front."""
    outlines = []
    unit = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, 0.0], [0.0, 0.0]])
    for centre, size, yaw in zip(boxes.centers_m, boxes.sizes_m, boxes.yaws, strict=True):
        c, s = np.cos(yaw), np.sin(yaw)
        flat = (unit * size[:2]) @ np.array([[c, s], [-s, c]])
        outlines.append(np.concatenate([flat + centre[:2], np.full((7, 1), centre[2])], axis=1).astype(np.float64))
    return outlines


def spread_colours(values: Float[np.ndarray, " n"]) -> tuple[UInt8[np.ndarray, "n 3"], float, float]:
    """Colours of values and the two ends of their scale: 2nd and 98th percentile, outliers beyond them."""
    low, high = np.percentile(values, [2.0, 98.0]).tolist() if len(values) else (0.0, 1.0)
    high = max(high, low + 1e-6)
    return canvas.turbo(values, low, high), low, high


# ---- similarities


def similarity_to(
    query: Float[np.ndarray, " dim"], features: Float[np.ndarray, "*shape dim"]
) -> Float[np.ndarray, "*shape"]:
    """Cosine of the query and each feature, -1 to 1; 0 for features of length 0."""
    norms = np.linalg.norm(features, axis=-1) * np.linalg.norm(query)
    return np.asarray((features @ query) / np.maximum(norms, 1e-12))


def similarity_view(
    image: RgbImage,
    similarity: Float[np.ndarray, "height width"],
    low: float,
    high: float,
    *,
    query_uv: tuple[float, float] | None = None,
    target_width: int = CAMERA_WIDTH_PX,
) -> RgbImage:
    """Similarity of one query to every pixel, from blue (`low`) to red (`high`) over the grey image.

    A cross marks `query_uv`, where the query itself is seen; None where it is not in this image.
    """
    factor = canvas.enlargement((image.shape[0], image.shape[1]), target_width)
    heat = canvas.turbo(similarity.ravel().astype(np.float64), low, high).reshape(image.shape)
    view = canvas.blend(canvas.enlarge(canvas.dimmed(image, 0.9), factor), canvas.enlarge(heat, factor), 0.6)
    if query_uv is not None:
        u, v = canvas.enlarged_uv(np.array([query_uv], dtype=np.float64), factor)[0]
        view = canvas.cross(view, (float(u), float(v)), size_px=max(9, view.shape[1] // 50))
    return view


# ---- principal components


@dataclass(frozen=True)
class PrincipalColours:
    """The first three principal components of a set of features, as red, green and blue.

    The same map can colour other features of the same space: pixels beside the points that it was fitted to.

    Attributes:
        mean: of the features.
        axes: columns, first component first; zeros where there are fewer than three.
        low: score of each component shown darkest.
        high: score shown brightest.
    """

    mean: Float[np.ndarray, " dim"]
    axes: Float[np.ndarray, "dim 3"]
    low: Float[np.ndarray, " 3"]
    high: Float[np.ndarray, " 3"]

    def colours(self, features: Float[np.ndarray, "*shape dim"]) -> UInt8[np.ndarray, "*shape 3"]:
        """RGB of each feature, never quite black; scores beyond the ends get the ends' colours."""
        scores = (features.astype(np.float64) - self.mean) @ self.axes
        level = (scores - self.low) / np.maximum(self.high - self.low, 1e-12)
        return np.asarray(np.round(40 + np.clip(level, 0.0, 1.0) * 215).astype(np.uint8))


def principal_colours(features: Float[np.ndarray, "n dim"]) -> PrincipalColours:
    """Fit the map to features; the colours do not depend on rotations of feature space nor on the points' order.

    Components are ordered by variance. An eigenvector's sign is arbitrary; it is chosen such that the scores' third
    moment is positive (rare values are bright), so the colours of a network do not flip between pictures.

    Raises:
        ValueError: no rows, or a value that is not finite.
    """
    if len(features) == 0:
        raise ValueError("principal components of 0 features, expected at least 1")
    if not np.isfinite(features).all():
        raise ValueError(
            f"{int((~np.isfinite(features)).any(axis=1).sum())} of {len(features)} features are not finite"
        )
    exact = features.astype(np.float64)
    mean = exact.mean(axis=0)
    variance, vectors = np.linalg.eigh(np.cov(exact.T, bias=True).reshape(exact.shape[1], exact.shape[1]))
    axes = np.zeros((exact.shape[1], 3))
    count = min(3, exact.shape[1])
    axes[:, :count] = vectors[:, ::-1][:, :count]
    # Directions without variance are noise of the solver; coloured, they would be random.
    axes[:, :count] *= variance[::-1][:count] > 1e-12 * max(float(variance[-1]), 1e-30)
    scores = (exact - mean) @ axes
    axes *= np.where((scores**3).sum(axis=0) < 0, -1.0, 1.0)
    low, high = np.percentile((exact - mean) @ axes, [2.0, 98.0], axis=0)
    return PrincipalColours(mean=mean, axes=axes, low=low, high=high)


# ---- one sample of a set


def sample_views(
    sample: Sample, class_names: tuple[str, ...] = (), extent: Extent | None = None
) -> dict[str, RgbImage]:
    """All pictures of a sample that its contents allow, by name.

    Args:
        sample: with what of it is to be drawn.
        class_names: of its labels; without, they are not drawn.
        extent: the same for all samples of a set that are looked at side by side; None: as far as this one reaches.

    Returns:
        "cameras" (superpixels and projected LiDAR, one row a camera), "sweep" (bird's-eye views by height, intensity
        and class), "depth" and "classes" where the cameras have ground truth.
    """
    extent = extent or extent_of(sample.points_lidar.astype(np.float64))
    views = {"sweep": _sweep_sheet(sample, class_names, extent)}
    with_image = [c for c, camera in enumerate(sample.cameras) if camera.image is not None]
    if with_image:
        views["cameras"] = _camera_sheet(sample, with_image, class_names, extent)
    depths = [camera for camera in sample.cameras if camera.depth_m is not None]
    if depths:
        maps = [canvas.captioned(depth_view(np.asarray(c.depth_m), extent=extent), f"{c.name}: depth") for c in depths]
        views["depth"] = canvas.tiled(maps, columns=3)
    labelled = [camera for camera in sample.cameras if camera.labels is not None]
    if labelled and class_names:
        views["classes"] = canvas.tiled([_class_map(camera, class_names) for camera in labelled], columns=3)
    return views


def _camera_sheet(sample: Sample, cameras: list[int], class_names: tuple[str, ...], extent: Extent) -> RgbImage:
    cells = []
    labelled = sample.labels is not None and bool(class_names)
    # Wide pictures of a single camera stand one below the other.
    columns = 1 if len(cameras) == 1 else 3 if labelled else 2
    for c in cameras:
        camera = sample.cameras[c]
        assert camera.image is not None
        pairs = point_pixel_pairs(sample, (c,))
        points_cam = sample.points_lidar[pairs.point] @ sample.T_cam_lidar(camera)[:3, :3].T
        depth_m = (points_cam + sample.T_cam_lidar(camera)[:3, 3])[:, 2]
        width, most = (CAMERA_WIDTH_PX, _SHEET_PX) if len(cameras) == 1 else (640, _SHEET_PX // columns)
        if camera.superpixels is not None:
            count = int(camera.superpixels.max()) + 1
            view = canvas.fit_width(superpixel_view(camera.image, camera.superpixels, width), most)
            cells.append(canvas.captioned(view, f"{camera.name}: {count} superpixels"))
        else:
            enlarged = canvas.enlarge(camera.image, canvas.enlargement(camera.image_size, width))
            cells.append(canvas.captioned(canvas.fit_width(enlarged, most), f"{camera.name}: no superpixels"))
        view = projection_view(camera.image, pairs.uv, depth_m, target_width=width, extent=extent)
        view = canvas.fit_width(view, most)
        cells.append(canvas.captioned(with_depth_scale(view, extent), f"{camera.name}: {len(pairs)} points by depth"))
        if sample.labels is not None and class_names:
            colours = canvas.class_colours(sample.labels[pairs.point], len(class_names))
            view = projection_view(camera.image, pairs.uv, depth_m, colours, width, extent)
            legend = class_legend(canvas.fit_width(view, most), sample.labels[pairs.point], class_names)
            cells.append(canvas.captioned(legend, f"{camera.name}: points by class"))
    return canvas.tiled(cells, columns=columns)


def _sweep_sheet(sample: Sample, class_names: tuple[str, ...], extent: Extent) -> RgbImage:
    points, range_m = sample.points_lidar.astype(np.float64), extent.range_m
    heights, lowest, highest = spread_colours(points[:, 2])
    view = canvas.with_scale(birds_eye_view(points, heights, range_m=range_m), lowest, highest, "m")
    cells = [canvas.captioned(view, "height above the sensor")]
    by_intensity, low, high = spread_colours(sample.intensity.astype(np.float64))
    view = canvas.with_scale(birds_eye_view(points, by_intensity, range_m=range_m), low, high, "")
    cells.append(canvas.captioned(view, "intensity"))
    if sample.labels is not None and class_names:
        colours = canvas.class_colours(sample.labels, len(class_names))
        view = birds_eye_view(points, colours, range_m=range_m, boxes=sample.boxes)
        title = "class" if sample.boxes is None else f"class, {len(sample.boxes.classes)} boxes (white)"
        cells.append(canvas.captioned(class_legend(view, sample.labels, class_names), title))
    elif sample.boxes is not None:
        view = birds_eye_view(points, heights, range_m=range_m, boxes=sample.boxes)
        view = canvas.with_scale(view, lowest, highest, "m")
        cells.append(canvas.captioned(view, f"{len(sample.boxes.classes)} boxes (white) over height"))
    return canvas.tiled(cells, columns=3)


def class_legend(view: RgbImage, labels: UInt8[np.ndarray, " n"], class_names: Sequence[str]) -> RgbImage:
    """Only the classes that are there."""
    present = [c for c in np.unique(labels).tolist() if c != IGNORE_LABEL]
    names = [class_names[c] for c in present] + ["unlabelled"] * bool((labels == IGNORE_LABEL).any())
    colours = [*canvas.class_palette(len(class_names))[present], canvas.UNLABELLED]
    return canvas.with_legend(view, names, np.array(colours, dtype=np.uint8))


def _class_map(camera: CameraView, class_names: tuple[str, ...]) -> RgbImage:
    labels = np.asarray(camera.labels)
    view = canvas.class_colours(labels.ravel(), len(class_names)).reshape(*labels.shape, 3)
    view = canvas.fit_width(canvas.enlarge(view, canvas.enlargement(labels.shape, 640), smooth=False), 640)
    return canvas.captioned(class_legend(view, labels.ravel(), class_names), f"{camera.name}: class")


def depth_view(depth_m: Float[np.ndarray, "height width"], width: int = 640, extent: Extent = STREET) -> RgbImage:
    """A depth map in colours with its scale, brought close to `width`; unknown depth (0) is background."""
    known = depth_m.ravel() > 0
    colours = depth_colours(depth_m.ravel().astype(np.float64), extent)
    colours[~known] = canvas.BACKGROUND
    view = colours.reshape(*depth_m.shape, 3)
    view = canvas.enlarge(view, canvas.enlargement(depth_m.shape, width), smooth=False)
    return with_depth_scale(canvas.fit_width(view, width), extent)
