"""A scene as a file for the Rerun viewer (extra [rerun]). The one importer of rerun."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from common.files import replacing
from configs.load import ArgumentError
from launchers.drawing.scene_description import Scene, SceneCamera, SceneFrame, quaternion

TIMELINE = "time"
_PIXEL_CORNER = 0.5
"""Rerun counts from the corner of the top-left pixel."""
_POINT_SIZE = 1.0
"""Radius of a sweep's points, pixels of the screen: in metres they vanish when a whole street is seen."""


def import_rerun() -> ModuleType:
    """The library.

    Raises:
        ArgumentError: it is not installed.
    """
    try:
        import rerun
    except ImportError as error:
        raise ArgumentError(f"--rerun needs rerun-sdk ({error}): pip install 'tandem-pretrain[rerun]'") from error
    module: ModuleType = rerun
    return module


def write_rerun(scene: Scene, path: Path) -> int:
    """Write an .rrd file; returns the number of frames.

    Entities: world/ego/lidar/<cloud>, world/ego/lidar/boxes, world/cameras/<name> with image, superpixels and pairs.

    Raises:
        ArgumentError: rerun-sdk is not installed.
    """
    rr = import_rerun()
    # The time of writing and a random number would make two files of one scene differ.
    stream = rr.RecordingStream("tandem", recording_id=scene.title, send_properties=False)
    stream.set_log_time_enabled(False)
    stream.set_log_tick_enabled(False)
    with replacing(path, durable=False) as temporary:
        stream.save(temporary)
        frames = _write_frames(rr, stream, scene)
        stream.disconnect()  # waits until all is written
    return frames


def _write_frames(rr: Any, stream: Any, scene: Scene) -> int:
    stream.log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    frames = 0
    for frame in scene.frames:
        _write_frame(rr, stream, frame)
        frames += 1
    return frames


def _write_frame(rr: Any, stream: Any, frame: SceneFrame) -> None:
    _at(stream, frame.time_us)
    stream.log("world/ego", _transform(rr, frame.T_world_ego))
    stream.log("world/ego/lidar", _transform(rr, frame.T_ego_lidar))
    stream.log("sample", rr.TextLog(frame.key))
    for cloud in frame.clouds:
        points = rr.Points3D(cloud.points, colors=cloud.colours, radii=rr.Radius.ui_points(_POINT_SIZE))
        stream.log(f"world/ego/lidar/{cloud.name}", points)
    if frame.boxes is not None:
        boxes = frame.boxes
        turned = [[0.0, 0.0, np.sin(yaw / 2), np.cos(yaw / 2)] for yaw in boxes.yaws.tolist()]
        stream.log(
            "world/ego/lidar/boxes",
            rr.Boxes3D(
                centers=boxes.centers_m,
                half_sizes=boxes.sizes_m / 2,
                quaternions=turned,
                colors=boxes.colours,
                labels=boxes.names,
            ),
        )
    for camera in frame.cameras:
        _write_camera(rr, stream, camera)


def _write_camera(rr: Any, stream: Any, camera: SceneCamera) -> None:
    _at(stream, camera.time_us)
    place = f"world/cameras/{camera.name}"
    height, width = camera.image_size
    K = camera.K.astype(np.float64).copy()
    K[:2, 2] += _PIXEL_CORNER
    stream.log(place, _transform(rr, camera.T_world_cam))
    stream.log(f"{place}/image", rr.Pinhole(image_from_camera=K, width=width, height=height))
    stream.log(f"{place}/image", rr.EncodedImage(contents=camera.jpeg, media_type="image/jpeg"))
    if camera.superpixels is not None:
        segments = camera.superpixels.astype(np.uint16)
        stream.log(f"{place}/image/superpixels", rr.SegmentationImage(segments, opacity=0.25))
    uv = camera.pairs_uv + _PIXEL_CORNER
    stream.log(f"{place}/image/pairs", rr.Points2D(uv, colors=camera.pairs_colours, radii=1.0))


def _at(stream: Any, time_us: int) -> None:
    stream.set_time(TIMELINE, timestamp=np.datetime64(time_us, "us"))


def _transform(rr: Any, T: np.ndarray) -> Any:
    return rr.Transform3D(translation=T[:3, 3], quaternion=rr.Quaternion(xyzw=quaternion(T)))
