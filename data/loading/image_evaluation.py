"""Images with ground truth in a given order, for downstream tasks on image networks.

Every camera of a sample gives one image. Ground truth follows the image: classes by the nearest stored pixel; stored
depth likewise (it is never averaged: between two surfaces there is none); depth from the LiDAR is projected into the
final image, where the nearest point of a pixel counts. Depth 0 is unknown.

Augmentation never zooms: a depth in metres belongs to a focal length.

Letters: I images, N points, H W pixels of the stored image, h w of the final one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Shaped, UInt8

from common.ranges import at_least, between
from data.geometry import project, transform
from data.loading.sequential import SequentialBatches
from data.order import SampleDraws
from data.sample import IGNORE_LABEL, Batch, Cameras, CameraView, Sample
from data.storage.shard import ShardError
from data.views.augment import PixelTransform
from data.views.colour import ColourConfig, ToneConfig, draw_colour

DepthArea = Literal["all", "garg", "eigen", "nyu"]
"""Part of the stored image whose depth counts. KITTI's LiDAR sees nothing above and little at the sides; NYU's images
have a border without picture."""

_AREAS: dict[DepthArea, tuple[float, float, float, float]] = {
    "all": (0.0, 1.0, 0.0, 1.0),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "nyu": (45 / 480, 471.5 / 480, 41 / 640, 601.5 / 640),
}
"""First and last row, first and last column as shares of height and width; the ends are rounded down.

