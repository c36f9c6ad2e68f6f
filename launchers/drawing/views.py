"""Pictures of one recorded moment: superpixels, LiDAR over the image, bird's-eye view, similarities, feature colours.

Pure functions from arrays to uint8 RGB images, with captions, scales and legends, at a size that a person can read:
small images are enlarged by a whole factor before anything is drawn on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Integer, UInt8

from data.sample import IGNORE_LABEL, Boxes, CameraView, Sample
from data.views.pairs import point_pixel_pairs
from launchers.drawing.canvas import (
    BACKGROUND,
    FOREGROUND,
    UNLABELLED,
    RgbImage,
    blend,
    boundaries,
    captioned,
    class_colours,
    class_palette,
    cross,
    dimmed,
    enlarge,
    enlarged_uv,
    enlargement,
    paint_points,
    put_text,
    tiled,
    turbo,
    with_legend,
    with_scale,
)

CAMERA_WIDTH_PX = 960
"""Images are enlarged up to about this width."""
NEAR_M, FAR_M = 2.0, 60.0
"""Ends of the depth scale."""


# ---- cameras


def superpixel_view(
    image: RgbImage, segments: Integer[np.ndarray, "height width"], target_width: int = CAMERA_WIDTH_PX
) -> RgbImage:
    """Boundaries of the superpixels over the image.

    Args:
        image: RGB.
        segments: id of each pixel; -1 (no superpixel) is a segment of its own here.
        target_width: enlarge up to this width.
    """
    factor = enlargement((image.shape[0], image.shape[1]), target_width)
    view = enlarge(image, factor)
    edges = boundaries(np.kron(segments, np.ones((factor, factor), dtype=segments.dtype)))
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
) -> RgbImage:
    """Points over the darkened image, nearer ones larger and on top.

    Args:
        image: RGB.
        pixels_uv: where the points are seen.
        depth_m: their depth, or their range where depth is not known.
        colours: of the points; by depth from red (near) to blue (far) on a logarithmic scale if None.
        target_width: enlarge up to this width.
    """
    factor = enlargement((image.shape[0], image.shape[1]), target_width)
    view = enlarge(dimmed(image), factor)
    order = np.argsort(-depth_m, kind="stable")
    shown = depth_colours(depth_m) if colours is None else colours
    # Dots cover about a third of the picture however dense the LiDAR, so that the scene stays visible behind them.
    spacing_px = np.sqrt(view.shape[0] * view.shape[1] / max(len(depth_m), 1))
    wanted = np.clip(0.3 * spacing_px, 1.0, 5.0) * np.clip(12.0 / np.maximum(depth_m, 0.1), 0.6, 1.3)
    radius = np.maximum(wanted, 1.0)
    return paint_points(view, enlarged_uv(pixels_uv, factor)[order], shown[order], radius[order])


def depth_colours(depth_m: Float[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 3"]:
    """Red at NEAR_M to blue at FAR_M, logarithmic: half of a street's points lie within 10 m."""
    return turbo(-np.log(np.maximum(depth_m, 1e-3)), -np.log(FAR_M), -np.log(NEAR_M))


def with_depth_scale(view: RgbImage) -> RgbImage:
    """The picture with the colours of some depths below it."""
    marks = np.array([2.0, 5.0, 10.0, 20.0, 40.0, 60.0])
    return with_legend(view, [f"{mark:.0f} m" for mark in marks], depth_colours(marks))


# ---- bird's-eye view


