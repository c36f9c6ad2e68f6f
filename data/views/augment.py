"""Augmentations that keep point-pixel pairs valid.

Each draw takes its random numbers from a generator that depends on (seed, epoch, sample) alone (`order.SampleDraws`)
and returns what it did, a rigid-and-scale matrix for the cloud or a `PixelTransform` for an image, so that pairs can
follow it and tests can check them by re-projection.

Source: Sautier et al., SLidR (CVPR 2022), section 4 and released code. Deviations: the number of crop attempts is
bounded and ends with the whole image; an image of few pairs does not prevent dropping a cuboid that holds none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from common.ranges import ascending, at_least, at_most, below, between, expect, one_of, positive, share
from data.geometry import rigid, yaw_rotation
from data.runs import Runs
from data.views.colour import ColourConfig
from data.views.elastic import elastic_distortion
from data.views.point_colour import PointColourConfig


@dataclass(frozen=True, kw_only=True)
class PointAugmentConfig:
    """Augmentation of the cloud.

    In this order: elastic distortion; translation, rotation, flips, scaling; noise; cuboid; thinning.

    Attributes:
        enabled: False turns all of it off.
        translate_m: x, y, z are moved by up to this much either way, before the rotation; 0 for none.
        rotate: by a uniform angle about z.
        max_rotation_rad: largest angle either way; pi for the whole circle.
        tilt_rad: before it, by uniform angles of up to this about x and about y; 0 for none. Not for boxes, which stay
            upright.
        flip: negate x with probability one half, and y likewise.
        flip_axes: the axes that `flip` may negate: "y" alone keeps what is in front of the vehicle there.
        scale_range: uniform factor of all coordinates; (1, 1) for none, as in SLidR.
        jitter_m: standard deviation of Gaussian noise on each coordinate; 0 for none. Pixels of pairs stay where the
            recorded point is seen.
        elastic_m: cell and size of each elastic distortion, see `data.views.elastic`; () for none. Pixels of pairs
            stay, as above; not for boxes.
        colour: of points that have colours.
        drop_max_side: largest side of the dropped cuboid as a share of the cloud's extent; 0 for none.
        keep_share: uniform share of points that stay after random thinning; (1, 1) for no thinning.
    """

    enabled: bool = True
    translate_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotate: bool = True
    max_rotation_rad: float = math.pi
    tilt_rad: float = 0.0
    flip: bool = True
    flip_axes: Literal["x", "y", "xy"] = "xy"
    scale_range: tuple[float, float] = (1.0, 1.0)
    jitter_m: float = 0.0
    elastic_m: tuple[tuple[float, float], ...] = ()
    colour: PointColourConfig = field(default_factory=PointColourConfig)
    drop_max_side: float = 0.2
    keep_share: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        ascending(self, "scale_range", "keep_share")
        one_of(self, flip_axes=("x", "y", "xy"))
        at_most(self, keep_share=1)
        share(self, "drop_max_side")
        positive(self, "max_rotation_rad")
        at_most(self, "pi", max_rotation_rad=math.pi)
        between(self, "0 for none", tilt_rad=(0, math.pi / 2))
        sizes = [number for pair in self.elastic_m for number in pair]
        expect(self, "elastic_m", all(0 < number < math.inf for number in sizes), "pairs of metres above 0")
        at_least(self, "metres", translate_m=0, jitter_m=0)
        below(self, "metres", translate_m=math.inf, jitter_m=math.inf)


@dataclass(frozen=True, kw_only=True)
class ImageAugmentConfig:
    """Augmentation of the images, each on its own.

    Attributes:
        enabled: False turns all of it off; images are then resized as a whole.
        crop: random resized crop.
        area_range: area of the crop as a share of the image.
        aspect_range: width by height of the crop, drawn log-uniformly.
        min_pairs_share: a crop also counts as good if it keeps this share of the image's pairs.
        crop_attempts: draws before the whole image is taken.
        flip: mirror left and right with probability one half.
        colour: of the result, see `data.views.colour`.
    """

    enabled: bool = True
    crop: bool = True
    area_range: tuple[float, float] = (0.3, 1.0)
    aspect_range: tuple[float, float] = (14 / 9, 17 / 9)
    min_pairs_share: float = 0.75
    crop_attempts: int = 32
    flip: bool = True
    colour: ColourConfig = field(default_factory=ColourConfig)

    def __post_init__(self) -> None:
        ascending(self, "area_range", "aspect_range")
        at_most(self, area_range=1, min_pairs_share=1)
        positive(self, "min_pairs_share")
        at_least(self, crop_attempts=1)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """All augmentation of a sample.

    Attributes:
        points: of the cloud.
        second_points: of the second cloud, where a method has one (`BatchSpec.second_cloud`); None: as `points`.
        image: of each image, also of second images.
        min_pairs: pairs that an image must keep when a cuboid is dropped and when it is cropped. 1024 suits real
            sweeps of 20,000 points and more; small worlds need less.
    """

    points: PointAugmentConfig = field(default_factory=PointAugmentConfig)
    second_points: PointAugmentConfig | None = None
    image: ImageAugmentConfig = field(default_factory=ImageAugmentConfig)
    min_pairs: int = 1024

    def __post_init__(self) -> None:
        at_least(self, min_pairs=1)


NO_AUGMENTATION = AugmentConfig(
    points=PointAugmentConfig(enabled=False), image=ImageAugmentConfig(enabled=False), min_pairs=1
)
"""Sweeps and images as they were recorded."""


# ---- cloud
def draw_cloud_transform(rng: np.random.Generator, config: PointAugmentConfig) -> Float[np.ndarray, "4 4"]:
    """T_aug_lidar: translation, tilt, rotation about z, flips and scaling as one matrix.

    Source: of the translation before the rotation: Zhang et al., NCLR, eq. 8.
    """
    T = np.eye(4)
    if config.enabled and config.rotate:
        whole_circle = config.max_rotation_rad == math.pi
        low, high = (0.0, 2 * np.pi) if whole_circle else (-config.max_rotation_rad, config.max_rotation_rad)
        T = rigid(yaw_rotation(rng.uniform(low, high)), np.zeros(3))
    if config.enabled and config.tilt_rad:
        T = T @ _tilt(*rng.uniform(-config.tilt_rad, config.tilt_rad, 2))
    if config.enabled and config.flip:
        signs = np.where(rng.random(2) < 0.5, -1.0, 1.0)  # two draws whatever the axes
        signs[[axis not in config.flip_axes for axis in "xy"]] = 1.0
        T = np.diag((signs[0], signs[1], 1.0, 1.0)) @ T
    if config.enabled and config.scale_range != (1.0, 1.0):
        scale = rng.uniform(*config.scale_range)
        T = np.diag((scale, scale, scale, 1.0)) @ T
    if config.enabled and any(config.translate_m):
        limits = np.array(config.translate_m)
        T = T @ rigid(np.eye(3), rng.uniform(-limits, limits))
    return T


def _tilt(about_x: float, about_y: float) -> Float[np.ndarray, "4 4"]:
    """Rotation about x, then about y."""
    turned = (cv2.Rodrigues(np.array(axis))[0] for axis in ((about_x, 0.0, 0.0), (0.0, about_y, 0.0)))
    of_x, of_y = turned
    return rigid(of_y @ of_x, np.zeros(3))


def draw_elastic(
    rng: np.random.Generator, points: Float[np.ndarray, "N 3"], config: PointAugmentConfig
) -> Float[np.ndarray, "N 3"]:
    """The points after the elastic distortions."""
    for cell_m, size_m in config.elastic_m if config.enabled else ():
        points = elastic_distortion(rng, points, cell_m, size_m)
    return points


def draw_jitter(
    rng: np.random.Generator, points: Float[np.ndarray, "N 3"], config: PointAugmentConfig
) -> Float[np.ndarray, "N 3"]:
    """The points with Gaussian noise."""
    if not config.enabled or config.jitter_m == 0:
        return points
    return np.asarray(points + rng.normal(0.0, config.jitter_m, points.shape).astype(points.dtype))


def draw_thinning(
    rng: np.random.Generator, num_points: int, config: PointAugmentConfig
) -> Bool[np.ndarray, " {num_points}"]:
    """Which points stay when a random share of them is kept; at least one does."""
    if not config.enabled or config.keep_share == (1.0, 1.0) or num_points == 0:
        return np.ones(num_points, dtype=bool)
    keep = np.zeros(num_points, dtype=bool)
    count = max(round(rng.uniform(*config.keep_share) * num_points), 1)
    keep[rng.permutation(num_points)[:count]] = True
    return keep


def draw_at_most(rng: np.random.Generator, num_points: int, limit: int | None) -> Bool[np.ndarray, " {num_points}"]:
    """Which points stay when at most `limit` of them do, at random; None: all, and nothing is drawn."""
    if limit is None or num_points <= limit:
        return np.ones(num_points, dtype=bool)
    keep = np.zeros(num_points, dtype=bool)
    keep[rng.permutation(num_points)[:limit]] = True
    return keep


def draw_cuboid(
    rng: np.random.Generator, points: Float[np.ndarray, "N 3"], config: PointAugmentConfig
) -> Bool[np.ndarray, " N"]:
    """Which points lie in a random cuboid, to be dropped.

    The cuboid is centred at a random point; its sides are one uniform share, up to `drop_max_side`, of the extents.
    """
    if not config.enabled or config.drop_max_side == 0 or len(points) == 0:
        return np.zeros(len(points), dtype=bool)
    center = points[rng.integers(len(points))]
    share = rng.uniform(0.0, config.drop_max_side)
    # Axis by axis: numpy's reductions over rows of three cost several times as much.
    inside = np.ones(len(points), dtype=bool)
    for axis in range(3):
        along = points[:, axis]
        inside &= np.abs(along - center[axis]) <= 0.5 * share * (along.max() - along.min())
    return inside


# ---- image
@dataclass(frozen=True)
class PixelTransform:
    """Crop, resize and mirror of an image, for pixels, segments and pixel coordinates alike.

    Attributes:
        top: first row of the crop, pixels of the stored image.
        left: first column.
        height: rows of the crop.
        width: columns.
        out_size: height, width after resizing.
        mirrored: left and right exchanged, after resizing.
    """

    top: int
    left: int
    height: int
    width: int
    out_size: tuple[int, int]
    mirrored: bool = False

    def uv(self, pixels_uv: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "P 2"]:
        """Where pixel coordinates of the stored image come to lie; the pixels' centres are at whole numbers."""
        out_height, out_width = self.out_size
        u = (pixels_uv[:, 0] - self.left + 0.5) * (out_width / self.width) - 0.5
        v = (pixels_uv[:, 1] - self.top + 0.5) * (out_height / self.height) - 0.5
        if self.mirrored:
            u = out_width - 1 - u
        return np.stack((u, v), axis=1)

    @property
    def affine(self) -> Float[np.ndarray, "3 3"]:
        """The same as `uv` as a matrix: of (u, v, 1), and from the left of the intrinsics' matrix."""
        out_height, out_width = self.out_size
        along_u, along_v = out_width / self.width, out_height / self.height
        u, v = (0.5 - self.left) * along_u - 0.5, (0.5 - self.top) * along_v - 0.5
        if self.mirrored:
            along_u, u = -along_u, out_width - 1 - u
        return np.array([[along_u, 0.0, u], [0.0, along_v, v], [0.0, 0.0, 1.0]])

    def inside(self, out_uv: Float[np.ndarray, "P 2"]) -> Bool[np.ndarray, " P"]:
        """Which of `uv`'s results lie between centres of pixels, so that bilinear reading needs no padding."""
        u, v = out_uv[:, 0], out_uv[:, 1]
        return np.asarray((u >= 0) & (u <= self.out_size[1] - 1) & (v >= 0) & (v <= self.out_size[0] - 1))

    @property
    def reduction(self) -> int:
        """How many times smaller (1, 2, 4 or 8) the stored image may be decoded for `image`.

        The crop is then still at least as large as the result, and its borders lie between pixels.
        """
        fits = _reduction((self.height, self.width), self.out_size)
        return math.gcd(fits, self.top, self.left, self.height, self.width)

    def image(self, stored: UInt8[np.ndarray, "H W 3"], reduction: int = 1) -> UInt8[np.ndarray, "h w 3"]:
        """The crop, resized: averaged where it shrinks, bilinear where it grows.

        `stored` is the whole image, decoded at 1/`reduction` of its size, where that is 1 or `self.reduction`.
        """
        top, left, height, width = (side // reduction for side in (self.top, self.left, self.height, self.width))
        cut = stored[top : top + height, left : left + width]
        if (height, width) != self.out_size:
            cut = _resized(cut, self.out_size)
        return np.asarray(cv2.flip(cut, 1) if self.mirrored else cut)

    def source_pixels(self) -> tuple[Int[np.ndarray, " h"], Int[np.ndarray, " w"]]:
        """Row and column of the stored image nearest to each row and column of the result."""
        out_height, out_width = self.out_size
        rows = self.top + ((np.arange(out_height) + 0.5) * self.height / out_height).astype(np.int64)
        columns = self.left + ((np.arange(out_width) + 0.5) * self.width / out_width).astype(np.int64)
        return rows, columns[::-1] if self.mirrored else columns

    def nearest(self, stored: Shaped[np.ndarray, "H W"] | Runs) -> Shaped[np.ndarray, "h w"]:
        """A plane that must not be averaged (superpixels, classes, depth) in the result, by nearest neighbour."""
        rows, columns = self.source_pixels()
        if isinstance(stored, Runs):
            return np.asarray(stored.window(rows, self.left, self.left + self.width).take(columns - self.left, axis=1))
        return np.asarray(stored.take(rows, axis=0).take(columns, axis=1))


def _reduction(size: tuple[int, int], out_size: tuple[int, int]) -> int:
    """Largest power of two, at most 8, by which a crop can be divided and be no smaller than the result."""
    reduction = 8  # libjpeg decodes no smaller
    while reduction > 1 and (size[0] < reduction * out_size[0] or size[1] < reduction * out_size[1]):
        reduction //= 2
    return reduction


def _resized(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resized with half-pixel centres: corner to corner, not centre to centre."""
    height, width = size
    if image.shape[0] < height or image.shape[1] < width:
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))
    import torch  # slow to import, and preparing a set needs the rest of this file alone
    from torch.nn import functional

    # A fifth of the time of OpenCV's area averaging; in this order of the axes nothing is copied on the way.
    planes = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    planes = functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
    return np.asarray(planes[0].permute(1, 2, 0).numpy())


def draw_pixel_transform(
    rng: np.random.Generator,
    pixels_uv: Float[np.ndarray, "P 2"],
    stored_size: tuple[int, int],
    out_size: tuple[int, int],
    config: AugmentConfig,
) -> PixelTransform:
    """Crop and mirror of one image; the first of the drawn crops that keeps enough pairs is taken.

    Crops of at least twice the result's size begin and end at even pixels (at multiples of 4, 8 where they are at
    least four, eight times as large), so that the image need not be decoded at full size: `PixelTransform.reduction`.
    Sizes are height, width; `pixels_uv` are the image's pairs in the stored image, of which a crop must keep at least
    `config.min_pairs`, or the share `config.image.min_pairs_share`.
    """
    if not config.image.enabled:
        return PixelTransform(0, 0, *stored_size, out_size)
    mirrored = bool(config.image.flip and rng.random() < 0.5)
    boxes = _draw_boxes(rng, stored_size, config.image) if config.image.crop else []
    for box in boxes:
        unit = _reduction((box[2], box[3]), out_size)
        top, left, height, width = (side - side % unit for side in box)
        crop = PixelTransform(top, left, height, width, out_size, mirrored)
        num_pairs = np.count_nonzero(crop.inside(crop.uv(pixels_uv)))
        if num_pairs >= config.min_pairs or num_pairs >= config.image.min_pairs_share * len(pixels_uv):
            return crop
    return PixelTransform(0, 0, *stored_size, out_size, mirrored)


def _draw_boxes(
    rng: np.random.Generator, stored_size: tuple[int, int], config: ImageAugmentConfig
) -> list[tuple[int, int, int, int]]:
    """Crops (top, left, height, width) that fit into the image, in the order of drawing."""
    height, width = stored_size
    count = config.crop_attempts
    area = rng.uniform(*config.area_range, count) * (height * width)
    aspect = np.exp(rng.uniform(np.log(config.aspect_range[0]), np.log(config.aspect_range[1]), count))
    heights = np.maximum(np.rint(np.sqrt(area / aspect)), 1).astype(np.int64)
    widths = np.maximum(np.rint(np.sqrt(area * aspect)), 1).astype(np.int64)
    tops = (rng.random(count) * (height - heights + 1)).astype(np.int64)
    lefts = (rng.random(count) * (width - widths + 1)).astype(np.int64)
    fits = (heights <= height) & (widths <= width)
    boxes = np.stack((tops, lefts, heights, widths), axis=1)[fits]
    return [(int(t), int(l), int(h), int(w)) for t, l, h, w in boxes]  # noqa: E741
