"""Calibrations of cameras: ROS' CameraInfo and Foxglove's CameraCalibration, as models that `LogCamera` undistorts."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from data.convert.custom.formats import check_intrinsics
from data.convert.logs.base import CameraInfo, Message, Topic
from data.convert.logs.fields import field_of, header_of, numbers_in, whole
from data.convert.poses import nearest_rotation
from data.geometry import rigid
from data.storage.damage import DamagedError

CAMERA_TYPES = (
    "sensor_msgs/msg/CameraInfo",
    "foxglove.CameraCalibration",
    "foxglove_msgs/msg/CameraCalibration",
)

_MODELS: dict[str, tuple[Literal["pinhole", "fisheye"], tuple[int, ...]]] = {
    "plumb_bob": ("pinhole", (4, 5)),
    "rational_polynomial": ("pinhole", (8,)),
    "equidistant": ("fisheye", (4,)),
    "fisheye": ("fisheye", (4,)),
    "kannala_brandt": ("fisheye", (4,)),
}
"""Name -> its model here, and how many coefficients it may have; ROS' equidistant is Kannala and Brandt's k1 to k4."""
_OTHERS = {
    "double_sphere": "double sphere",
    "ds": "double sphere",
    "omni": "omnidirectional (Mei)",
    "mei": "omnidirectional (Mei)",
    "thin_prism": "thin prism",
    "thin_prism_fisheye": "thin prism",
    "eucm": "extended unified camera",
    "fov": "field of view",
    "atan": "field of view",
    "fisheye62": "a fisheye of six radial and two tangential coefficients",
    "division": "division",
}
"""Models that are not undistorted here, in words."""
_RECTIFIED = re.compile(r"(^|/)image_rect")
"""image_rect, image_rect_color, image_rect_raw: image_proc's names of images without distortion."""


_SHIFT_PX_M = 1e-6
"""Entries of P's last column that are rounding."""


def is_rectified(topic_name: str) -> bool:
    """Whether a topic of images has them without distortion, by the names that ROS gives those."""
    return _RECTIFIED.search(topic_name) is not None


def read_camera_info(topic: Topic, message: Message, *, rectified: bool = False) -> CameraInfo:
    """A camera's calibration.

    Binning and the region of interest are taken into account: `K` is that of the images as they are published. A pixel
    of a binned image is the mean of a block of the full one, whose centre is its centre.

    Args:
        topic: of the message.
        message: of one of `CAMERA_TYPES`.
        rectified: the images are those of `is_rectified`: P says where their points are, and there is no distortion.

    Raises:
        DamagedError: another type; a camera that is not calibrated (K of zeros); a model that is not undistorted here,
            by its name; coefficients that the model cannot have; a matrix that is for images of another size.

    Source: REP 104, sensor_msgs/CameraInfo.
    """
    if topic.type not in CAMERA_TYPES:
        raise DamagedError("meta-broken", f"{topic.name} holds {topic.type}, expected {' or '.join(CAMERA_TYPES)}")
    where, stamp_ns, frame = header_of(message)
    content = message.content
    size = whole(where, content, "height"), whole(where, content, "width")
    K = _matrix(where, "K", content, 3)
    if not K.any() or min(size) < 1:
        detail = (
            f"{where}: K is {'zeros' if not K.any() else K.tolist()}, the size {size[0]}x{size[1]} (height x width)"
        )
        raise DamagedError("calibration-missing", f"{detail}: the camera is not calibrated")
    T_cam_frame = None
    if rectified:
        K, T_cam_frame = _rectified(where, content, frame)
        model: Literal["pinhole", "fisheye"] = "pinhole"
        distortion = None
    else:
        model, distortion = _distortion(where, content)
    K, size = _published(where, content, K, size, rectified)
    check_intrinsics(f"{where}: {'P' if rectified else 'K'}", K, size)
    return CameraInfo(
        stamp_ns=stamp_ns,
        frame=frame,
        K=K,
        image_size=size,
        model=model,
        distortion=distortion,
        T_cam_frame=T_cam_frame,
    )


def _matrix(where: str, name: str, content: Any, columns: int) -> Float[np.ndarray, "3 columns"]:
    values = numbers_in(where, name, field_of(where, content, name, name.lower()))
    if values.shape != (3 * columns,):
        raise DamagedError("meta-broken", f"{where}: {name} has {values.size} numbers, expected {3 * columns}")
    return values.reshape(3, columns)


