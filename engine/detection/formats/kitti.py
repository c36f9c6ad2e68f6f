"""KITTI's label and result files: one text file a frame, one line an object.

A line is: type, truncation, occlusion, alpha, left, top, right, bottom (pixels of the left colour image), height,
width, length, x, y, z of the centre of the bottom face in the rectified frame of camera 0 (x right, y down, z forward),
rotation_y; in results, then the score.

What is read stays in that camera's place, with its axes renamed to x forward, y left, z up: an upright frame, as
metrics want it, without a calibration and without the small tilt between camera and LiDAR.

Source: the readme of KITTI's object development kit (Geiger et al., CVPR 2012).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from common.boxes.image import image_boxes, observation_angles
from common.nearby import nearest
from engine.detection.frames import FoundObjects, TrueObjects
from engine.scores import JudgeError

TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
"""Kinds of labelled objects."""
_DONT_CARE = "DontCare"
_LABEL_NUMBERS, _RESULT_NUMBERS = 14, 15
"""Numbers of a line, behind the type."""


@dataclass(frozen=True, kw_only=True)
class KittiCamera:
    """How a frame's boxes get into its files.

    Attributes:
        K: intrinsics of the left colour camera, pixels.
        T_cam_lidar: LiDAR to that camera.
        T_rect0_lidar: LiDAR to the rectified frame of camera 0, in which KITTI's boxes are; 6 cm from the other.
        image_size: height, width.
    """

    K: Float64[np.ndarray, "3 3"]
    T_cam_lidar: Float64[np.ndarray, "4 4"]
    T_rect0_lidar: Float64[np.ndarray, "4 4"]
    image_size: tuple[int, int]


def read_truth(folder: Path, keys: Sequence[str] | None = None) -> list[TrueObjects]:
    """Labels of a folder such as `training/label_2`.

    Args:
        folder: with one file a frame.
        keys: names of the frames without suffix; None: all that are there.

    Raises:
        JudgeError: a file is missing or a line has another form.
    """
    return [_truth(_file(folder, key, "labels"), key) for key in _keys(folder, keys)]


def read_found(folder: Path, keys: Iterable[str]) -> list[FoundObjects]:
    """Results of a folder, or of its folder `data`, where the development kit has them.

    Args:
        folder: with one file a frame; empty files for frames in which nothing was found.
        keys: names of the frames without suffix.

    Raises:
        JudgeError: a file is missing or a line has another form.
    """
    inner = folder / "data"
    place = inner if inner.is_dir() else folder
    return [_found(_file(place, key, "predictions"), key) for key in keys]


def write_found(
    folder: Path, frames: Iterable[FoundObjects], cameras: Iterable[KittiCamera], *, names: dict[str, str] | None = None
) -> None:
    """One result file a frame. Objects that the image does not show are left out, as KITTI wants it.

    Args:
        folder: made if it is not there.
        frames: boxes in the LiDAR frame.
        cameras: of each frame.
        names: class -> KITTI's name, where it is not the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for frame, camera in zip(frames, cameras, strict=True):
        lines = result_lines(frame, camera, names or {})
        (folder / f"{frame.key}.txt").write_text("".join(line + "\n" for line in lines), encoding="ascii")


def result_lines(frame: FoundObjects, camera: KittiCamera, names: dict[str, str]) -> list[str]:
    """Lines of a result file; arguments as of `write_found`."""
    pixels, alphas = in_image(frame.boxes, camera)
    rows = camera_boxes(frame.boxes, camera.T_rect0_lidar)
    lines = []
    for number in np.flatnonzero(~np.isnan(pixels).any(1)).tolist():
        left, top, right, bottom = pixels[number].tolist()
        height, width, length, x, y, z, rotation_y = rows[number].tolist()
        name = names.get(frame.classes[number], frame.classes[number])
        lines.append(
            f"{name} -1 -1 {alphas[number]:.6f} {left:.4f} {top:.4f} {right:.4f} {bottom:.4f} "
            f"{height:.6f} {width:.6f} {length:.6f} {x:.6f} {y:.6f} {z:.6f} {rotation_y:.6f} {frame.scores[number]:.9g}"
        )
    return lines


def in_image(
    boxes: Float64[np.ndarray, "K 7"], camera: KittiCamera
) -> tuple[Float64[np.ndarray, "K 4"], Float64[np.ndarray, " K"]]:
    """What the metric asks of found boxes beside themselves.

    Args:
        boxes: in the LiDAR frame.
        camera: of their frame.

    Returns:
        Left, top, right, bottom of each in the image, clipped to it, NaN where it is not seen; observation angles.
    """
    tensor, T_cam_lidar = torch.from_numpy(boxes), torch.from_numpy(camera.T_cam_lidar)
    pixels = image_boxes(tensor, torch.from_numpy(camera.K), T_cam_lidar, camera.image_size)
    # The angle belongs to the frame in which x, z and rotation_y are written.
    return pixels.numpy(), observation_angles(tensor, torch.from_numpy(camera.T_rect0_lidar)).numpy()


