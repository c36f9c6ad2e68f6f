"""Files of the `custom` layout: calibration, sweeps and labels. docs/custom_data.md is their description."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped, UInt8

from data.convert.poses import nearest_rotation
from data.convert.raw_files import POSSIBLE_COLUMNS, read_json, read_npy
from data.convert.raw_files import read_sweep as read_sweep_rows
from data.sample import IGNORE_LABEL
from data.storage.damage import DamagedError

COLUMNS = ("x", "y", "z", "intensity")
"""What a sweep's row holds unless the setting says otherwise."""

COLOURS = ("red", "green", "blue")
READ_COLUMNS = (*COLUMNS, "time_s", "elongation", *COLOURS)
"""What is read of a row; it may hold more."""

_NEGATIVE_SHARE = 0.01
"""Intensities below 0 that a sweep whose columns are the stated ones does not have: they are coordinates."""

_DISTORTION_LENGTHS = {"pinhole": (4, 5, 8), "fisheye": (4,)}
"""Model -> how many coefficients it may have."""
_WITHIN = (0.1, 0.9)
"""Share of the width at which the principal point must lie: images may be cropped, but not to another resolution."""
_CENTRED = (0.4, 0.6)
"""Share of width and height at which it lies unless images were cropped. Another resolution moves both shares alike."""
_ALIKE = 0.1
_FAR_M = 100.0
"""Of a sensor from the ego frame's origin: beyond any vehicle, though not beyond a roadside."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LogCamera:
    """One camera of calibration.json.

    Attributes:
        K: intrinsics, pixels; (0, 0) is the centre of the top-left pixel.
        image_size: height, width.
        T_cam_ego: ego to camera, the inverse of what the file gives.
        distortion: of the model; None where images are free of it.
        model: "pinhole" (OpenCV's k1 k2 p1 p2 [k3 [k4 k5 k6]]) or "fisheye" (its k1 k2 k3 k4, of Kannala and Brandt).
        white: the value of 16-bit images that becomes 255; None for 8-bit ones.
    """

    K: Float[np.ndarray, "3 3"]
    image_size: tuple[int, int]
    T_cam_ego: Float[np.ndarray, "4 4"]
    distortion: Float[np.ndarray, " n"] | None
    model: str
    white: float | None

    def undistorted(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """The image as a pinhole camera with the same K sees it; what a fisheye sees beyond its border is lost."""
        if self.distortion is None:
            return image
        if self.model == "fisheye":
            return np.asarray(cv2.fisheye.undistortImage(image, self.K, self.distortion, Knew=self.K))
        return np.asarray(cv2.undistort(image, self.K, self.distortion))


@dataclass(frozen=True, kw_only=True, eq=False)
class LogCalibration:
    """A log's calibration.json.

    Attributes:
        T_ego_lidar: LiDAR to ego.
        intensity_max: the intensity that becomes 1; larger ones are clipped to it. None: the sensor measures none.
        cameras: by name.
    """

    T_ego_lidar: Float[np.ndarray, "4 4"]
    intensity_max: float | None
    cameras: Mapping[str, LogCamera]


def read_calibration(path: Path) -> LogCalibration:
    """A log's calibration.

    Raises:
        DamagedError: the file is missing, an entry is missing, unknown or has another form.
    """
    content = fields_of(str(path), read_json(path), ("T_ego_lidar", "intensity_max", "cameras"), ())
    intensity_max, cameras = content["intensity_max"], content["cameras"]
    if intensity_max is not None and not (_is_number(intensity_max) and 0 < intensity_max <= sys.float_info.max):
        detail = f"{path}: intensity_max is {intensity_max!r}, expected a number above 0, or null for a sensor without"
        raise DamagedError("meta-broken", detail)
    if not isinstance(cameras, dict):
        raise DamagedError("meta-broken", f"{path}: cameras is {cameras!r}, expected names with their calibration")
    return LogCalibration(
        T_ego_lidar=_pose(f"{path}: T_ego_lidar", content["T_ego_lidar"]),
        intensity_max=None if intensity_max is None else float(intensity_max),
        cameras={name: _camera(f"{path}: cameras.{name}", entry) for name, entry in cameras.items()},
    )


def _camera(where: str, entry: Any) -> LogCamera:
    content = fields_of(where, entry, ("K", "image_size", "T_ego_camera"), ("model", "distortion", "image_max"))
    size = content["image_size"]
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise DamagedError("meta-broken", f"{where}.image_size is {size!r}, expected [height, width]")
    K = _matrix(f"{where}.K", content["K"], 3)
    check_intrinsics(f"{where}.K", K, (size[0], size[1]))
    white = content.get("image_max")
    if white is not None and not (_is_number(white) and 255 <= white <= 65535):
        raise DamagedError("meta-broken", f"{where}.image_max is {white!r}, expected 255 to 65535")
    model, distortion = _distortion(where, content)
    return LogCamera(
        K=K,
        image_size=(size[0], size[1]),
        T_cam_ego=np.linalg.inv(_pose(f"{where}.T_ego_camera", content["T_ego_camera"])),
        distortion=distortion,
        model=model,
        white=None if white is None else float(white),
    )


def check_intrinsics(where: str, K: Float[np.ndarray, "3 3"], size: tuple[int, int]) -> None:
    """Refuse a matrix that is none of a camera's, or that is for images of another size (height, width).

    Raises:
        DamagedError: what is wrong.
    """
    if not (K[0, 0] > 0 and K[1, 1] > 0 and K[1, 0] == 0 and np.array_equal(K[2], [0, 0, 1])):
        detail = f"{where} is {K.tolist()}, expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels"
        raise DamagedError("calibration-singular", detail)
    shares = (K[0, 2] / size[1], K[1, 2] / size[0])
    resized = not any(_CENTRED[0] <= share <= _CENTRED[1] for share in shares) and abs(shares[0] - shares[1]) < _ALIKE
    if resized or not _WITHIN[0] <= shares[0] <= _WITHIN[1]:
        stated = f"image_size is [{size[0]}, {size[1]}] (height, width)"
        detail = f"{where} has the principal point ({K[0, 2]:g}, {K[1, 2]:g}), {stated}"
        raise DamagedError("calibration-singular", f"{detail}: K is that of another size; scale it with the images")


def doubts(calibration: LogCalibration) -> list[str]:
    """What looks odd about a calibration, although it may be right."""
    found = ["intensity_max is null, every intensity is 0"] if calibration.intensity_max is None else []
    places = {"T_ego_lidar": calibration.T_ego_lidar}
    for name, camera in calibration.cameras.items():
        places[f"T_ego_camera of {name}"] = np.linalg.inv(camera.T_cam_ego)
        shares = (camera.K[0, 2] / camera.image_size[1], camera.K[1, 2] / camera.image_size[0])
        if not all(_CENTRED[0] <= share <= _CENTRED[1] for share in shares):
            where = f"{shares[0]:.0%} of the width and {shares[1]:.0%} of the height"
            found.append(f"the principal point of {name} is at {where} (cropped images, or K of another size?)")
    for what, T in places.items():
        distance = float(np.abs(T[:3, 3]).max())
        if distance > _FAR_M:
            found.append(f"{what} is {distance:.0f} m away (is it in metres?)")
    return found


def _distortion(where: str, content: Mapping[str, Any]) -> tuple[str, Float[np.ndarray, " n"] | None]:
    """Model and coefficients; four of them mean different things by model, so it has to be named then."""
    model = content.get("model", "pinhole")
    if model not in _DISTORTION_LENGTHS:
        known = " or ".join(_DISTORTION_LENGTHS)
        raise DamagedError("meta-broken", f"{where}.model is {model!r}, expected {known}; undistort others beforehand")
    if "distortion" not in content:
        if model == "fisheye":
            detail = f"{where}: a fisheye has a distortion of 4 numbers; images that are undistorted are of a pinhole"
            raise DamagedError("meta-broken", detail)
        return model, None
    distortion = numbers(f"{where}.distortion", content["distortion"])
    if distortion.shape == (4,) and "model" not in content:
        raise DamagedError(
            "meta-broken",
            f'{where}.distortion has 4 numbers, which are k1 k2 p1 p2 of "model": "pinhole" or k1 k2 k3 k4 of "model": '
            "\"fisheye\" (Kannala-Brandt, OpenCV's fisheye, Kalibr's equidistant): name the model",
        )
    if distortion.ndim != 1 or len(distortion) not in _DISTORTION_LENGTHS[model]:
        expected = " or ".join(map(str, _DISTORTION_LENGTHS[model]))
        detail = f"{where}.distortion of a {model} camera is {distortion.tolist()}, expected {expected} numbers"
        raise DamagedError("meta-broken", detail)
    return model, distortion


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def fields_of(where: str, content: Any, needed: tuple[str, ...], extra: tuple[str, ...]) -> dict[str, Any]:
    """An object of JSON with exactly these names, the needed and perhaps the extra ones.

    Raises:
        DamagedError: it is none.
    """
    if not isinstance(content, dict):
        raise DamagedError("meta-broken", f"{where} is {content!r}, expected an object")
    missing = [name for name in needed if name not in content]
    unknown = sorted(set(content) - {*needed, *extra})
    if missing or unknown:
        wrong = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown"
        optional = f" and perhaps {', '.join(extra)}" if extra else ""
        raise DamagedError("calibration-missing", f"{where}: {wrong}; expected {', '.join(needed)}{optional}")
    return content


def numbers(where: str, value: Any) -> Float[np.ndarray, "*shape"]:
    """A list of finite numbers, or one of such lists.

    Raises:
        DamagedError: it is none.
    """
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DamagedError("meta-broken", f"{where}: {error}") from error
    if not np.isfinite(array).all() or array.ndim == 0:
        raise DamagedError("meta-broken", f"{where} is {value!r}, expected finite numbers")
    return array


def _matrix(where: str, value: Any, side: int) -> Float[np.ndarray, "side side"]:
    array = numbers(where, value)
    if array.shape != (side, side):
        raise DamagedError("meta-broken", f"{where} has shape {array.shape}, expected {side} rows of {side}")
    return array


def _pose(where: str, value: Any) -> Float[np.ndarray, "4 4"]:
    T = _matrix(where, value, 4)
    R = T[:3, :3]
    if not (np.allclose(T[3], (0, 0, 0, 1)) and np.allclose(R @ R.T, np.eye(3), atol=1e-3) and np.linalg.det(R) > 0):
        detail = f"{where} is {T.tolist()}, expected a rotation and a translation in metres, [0, 0, 0, 1] last"
        raise DamagedError("calibration-singular", detail)
    T[:3, :3] = nearest_rotation(R)
    return T


# ---- sweeps and labels
@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """What a file of a sweep holds.

    Attributes:
        rows: of `READ_COLUMNS`, also those that are no measurement; 0 where the file has no such column.
        names: the columns that the file has; others may be named.
    """

    rows: Float32[np.ndarray, "N columns"]
    names: tuple[str, ...]


def read_sweep(path: Path, columns: tuple[str, ...] = COLUMNS) -> Float32[np.ndarray, "N columns"]:
    """Rows of `READ_COLUMNS`, 0 where a file has no such column, of an .npy of floats or a .bin of float32.

    x, y, z in metres, raw intensity, seconds before the sweep's time, elongation of the pulse, colours from 0 to 255.

    Args:
        path: of the file.
        columns: what each row holds, in order; names other than those of `READ_COLUMNS` are left out.

    Raises:
        DamagedError: the file is missing or has another form, or its intensities look like coordinates.
    """
    if path.suffix == ".bin":
        table = _records(path, columns)
    else:
        table = read_npy(path)
        if table.ndim != 2 or table.shape[1] != len(columns) or not np.issubdtype(table.dtype, np.floating):
            expected = f"floats, N rows of {' '.join(columns)}"
            raise DamagedError("array-broken", f"{path}: {table.dtype} {table.shape}, expected {expected}{_HINT}")
    sweep = np.zeros((len(table), len(READ_COLUMNS)), dtype=np.float32)
    for column, name in enumerate(READ_COLUMNS):
        if name in columns:
            sweep[:, column] = table[:, columns.index(name)]
    measured = sweep[has_return(sweep), 3]
    negative = float((measured < 0).mean()) if measured.size else 0.0
    if negative > _NEGATIVE_SHARE:
        detail = f"{path}: {negative:.0%} of the intensities are below 0; is it another column?"
        raise DamagedError("array-broken", f"{detail} Stated are rows of {' '.join(columns)}{_HINT}")
    return sweep


_HINT = " (setting columns=[x,y,z,intensity,...])"


def _records(path: Path, columns: tuple[str, ...]) -> Shaped[np.ndarray, "N columns"]:
    try:
        return read_sweep_rows(path, len(columns))
    except DamagedError as error:
        if error.reason != "array-broken":
            raise
        size, fits = path.stat().st_size, ""
        if size % (4 * len(columns)):
            counts = [str(count) for count in POSSIBLE_COLUMNS if size % (4 * count) == 0]
            fits = f": rows of {' or '.join(counts)} numbers would fit" if counts else ": the file is cut"
        stated = f"stated are rows of {' '.join(columns)}{_HINT}"
        raise DamagedError(error.reason, f"{error.detail}{fits}; {stated}") from error


def has_return(sweep: Float32[np.ndarray, "N columns"]) -> Bool[np.ndarray, " N"]:
    """Rows that are a measurement: all numbers finite and not at the sensor's own place."""
    return np.asarray(np.isfinite(sweep).all(axis=1) & (sweep[:, :3] != 0).any(axis=1))


def read_labels(path: Path, num_points: int, num_classes: int) -> UInt8[np.ndarray, " N"]:
    """Class of each row of the sweep.

    Raises:
        DamagedError: the file is missing, of another length, or a class is unknown.
    """
    labels = read_npy(path)
    if labels.shape != (num_points,) or not np.issubdtype(labels.dtype, np.integer):
        detail = f"{path}: {labels.dtype} {labels.shape}, expected whole numbers, one for each of {num_points} rows"
        raise DamagedError("array-broken", detail)
    wrong = (labels != IGNORE_LABEL) & ((labels < 0) | (labels >= num_classes))
    if wrong.any():
        detail = f"{path}: class {labels[wrong][0]}, expected 0 to {num_classes - 1} or {IGNORE_LABEL}"
        raise DamagedError("array-broken", detail)
    return labels.astype(np.uint8)