def _distortion(where: str, content: Any) -> tuple[Literal["pinhole", "fisheye"], Float[np.ndarray, " n"] | None]:
    name = str(field_of(where, content, "distortion_model"))
    values = numbers_in(where, "D", field_of(where, content, "D", "d"))
    if name == "":
        if values.any():
            detail = f"{where}: distortion_model is empty, D is {values.tolist()}: of which model?"
            raise DamagedError("calibration-missing", f"{detail} Expected {', '.join(_MODELS)}")
        return "pinhole", None
    if name.lower() not in _MODELS:
        known = _OTHERS.get(name.lower(), "")
        detail = f"{where}: distortion_model {name!r}{f' ({known})' if known else ''} is not undistorted here"
        raise DamagedError("meta-broken", f"{detail}: expected {', '.join(_MODELS)}, or topics of rectified images")
    model, lengths = _MODELS[name.lower()]
    if model == "pinhole" and not values.any():
        return model, None
    if len(values) > lengths[-1] and not values[lengths[-1] :].any():
        values = values[: lengths[-1]]  # calibrators write OpenCV's 12 or 14, those of thin prism and tilt being 0
    if len(values) not in lengths:
        expected = " or ".join(map(str, lengths))
        detail = f"{where}: D of {name} has {len(values)} numbers, {values.tolist()!s:.200}, expected {expected}"
        raise DamagedError("meta-broken", detail)
    return model, values


def _rectified(
    where: str, content: Any, frame: str
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"] | None]:
    """K of a rectified image, and the turn from the camera's frame to the one that the image is of; None for none."""
    P, R = _matrix(where, "P", content, 4), _matrix(where, "R", content, 3)
    if not P[:, :3].any():
        raise DamagedError("calibration-missing", f"{where}: P is zeros, which rectified images need")
    K = P[:, :3]
    if not (K[0, 0] > 0 and K[1, 1] > 0 and K[2, 2] == 1):
        raise DamagedError(
            "calibration-singular", f"{where}: P is {P.tolist()}, expected [K | K t] with fx, fy above 0"
        )
    if np.abs(P[:, 3]).max() > _SHIFT_PX_M:
        detail = f"{where}: P has the last column {P[:, 3].tolist()}, of the second camera of a stereo pair"
        detail += f": nobody says whether {frame!r} is that camera or the first one"
        raise DamagedError("calibration-missing", f"{detail}; take its raw images, or the first camera")
    R = R if R.any() else np.eye(3)  # drivers of single cameras leave it out
    if not np.allclose(R @ R.T, np.eye(3), atol=1e-3):
        raise DamagedError("calibration-singular", f"{where}: R is {R.tolist()}, expected a rotation")
    turned = not np.allclose(R, np.eye(3), atol=1e-9)
    return K, rigid(nearest_rotation(R), np.zeros(3)) if turned else None


def _published(
    where: str, content: Any, K: Float[np.ndarray, "3 3"], size: tuple[int, int], rectified: bool
) -> tuple[Float[np.ndarray, "3 3"], tuple[int, int]]:
    """K and size of images that are a part of the sensor's, or of fewer, larger pixels."""
    height, width = size
    left = top = 0
    roi = getattr(content, "roi", None)
    if roi is not None:
        part = whole(where, roi, "height"), whole(where, roi, "width")
        left, top = whole(where, roi, "x_offset"), whole(where, roi, "y_offset")
        if (part[0] == 0) != (part[1] == 0) or top + part[0] > height or left + part[1] > width:
            detail = f"{where}: roi of {part[0]}x{part[1]} (height x width) from ({left}, {top}) on"
            raise DamagedError("meta-broken", f"{detail} is no part of {height}x{width}")
        if any(part):  # zeros stand for the whole image
            if rectified and part != size and bool(getattr(roi, "do_rectify", False)):
                raise DamagedError("meta-broken", f"{where}: roi.do_rectify: where the rectified part lies is not said")
            height, width = part
    # 0 stands for 1.
    across, down = (max(1, int(getattr(content, name, 0))) for name in ("binning_x", "binning_y"))
    K = K.copy()
    K[0, 2], K[1, 2] = (K[0, 2] - left + 0.5) / across - 0.5, (K[1, 2] - top + 0.5) / down - 0.5
    K[0, :2] /= across
    K[1, 1] /= down
    return K, (height // down, width // across)