Source: the evaluation code of Garg et al. (ECCV 2016) and of Eigen et al. (NeurIPS 2014) as the literature hands it on;
of "nyu", rows 45 to 470 and columns 41 to 600 of 480 x 640 pixels, Eigen et al., too.
"""


@dataclass(frozen=True, kw_only=True)
class ImageTruthConfig:
    """How images and their ground truth are brought to one size.

    Attributes:
        size: height, width; None for the size that the network was pre-trained with.
        fit: "resize" the whole image; "crop" the window at the bottom centre (of KITTI 352 x 1216), not resized.
        depth: "stored" with the images; "lidar": the sweep, projected.
        depth_area: part of the stored image whose depth counts in the final measurement; training uses all of it.
        train_window: height, width of a random window that training images are cut to; None for the whole.
        flip: mirror training images left and right with probability one half.
        rotate_deg: training images are turned about their centre by up to this angle either way, before windows are
            cut; what comes from outside is black and without truth.
        colour: of training images.
        tone: of training images, after `colour`.
    """

    size: tuple[int, int] | None = None
    fit: Literal["resize", "crop"] = "resize"
    depth: Literal["stored", "lidar"] = "stored"
    depth_area: DepthArea = "all"
    train_window: tuple[int, int] | None = None
    flip: bool = True
    rotate_deg: float = 0.0
    colour: ColourConfig = field(
        default_factory=lambda: ColourConfig(
            enabled=True,
            jitter_probability=0.5,
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
            hue=0.02,
            grey_probability=0.0,
            blur_probability=0.0,
        )
    )
    tone: ToneConfig = field(default_factory=ToneConfig)

    def __post_init__(self) -> None:
        at_least(self, size=1, train_window=1)
        between(self, "degrees", rotate_deg=(0, 45))
        if self.train_window is not None and self.fit != "crop":
            raise ValueError("train_window needs fit=crop: windows of a resized image are not implemented")


@dataclass(frozen=True, kw_only=True)
class ImageTruthSpec:
    """Which ground truth a task needs."""

    depth: bool = False
    labels: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageTruthBatches(SequentialBatches[tuple[str, list["_LabelledImage"]]]):
    """All images of the given samples in the given order with their ground truth; the cloud part is empty.

    The last batch may be smaller; damaged samples are left out and counted.

    Attributes:
        size: height, width of the result: `config.size`, or what takes its place.
        augment: as `config` says, as a function of (seed, epoch, sample).
    """

    size: tuple[int, int]
    config: ImageTruthConfig
    truth: ImageTruthSpec
    augment: bool = False

    def read(self, index: int, draws: SampleDraws) -> tuple[str, list[_LabelledImage]]:
        """Key and images of one sample.

        Raises:
            SampleError: the sample is damaged.
            ShardError: the set lacks the ground truth, or its images are smaller than the crop.
        """
        sample = self.reader.read(
            index,
            superpixels=False,
            labels=False,
            depth=self.truth.depth and self.config.depth == "stored",
            image_labels=self.truth.labels,
        )
        rng = draws.first()
        return sample.key, [self._image(sample, camera, rng) for camera in sample.cameras]

    def collate(self, parts: Sequence[tuple[str, list[_LabelledImage]]]) -> Batch | None:
        """See `SequentialBatches.collate`."""
        return _collate(parts) if any(images for _, images in parts) else None

    def _image(self, sample: Sample, camera: CameraView, rng: np.random.Generator) -> _LabelledImage:
        place = self._place(sample.key, camera, rng)
        assert camera.image is not None
        colour = draw_colour(rng, self.config.colour)
        turn = self._turn(camera.image_size, rng)
        image = place.image(turn.image(camera.image))
        depth = labels = None
        if self.truth.depth:
            depth = self._depth(sample, camera, place, turn)
        if self.truth.labels:
            if camera.labels is None:
                raise self._lacks("classes of pixels", camera.name)
            labels = place.nearest(turn.nearest(camera.labels, IGNORE_LABEL))
        affine = place.affine @ turn.affine
        return _LabelledImage(
            image=self.config.tone.change(rng, colour(image)) if self.augment else image,
            K=affine @ camera.K,
            T_cam_lidar=sample.T_cam_lidar(camera),
            affine=affine[:2],
            min_depth_m=float(camera.min_depth_m),
            depth=depth,
            labels=labels,
        )

    def _turn(self, size: tuple[int, int], rng: np.random.Generator) -> Turn:
        limit = self.config.rotate_deg
        return Turn(size, float(rng.uniform(-limit, limit)) if self.augment and limit else 0.0)

    def _place(self, key: str, camera: CameraView, rng: np.random.Generator) -> PixelTransform:
        height, width = camera.image_size
        if self.config.fit == "resize":
            top, left, box = 0, 0, (height, width)
        else:
            top, left, box = height - self.size[0], (width - self.size[1]) // 2, self.size
        window = self.config.train_window
        out = self.size
        if self.augment and window is not None:
            down, right = (int(rng.integers(0, max(b - w, 0) + 1)) for b, w in zip(box, window, strict=True))
            top, left, box, out = top + down, left + right, window, window
        if top < 0 or left < 0 or top + box[0] > height or left + box[1] > width:
            raise ShardError(
                f"sample {key}, camera {camera.name}: the image is {height}x{width}, smaller than the crop "
                f"{out[0]}x{out[1]}; set images.size (and images.train_window) to a smaller one, or images.fit=resize"
            )
        mirrored = bool(self.augment and self.config.flip and rng.random() < 0.5)
        return PixelTransform(top, left, *box, out, mirrored)

    def _depth(
        self, sample: Sample, camera: CameraView, place: PixelTransform, turn: Turn
    ) -> Float32[np.ndarray, "h w"]:
        area = "all" if self.augment else self.config.depth_area
        if self.config.depth == "lidar":
            return lidar_depth(sample, camera, place, area, turn)
        if camera.depth_m is None:
            raise self._lacks("depth", camera.name, "; images.depth=lidar takes the sweep's")
        depth = np.where(area_mask(camera.image_size, area), camera.depth_m, 0.0).astype(np.float32)
        return np.asarray(place.nearest(turn.nearest(depth, 0)), dtype=np.float32)

    def _lacks(self, what: str, camera: str, remedy: str = "") -> ShardError:
        manifest = self.reader.manifest
        return ShardError(
            f"{manifest.root} ({manifest.set_name}) has no {what} (camera {camera}), so this task cannot be evaluated "
            f"on it; give another set with data.shards=...{remedy}"
        )


@dataclass(frozen=True)
class Turn:
    """An image turned about its centre, the size kept; depths are along the optical axis and stay as they are.

    Attributes:
        size: height, width.
        degrees: against the clock, as the image is seen.
    """

    size: tuple[int, int]
    degrees: float = 0.0

    @property
    def affine(self) -> Float[np.ndarray, "3 3"]:
        """Of (u, v, 1), pixels' centres at whole numbers."""
        centre = ((self.size[1] - 1) / 2, (self.size[0] - 1) / 2)
        return np.vstack((cv2.getRotationMatrix2D(centre, self.degrees, 1.0), (0.0, 0.0, 1.0)))

    def uv(self, pixels_uv: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "P 2"]:
        """Where pixel coordinates come to lie."""
        return np.asarray(pixels_uv @ self.affine[:2, :2].T + self.affine[:2, 2])

    def image(self, stored: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Bilinear; black from outside."""
        return self._warped(stored, cv2.INTER_LINEAR, 0) if self.degrees else stored

    def nearest(self, plane: Shaped[np.ndarray, "H W"], outside: int) -> Shaped[np.ndarray, "H W"]:
        """A plane that must not be averaged."""
        return self._warped(plane, cv2.INTER_NEAREST, outside) if self.degrees else plane

    def _warped(self, stored: Shaped[np.ndarray, "H W *C"], how: int, outside: int) -> Shaped[np.ndarray, "H W *C"]:
        size = (self.size[1], self.size[0])
        return np.asarray(cv2.warpAffine(stored, self.affine[:2], size, flags=how, borderValue=(outside,) * 3))


@dataclass(frozen=True, kw_only=True)
class _LabelledImage:
    """One final image and its ground truth."""

    image: UInt8[np.ndarray, "h w 3"]
    K: Float[np.ndarray, "3 3"]
    T_cam_lidar: Float[np.ndarray, "4 4"]
    affine: Float[np.ndarray, "2 3"]
    min_depth_m: float
    depth: Float32[np.ndarray, "h w"] | None
    labels: UInt8[np.ndarray, "h w"] | None


def lidar_depth(
    sample: Sample, camera: CameraView, place: PixelTransform, area: DepthArea = "all", turn: Turn | None = None
) -> Float32[np.ndarray, "h w"]:
    """Depth of the sweep's points in the final image: each pixel takes its nearest point, 0 where none falls.

    `turn` and then `place` are how the final image was made, `area` the part of the stored one that counts.
    """
    uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
    ahead = depth > 0
    uv, depth = uv[ahead], depth[ahead]
    stored, final = _pixels(uv), _pixels(place.uv(uv if turn is None else turn.uv(uv)))
    height, width = place.out_size
    inside = _within(stored, camera.image_size) & _within(final, (height, width))
    stored, final, depth = stored[inside], final[inside], depth[inside]
    counts = area_mask(camera.image_size, area)[stored[:, 1], stored[:, 0]]
    nearest = np.full((height, width), np.inf, np.float32)
    np.minimum.at(nearest, (final[counts, 1], final[counts, 0]), depth[counts].astype(np.float32))
    return np.asarray(np.where(np.isfinite(nearest), nearest, 0.0).astype(np.float32))


def area_mask(size: tuple[int, int], area: DepthArea) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which pixels of a stored image of that height and width count."""
    height, width = size
    top, bottom, left, right = _AREAS[area]
    mask = np.zeros(size, dtype=bool)
    mask[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return mask


def _pixels(uv: Float[np.ndarray, "N 2"]) -> Int[np.ndarray, "N 2"]:
    # Clipped before they become integers: far beside the camera they exceed any integer.
    return np.asarray(np.floor(np.clip(uv, -1e6, 1e6) + 0.5).astype(np.int64))


def _within(pixels: Int[np.ndarray, "N 2"], size: tuple[int, int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    u, v = pixels[:, 0], pixels[:, 1]
    return np.asarray((u >= 0) & (v >= 0) & (v < size[0]) & (u < size[1]))


def _collate(parts: Sequence[tuple[str, list[_LabelledImage]]]) -> Batch:
    made = [image for _, images in parts for image in images]
    sample = [number for number, (_, images) in enumerate(parts) for _ in images]
    planes = np.stack([np.stack(cv2.split(one.image)) for one in made])
    depths = [one.depth for one in made if one.depth is not None]
    labels = [one.labels for one in made if one.labels is not None]
    return Batch(
        keys=tuple(key for key, _ in parts),
        points=torch.zeros(0, 3),
        point_sample=torch.zeros(0, dtype=torch.int64),
        point_voxel=torch.zeros(0, dtype=torch.int64),
        voxel_coords=torch.zeros(0, 4, dtype=torch.int32),
        voxel_features=torch.zeros(0, 0),
        T_aug_lidar=torch.eye(4).repeat(len(parts), 1, 1),
        images=torch.from_numpy(planes),
        cameras=Cameras(
            sample=torch.tensor(sample, dtype=torch.int64),
            K=torch.from_numpy(np.stack([one.K for one in made]).astype(np.float32)),
            T_cam_points=torch.from_numpy(np.stack([one.T_cam_lidar for one in made]).astype(np.float32)),
            affine=torch.from_numpy(np.stack([one.affine for one in made]).astype(np.float32)),
            min_depth_m=torch.tensor([one.min_depth_m for one in made]),
        ),
        image_depth_m=torch.from_numpy(np.stack(depths)) if depths else None,
        image_labels=torch.from_numpy(np.stack(labels)) if labels else None,
    )