def birds_eye_view(
    points_lidar: Float[np.ndarray, "n 3"],
    colours: UInt8[np.ndarray, "n 3"],
    *,
    range_m: float = 40.0,
    size_px: int = 640,
    boxes: Boxes | None = None,
) -> RgbImage:
    """The sweep from above: x (forward) up, y (left) to the left, sensor in the middle, rings every 10 m (rooms: 1 m).

    Args:
        points_lidar: metres; higher points lie over lower ones.
        colours: RGB of each point.
        range_m: from the middle to each side.
        size_px: of the square picture.
        boxes: outlines to draw, with a line from the centre to the front.
    """
    canvas = np.full((size_px, size_px, 3), BACKGROUND, dtype=np.uint8)
    scale = size_px / (2 * range_m)
    middle = (size_px - 1) / 2
    every = 10.0 if range_m > 12.0 else 1.0
    for ring in np.arange(every, range_m, every):
        centre = (round(middle), round(middle))
        cv2.circle(canvas, centre, round(ring * scale), (58, 61, 70), 1, cv2.LINE_AA)
        put_text(canvas, f"{ring:.0f} m", round(middle) + 3, round(middle - ring * scale) - 3, scale=0.35)
    order = np.argsort(points_lidar[:, 2], kind="stable")
    at = birds_eye_uv(points_lidar, range_m=range_m, size_px=size_px)[order]
    near = np.abs(points_lidar[order, :2]).max(axis=1) <= range_m if len(order) else np.zeros(0, dtype=bool)
    dot = 0.5 if len(order) >= 60_000 else 1.0 if len(order) >= 1500 else 3.0  # a few units should be seen as well
    canvas = paint_points(canvas, at[near], colours[order][near], np.full(int(near.sum()), dot))
    for outline in [] if boxes is None else _footprints(boxes):
        corners = birds_eye_uv(outline, range_m=range_m, size_px=size_px)
        cv2.polylines(canvas, [np.round(corners).astype(np.int32)], False, (255, 255, 255), 1, cv2.LINE_AA)
    u = round(middle)
    cv2.fillConvexPoly(canvas, np.array([[u, u - 7], [u - 5, u + 6], [u + 5, u + 6]], np.int32), FOREGROUND)
    return canvas


