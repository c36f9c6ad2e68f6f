"""What KITTI's sets have in common: calibration text, sweeps, times, and the chain of frames.

Frames: `velo` is our `lidar`; `imu` (x forward, y left, z up, at the GPS/IMU unit) is our `ego`; `rect0` is the
rectified frame of camera 0, in which KITTI's projection matrices and 3D boxes live.

Source: Geiger et al., Vision meets Robotics: The KITTI Dataset (IJRR 2013), section IV.
"""

from __future__ import annotations

import calendar
import itertools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.convert.base import NO_CAMERA
from data.convert.raw_files import FrameLines, read_bytes, read_frame_lines
from data.convert.raw_files import read_sweep as read_sweep_rows
from data.geometry import rigid
from data.storage.damage import DamagedError
from data.storage.shard import ShardError


def read_calibration(path: Path) -> dict[str, Float[np.ndarray, " n"]]:
    """Lines of ``NAME: numbers``; lines that hold no numbers (times, names) are left out.

    Raises:
        DamagedError: the file is missing.
    """
    if not path.is_file():
        raise DamagedError("calibration-missing", str(path))
    values: dict[str, Float[np.ndarray, " n"]] = {}
    for line in read_bytes(path).decode("utf-8", errors="replace").splitlines():
        name, colon, numbers = line.partition(":")
        if not colon:
            continue
        try:
            values[name.strip()] = np.array([float(number) for number in numbers.split()])
        except ValueError:  # e.g. calib_time; a damaged number surfaces as a missing entry below
            continue
    return values


def entry(values: Mapping[str, Float[np.ndarray, " n"]], name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """One calibration entry in its shape.

    Raises:
        DamagedError: the entry is missing or has another number of values.
    """
    value = values.get(name)
    if value is None or value.size != np.prod(shape):
        detail = f"{name}: {'absent' if value is None else f'{value.size} numbers'}, expected {shape}"
        raise DamagedError("calibration-missing", detail)
    return value.reshape(shape)


def split_projection(P: Float[np.ndarray, "3 4"]) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"]]:
    """Take a rectified projection matrix K [I | t] apart.

    Returns:
        Intrinsics K in pixels, and T_cam_rect0, the camera's offset from camera 0 (6 cm for the left colour camera).

    Raises:
        DamagedError: K is singular.
    """
    K = P[:, :3]
    if not np.isfinite(P).all() or abs(np.linalg.det(K)) < 1e-6:
        raise DamagedError("calibration-singular", f"projection matrix {P.tolist()}")
    return K.copy(), rigid(np.eye(3), np.linalg.solve(K, P[:, 3]))


def stated_size(values: Mapping[str, Float[np.ndarray, " n"]], name: str) -> tuple[int, int] | None:
    """Height and width of the rectified images, which an entry S_rect gives as width and height; None without one."""
    size = values.get(name)
    return None if size is None or size.size != 2 or not np.isfinite(size).all() else (int(size[1]), int(size[0]))


def rotation(R: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4 4"]:
    """A rectifying rotation as homogeneous matrix."""
    return rigid(R, np.zeros(3))


def homogeneous(T: Float[np.ndarray, "3 4"]) -> Float[np.ndarray, "4 4"]:
    """A 3x4 rigid transform as homogeneous matrix."""
    return rigid(T[:, :3], T[:, 3])


def inverse(name: str, T: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Inverse of a transform that came out of a file.

    Raises:
        DamagedError: it has none.
    """
    if not np.isfinite(T).all() or abs(np.linalg.det(T)) < 0.5:
        raise DamagedError("calibration-singular", f"{name}: {T.tolist()}")
    return np.linalg.inv(T)


def camera_names(
    asked: tuple[str, ...],
    known: Iterable[str],
    folders: Callable[[str], Iterable[Path]],
    missing: Callable[[Path], ShardError],
) -> tuple[str, ...]:
    """The cameras to read: those asked for, which every log must have; without any, those that every log has.

    Args:
        asked: the setting.
        known: all cameras of the set.
        folders: a camera's folder of images in each log.
        missing: the error for such a folder that is asked for and absent.
    """
    if asked == NO_CAMERA:
        return ()
    for camera in asked:
        for folder in folders(camera):
            if not folder.is_dir():
                raise missing(folder)
    return asked or tuple(name for name in known if all(folder.is_dir() for folder in folders(name)))


def absent(what: str, logs: Sequence[str]) -> list[str]:
    """The note that logs lack something, if any does: the first of them and how many more there are."""
    more = "" if len(logs) < 2 else f" and {len(logs) - 1} more"
    return [f"no {what} ({logs[0]}{more})"] if logs else []


def read_sweep(path: Path) -> Float[np.ndarray, "N 4"]:
    """x, y, z in metres and reflectance from 0 to 1 of a .bin file.

    Raises:
        DamagedError: the file is missing, or its rows are no four numbers.
    """
    return read_sweep_rows(path, 4)


def recorded(sweeps: Path, images: Iterable[Path]) -> list[str]:
    """Frames that have a sweep or an image: one that lacks either is counted as skipped, not silently left out."""
    files = (folder.glob(f"*{ending}") for folder in images for ending in _IMAGES)
    return numbered(itertools.chain(sweeps.glob("*.bin"), *files))


def image_file(folder: Path, name: str) -> Path:
    """A frame's image: PNG as published, or a JPEG that somebody made of it."""
    return next(
        (path for path in (folder / f"{name}{ending}" for ending in _IMAGES) if path.is_file()), folder / f"{name}.png"
    )


def numbered(paths: Iterable[Path]) -> list[str]:
    """Names of frames in order, each once: file names of at most ten digits, all other files are none of the set's."""
    return sorted({path.stem for path in paths if re.fullmatch(r"[0-9]{1,10}", path.stem)})


_IMAGES = (".png", ".jpg")

FRAME_PERIOD_US = 100_000
"""Of the scanner and the cameras, where their times are not stored."""


class Clock:
    """Times of the frames of some sensors, each from its own timestamps.txt; by 10 Hz for a sensor without one."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._times_us = {name: read_timestamps(folder / "timestamps.txt") for name, folder in folders.items()}

    def time_us(self, sensor: str, frame: int) -> int:
        """Microseconds since 1970, or since frame 0 without a file.

        Raises:
            DamagedError: the file ends before the frame's line, or the line is empty or no time.
        """
        times = self._times_us[sensor]
        if times is None:
            return frame * FRAME_PERIOD_US
        if frame >= len(times):
            path = self._folders[sensor] / "timestamps.txt"
            raise DamagedError("meta-broken", f"{path} has {len(times)} lines, no frame {frame}")
        return times[frame]


def read_timestamps(path: Path) -> FrameLines[int] | None:
    """Microseconds since 1970 of each line ``2011-09-26 13:02:25.951199337``, None where there is no file.

    Real drives have empty lines, where the scanner lost a frame: they belong to that frame alone.
    """
    return read_frame_lines(path, _time_us) if path.is_file() else None


def _time_us(text: str) -> int:
    seconds, _, fraction = text.partition(".")
    whole = calendar.timegm(time.strptime(seconds, "%Y-%m-%d %H:%M:%S"))
    return whole * 1_000_000 + int((fraction + "000000")[:6])