def camera_boxes(
    boxes: Float64[np.ndarray, "K 7"], T_rect0_lidar: Float64[np.ndarray, "4 4"]
) -> Float64[np.ndarray, "K 7"]:
    """Height, width, length, x, y, z of the bottom face's centre, rotation_y, as KITTI's files have them.

    Args:
        boxes: in the LiDAR frame.
        T_rect0_lidar: LiDAR to the rectified frame of camera 0.
    """
    center = boxes[:, :3] @ T_rect0_lidar[:3, :3].T + T_rect0_lidar[:3, 3]
    forward = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], axis=1)
    heading = forward @ T_rect0_lidar[:3, :3].T
    # At rotation_y = 0 an object points along x; positive turns x towards -z.
    rotation_y = np.arctan2(-heading[:, 2], heading[:, 0])
    center[:, 1] += boxes[:, 5] / 2
    return np.column_stack([boxes[:, [5, 4, 3]], center, rotation_y])


def upright_boxes(rows: Float64[np.ndarray, "K 7"]) -> Float64[np.ndarray, "K 7"]:
    """Boxes at the camera with x forward, y left and z up, of height, width, length, x, y, z, rotation_y.

    Sizes of -1, which results of detectors in the image alone have, become 0: such a box overlaps nothing in space.
    """
    height, width, length, x, y, z, rotation_y = rows.T
    sizes = np.maximum([length, width, height], 0.0)
    heading = np.arctan2(-np.cos(rotation_y), -np.sin(rotation_y))
    return np.column_stack([z, -x, -(y - height / 2), *sizes, heading])


def _keys(folder: Path, keys: Sequence[str] | None) -> list[str]:
    if keys is not None:
        return list(keys)
    found = sorted(path.stem for path in folder.glob("*.txt"))
    if not found:
        raise JudgeError(f"{folder}: no *.txt there; expected KITTI's labels, such as training/label_2")
    return found


def _file(folder: Path, key: str, what: str) -> Path:
    path = folder / f"{key}.txt"
    if not path.is_file():
        empty = "; a frame in which nothing was found needs an empty file" if what == "predictions" else ""
        raise JudgeError(f"frame {key} has no {what}: {path} is missing{empty}")
    return path


def _truth(path: Path, key: str) -> TrueObjects:
    lines = _lines(path, (*TYPES, _DONT_CARE), _LABEL_NUMBERS)
    ignored = [numbers[3:7] for kind, numbers in lines if kind == _DONT_CARE]
    kept = [(kind, numbers) for kind, numbers in lines if kind != _DONT_CARE]
    values = np.array([numbers for _, numbers in kept], dtype=np.float64).reshape(-1, _LABEL_NUMBERS)
    return TrueObjects(
        key=key,
        boxes=upright_boxes(values[:, 7:14]),
        categories=tuple(kind for kind, _ in kept),
        truncations=values[:, 0],
        occlusions=values[:, 1].astype(np.int64),
        alphas=values[:, 2],
        image_boxes_px=values[:, 3:7],
        ignored_px=np.array(ignored, dtype=np.float64).reshape(-1, 4),
    )


def _found(path: Path, key: str) -> FoundObjects:
    lines = _lines(path, TYPES, _RESULT_NUMBERS)
    values = np.array([numbers for _, numbers in lines], dtype=np.float64).reshape(-1, _RESULT_NUMBERS)
    return FoundObjects(
        key=key,
        boxes=upright_boxes(values[:, 7:14]),
        scores=values[:, 14],
        classes=tuple(kind for kind, _ in lines),
        image_boxes_px=values[:, 3:7],
        alphas=values[:, 2],
    )


def _lines(path: Path, types: Sequence[str], count: int) -> list[tuple[str, list[float]]]:
    """Type and numbers of each line that is not empty.

    Raises:
        JudgeError: names the line, what is wrong with it and what was expected.
    """
    known = {name.lower(): name for name in types}
    parsed = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        kind, *words = line.split() or [""]
        if not kind:
            continue
        where = f"{path}, line {number}"
        if kind.lower() not in known:
            raise JudgeError(
                f"{where}: unknown class {kind!r}{nearest(kind, types)}; expected one of {', '.join(types)}"
            )
        if len(words) != count:
            score = " and a score" if count == _RESULT_NUMBERS else ""
            raise JudgeError(f"{where}: {len(words)} numbers behind the class, expected {count}: KITTI's 14{score}")
        parsed.append((known[kind.lower()], [_number(word, where) for word in words]))
    return parsed


def _number(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise JudgeError(f"{where}: {word!r} is no finite number")
    return value