def birds_eye_uv(
    points_lidar: Float[np.ndarray, "n 3"], *, range_m: float = 40.0, size_px: int = 640
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


def height_colours(points_lidar: Float[np.ndarray, "n 3"]) -> tuple[UInt8[np.ndarray, "n 3"], float, float]:
    """Colours by z and the two ends of their scale in metres (2nd and 98th percentile of the sweep)."""
    low, high = _percentiles(points_lidar[:, 2])
    return turbo(points_lidar[:, 2], low, high), low, high


def intensity_colours(intensity: Float[np.ndarray, " n"]) -> tuple[UInt8[np.ndarray, "n 3"], float, float]:
    """Colours by return strength and the two ends of their scale."""
    low, high = _percentiles(intensity)
    return turbo(intensity, low, high), low, high


def _percentiles(values: Float[np.ndarray, " n"], share: float = 2.0) -> tuple[float, float]:
    if len(values) == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, [share, 100.0 - share])
    return float(low), float(max(high, low + 1e-6))


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
    *,
    low: float,
    high: float,
    query_uv: tuple[float, float] | None = None,
    target_width: int = CAMERA_WIDTH_PX,
) -> RgbImage:
    """Similarity of one query to every pixel, as colours over the grey image.

    Args:
        image: RGB.
        similarity: of each pixel.
        low: similarity shown blue.
        high: similarity shown red.
        query_uv: where the query itself is seen; None where it is not in this image.
        target_width: enlarge up to this width.
    """
    factor = enlargement((image.shape[0], image.shape[1]), target_width)
    heat = turbo(similarity.ravel().astype(np.float64), low, high).reshape(image.shape)
    view = blend(enlarge(dimmed(image, 0.9), factor), enlarge(heat, factor), 0.6)
    if query_uv is not None:
        u, v = enlarged_uv(np.array([query_uv], dtype=np.float64), factor)[0]
        view = cross(view, (float(u), float(v)), size_px=max(9, view.shape[1] // 50))
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

    Args:
        features: at least one row.

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


def sample_views(sample: Sample, class_names: tuple[str, ...] = ()) -> dict[str, RgbImage]:
    """All pictures of a sample that its contents allow, by name.

    Args:
        sample: as read from shards.
        class_names: of `sample.labels` and of pixels; without them labels are not drawn.

    Returns:
        "cameras" (superpixels and projected LiDAR, one row a camera), "sweep" (bird's-eye views by height, intensity
        and class), "depth" and "classes" where the cameras have ground truth.
    """
    views = {"sweep": _sweep_sheet(sample, class_names)}
    with_image = [c for c, camera in enumerate(sample.cameras) if camera.image is not None]
    if with_image:
        views["cameras"] = _camera_sheet(sample, with_image, class_names)
    depths = [camera for camera in sample.cameras if camera.depth_m is not None]
    if depths:
        maps = [captioned(depth_view(np.asarray(c.depth_m)), f"{c.name}: depth") for c in depths]
        views["depth"] = tiled(maps, columns=3)
    labelled = [camera for camera in sample.cameras if camera.labels is not None]
    if labelled and class_names:
        views["classes"] = tiled([_class_map(camera, class_names) for camera in labelled], columns=3)
    return views


def _camera_sheet(sample: Sample, cameras: list[int], class_names: tuple[str, ...]) -> RgbImage:
    cells = []
    for c in cameras:
        camera = sample.cameras[c]
        assert camera.image is not None
        pairs = point_pixel_pairs(sample, (c,))
        points_cam = sample.points_lidar[pairs.point] @ sample.T_cam_lidar(camera)[:3, :3].T
        depth_m = (points_cam + sample.T_cam_lidar(camera)[:3, 3])[:, 2]
        width = CAMERA_WIDTH_PX if len(cameras) == 1 else 640
        if camera.superpixels is not None:
            count = int(camera.superpixels.max()) + 1
            view = superpixel_view(camera.image, camera.superpixels, width)
            cells.append(captioned(view, f"{camera.name}: {count} superpixels"))
        else:
            enlarged = enlarge(camera.image, enlargement(camera.image_size, width))
            cells.append(captioned(enlarged, f"{camera.name}: no superpixels"))
        view = projection_view(camera.image, pairs.uv, depth_m, target_width=width)
        cells.append(captioned(with_depth_scale(view), f"{camera.name}: {len(pairs)} points by depth"))
        if sample.labels is not None and class_names:
            colours = class_colours(sample.labels[pairs.point], len(class_names))
            view = projection_view(camera.image, pairs.uv, depth_m, colours, target_width=width)
            legend = _class_legend(view, sample.labels[pairs.point], class_names)
            cells.append(captioned(legend, f"{camera.name}: points by class"))
    labelled = sample.labels is not None and bool(class_names)
    # Wide pictures of a single camera stand one below the other.
    return tiled(cells, columns=(1 if len(cameras) == 1 else 3 if labelled else 2))


def _sweep_sheet(sample: Sample, class_names: tuple[str, ...]) -> RgbImage:
    points = sample.points_lidar.astype(np.float64)
    by_height, low, high = height_colours(points)
    cells = [captioned(with_scale(birds_eye_view(points, by_height), low, high, "m"), "height above the sensor")]
    by_intensity, low, high = intensity_colours(sample.intensity.astype(np.float64))
    cells.append(captioned(with_scale(birds_eye_view(points, by_intensity), low, high, ""), "intensity"))
    if sample.labels is not None and class_names:
        view = birds_eye_view(points, class_colours(sample.labels, len(class_names)), boxes=sample.boxes)
        title = "class" if sample.boxes is None else f"class, {len(sample.boxes.classes)} boxes"
        cells.append(captioned(_class_legend(view, sample.labels, class_names), title))
    elif sample.boxes is not None:
        view = birds_eye_view(points, by_height, boxes=sample.boxes)
        cells.append(captioned(view, f"{len(sample.boxes.classes)} boxes"))
    return tiled(cells, columns=3)


def _class_legend(view: RgbImage, labels: UInt8[np.ndarray, " n"], class_names: tuple[str, ...]) -> RgbImage:
    """Only the classes that are there."""
    present = [c for c in np.unique(labels).tolist() if c != IGNORE_LABEL]
    names = [class_names[c] for c in present] + ["unlabelled"] * bool((labels == IGNORE_LABEL).any())
    unlabelled = np.array([UNLABELLED], dtype=np.uint8)
    return with_legend(view, names, np.concatenate([class_palette(len(class_names))[present], unlabelled]))


def _class_map(camera: CameraView, class_names: tuple[str, ...]) -> RgbImage:
    labels = np.asarray(camera.labels)
    view = class_colours(labels.ravel(), len(class_names)).reshape(*labels.shape, 3)
    view = enlarge(view, enlargement(labels.shape, 640), smooth=False)
    return captioned(_class_legend(view, labels.ravel(), class_names), f"{camera.name}: class")


def depth_view(depth_m: Float[np.ndarray, "height width"], width: int = 640) -> RgbImage:
    """A depth map in colours with its scale; unknown depth is background.

    Args:
        depth_m: 0 where unknown.
        width: the map is enlarged by a whole factor towards it.
    """
    known = depth_m.ravel() > 0
    colours = depth_colours(depth_m.ravel().astype(np.float64))
    colours[~known] = BACKGROUND
    view = colours.reshape(*depth_m.shape, 3)
    return with_depth_scale(enlarge(view, enlargement(depth_m.shape, width), smooth=False))
