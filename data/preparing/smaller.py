"""Samples with smaller images, for sets whose training needs no more pixels: all that is counted in pixels follows."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float

from data.sample import CameraView, Sample
from data.storage.decode import decode_jpeg
from data.views.augment import PixelTransform


def with_smaller_images(sample: Sample, reduction: int) -> Sample:
    """The sample with images of 1/`reduction` of their height and width, each pixel the mean of those that it covers.

    Intrinsics, rectangles of unlabelled objects and 2D boxes are in the new pixels; depth and classes of pixels are
    those of the nearest one. Images that the source has as JPEG are decoded, and encoded anew when they are written.

    Raises:
        DamagedError: a JPEG cannot be decoded.
        ValueError: superpixels have been made already, or a camera has no image.
    """
    if reduction == 1 or not sample.cameras:
        return sample
    places = [_place(camera.image_size, reduction) for camera in sample.cameras]
    boxes = sample.boxes
    if boxes is not None and boxes.image_boxes_px is not None:  # those of the set's first camera
        boxes = dataclasses.replace(boxes, image_boxes_px=_corners(boxes.image_boxes_px, places[0]))
    cameras = tuple(_smaller(camera, place) for camera, place in zip(sample.cameras, places, strict=True))
    return dataclasses.replace(sample, cameras=cameras, boxes=boxes)


def _place(size: tuple[int, int], reduction: int) -> PixelTransform:
    height, width = size
    return PixelTransform(0, 0, height, width, (max(round(height / reduction), 1), max(round(width / reduction), 1)))


def _smaller(camera: CameraView, place: PixelTransform) -> CameraView:
    image = camera.image
    if image is None and camera.jpeg is not None:
        image = decode_jpeg(f"{camera.name}.jpg", camera.jpeg)
    if image is None:
        raise ValueError(f"camera {camera.name!r} has no image to store at a smaller size")
    if camera.superpixels is not None:
        raise ValueError(f"camera {camera.name!r} has superpixels of its image at full size; they are made afterwards")
    size = place.out_size
    return dataclasses.replace(
        camera,
        image_size=size,
        image=np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)),
        jpeg=None,
        K=place.affine @ camera.K,
        ignored_px=None if camera.ignored_px is None else _corners(camera.ignored_px, place),
        depth_m=None if camera.depth_m is None else place.nearest(camera.depth_m),
        labels=None if camera.labels is None else place.nearest(camera.labels),
    )


def _corners(rectangles: Float[np.ndarray, "rects 4"], place: PixelTransform) -> Float[np.ndarray, "rects 4"]:
    """Left, top, right, bottom in the new pixels."""
    return np.asarray(place.uv(rectangles.reshape(-1, 2)).reshape(-1, 4).astype(rectangles.dtype))
